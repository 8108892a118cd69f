/** What the lines of a training are: panels, ranges, nearest points. Pure functions without the DOM. */
import { colourAt, ramp } from "./ramp";
import type { Shown, TrainingData } from "./state";
import type { Theme } from "./theme";

/** One line: its points, and how far neighbouring steps that were put together spread. */
export interface Series {
  name: string;
  steps: Float32Array;
  values: Float32Array;
  low?: Float32Array;
  high?: Float32Array;
}

export interface LinePanel {
  /** "ess" or the metric's name. */
  key: string;
  series: Series[];
  log: boolean;
}

const lightColours = ["#1a5dab", "#0a7d6c", "#8e44ad", "#8a6d00", "#b03a7e", "#4c6272", "#2e7d32", "#7a4b26"];
const darkColours = ["#70b4f6", "#4fd0c4", "#c9a6f7", "#e0c14d", "#f28ac0", "#a9b8c9", "#84d987", "#dba977"];

/** A colour for each of `count` layers: different ones for a few, for many a scale from the first to the last. */
export function lineColours(count: number, theme: Theme): string[] {
  if (count <= lightColours.length) return (theme.dark ? darkColours : lightColours).slice(0, count);
  const colours = ramp(theme.dark);
  return Array.from({ length: count }, (_, k) => colourAt(colours, 0.35 + (0.6 * k) / (count - 1)));
}

function row(array: Float32Array, index: number, length: number): Float32Array {
  return array.subarray(index * length, (index + 1) * length);
}

/** The lines of all layers. */
export function layerSeries(data: TrainingData, shown: Shown): Series[] {
  return data.names.map((name, k) => ({
    name,
    steps: data.steps,
    values: row(data[shown], k, data.columns),
  }));
}

/** A panel for each metric, losses first. */
export function metricPanels(data: TrainingData, log: boolean): LinePanel[] {
  const order = data.metrics
    .map((name, k) => ({ name, k, loss: /loss|perplexity/i.test(name) }))
    .sort((a, b) => Number(b.loss) - Number(a.loss));
  return order.map(({ name, k, loss }) => {
    const [values, low, high] = [data.metric_mean, data.metric_low, data.metric_high].map((array) =>
      row(array, k, data.points),
    );
    const series = { name, steps: data.metric_steps, values: values!, low: low!, high: high! };
    return { key: name, series: [series], log: log && loss && positive(series) };
  });
}

function positive({ values, low }: Series): boolean {
  let some = false;
  for (const value of low ?? values) {
    if (value <= 0) return false;
    if (value > 0 && value < Infinity) some = true;
  }
  return some;
}

/** Smallest and largest finite value; null where there is none. */
export function extent(series: readonly Series[]): [number, number] | null {
  let [from, to] = [Infinity, -Infinity];
  for (const { values, low, high } of series) {
    for (const array of [values, low, high]) {
      for (const value of array ?? []) {
        if (!Number.isFinite(value)) continue;
        if (value < from) from = value;
        if (value > to) to = value;
      }
    }
  }
  return from <= to ? [from, to] : null;
}

/** The vertical range of a panel: from 0 where that is near, with a little air. */
export function range(panel: LinePanel): [number, number] {
  const found = extent(panel.series);
  if (!found) return panel.log ? [0.1, 1] : [0, 1];
  const [from, to] = found;
  if (panel.log) {
    const air = Math.max((to / from) ** 0.06, 1.05);
    return [from / air, to * air];
  }
  if (from >= 0 && (panel.key === "ess" || from < 0.6 * to)) return [0, to > 0 ? to * 1.08 : 1];
  const air = Math.max((to - from) * 0.08, Math.abs(to) * 1e-3, 1e-9);
  return [from - air, to + air];
}

/** Index of the value of ascending `steps` that is nearest to `step`; −1 where there is none. */
export function nearest(steps: ArrayLike<number>, step: number): number {
  if (steps.length === 0) return -1;
  let low = 0;
  let high = steps.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle]! < step) low = middle + 1;
    else high = middle;
  }
  return low > 0 && step - steps[low - 1]! <= steps[low]! - step ? low - 1 : low;
}

/** The value of a line at the point nearest to `step`; NaN where there is none. */
export function valueAt({ steps, values }: Series, step: number): number {
  const index = nearest(steps, step);
  return index < 0 ? NaN : values[index]!;
}

/** 1200 as "1,200"; as ticks of an axis that goes far, "12k" and "1.5M". */
export function formatStep(step: number, short = false): string {
  if (short && step >= 1e6) return `${Number((step / 1e6).toPrecision(4))}M`;
  if (short && step >= 1e4) return `${Number((step / 1e3).toPrecision(4))}k`;
  return step.toLocaleString("en-US");
}

export function shownName(shown: Shown): string {
  return shown === "ess" ? "ESS" : `utilisation of ${shown === "ceiling" ? "the ceiling" : "TSS"}`;
}
