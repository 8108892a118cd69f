/** Lines against the step of a training, panel above panel on one axis: hovering reads, clicking and dragging choose. */
import { ticks } from "d3-array";
import { scaleLinear, scaleLog, type ScaleContinuousNumeric } from "d3-scale";
import { labelMiddle } from "../axis";
import { Layers, onResize } from "../canvas";
import { listen } from "../dom";
import { formatNumber, formatPower, formatTolerance } from "../format";
import { displayLabel } from "../labels";
import { line, snap } from "../marks";
import type { TrainingData } from "../state";
import type { Store } from "../store";
import { fit, font, normal, plate, small, textWidth } from "../text";
import { onThemeChange, readTheme, sameTheme, withAlpha, type Theme } from "../theme";
import {
  formatStep,
  layerSeries,
  lineColours,
  type LinePanel,
  metricPanels,
  nearest,
  range,
  type Series,
  shownName,
  valueAt,
} from "../training";

type Context = CanvasRenderingContext2D;
type Scale = ScaleContinuousNumeric<number, number>;

const margin = { left: 54, right: 14 };
const titleHeight = 20;
const flagHeight = 22;
const axisHeight = 22;
const gap = 10;

/** What the legend and the buttons decide. */
export interface ChartSettings {
  log: boolean;
  /** Layers whose lines are not drawn. */
  hidden: ReadonlySet<string>;
}

export interface Chart {
  settings: ChartSettings;
  update: () => void;
  remove: () => void;
}

interface Placed {
  panel: LinePanel;
  top: number;
  bottom: number;
  y: Scale;
}

/** `onHover` hears of the step that is pointed at, null where none is. */
export function trainingChart(
  root: HTMLElement,
  store: Store,
  onHover: (step: number | null) => void,
): Chart {
  const container = document.createElement("div");
  container.className = "ess-stage";
  container.style.cssText = "position:relative;width:100%;overflow:hidden";
  const picture = document.createElement("div");
  picture.tabIndex = 0;
  picture.setAttribute("role", "slider");
  picture.setAttribute("aria-label", "Step of the training");
  picture.dataset["part"] = "training";
  picture.style.cssText =
    "position:absolute;inset:0;outline-offset:-2px;touch-action:pan-y;user-select:none;-webkit-user-select:none;cursor:crosshair";
  container.append(picture);
  root.append(container);
  const layers = new Layers(picture);
  const chart: Chart = { settings: { log: true, hidden: new Set() }, update, remove };

  let theme = readTheme(container);
  let width = 0;
  let hovered: number | null = null;
  let dragging = false;
  let queued: number | null = null;
  let placed: Placed[] = [];
  let x: Scale = scaleLinear();
  let inputs: unknown[] = [];

  const data = () => store.state.training_data;
  const chosen = () => store.state.settings.step ?? null;
  const newest = ({ steps }: TrainingData) => (steps.length > 0 ? steps[steps.length - 1]! : null);

  function panels(found: TrainingData): LinePanel[] {
    const shown = store.state.settings.shown ?? "ess";
    const series = layerSeries(found, shown).filter(({ name }) => !chart.settings.hidden.has(name));
    return [{ key: "ess", series, log: false }, ...metricPanels(found, chart.settings.log)];
  }

  function layout(): void {
    const found = data();
    const all = found ? panels(found) : [{ key: "ess", series: [], log: false }];
    const main = Math.round(Math.max(150, Math.min(240, width * 0.3)));
    const other = Math.round(Math.max(84, Math.min(120, width * 0.13)));
    const last = Math.max(1, found?.last ?? 1);
    x = scaleLinear([0, last], [margin.left, Math.max(margin.left + 20, width - margin.right)]);
    let top = flagHeight;
    placed = all.map((panel, k) => {
      const from = top + titleHeight;
      const bottom = from + (k === 0 ? main : other);
      top = bottom + gap;
      const y = panel.log
        ? scaleLog(range(panel), [bottom, from])
        : scaleLinear(range(panel), [bottom, from]);
      return { panel, top: from, bottom, y };
    });
    const height = top - gap + axisHeight;
    if (layers.resize(width, height)) {
      container.style.height = `${height}px`;
      inputs = [];
    }
  }

  function update(): void {
    if (width === 0) return;
    const { settings } = store.state;
    layout();
    const next = [
      data(),
      theme,
      width,
      layers.ratio,
      settings.shown,
      chart.settings.log,
      chart.settings.hidden,
    ];
    if (next.some((value, k) => value !== inputs[k])) {
      inputs = next;
      if (layers.base) paint(layers.base);
    }
    overlay();
    describe();
  }

  function describe(): void {
    const found = data();
    const step = chosen() ?? (found ? newest(found) : null);
    picture.setAttribute("aria-valuemin", "0");
    picture.setAttribute("aria-valuemax", String(found?.last ?? 0));
    picture.setAttribute("aria-valuenow", String(step ?? 0));
    const values = placed.flatMap(({ panel }) =>
      panel.series.slice(0, 12).map((series) => `${series.name} ${formatNumber(valueAt(series, step ?? 0))}`),
    );
    const how = chosen() === null ? ", the newest" : "";
    picture.setAttribute(
      "aria-valuetext",
      step === null ? "no step yet" : `step ${step}${how}: ${values.join(", ")}`,
    );
  }

  function paint(context: Context): void {
    context.clearRect(0, 0, layers.width, layers.height);
    const found = data();
    const colours = lineColours(found?.names.length ?? 0, theme);
    for (const [k, place] of placed.entries()) {
      axes(context, place, k === placed.length - 1);
      title(context, place, found, k);
      context.save();
      context.beginPath();
      context.rect(
        margin.left,
        place.top - 3,
        width - margin.left - margin.right + 3,
        place.bottom - place.top + 4,
      );
      context.clip();
      for (const series of place.panel.series) {
        const colour = k === 0 ? (colours[found?.names.indexOf(series.name) ?? 0] ?? theme.series) : theme.fg;
        draw(context, place, series, colour, k === 0);
      }
      context.restore();
    }
    const first = placed[0];
    if (first && found) failures(context, first, found);
    if (first && (found === null || (found.columns === 0 && found.failed.length === 0))) {
      context.font = font(theme, normal);
      context.fillStyle = theme.muted;
      context.textAlign = "center";
      context.fillText("Nothing is measured yet", (margin.left + width) / 2, (first.top + first.bottom) / 2);
    }
  }

  function title(context: Context, place: Placed, found: TrainingData | null, k: number): void {
    const { shown } = store.state.settings;
    const y = place.top - titleHeight / 2 - 2;
    context.textAlign = "left";
    context.font = font(theme, normal, 650);
    context.fillStyle = theme.fg;
    const name = k === 0 ? shownName(shown ?? "ess") : displayLabel(place.panel.key);
    const text = fit(context, name.replaceAll("·", " "), width - margin.left - margin.right - 150);
    context.fillText(text, margin.left, y);
    const after = margin.left + textWidth(context, text) + 8;
    context.font = font(theme);
    context.fillStyle = theme.muted;
    if (k === 0 && found) {
      const how =
        found.kind === "entropy"
          ? "by entropy, average of each layer"
          : `σ > ${formatTolerance(found.tol)}${found.relative ? "·σ₁" : ""}, average of each layer`;
      if (after + textWidth(context, how) < width - margin.right) context.fillText(how, after, y);
    } else if (place.panel.log) context.fillText("logarithmic", after, y);
  }

  function axes(context: Context, { panel, top, bottom, y }: Placed, last: boolean): void {
    const { ratio } = layers;
    context.font = font(theme);
    context.lineWidth = 1;
    context.textAlign = "right";
    const count = bottom - top > 130 ? 5 : 3;
    const values = panel.log ? logTicks(y, count) : y.ticks(count);
    for (const value of values) {
      const at = snap(y(value), ratio) + 0.5 / ratio;
      context.strokeStyle = withAlpha(theme.rule, 0.55);
      line(context, margin.left, at, width - margin.right, at);
      context.fillStyle = theme.muted;
      context.fillText(tickText(value, panel.log), margin.left - 7, y(value));
    }
    context.strokeStyle = theme.rule;
    const base = snap(bottom, ratio) + 0.5 / ratio;
    line(context, margin.left, base, width - margin.right, base);
    context.textAlign = "center";
    for (const step of stepTicks()) {
      const at = snap(x(step), ratio) + 0.5 / ratio;
      line(context, at, base, at, base + 4);
      if (!last) continue;
      context.fillStyle = theme.muted;
      const text = formatStep(step, true);
      context.fillText(text, labelMiddle(at, textWidth(context, text), 0, width - 1), bottom + 13);
    }
    if (last) {
      context.textAlign = "left";
      context.fillStyle = theme.muted;
      context.fillText("step", 8, bottom + 13);
    }
  }

  function stepTicks(): number[] {
    const [from, to] = x.domain() as [number, number];
    return ticks(from, to, Math.max(2, Math.floor((width - margin.left) / 90))).filter(Number.isInteger);
  }

  function draw(
    context: Context,
    { panel, y }: Placed,
    series: Series,
    colour: string,
    marks: boolean,
  ): void {
    const { steps, values, low, high } = series;
    const visible = (value: number) => Number.isFinite(value) && (!panel.log || value > 0);
    if (low && high) {
      context.fillStyle = withAlpha(colour, theme.dark ? 0.22 : 0.16);
      context.beginPath();
      const floor = y.domain()[0]!;
      for (let k = 0; k < steps.length; k++) if (visible(high[k]!)) context.lineTo(x(steps[k]!), y(high[k]!));
      for (let k = steps.length - 1; k >= 0; k--) {
        if (visible(high[k]!)) context.lineTo(x(steps[k]!), y(visible(low[k]!) ? low[k]! : floor));
      }
      context.fill();
    }
    context.strokeStyle = context.fillStyle = colour;
    context.lineWidth = marks ? 1.75 : 1.25;
    context.lineJoin = "round";
    context.beginPath();
    let pen = false;
    for (let k = 0; k < steps.length; k++) {
      const value = values[k]!;
      if (Number.isNaN(value)) {
        // Of a metric that is told now and then, neighbours are joined; a layer that is missing leaves a gap.
        if (marks) pen = false;
        continue;
      }
      if (!visible(value)) pen = false;
      else if (pen) context.lineTo(x(steps[k]!), y(value));
      else {
        context.moveTo(x(steps[k]!), y(value));
        pen = true;
      }
    }
    context.stroke();
    const known = steps.length > 0 && (width - margin.left - margin.right) / steps.length > 9;
    if ((!marks || !known) && steps.length > 1) return;
    for (let k = 0; k < steps.length; k++) {
      if (!visible(values[k]!)) continue;
      context.beginPath();
      context.arc(x(steps[k]!), y(values[k]!), 2.25, 0, 2 * Math.PI);
      context.fill();
    }
  }

  /** Steps at which measuring failed: small crosses on the base of the first panel. */
  function failures(context: Context, { bottom }: Placed, found: TrainingData): void {
    context.strokeStyle = theme.accent;
    context.lineWidth = 1.5;
    for (const { step } of found.failed) {
      const at = x(step);
      line(context, at - 3, bottom - 7, at + 3, bottom - 1);
      line(context, at - 3, bottom - 1, at + 3, bottom - 7);
    }
  }

  function overlay(): void {
    if (queued !== null) cancelAnimationFrame(queued);
    queued = null;
    const context = layers.overlay;
    const found = data();
    if (!context || width === 0) return;
    context.clearRect(0, 0, layers.width, layers.height);
    if (!found) return;
    const selected = chosen() ?? newest(found);
    if (selected !== null) hair(context, found, selected, theme.accent, chosen() === null);
    if (hovered !== null && hovered !== selected) hair(context, found, hovered, theme.muted, false);
    const step = hovered ?? selected;
    if (step !== null) flag(context, step, hovered !== null && hovered !== selected);
  }

  function hair(context: Context, found: TrainingData, step: number, colour: string, faint: boolean): void {
    const at = snap(x(step), layers.ratio);
    const bottom = placed[placed.length - 1]!.bottom;
    context.strokeStyle = colour;
    context.lineWidth = 1.25;
    context.setLineDash(faint ? [4, 4] : []);
    line(context, at, flagHeight - 4, at, bottom);
    context.setLineDash([]);
    const colours = lineColours(found.names.length, theme);
    for (const [k, { panel, top, y }] of placed.entries()) {
      for (const series of panel.series) {
        const value = valueAt(series, step);
        if (!Number.isFinite(value) || (panel.log && value <= 0)) continue;
        const height = y(value);
        if (height < top - 4) continue;
        context.beginPath();
        context.arc(at, height, 3.5, 0, 2 * Math.PI);
        context.fillStyle = k === 0 ? (colours[found.names.indexOf(series.name)] ?? theme.series) : theme.fg;
        context.fill();
        context.strokeStyle = theme.bg;
        context.lineWidth = 1.25;
        context.stroke();
      }
      if (k > 0) reading(context, panel, step, top);
    }
  }

  /** What a metric is at the step, at the right of its title. */
  function reading(context: Context, panel: LinePanel, step: number, top: number): void {
    const series = panel.series[0];
    const value = series ? valueAt(series, step) : NaN;
    if (Number.isNaN(value)) return;
    context.font = font(theme, small, 600);
    context.textAlign = "right";
    const text = formatNumber(value);
    const right = width - margin.right - 6;
    const space = textWidth(context, text) + 8;
    plate(context, theme.bg, right - space, top - titleHeight, space, titleHeight - 4, 0);
    context.fillStyle = theme.fg;
    context.fillText(text, right, top - titleHeight / 2 - 2);
  }

  function flag(context: Context, step: number, reads: boolean): void {
    const found = data()!;
    const bad = found.failed.find((failure) => failure.step === step);
    const how = bad ? `: ${bad.reason}` : reads ? "" : chosen() === null ? ", the newest" : "";
    context.font = font(theme, normal, 600);
    const text = fit(context, `step ${formatStep(step)}${how}`, width - 24);
    const size = textWidth(context, text) + 14;
    const at = x(step);
    const left = Math.max(2, Math.min(width - 2 - size, at - size / 2));
    const colour = reads ? theme.muted : theme.accent;
    plate(context, theme.bg, left, 1, size, 18);
    plate(context, withAlpha(colour, theme.dark ? 0.2 : 0.08), left, 1, size, 18);
    context.fillStyle = reads ? theme.fg : theme.accent;
    context.textAlign = "left";
    context.fillText(text, left + 7, 10.5);
    context.fillStyle = colour;
    context.fillRect(left, 18, size, 1.25);
  }

  function later(): void {
    queued ??= requestAnimationFrame(overlay);
  }

  /** The measured step under the pointer, or the one that failed. */
  function stepAt(pixel: number): number | null {
    const found = data();
    if (!found) return null;
    const step = x.invert(pixel);
    const candidates = [...found.failed.map((failure) => failure.step)];
    const index = nearest(found.steps, step);
    if (index >= 0) candidates.push(found.steps[index]!);
    let best: number | null = null;
    for (const candidate of candidates) {
      if (best === null || Math.abs(candidate - step) < Math.abs(best - step)) best = candidate;
    }
    return best;
  }

  function hover(step: number | null): void {
    if (step === hovered) return;
    hovered = step;
    onHover(step);
    later();
  }

  function choose(step: number | null): void {
    const found = data();
    if (!found || (step !== null && nearest(found.steps, step) < 0)) return;
    store.configure({ step: step === null ? null : found.steps[nearest(found.steps, step)]! });
  }

  const inside = (event: PointerEvent) => event.offsetX >= margin.left - 8 && event.offsetX <= width;
  const undo = [
    listen(picture, "pointermove", (event) => {
      if (!dragging && !inside(event)) {
        hover(null);
        return;
      }
      const step = stepAt(event.offsetX);
      if (dragging && step !== null) choose(step);
      hover(step);
    }),
    listen(picture, "pointerdown", (event) => {
      if (event.button !== 0 || !inside(event)) return;
      dragging = true;
      picture.setPointerCapture(event.pointerId);
      choose(stepAt(event.offsetX));
    }),
    listen(picture, "pointerup", () => (dragging = false)),
    listen(picture, "pointercancel", () => (dragging = false)),
    listen(picture, "pointerleave", () => {
      if (!dragging) hover(null);
    }),
    listen(picture, "dblclick", () => choose(null)),
    listen(picture, "keydown", (event) => {
      const found = data();
      if (!found || event.ctrlKey || event.metaKey || event.altKey || found.steps.length === 0) return;
      const last = found.steps.length - 1;
      const at = nearest(found.steps, chosen() ?? Infinity);
      const stride = event.shiftKey ? 10 : 1;
      const moves: Record<string, number | null> = {
        ArrowLeft: at - stride,
        ArrowDown: at - stride,
        ArrowRight: at + stride,
        ArrowUp: at + stride,
        Home: 0,
        End: last,
        Escape: null,
      };
      const to = moves[event.key];
      if (to === undefined) return;
      event.preventDefault();
      event.stopPropagation();
      choose(to === null ? null : found.steps[Math.max(0, Math.min(last, to))]!);
    }),
    listen(picture, "focus", () => {
      picture.style.outline = picture.matches(":focus-visible") ? `2px solid ${theme.series}` : "none";
    }),
    listen(picture, "blur", () => (picture.style.outline = "none")),
    onThemeChange(() => {
      const next: Theme = readTheme(container);
      if (sameTheme(theme, next)) return;
      theme = next;
      update();
    }),
    onResize(container, (next) => {
      width = Math.floor(next);
      update();
    }),
    store.on(["training_data", "settings"], update),
  ];
  picture.style.outline = "none";

  function remove(): void {
    for (const stop of undo) stop();
    if (queued !== null) cancelAnimationFrame(queued);
    container.remove();
  }
  return chart;
}

/** Powers of ten where there are some, else round numbers between. */
export function logTicks(y: Scale, count: number): number[] {
  const [from, to] = y.domain() as [number, number];
  const powers: number[] = [];
  for (let k = Math.ceil(Math.log10(from)); 10 ** k <= to; k++) powers.push(10 ** k);
  const stride = Math.ceil(powers.length / (count + 1));
  if (powers.length >= 2) return powers.filter((_, k) => k % stride === 0);
  const between = [1, 2, 3, 5, 7].flatMap((step) =>
    [-1, 0, 1].map((k) => step * 10 ** (Math.floor(Math.log10(from)) + k)),
  );
  const found = between.filter((value) => value >= from && value <= to).sort((a, b) => a - b);
  return found.length >= 2
    ? found.filter((_, k) => found.length <= count + 1 || k % 2 === 0)
    : ticks(from, to, count);
}

function tickText(value: number, log: boolean): string {
  const power = Math.log10(value);
  return log && Math.abs(power - Math.round(power)) < 1e-9 && Math.abs(power) >= 3
    ? formatPower(Math.round(power))
    : formatNumber(Number(value.toPrecision(6)));
}
