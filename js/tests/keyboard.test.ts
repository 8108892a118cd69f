import { afterEach, beforeEach, expect, test } from "vitest";
import { mountKeyboard } from "../src/keyboard";
import { Store } from "../src/store";
import { layers, smallState } from "./data";

let root: HTMLElement;
let store: Store;
let unmount: () => void;
let helped = 0;
let leaked: string[];
const watch = (event: KeyboardEvent) => leaked.push(event.key);

beforeEach(() => {
  root = document.createElement("div");
  document.body.append(root);
  store = new Store(smallState());
  helped = 0;
  leaked = [];
  unmount = mountKeyboard(root, store, () => helped++);
  document.addEventListener("keydown", watch);
});
afterEach(() => {
  document.removeEventListener("keydown", watch);
  unmount();
  root.remove();
});

function press(key: string, options: KeyboardEventInit = {}, target: Element = root): KeyboardEvent {
  const event = new KeyboardEvent("keydown", {
    key,
    bubbles: true,
    cancelable: true,
    composed: true,
    ...options,
  });
  target.dispatchEvent(event);
  return event;
}

test("arrows move the position and stop at the ends", () => {
  press("ArrowLeft");
  expect(store.state.selection.position).toBe(1);
  press("ArrowRight", { shiftKey: true });
  expect(store.state.selection.position).toBe(3);
  press("Home");
  expect(store.state.selection.position).toBe(0);
  press("End");
  expect(store.state.selection.position).toBe(3);
});

test("without a position, arrows enter from their side", () => {
  store.select({ position: null });
  press("ArrowRight");
  expect(store.state.selection.position).toBe(0);
  store.select({ position: null });
  press("ArrowLeft");
  expect(store.state.selection.position).toBe(3);
});

test("heads and layers", () => {
  press("ArrowDown");
  expect(store.state.selection.head).toBe(1);
  press("ArrowDown");
  expect(store.state.selection.head).toBe(1);
  press("PageDown");
  expect(store.state.selection).toMatchObject({ layer: layers[1]!.name, head: 0 });
  press("ArrowUp", { altKey: true });
  expect(store.state.selection.layer).toBe(layers[0]!.name);
});

test("space pins, escape lets go of everything", () => {
  press(" ");
  expect(store.state.selection.pinned).toBe(true);
  store.select({ span: [0, 2], mode: 1 });
  press("Escape");
  expect(store.state.selection).toMatchObject({ pinned: false, span: null, mode: null, position: 2 });
});

test("the question mark asks for help", () => {
  press("?");
  expect(helped).toBe(1);
});

test("plain keys do not reach the host's shortcuts, its combinations do", () => {
  press("d");
  press("ArrowDown");
  press("Enter", { shiftKey: true });
  expect(leaked).toEqual([]);
  press("s", { ctrlKey: true });
  press("Enter", { metaKey: true });
  expect(leaked).toEqual(["s", "Enter"]);
});

test("a text field keeps its keys, saving aside", () => {
  const area = document.createElement("textarea");
  root.append(area);
  const event = press("ArrowLeft", {}, area);
  press("z", { ctrlKey: true }, area);
  press("?", {}, area);
  expect(event.defaultPrevented).toBe(false);
  expect(store.state.selection.position).toBe(2);
  expect(helped).toBe(0);
  expect(leaked).toEqual([]);
  press("s", { ctrlKey: true }, area);
  expect(leaked).toEqual(["s"]);
  area.focus();
  press("Escape", {}, area);
  expect(document.activeElement).toBe(root);
});

test("a focused button is pressed, not the position pinned", () => {
  const button = document.createElement("button");
  root.append(button);
  expect(press(" ", {}, button).defaultPrevented).toBe(false);
  expect(store.state.selection.pinned).toBe(false);
});
