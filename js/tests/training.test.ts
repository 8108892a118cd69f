/** The training view: what its lines are, and what brushing them does. */
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import "./browser";
import { bind } from "../src/bind";
import type { TrainingData } from "../src/state";
import { Store } from "../src/store";
import {
  extent,
  formatStep,
  layerSeries,
  lineColours,
  metricPanels,
  nearest,
  range,
  valueAt,
} from "../src/training";
import { readTheme } from "../src/theme";
import { logTicks } from "../src/views/training_chart";
import { trainingView } from "../src/views/training_view";
import { scaleLog } from "d3-scale";
import { layers, smallState } from "./data";
import { bytes, Model } from "./model";

function trained(patch: Partial<TrainingData> = {}): TrainingData {
  return {
    kind: "entropy",
    tol: 1e-3,
    relative: false,
    names: layers.map(({ name }) => name),
    columns: 3,
    steps: Float32Array.of(0, 10, 30),
    ess: Float32Array.of(1, 2, 4, 3, NaN, 5),
    state_size: Float32Array.of(0.1, 0.2, 0.4, 0.3, NaN, 0.5),
    ceiling: Float32Array.of(0.2, 0.4, 0.8, 0.6, NaN, 0.9),
    metrics: ["accuracy", "train_loss"],
    points: 2,
    metric_steps: Float32Array.of(10, 30),
    metric_mean: Float32Array.of(0.1, 0.9, 5, 0.5),
    metric_low: Float32Array.of(0, 0.8, 4, 0.4),
    metric_high: Float32Array.of(0.2, 1, 6, 0.6),
    failed: [],
    last: 30,
    ...patch,
  };
}

let root: HTMLElement;
let unmount: () => void = () => undefined;
function mount(data: TrainingData | null): Store {
  const store = new Store(smallState({ training_data: data, text: null }));
  unmount = trainingView(root, store);
  return store;
}
function part(name: string): HTMLElement {
  return root.querySelector<HTMLElement>(`[data-part=${name}]`)!;
}
function press(key: string, more: KeyboardEventInit = {}): void {
  part("training").dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, ...more }));
}
function entries(): HTMLElement[] {
  return [...root.querySelectorAll<HTMLElement>(".ess-legend-entry")];
}

beforeEach(() => {
  root = document.createElement("div");
  document.body.append(root);
});
afterEach(() => {
  unmount();
  unmount = () => undefined;
  expect(root.childElementCount).toBe(0);
  root.remove();
});

test("the nearest step", () => {
  const steps = [0, 10, 30];
  expect([-5, 0, 4, 5, 6, 20, 21, 99, Infinity].map((step) => nearest(steps, step))).toEqual([
    0, 0, 0, 0, 1, 1, 2, 2, 2,
  ]);
  expect(nearest([], 3)).toBe(-1);
});

test("lines and panels", () => {
  const data = trained();
  const series = layerSeries(data, "ceiling");
  expect(series.map(({ values }) => [...values].map((v) => Number(v.toFixed(2))))).toEqual([
    [0.2, 0.4, 0.8],
    [0.6, NaN, 0.9],
  ]);
  expect(valueAt(layerSeries(data, "ess")[1]!, 29)).toBe(5);
  const [loss, accuracy] = metricPanels(data, true);
  expect([loss!.key, loss!.log, accuracy!.key, accuracy!.log]).toEqual([
    "train_loss",
    true,
    "accuracy",
    false,
  ]);
  expect(metricPanels(data, false)[0]!.log).toBe(false);
  const negative = trained({ metric_low: Float32Array.of(0, 0, -1, 0.4) });
  expect(metricPanels(negative, true)[0]!.log).toBe(false);
});

test("ranges have room and begin at 0 where that is near", () => {
  const panels = metricPanels(trained(), true);
  const [low, high] = range(panels[0]!);
  expect(low).toBeLessThan(0.4);
  expect(low).toBeGreaterThan(0.2);
  expect(high).toBeGreaterThan(6);
  expect(range(panels[1]!)[0]).toBe(0);
  expect(range({ key: "ess", series: layerSeries(trained(), "ess"), log: false })).toEqual([0, 5.4]);
  const flat = { name: "x", steps: Float32Array.of(1), values: Float32Array.of(7) };
  const [from, to] = range({ key: "x", series: [flat], log: false });
  expect(from).toBeLessThan(7);
  expect(to).toBeGreaterThan(7);
  expect(extent([{ ...flat, values: Float32Array.of(NaN, Infinity) }])).toBeNull();
  expect(range({ key: "x", series: [], log: true })).toEqual([0.1, 1]);
});

test("ticks of a logarithmic axis", () => {
  expect(logTicks(scaleLog([0.01, 100], [0, 1]), 3)).toEqual([0.01, 1, 100]);
  expect(logTicks(scaleLog([1.5, 8], [0, 1]), 4)).toEqual([2, 3, 5, 7]);
  const narrow = logTicks(scaleLog([4.1, 4.4], [0, 1]), 3);
  expect(narrow.length).toBeGreaterThan(1);
  for (const value of narrow) expect(value >= 4.1 && value <= 4.4).toBe(true);
});

test("steps as text, colours by number", () => {
  expect([formatStep(1200), formatStep(12000, true), formatStep(2500000, true)]).toEqual([
    "1,200",
    "12k",
    "2.5M",
  ]);
  const theme = readTheme(document.body);
  for (const count of [1, 8, 30]) expect(new Set(lineColours(count, theme)).size).toBe(count);
});

test("keys walk over the measured steps; Escape follows the newest", () => {
  const store = mount(trained());
  const outer = vi.fn();
  root.addEventListener("keydown", outer);
  press("ArrowLeft");
  expect(store.state.settings.step).toBe(10);
  press("Home");
  expect(store.state.settings.step).toBe(0);
  press("ArrowRight", { shiftKey: true });
  expect(store.state.settings.step).toBe(30);
  press("Escape");
  expect(store.state.settings.step).toBeNull();
  expect(outer).not.toHaveBeenCalled();
  press("a");
  expect(outer).toHaveBeenCalledTimes(1);
  store.configure({ step: 10 });
  part("follow").click();
  expect(store.state.settings.step).toBeNull();
});

test("the legend reads the chosen step and hides lines", () => {
  const store = mount(trained());
  expect(entries().map((entry) => entry.textContent)).toEqual(["layer 04.00", "layer 15.00"]);
  store.configure({ step: 10, shown: "ceiling" });
  store.flush();
  expect(entries().map((entry) => entry.textContent)).toEqual(["layer 00.40", "layer 1–"]);
  entries()[0]!.click();
  expect(entries().map((entry) => entry.getAttribute("aria-pressed"))).toEqual(["false", "true"]);
  entries()[0]!.click();
  expect(entries().map((entry) => entry.getAttribute("aria-pressed"))).toEqual(["true", "true"]);
  // A double click: its first click hides, the rest shows the line alone.
  entries()[1]!.dispatchEvent(new MouseEvent("click", { detail: 1, bubbles: true }));
  entries()[1]!.dispatchEvent(new MouseEvent("click", { detail: 2, bubbles: true }));
  entries()[1]!.dispatchEvent(new MouseEvent("dblclick", { bubbles: true }));
  expect(entries().map((entry) => entry.getAttribute("aria-pressed"))).toEqual(["false", "true"]);
});

test("what is shown, and the axis of losses", () => {
  const store = mount(trained());
  root.querySelector<HTMLInputElement>('input[value="state_size"]')!.click();
  expect(store.state.settings.shown).toBe("state_size");
  expect(part("log").getAttribute("aria-pressed")).toBe("true");
  part("log").click();
  expect(part("log").getAttribute("aria-pressed")).toBe("false");
  store.set({ training_data: trained({ metrics: ["accuracy", "recall"] }) });
  store.flush();
  expect(part("log").hidden).toBe(true);
});

test("failures are told as text", () => {
  mount(trained({ failed: [{ step: 20, reason: "CaptureError: <img src=x onerror=alert(1)>" }] }));
  expect(part("failed").textContent).toContain("A measurement failed, at step 20: CaptureError: <img");
  expect(root.querySelector("img")).toBeNull();
});

test("names are text too, and nothing yet is no fault", () => {
  const store = mount(null);
  expect(entries()).toEqual([]);
  press("ArrowLeft");
  expect(store.state.settings.step).toBeUndefined();
  store.set({ training_data: trained({ names: ["<b>a</b>", "<i>b</i>"] }) });
  store.flush();
  expect(entries()[0]!.textContent).toContain("<b>a</b>");
  expect(root.querySelector("b, i:not(.ess-swatch, .ess-dot)")).toBeNull();
  store.set({ training_data: trained({ columns: 0, steps: new Float32Array(), names: [] }) });
  store.flush();
  expect(entries()).toEqual([]);
});

test("the step goes both ways, as typed arrays do one way", async () => {
  vi.useFakeTimers();
  const model = new Model({
    step: null,
    shown: "ess",
    training_data: { ...trained(), steps: bytes([0, 10, 30]), metric_mean: bytes([1, 2, 3, 4]) },
  });
  const [store, unbind] = await bind(model.any);
  expect([...(store.state.training_data?.steps ?? [])]).toEqual([0, 10, 30]);
  expect([...(store.state.training_data?.metric_mean ?? [])]).toEqual([1, 2, 3, 4]);
  expect(store.state.settings.step).toBeNull();
  store.configure({ step: 10 });
  await vi.advanceTimersByTimeAsync(100);
  expect(model.saved).toEqual([{ step: 10 }]);
  model.receive({ step: 30, shown: "ceiling" });
  await vi.advanceTimersByTimeAsync(100);
  expect(store.state.settings).toMatchObject({ step: 30, shown: "ceiling" });
  expect(model.saved.length).toBe(1);
  unbind();
  vi.useRealTimers();
});
