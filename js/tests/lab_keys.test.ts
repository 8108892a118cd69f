/** The keyboard in the panel's tree. */
import { afterEach, beforeEach, expect, test } from "vitest";
import { el } from "../src/dom";
import { treeKeys } from "../src/lab/tree_keys";

let tree: HTMLElement;
let focused: string[];
let pressed: string[];
let leaked: string[];

function row(key: string, level: number, open?: boolean): HTMLElement {
  const button = (action: string) => {
    const node = el("button", "", { "data-action": action }, action);
    node.onclick = () => pressed.push(`${action} ${key}`);
    return node;
  };
  return el(
    "li",
    "",
    { "data-key": key, "aria-level": level, "aria-expanded": open === undefined ? null : String(open) },
    button("toggle"),
    button("explore"),
  );
}

function press(from: string, key: string, options: KeyboardEventInit = {}): KeyboardEvent {
  const event = new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true, ...options });
  tree.querySelector(from)?.dispatchEvent(event);
  return event;
}
const at = (key: string) => `[data-key="${key}"]`;
const watch = (event: KeyboardEvent) => leaked.push(event.key);

beforeEach(() => {
  focused = [];
  pressed = [];
  leaked = [];
  tree = el(
    "ul",
    "",
    {},
    row("a", 1, true),
    row("a0", 2),
    row("a1", 2),
    row("b", 1, false),
    row("c", 1, true),
    row("c0", 2),
  );
  treeKeys(tree, (key) => focused.push(key));
  document.body.append(tree);
  document.addEventListener("keydown", watch);
});
afterEach(() => {
  document.removeEventListener("keydown", watch);
  tree.remove();
});

test("up and down step over all rows and stop at the ends", () => {
  press(at("a"), "ArrowDown");
  press(at("a1"), "ArrowDown");
  press(at("b"), "ArrowUp");
  expect(focused).toEqual(["a0", "b", "a1"]);
  press(at("c0"), "ArrowDown");
  press(at("a"), "ArrowUp");
  expect(focused).toHaveLength(3);
});

test("home and end", () => {
  press(at("a1"), "Home");
  press(at("a1"), "End");
  expect(focused).toEqual(["a", "c0"]);
});

test("right unfolds, then steps in", () => {
  press(at("b"), "ArrowRight");
  expect(pressed).toEqual(["toggle b"]);
  press(at("a"), "ArrowRight");
  expect(focused).toEqual(["a0"]);
  press(at("a0"), "ArrowRight");
  expect(focused).toHaveLength(1);
  expect(pressed).toHaveLength(1);
});

test("left folds, from a layer it goes to its model", () => {
  press(at("a"), "ArrowLeft");
  expect(pressed).toEqual(["toggle a"]);
  press(at("a1"), "ArrowLeft");
  press(at("c0"), "ArrowLeft");
  expect(focused).toEqual(["a", "c"]);
  press(at("b"), "ArrowLeft");
  expect(pressed).toHaveLength(1);
  expect(focused).toHaveLength(2);
});

test("enter explores from a row; a button with the focus is the browser's to press", () => {
  press(at("a0"), "Enter");
  expect(pressed).toEqual(["explore a0"]);
  expect(press(`${at("a0")} button`, "Enter").defaultPrevented).toBe(false);
  expect(pressed).toHaveLength(1);
});

test("from a button, arrows go on from its row", () => {
  press(`${at("a0")} button`, "ArrowDown");
  expect(focused).toEqual(["a1"]);
});

test("keys of the tree do not reach the host's shortcuts, all others do", () => {
  expect(press(at("a"), "ArrowDown").defaultPrevented).toBe(true);
  expect(leaked).toEqual([]);
  for (const modifier of ["ctrlKey", "metaKey", "altKey"]) press(at("a"), "ArrowDown", { [modifier]: true });
  expect(press(at("a"), "x").defaultPrevented).toBe(false);
  expect(leaked).toEqual(["ArrowDown", "ArrowDown", "ArrowDown", "x"]);
  expect(focused).toHaveLength(1);
});
