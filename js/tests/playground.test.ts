/** The lesson beside the picture: closed form against measurement, and the controls of every kind. */
import { afterEach, beforeEach, expect, test } from "vitest";
import { compare, verdict } from "../src/closed_form";
import { groupName } from "../src/facts";
import { initialState, type Settings, type State } from "../src/state";
import { Store } from "../src/store";
import { toyControls } from "../src/views/toy_controls";
import { toyLesson, toySentence } from "../src/views/toy_lesson";
import { Wish } from "../src/wish";
import { controls, spectrum, toyData } from "./toys";

const layers = [
  {
    name: "playground",
    family: "delay by 2",
    heads: 1,
    group: "operator",
    residual: null,
    limit: 1e-5,
  },
];

function state(values: number[], settings: Partial<Settings> = {}, position = 2): State {
  return {
    ...initialState,
    layers,
    settings: { ...initialState.settings, kind: "tolerance", tol: 1e-6, ...settings },
    selection: { ...initialState.selection, layer: "playground", position },
    toy_data: toyData(),
    spectrum_data: spectrum(values),
  };
}
const said = (s: State) => verdict(compare(s)!, s.settings.kind).join(" ");

test("an operator is called by what it is", () => {
  expect(groupName(layers[0], 0)).toBe("delay by 2");
});

test("agreement is said, and where there is none, what hides the rest", () => {
  expect(said(state([0, 0, 1, 0, 1, 1, 1, 0]))).toBe("Measured and closed form agree at all 3 positions.");
  const below = state([0, 0, 1, 0, 1, 1e-8, 1, 0]);
  expect(compare(below)).toMatchObject({
    differing: 1,
    worst: 2,
    at: { closed: 2, visible: 2, measured: 1 },
  });
  expect(said(below)).toContain("They differ at 1 of 3 positions, most at 2.");
  expect(said(below)).toContain("1 lies below τ");
  const lost = state([0, 0, 1, 0, 1, 1e-17, 1, 0]);
  expect(said(lost)).toContain("smaller than rounding error");
  expect(said(lost)).not.toContain("below τ");
  const noise = state([0, 0, 1, 1e-17, 1, 1, 1, 0], { tol: 1e-20 }, 1);
  expect(said(noise)).toContain("noise is counted");
});

test("entropy is another quantity, except where all singular values are equal", () => {
  expect(said(state([0, 0, 3, 0, 2, 2, 5, 0], { kind: "entropy" }))).toContain("agree at all");
  expect(said(state([0, 0, 3, 0, 2, 1, 5, 0], { kind: "entropy" }))).toContain("Entropy weighs");
});

test("nothing is compared with what belongs to another length", () => {
  const s = state([0, 0, 1, 0, 1, 1, 1, 0]);
  expect(compare({ ...s, toy_data: toyData({ length: 8 }) })).toBeNull();
  expect(compare({ ...s, toy_data: null })).toBeNull();
});

let root: HTMLElement;
let undo: (() => void)[] = [];
beforeEach(() => {
  root = document.createElement("div");
  document.body.append(root);
});
afterEach(() => {
  undo.reverse().forEach((stop) => stop());
  undo = [];
  expect(root.childElementCount).toBe(0);
  root.remove();
});

test("the lesson shows numbers and warnings as text, never as markup", () => {
  const store = new Store(state([0, 0, 1, 0, 1, 1e-8, 1, 0]));
  undo = [toySentence(root, store), toyLesson(root, store)];
  expect([...root.querySelectorAll("[data-part=comparison] b")].map((b) => b.textContent)).toEqual([
    "2",
    "2",
    "1",
  ]);
  store.set({ toy_data: toyData({ warnings: ["<b>loud</b>", "two"], formula: "<i>x</i>" }) });
  store.flush();
  expect([...root.querySelectorAll("[data-part=warnings] li")].map((li) => li.textContent)).toEqual([
    "<b>loud</b>",
    "two",
  ]);
  expect(root.querySelector("[data-part=formula]")!.textContent).toBe("<i>x</i>");
  store.configure({ tol: 1e-9 });
  store.flush();
  expect(root.querySelector("[data-part=verdict]")!.textContent).toContain("agree at all 3");
});

test("every kind of control asks for its value", () => {
  const { k, temperature, rows, seed } = controls;
  const store = new Store({ ...initialState, toy_data: toyData({ controls: [k, temperature, rows, seed] }) });
  const wish = new Wish(store);
  undo = [() => wish.stop(), toyControls(root, store, wish)];
  const find = (selector: string) => root.querySelector<HTMLElement>(selector)!;
  const input = (selector: string) => root.querySelector<HTMLInputElement>(selector)!;
  const slide = (name: string, value: string) => {
    const slider = input(`[data-parameter=${name}] input[type=range]`);
    slider.value = value;
    slider.dispatchEvent(new Event("input"));
    return slider;
  };
  expect(slide("k", "3").getAttribute("aria-label")).toBe("delay k");
  expect(wish.value(k)).toBe(3);
  expect(slide("temperature", "200").getAttribute("aria-valuetext")).toBe("uniform");
  expect(wish.value(temperature)).toBe("inf");
  input("[data-parameter=rows] [value=mean]").click();
  expect(wish.value(rows)).toBe("mean");
  find("[data-parameter=seed] button").click();
  expect(wish.value(seed)).toBe(4);
  const field = input("[data-parameter=k] input[type=text]");
  for (const [text, valid] of [
    ["9", false],
    ["", false],
    ["1.5", false],
    ["4", true],
  ] as const) {
    field.value = text;
    field.dispatchEvent(new Event("input"));
    expect(field.classList.contains("ess-invalid")).toBe(!valid);
  }
  expect(wish.value(k)).toBe(4);
  // Another toy brings its own.
  store.set({ toy_data: toyData({ toy: "dense", controls: [seed], stamp: 9 }) });
  store.flush();
  expect(root.querySelectorAll("[data-parameter]")).toHaveLength(1);
});
