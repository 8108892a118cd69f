import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { signed } from "../src/colour";
import { Store } from "../src/store";
import { luminance, parseColour, readTheme, type Theme } from "../src/theme";
import { strength } from "../src/views/token_marks";
import { tokenView } from "../src/views/token_view";
import { layers, smallState } from "./data";

let root: HTMLElement;
let store: Store;
let unmount: () => void;

function mount(labels: string[], marks = labels.map(() => 0)): HTMLElement[] {
  store = new Store(smallState({ tokens: { labels, marks, indexed: false } }));
  unmount = tokenView(root, store);
  return tokens();
}
function tokens(): HTMLElement[] {
  return [...root.querySelectorAll<HTMLElement>("[data-index]")];
}
function pointer(target: Element, type: string): void {
  target.dispatchEvent(new MouseEvent(type, { bubbles: true }));
}
function withClass(name: string): number[] {
  return tokens().flatMap((node, index) => (node.classList.contains(name) ? [index] : []));
}

beforeEach(() => {
  root = document.createElement("div");
  document.body.append(root);
});
afterEach(() => {
  unmount();
  expect(root.childElementCount).toBe(0);
  root.remove();
});

test("labels are text, whatever is in them", () => {
  const hostile = ["<img/src=x>", "", "\u202eabc", "\n\n", "\u0000", "x".repeat(10_000), "\ud800"];
  const nodes = mount(hostile);
  expect(root.querySelector("img")).toBeNull();
  expect(nodes.slice(0, 4).map((node) => node.textContent)).toEqual(["<img/src=x>", "∅", "‹202E›abc", "↵↵"]);
  expect(nodes).toHaveLength(hostile.length);
  for (const node of nodes) {
    expect((node.textContent ?? "").length).toBeLessThanOrEqual(40);
    // eslint-disable-next-line no-control-regex -- their absence is what is tested
    expect(node.textContent).not.toMatch(/[\u0000-\u001f\u202e]/);
  }
});

test("spaces show as a quiet dot of their own", () => {
  const [, second] = mount(["one", " two"]);
  expect(second?.textContent).toBe("·two");
  expect(second?.querySelector("i")?.textContent).toBe("·");
});

test("pointing selects the position, a click pins it, another lets it go", () => {
  const nodes = mount(["a", "b", "c", "d"]);
  pointer(nodes[1]!, "pointerover");
  expect(store.state.selection.position).toBe(1);
  pointer(nodes[3]!, "pointerover");
  pointer(nodes[3]!, "pointerdown");
  pointer(window as unknown as Element, "pointerup");
  expect(store.state.selection).toMatchObject({ position: 3, pinned: true, span: null });
  pointer(nodes[0]!, "pointerover");
  expect(store.state.selection.position).toBe(3);
  pointer(nodes[3]!, "pointerdown");
  pointer(window as unknown as Element, "pointerup");
  expect(store.state.selection.pinned).toBe(false);
});

test("dragging selects a half-open span in either direction", () => {
  const nodes = mount(["a", "b", "c", "d"]);
  pointer(nodes[3]!, "pointerdown");
  pointer(nodes[2]!, "pointerover");
  pointer(nodes[1]!, "pointerover");
  pointer(window as unknown as Element, "pointerup");
  store.flush();
  expect(store.state.selection).toMatchObject({ span: [1, 4], pinned: false });
  expect(withClass("ess-spanned")).toEqual([1, 2, 3]);
  store.select({ span: [0, 2] });
  store.flush();
  expect(withClass("ess-spanned")).toEqual([0, 1]);
});

/** The DOM of these tests lays nothing out and has no canvas: boxes by index, and a record of what is filled. */
function recorded(): Map<string, number[]> {
  const filled = new Map<string, number[]>();
  let path: number[] = [];
  const context = {
    fillStyle: "",
    setTransform: vi.fn(),
    strokeRect: vi.fn(),
    clearRect: () => filled.clear(),
    beginPath: () => (path = []),
    rect: (x: number) => path.push(x / 10),
    fillRect: (x: number) => {
      filled.set(context.fillStyle, [...(filled.get(context.fillStyle) ?? []), x / 10]);
    },
    fill: () => filled.set(context.fillStyle, [...(filled.get(context.fillStyle) ?? []), ...path]),
  };
  vi.spyOn(HTMLCanvasElement.prototype, "getContext").mockReturnValue(context as never);
  vi.spyOn(HTMLElement.prototype, "getClientRects").mockImplementation(function (this: HTMLElement) {
    return [new DOMRect(10 * Number(this.dataset["index"]), 0, 9, 12)] as never;
  });
  return filled;
}

test("what is past to the position is marked, without touching any token", async () => {
  const filled = recorded();
  mount(Array.from({ length: 256 }, (_, k) => `t${k}`));
  const touched = new Set<Node>();
  const observer = new MutationObserver((records) => records.forEach(({ target }) => touched.add(target)));
  store.select({ position: 103 });
  store.flush();
  const theme = readTheme(root);
  expect(filled.get(theme.past)).toHaveLength(103);
  expect(filled.get(theme.field)).toHaveLength(153);
  expect(new Set(filled.get(theme.accent))).toEqual(new Set([103]));
  observer.observe(root, { attributes: true, subtree: true, childList: true, characterData: true });
  store.select({ position: 105 });
  store.flush();
  await Promise.resolve();
  observer.disconnect();
  expect(filled.get(theme.past)).toHaveLength(105);
  expect([...touched]).toEqual([root.querySelector(".ess-tokens")]);
  expect(root.querySelector<HTMLElement>(".ess-tokens")!.dataset["position"]).toBe("105");
  vi.restoreAllMocks();
});

test("a singular value tints tokens while its vectors belong to the selection", () => {
  const filled = recorded();
  mount(["a", "b", "c", "d"]);
  const theme = readTheme(root);
  const layer = layers[0]!.name;
  store.set({
    vectors: {
      layer,
      head: 0,
      position: 2,
      count: 2,
      past: Float32Array.of(9, 9, 1, 0),
      future: Float32Array.of(9, 9, 0, -0.5),
    },
  });
  store.select({ mode: 1 });
  store.flush();
  expect(filled.get(signed(theme)(1))).toEqual([0]);
  expect(filled.get(signed(theme)(-1))).toEqual([3]);
  expect(root.querySelector(".ess-weighted")).not.toBeNull();
  store.select({ position: 3 });
  store.flush();
  expect(filled.get(signed(theme)(1))).toBeUndefined();
  expect(filled.get(theme.past)).toEqual([0, 1, 2]);
  expect(root.querySelector(".ess-weighted")).toBeNull();
  vi.restoreAllMocks();
});

test("text keeps its contrast on the strongest tint", () => {
  for (const theme of [
    { dark: false, bg: [255, 255, 255], fg: "#1c1e21" },
    { dark: true, bg: [17, 17, 17], fg: "#e6e6e6" },
  ]) {
    const colour = signed(theme as unknown as Theme);
    const opacity = theme.dark ? strength.dark : strength.light;
    for (const weight of [-1, 1]) {
      const [r, g, b] = parseColour(colour(weight)).map(
        (value, k) => opacity * value + (1 - opacity) * (theme.bg[k] ?? 0),
      );
      const [dim, bright] = [luminance(`rgb(${r}, ${g}, ${b})`), luminance(theme.fg)].sort((x, y) => x - y);
      expect((bright! + 0.05) / (dim! + 0.05)).toBeGreaterThan(4.5);
    }
  }
});

test("new tokens replace the old ones and keep the marks of the selection", () => {
  mount(["a", "b", "c", "d"]);
  store.set({ tokens: { labels: ["x", "y", "z"], marks: [0, 2, 1], indexed: false } });
  store.flush();
  expect(tokens().map((node) => node.textContent)).toEqual(["x", "y", "z"]);
  expect(withClass("ess-special")).toEqual([1]);
  expect(withClass("ess-mark")).toEqual([2]);
  expect(root.querySelector<HTMLElement>(".ess-tokens")!.dataset["position"]).toBe("2");
  store.set({ tokens: null });
  store.flush();
  expect(tokens()).toEqual([]);
});
