/** ESS along positions: the selected head bold, the layer's other heads thin, what no head can exceed shaded. */
import { scaleLinear } from "d3-scale";
import { headAmong, ofLayer } from "../belongs";
import { rowOf, selectedProfile } from "../curve";
import { groupName, otherGroups, selectedLayer } from "../facts";
import { formatEss, formatTolerance } from "../format";
import {
  columnLabelHeight,
  columnLabels,
  delimiterLines,
  drawFlag,
  drawHair,
  flagHeight,
  hairLine,
  indexTicks,
  line,
  markColumn,
  snap,
  spanBand,
} from "../marks";
import { sameMeasure } from "../metrics";
import { mountStage, type Box, type Frame, type Panel } from "../stage";
import type { ProfileData, State } from "../state";
import type { Store } from "../store";
import { drawParts, font, normal, partsWidth, plate, small, type Part, textWidth } from "../text";
import { withAlpha } from "../theme";

type Context = CanvasRenderingContext2D;

const titleHeight = 20;
const tickHeight = 20;
const tickGap = 48;
/** Heads that go much higher than the selected one may leave the plot, so that its dips stay visible. */
const mostAbove = 5;

/** Rounds up to a number that makes quiet axes: 1, 2, 3, 4, 5, 6, 8 times a power of ten. */
export function niceTop(value: number): number {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return power * ([1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((step) => step * power >= value - 1e-9) ?? 10);
}

function largestOf(values: Iterable<number>): number {
  let top = 0;
  for (const value of values) if (value > top) top = value;
  return top;
}

export class ProfilePanel implements Panel {
  plot: Box = { left: 0, top: 0, right: 0, bottom: 0 };
  private top = 0;
  private bottom = 0;
  private y = scaleLinear();
  private shown: { key: string; top: number } = { key: "", top: 0 };
  /** Where the limits are named. */
  private limitLabels: Box[] = [];

  /** `alone`: with token labels of its own below. */
  constructor(private alone: boolean) {}

  place(frame: Frame, top: number): number {
    const height = Math.round(Math.max(104, Math.min(180, frame.width * 0.24)));
    this.top = top;
    const start = top + titleHeight + flagHeight;
    this.plot = { left: frame.x.from, right: frame.x.to, top: start, bottom: start + height };
    this.bottom =
      this.plot.bottom + tickHeight + (this.alone && !frame.indexed ? columnLabelHeight(frame) : 0);
    this.y = scaleLinear([0, this.highest(frame)], [this.plot.bottom, this.plot.top]);
    return this.bottom - top;
  }

  inputs(state: State): unknown[] {
    const { settings, selection } = state;
    return [
      state.profile_data,
      state.spectrum_data,
      state.toy_data,
      settings.kind,
      settings.tol,
      settings.relative,
      settings.against,
      selection.layer,
      selection.head,
      state.status.phase,
    ];
  }

  corner(): { right: number; top: number } {
    return { right: this.plot.right, top: this.top };
  }

  describe(frame: Frame): string {
    const { curve, state, position } = frame;
    if (!curve) return "Profile of effective state-size: no data yet.";
    const values = [...curve.values].filter(Number.isFinite);
    const mean = values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length - 1);
    const here = position === null ? "" : ` At position ${position}: ${formatEss(curve.values[position]!)}.`;
    return (
      `Effective state-size of ${groupName(selectedLayer(state), state.selection.head)} along ${frame.length} positions, ` +
      `mean ${mean.toFixed(1)}, highest ${formatEss(largestOf(values))}.${here}`
    );
  }

  /** Top of the vertical axis: room above the curves, at most the limit, steady while τ is dragged. */
  private highest(frame: Frame): number {
    const { state, length, curve } = frame;
    const data = selectedProfile(state);
    const limits = data?.length === length ? this.limits(frame, data) : null;
    const shape = limits ? largestOf(limits.ceiling) : Math.floor(length / 2);
    const own = Math.max(largestOf(curve?.values ?? []), largestOf(closedForm(state, length) ?? []));
    const all = data?.length === length && data.kind === state.settings.kind ? largestOf(data.ess) : 0;
    const curves = own > 0 ? Math.max(own, Math.min(all, mostAbove * Math.max(own, 2))) : all;
    const wanted = curves > 0 ? Math.min(niceTop(Math.max(curves * 1.15, 2)), shape * 1.14) : shape * 1.14;
    const key = `${state.selection.layer} ${length} ${state.settings.kind} ${state.toy_data?.toy ?? ""}`;
    const keep = key === this.shown.key && wanted <= this.shown.top && wanted > this.shown.top * 0.4;
    if (!keep) this.shown = { key, top: Math.max(wanted, 1) };
    return this.shown.top;
  }

  private limits(frame: Frame, data: ProfileData): { ceiling: Float32Array; size: Float32Array } {
    const head = headAmong(frame.state, data.heads);
    return { ceiling: rowOf(data, data.ceiling, head), size: rowOf(data, data.state_size, head) };
  }

  paint(context: Context, frame: Frame): void {
    const { plot } = this;
    const { theme, state } = frame;
    this.limitLabels = [];
    this.title(context, frame);
    this.axes(context, frame);
    if (frame.length === 0) {
      this.note(context, frame, state.status.phase === "error" ? "No profile" : "Waiting for a profile");
      return;
    }
    const data = selectedProfile(state);
    const fits = data?.length === frame.length ? data : null;
    context.save();
    context.beginPath();
    context.rect(plot.left, plot.top, plot.right - plot.left, plot.bottom - plot.top + 2);
    context.clip();
    if (fits) this.shade(context, frame, fits);
    delimiterLines(context, frame, frame.x, (x) => line(context, x, plot.top, x, plot.bottom + tickHeight));
    if (fits) this.nameLimit(context, frame, fits);
    if (fits) this.others(context, frame, fits);
    this.closedForm(context, frame);
    const { curve } = frame;
    if (curve) {
      context.strokeStyle = theme.series;
      context.globalAlpha = curve.stale ? 0.4 : 1;
      context.lineWidth = 2.25;
      this.trace(context, frame, curve.values);
    }
    context.restore();
    if (!curve) this.note(context, frame, "Computing …");
  }

  overlay(context: Context, frame: Frame): void {
    const { plot, y } = this;
    const { theme, position, curve } = frame;
    if (frame.length === 0) return;
    spanBand(context, frame, plot);
    if (this.alone && !frame.indexed) markColumn(context, frame, this.plot.bottom + tickHeight);
    this.markTick(context, frame);
    this.hair(context, frame);
    drawFlag(context, frame, this.top + titleHeight);
    const x = hairLine(frame);
    const value = position === null ? undefined : curve?.values[position];
    if (x === null || value === undefined || !Number.isFinite(value)) return;
    context.fillStyle = theme.accent;
    context.strokeStyle = theme.bg;
    context.lineWidth = 1.5;
    context.beginPath();
    context.arc(x, y(value), 4.25, 0, 2 * Math.PI);
    context.fill();
    context.stroke();
  }

  /** The hair-line, interrupted where it would strike through the limit's label. */
  private hair(context: Context, frame: Frame): void {
    const x = hairLine(frame);
    const label = this.limitLabels.find((box) => x !== null && x > box.left - 3 && x < box.right + 3);
    const end = this.alone ? this.plot.bottom + 6 : this.bottom;
    const start = this.top + titleHeight + flagHeight - 1;
    if (label) {
      drawHair(context, frame, start, label.top - 1);
      drawHair(context, frame, label.bottom + 1, end);
    } else drawHair(context, frame, start, end);
  }

  private title(context: Context, frame: Frame): void {
    const { theme, state } = frame;
    const { settings } = state;
    const heads = selectedProfile(state)?.heads;
    const head = heads === undefined ? state.selection.head : headAmong(state, heads);
    const layer = selectedLayer(state);
    const tol = formatTolerance(settings.tol);
    const how =
      settings.kind === "entropy"
        ? "effective rank of H, by entropy"
        : `singular values of H above ${settings.relative ? `${tol} σ₁` : tol}`;
    const pieces: Part[][] = [
      [{ text: "ESS", colour: theme.fg, size: normal, weight: 650 }],
      [{ text: groupName(layer, head), colour: theme.series, weight: 650, space: 8 }],
      [{ text: how, colour: theme.muted, space: 8 }],
    ];
    if (closedForm(state, frame.length)) {
      pieces.splice(2, 0, [{ text: "▬ closed form", colour: theme.delimiter, space: 10 }]);
    }
    if (heads !== undefined && heads > 1) {
      pieces.push([{ text: `thin: ${otherGroups(layer, heads)}`, colour: theme.muted, space: 12 }]);
    }
    const room = this.plot.right - this.plot.left - (this.alone ? 76 : 0);
    while (pieces.length > 1 && partsWidth(context, theme, pieces.flat()) > room) pieces.pop();
    drawParts(context, theme, pieces.flat(), this.plot.left, this.top + titleHeight / 2);
  }

  private axes(context: Context, frame: Frame): void {
    const { plot, y } = this;
    const { theme, ratio, length } = frame;
    context.font = font(theme);
    context.strokeStyle = theme.rule;
    context.lineWidth = 1;
    const base = snap(plot.bottom, ratio) + 0.5 / ratio;
    line(context, plot.left, base, plot.right, base);
    if (length === 0) return;
    context.fillStyle = theme.muted;
    context.textAlign = "right";
    for (const tick of y.ticks(plot.bottom - plot.top < 130 ? 3 : 4)) {
      if (!Number.isInteger(tick) && (y.domain()[1]! > 3 || frame.state.settings.kind === "tolerance"))
        continue;
      const at = snap(y(tick), ratio) + 0.5 / ratio;
      line(context, plot.left - 4, at, plot.left, at);
      context.fillText(String(tick), plot.left - 7, y(tick));
    }
    context.textAlign = "center";
    for (const index of indexTicks(frame.x, length, tickGap)) {
      const at = snap(frame.x.at(index), ratio) + 0.5 / ratio;
      if (at > plot.right + 1) continue;
      line(context, at, base, at, base + 4);
      context.fillText(String(index), at, plot.bottom + 12);
    }
    if (this.alone && !frame.indexed) columnLabels(context, frame, plot.bottom + tickHeight);
  }

  /** Writes the position beside the hair-line, which runs on, in place of the ticks' numbers it would touch. */
  private markTick(context: Context, frame: Frame): void {
    const x = hairLine(frame);
    if (x === null) return;
    const { theme } = frame;
    const { plot } = this;
    const text = String(frame.position);
    context.font = font(theme, small, 650);
    const width = textWidth(context, text);
    const left = x + 4 + width <= plot.right + 10 ? x + 4 : x - 4 - width;
    let [from, to] = [Math.min(left, x - 1) - 2, Math.max(left + width, x + 1) + 2];
    context.font = font(theme);
    for (const index of indexTicks(frame.x, frame.length, tickGap)) {
      const at = frame.x.at(index);
      const half = textWidth(context, String(index)) / 2 + 1;
      if (at + half > from && at - half < to) {
        from = Math.min(from, at - half);
        to = Math.max(to, at + half);
      }
    }
    plate(context, theme.bg, from, plot.bottom + 5, to - from, 14, 0);
    context.font = font(theme, small, 650);
    context.fillStyle = theme.accent;
    context.textAlign = "left";
    context.fillText(text, left, plot.bottom + 12);
  }

  private trace(context: Context, frame: Frame, values: Float32Array): void {
    const { x } = frame;
    const from = Math.max(0, Math.floor(x.start) - 1);
    const to = Math.min(frame.length, Math.ceil(x.end) + 2);
    let pen = false;
    context.lineJoin = "round";
    context.beginPath();
    for (let i = from; i < to; i++) {
      const value = values[i]!;
      if (!Number.isFinite(value)) {
        pen = false;
        continue;
      }
      if (pen) context.lineTo(x.at(i), this.y(value));
      else context.moveTo(x.at(i), this.y(value));
      pen = true;
    }
    context.stroke();
    if (frame.length === 1) {
      context.beginPath();
      context.arc(x.at(0), this.y(values[0]!), 2.5, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  /** A band that the curve runs within where measurement and closed form agree. */
  private closedForm(context: Context, frame: Frame): void {
    const values = closedForm(frame.state, frame.length);
    if (!values) return;
    context.strokeStyle = withAlpha(frame.theme.delimiter, frame.theme.dark ? 0.5 : 0.38);
    context.lineWidth = 7;
    this.trace(context, frame, values);
  }

  private others(context: Context, frame: Frame, data: ProfileData): void {
    // Another kind is another quantity; another τ is only out of date.
    if (data.kind !== frame.state.settings.kind) return;
    context.strokeStyle = frame.theme.seriesFaint;
    context.lineWidth = 1;
    context.globalAlpha = sameMeasure(data, frame.state.settings) ? 0.9 : 0.3;
    const selected = headAmong(frame.state, data.heads);
    for (let head = 0; head < data.heads; head++) {
      if (head !== selected) this.trace(context, frame, rowOf(data, data.ess, head));
    }
    context.globalAlpha = 1;
  }

  /** What the shape of H and the architecture's state leave out of reach. */
  private shade(context: Context, frame: Frame, data: ProfileData): void {
    const { plot, y } = this;
    const { theme, x, length } = frame;
    const { ceiling, size } = this.limits(frame, data);
    const at = (i: number) => Math.max(plot.top - 4, y(i < length ? ceiling[i]! : 0));
    context.fillStyle = theme.shade;
    context.beginPath();
    context.moveTo(x.at(0), plot.top - 4);
    for (let i = 0; i <= length; i++) context.lineTo(x.at(i), at(i));
    context.lineTo(x.at(length), plot.top - 4);
    context.fill();
    context.strokeStyle = theme.rule;
    context.lineWidth = 1.25;
    context.beginPath();
    for (let i = 0; i <= length; i++) context.lineTo(x.at(i), y(i < length ? ceiling[i]! : 0));
    context.stroke();

    // The state where it is more than the shape of H lets through.
    context.strokeStyle = theme.muted;
    context.setLineDash([5, 3]);
    context.beginPath();
    let pen = false;
    for (let i = 0; i < length; i++) {
      const above =
        size[i]! > ceiling[i]! + 1e-6 || (i + 1 < length && size[i + 1]! > ceiling[i + 1]! + 1e-6);
      if (above && pen) context.lineTo(x.at(i), y(size[i]!));
      else if (above) context.moveTo(x.at(i), y(size[i]!));
      pen = above;
    }
    context.stroke();
    context.setLineDash([]);
  }

  /** Names the limits where there is room in the shading. */
  private nameLimit(context: Context, frame: Frame, data: ProfileData): void {
    const { plot, y } = this;
    const { theme, length, x } = frame;
    const { ceiling, size } = this.limits(frame, data);
    const at = (i: number) => Math.max(plot.top - 4, y(i < length ? ceiling[i]! : 0));
    context.font = font(theme);
    context.textAlign = "left";
    const write = (text: string, box: Box) => {
      context.fillStyle = theme.shade;
      context.fillRect(box.left - 3, box.top, box.right - box.left + 6, box.bottom - box.top);
      context.fillStyle = theme.muted;
      context.fillText(text, box.left, (box.top + box.bottom) / 2);
    };
    for (const name of ["ceiling  min(TSS, i, L − i)", "ceiling"]) {
      const place = this.room(frame, textWidth(context, name), at);
      if (!place) continue;
      write(name, place);
      this.limitLabels.push(place);
      break;
    }
    // Right of where the dashed line leaves the plot or, where it is level, above its end.
    const seen = Array.from({ length }, (_, i) => i).filter(
      (i) => size[i]! > ceiling[i]! + 1e-6 && y(size[i]!) > plot.top + 16 && x.shows(i),
    );
    const last = seen[seen.length - 1];
    if (last === undefined || x.at(last) - x.at(seen[0]!) < 40) return;
    const width = textWidth(context, "TSS");
    const left = Math.min(x.at(last) + 6, plot.right - width - 6);
    const middle = Math.max(plot.top + 10, y(size[last]!) - 9);
    const box = { left, right: left + width, top: middle - 7, bottom: middle + 7 };
    const collides = this.limitLabels.some(
      (other) => box.left < other.right + 4 && box.right > other.left - 4 && box.top < other.bottom,
    );
    if (collides || at(Math.min(length, Math.ceil(x.invert(box.right)))) <= box.bottom) return;
    write("TSS", box);
    this.limitLabels.push(box);
  }

  /** A place for a label of this width in the shading, the widest corner first. */
  private room(frame: Frame, width: number, at: (i: number) => number): Box | null {
    const { plot } = this;
    const { x, length } = frame;
    const [top, bottom] = [plot.top + 2, plot.top + 15];
    const free = (left: number) => {
      const from = Math.max(0, Math.floor(x.invert(left - 4)));
      const to = Math.min(length, Math.ceil(x.invert(left + width + 4)));
      for (let i = from; i <= to; i++) if (at(i) < bottom + 2) return false;
      return true;
    };
    for (const left of [plot.left + 8, plot.right - width - 8, (plot.left + plot.right - width) / 2]) {
      if (left >= plot.left && left + width <= plot.right && free(left)) {
        return { left, right: left + width, top, bottom };
      }
    }
    return null;
  }

  private note(context: Context, frame: Frame, text: string): void {
    context.font = font(frame.theme, normal);
    context.fillStyle = frame.theme.muted;
    context.textAlign = "center";
    context.fillText(text, (this.plot.left + this.plot.right) / 2, (this.plot.top + this.plot.bottom) / 2);
  }
}

/** ESS in closed form, where a toy operator is shown. */
function closedForm(state: State, length: number): Float32Array | null {
  const data = state.toy_data;
  return data !== null && data.length === length && data.closed_form.length === length
    ? data.closed_form
    : null;
}

/** Length of what a profile can show. */
function profileLength(state: State): number {
  return state.profile_data?.length ?? state.spectrum_data?.length ?? 0;
}

/** The profile on its own. */
export function profileView(root: HTMLElement, store: Store): () => void {
  return mountStage(root, store, {
    panels: [new ProfilePanel(true)],
    length: profileLength,
    waiting: (state) => state.profile_data !== null && !ofLayer(state, state.profile_data),
    rowLabels: false,
  });
}
