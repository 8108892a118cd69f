import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { Store } from "../src/store";
import { editor } from "../src/views/editor";
import { smallState } from "./data";

let root: HTMLElement;
let store: Store;
let area: HTMLTextAreaElement;
let unmount: () => void;

beforeEach(() => {
  vi.useFakeTimers();
  root = document.createElement("div");
  document.body.append(root);
  store = new Store(smallState());
  unmount = editor(root, store);
  area = root.querySelector("textarea")!;
});
afterEach(() => {
  unmount();
  root.remove();
  vi.useRealTimers();
});

function type(text: string): void {
  area.focus();
  area.value = text;
  area.dispatchEvent(new Event("input", { bubbles: true }));
}
function fromKernel(text: string): void {
  store.set({ text });
  store.flush();
}

test("typing goes out once, after a pause", () => {
  const seen: (string | null)[] = [];
  store.on(["text"], () => seen.push(store.state.text));
  for (const text of ["h", "he", "hel"]) {
    type(text);
    vi.advanceTimersByTime(60);
  }
  expect(seen).toEqual([]);
  vi.advanceTimersByTime(200);
  expect(seen).toEqual(["hel"]);
});

test("a text set in Python appears while nobody types", () => {
  fromKernel("from Python");
  expect(area.value).toBe("from Python");
  area.focus();
  fromKernel("again");
  expect(area.value).toBe("again");
});

test("an older text that comes back does not overwrite what is being typed", () => {
  type("first");
  vi.advanceTimersByTime(200);
  type("first and second");
  fromKernel("first");
  expect(area.value).toBe("first and second");
  vi.advanceTimersByTime(200);
  expect(store.state.text).toBe("first and second");
  fromKernel("first");
  expect(area.value).toBe("first and second");
  vi.advanceTimersByTime(3000);
  expect(area.value).toBe("first and second");
  expect(store.state.text).toBe("first and second");
});

test("another text from Python wins once typing has stopped", () => {
  type("mine");
  vi.advanceTimersByTime(200);
  fromKernel("theirs");
  expect(area.value).toBe("mine");
  vi.advanceTimersByTime(3000);
  expect(area.value).toBe("theirs");
});

test("nothing goes out while an input method composes", () => {
  area.dispatchEvent(new CompositionEvent("compositionstart"));
  type("に");
  vi.advanceTimersByTime(500);
  expect(store.state.text).toBe("one two.");
  type("日本");
  area.dispatchEvent(new CompositionEvent("compositionend"));
  vi.advanceTimersByTime(500);
  expect(store.state.text).toBe("日本");
});

test("leaving the field sends at once", () => {
  type("done");
  area.blur();
  expect(store.state.text).toBe("done");
});

test("typing that is cut short by closing still arrives", () => {
  type("last words");
  unmount();
  expect(store.state.text).toBe("last words");
});

test("there is no field where there is no text", () => {
  store.set({ text: null });
  store.flush();
  expect(area.parentElement!.hidden).toBe(true);
  store.set({ text: "" });
  store.flush();
  expect(area.parentElement!.hidden).toBe(false);
  expect(area.value).toBe("");
});
