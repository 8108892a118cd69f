/** The panels around the picture: controls, readings, status, layer grid. */
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import type { State } from "../src/state";
import { Store } from "../src/store";
import { controls, parseTol, tolAt } from "../src/views/controls";
import { help } from "../src/views/help";
import { layerGridView } from "../src/views/layer_grid_view";
import { readout } from "../src/views/readout";
import { remembered } from "../src/views/remembered";
import type { View } from "../src/views/single";
import { statusLine, titleLine } from "../src/views/status";
import { layers, smallState } from "./data";

let root: HTMLElement;
let unmount: () => void = () => undefined;

function mount(view: View, patch: Partial<State> = {}): Store {
  const store = new Store(smallState(patch));
  unmount = view(root, store);
  return store;
}
function find(selector: string): HTMLElement {
  const found = root.querySelector<HTMLElement>(selector);
  if (!found) throw new Error(`nothing matches ${selector}`);
  return found;
}
function input(selector: string): HTMLInputElement {
  return find(`input${selector}`) as HTMLInputElement;
}
function select(selector: string): HTMLSelectElement {
  return find(`select${selector}`) as HTMLSelectElement;
}
function choose(value: string): void {
  input(`[value="${value}"]`).click();
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

test("τ sits on round decades and takes what can be a threshold", () => {
  expect(tolAt(-2)).toBe(0.01);
  expect(tolAt(-8)).toBe(1e-8);
  expect(tolAt(1)).toBe(10);
  expect(tolAt(-2.05)).toBeCloseTo(10 ** -2.05, 7);
  expect(parseTol("1e-3")).toBe(0.001);
  expect(parseTol(" 0,5 ")).toBe(0.5);
  for (const text of ["", "0", "-1", "x", "Infinity", "NaN"]) expect(parseTol(text)).toBeNull();
});

test("controls write the settings", () => {
  const store = mount(controls);
  choose("entropy");
  choose("relative");
  choose("linear");
  choose("state_size");
  expect(store.state.settings).toMatchObject({
    kind: "entropy",
    relative: true,
    scale: "linear",
    against: "state_size",
  });
  const slider = input('[data-part="tol"]');
  slider.value = "-3";
  slider.dispatchEvent(new Event("input"));
  expect(store.state.settings.tol).toBe(0.001);
});

test("a number that is no threshold is marked and not taken", () => {
  const store = mount(controls);
  const field = input('[type="text"]');
  field.value = "-3";
  field.dispatchEvent(new Event("input"));
  expect(field.classList.contains("ess-invalid")).toBe(true);
  expect(store.state.settings.tol).toBe(0.01);
  field.value = "2e-4";
  field.dispatchEvent(new Event("input"));
  expect(field.classList.contains("ess-invalid")).toBe(false);
  expect(store.state.settings.tol).toBe(2e-4);
});

test("controls show settings from elsewhere; the entropy has no τ", () => {
  const store = mount(controls);
  store.configure({ kind: "entropy", tol: 0.5 });
  store.flush();
  expect(input('[value="entropy"]').checked).toBe(true);
  expect(input('[data-part="tol"]').disabled).toBe(true);
  expect(input('[type="text"]').value).toBe("0.5");
});

test("picking a narrower layer keeps the head within it", () => {
  const store = mount(controls);
  store.select({ head: 1 });
  store.flush();
  const picker = select('[data-part="layer"]');
  expect([...picker.options].map((option) => option.text)).toEqual(["0", "1"]);
  picker.selectedIndex = 1;
  picker.dispatchEvent(new Event("change"));
  store.flush();
  expect(store.state.selection).toMatchObject({ layer: layers[1]!.name, head: 0 });
  expect(select('[data-part="head"]').options).toHaveLength(1);
});

test("the reading names position, both sides, ESS and its ceiling", () => {
  const store = mount(readout);
  expect(root.textContent).toContain("Position 2 “two”");
  expect(root.textContent).toContain("past 2 inputs · future 2 outputs");
  expect(root.textContent).toContain("ESS 2 of 2 by σ > 10⁻²");
  store.select({ span: [1, 4] });
  store.flush();
  expect(root.textContent).toContain("Span 1–3: 1.3 ± 0.5, 1.00 of ceiling");
  vi.useFakeTimers();
  store.select({ position: null, span: null });
  store.flush();
  expect(root.textContent).toContain("Position 2"); // words wait until the pointer rests
  vi.advanceTimersByTime(100);
  expect(root.textContent).toContain("Point at a position");
  vi.useRealTimers();
});

test("a profile of another layer is not read as that of the selected one", () => {
  const store = mount(readout);
  store.select({ layer: layers[1]!.name });
  store.flush();
  expect(find(".ess-big").textContent).toBe("–");
});

test("what a singular value carries is listed by weight", () => {
  const store = mount(remembered, {
    spectrum_data: {
      layer: layers[0]!.name,
      head: 0,
      length: 4,
      rank: 2,
      values: Float32Array.of(0, 0, 1, 0, 2, 0.5, 1, 0),
    },
  });
  expect(root.textContent).toContain("Point at a singular value");
  store.select({ mode: 1 });
  store.set({
    vectors: {
      layer: layers[0]!.name,
      head: 0,
      position: 2,
      count: 2,
      past: Float32Array.of(1, 0, 0.25, -0.96875),
      future: Float32Array.of(1, 0, 0.5, 0.75),
    },
  });
  store.flush();
  expect(root.textContent).toContain("σ₂ = 0.5 carries");
  const rows = [...root.querySelectorAll("li:not([hidden])")].map((row) =>
    [...row.children].map((cell) => cell.textContent),
  );
  expect(rows).toEqual([
    ["1", "one", "−0.97"],
    ["0", "<s>", "+0.25"],
    ["3", ".", "+0.75"],
    ["2", "·two", "+0.50"],
  ]);
});

test("the title warns of the worst residual", () => {
  const store = mount(titleLine);
  expect(find(".ess-residual").textContent).toBe("⚠ residual 0.3");
  expect(find(".ess-residual").title).toContain(layers[1]!.name);
  store.set({ layers: [layers[0]!] });
  store.flush();
  expect(find(".ess-residual").textContent).toBe("residual ≤ 2×10⁻⁷");
  expect(root.textContent).toContain("4 tokens");
});

test("progress and errors show as the kernel tells them", () => {
  const store = mount(statusLine, { status: { phase: "computing", message: "spectra", progress: 0.25 } });
  expect(find('[role="progressbar"]').getAttribute("aria-valuenow")).toBe("25");
  expect(find('[data-part="error"]').hidden).toBe(true);
  const message = "<b>ValueError</b>: too long\nshorten it";
  store.set({ status: { phase: "error", message, progress: null } });
  store.flush();
  expect(find('[data-part="error"]').hidden).toBe(false);
  expect(find('[data-part="error"]').textContent).toBe(message);
  expect(root.querySelector("b")).toBeNull();
});

test("the explanation opens, closes by Escape and by a press elsewhere", () => {
  const bar = document.createElement("div");
  root.append(bar);
  const guide = help(bar, root);
  const card = find('[role="dialog"]');
  const button = find('[data-part="help"]');
  button.click();
  expect(card.hidden).toBe(false);
  expect(button.getAttribute("aria-expanded")).toBe("true");
  card.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
  expect(card.hidden).toBe(true);
  guide.toggle();
  document.body.dispatchEvent(new MouseEvent("pointerdown", { bubbles: true, composed: true }));
  expect(card.hidden).toBe(true);
  guide.dispose();
  bar.remove();
});

test("a cell of the grid reads out where it is pointed at and selects its head when clicked", () => {
  vi.spyOn(HTMLElement.prototype, "clientWidth", "get").mockReturnValue(122);
  vi.spyOn(HTMLElement.prototype, "clientHeight", "get").mockReturnValue(130);
  const store = mount(layerGridView);
  const area = find(".ess-grid-plot");
  const at = (type: string, x: number, y: number) =>
    area.dispatchEvent(new MouseEvent(type, { clientX: x, clientY: y, bubbles: true }));
  expect(find(".ess-readout").textContent).toContain("head 0 · mean ESS 1");
  at("pointermove", 70, 10);
  expect(find(".ess-readout").textContent).toContain("head 1 · mean ESS 0.8");
  at("click", 70, 10);
  expect(store.state.selection).toMatchObject({ layer: layers[0]!.name, head: 1 });
  at("pointermove", 40, 40);
  expect(find(".ess-readout").textContent).toContain("not computed yet");
  expect(find(".ess-readout").textContent).toContain("not to be trusted");
  at("click", 70, 40);
  expect(store.state.selection.layer).toBe(layers[0]!.name);
  choose("utilisation");
  at("pointermove", 70, 10);
  expect(find(".ess-readout").textContent).toContain("utilisation 0.75 of the ceiling");
});

test("a choice stays when another widget of the page is chosen from", async () => {
  const options = ["a", "b"].map((value) => ({ value, label: value, title: value }));
  const nodes: HTMLElement[] = [];
  for (let widget = 0; widget < 2; widget++) {
    vi.resetModules(); // as Jupyter does: a module of its own for each widget
    const { segmented } = await import("../src/views/segmented");
    const choice = segmented("choice", options);
    root.append(choice.node);
    choice.set("a");
    nodes.push(choice.node);
  }
  expect(nodes.map((node) => node.querySelector<HTMLInputElement>(":checked")?.value)).toEqual(["a", "a"]);
  root.replaceChildren();
});
