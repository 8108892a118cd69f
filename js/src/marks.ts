/** What several panels draw: token labels along axes, index ticks, delimiters, the hair-line and its flag. */
import { ticks } from "d3-array";
import { type Axis, thinLabels } from "./axis";
import { headAmong } from "./belongs";
import { selectedProfile } from "./curve";
import { formatEss } from "./format";
import type { Box, Frame } from "./stage";
import { drawParts, fit, font, normal, partsWidth, plate, small, type Part, textWidth } from "./text";
import { withAlpha } from "./theme";

type Context = CanvasRenderingContext2D;

const labelGap = 12.5;
/** Columns as wide as this carry their labels level. */
const level = 56;

/** To whole device pixels, so that lines are sharp. */
export function snap(value: number, ratio: number): number {
  return Math.round(value * ratio) / ratio;
}

export function line(context: Context, x1: number, y1: number, x2: number, y2: number): void {
  context.beginPath();
  context.moveTo(x1, y1);
  context.lineTo(x2, y2);
  context.stroke();
}

/** Whole numbers to label so that there are `gap` pixels for each. */
export function indexTicks(axis: Axis, length: number, gap: number): number[] {
  const count = Math.max(1, Math.floor((axis.to - axis.from) / gap));
  return ticks(axis.start, axis.end, count).filter((value) => Number.isInteger(value) && value < length);
}

function labelColour(frame: Frame, index: number): string {
  return (frame.marks[index] ?? 0) > 0 ? frame.theme.delimiter : frame.theme.muted;
}

function turned(context: Context, x: number, y: number, draw: () => void): void {
  context.save();
  context.translate(x, y);
  context.rotate(-Math.PI / 2);
  draw();
  context.restore();
}

/** Height that column labels take. */
export function columnLabelHeight(frame: Frame): number {
  if (frame.indexed) return 18;
  return frame.width < 480 ? 50 : 62;
}

/** Tokens (or indices) below a plot; tokens are written upwards, one under each column. */
export function columnLabels(context: Context, frame: Frame, top: number): void {
  const { x, theme } = frame;
  context.font = font(theme);
  context.textBaseline = "middle";
  if (frame.indexed) {
    context.fillStyle = theme.muted;
    context.textAlign = "center";
    for (const index of indexTicks(x, frame.length, 44)) {
      if (x.shows(index)) context.fillText(frame.names[index]!, x.at(index + 0.5), top + 9);
    }
    return;
  }
  const room = columnLabelHeight(frame) - 4;
  if (x.cell >= level) {
    context.textAlign = "center";
    for (let index = Math.floor(x.start); index < Math.min(x.end, frame.length); index++) {
      if (!x.shows(index)) continue;
      context.fillStyle = labelColour(frame, index);
      context.fillText(fit(context, frame.names[index]!, x.cell - 8), x.at(index + 0.5), top + 9);
    }
    return;
  }
  for (const index of thinLabels(x, frame.length, labelGap, frame.marks)) {
    context.fillStyle = labelColour(frame, index);
    turned(context, x.at(index + 0.5), top + 2, () => {
      context.textAlign = "right";
      context.fillText(fit(context, frame.names[index]!, room), 0, 0);
    });
  }
}

/** Tokens (or indices) left of `right`, one beside each row. */
export function rowLabels(context: Context, frame: Frame, y: Axis, right: number): void {
  const { theme } = frame;
  context.font = font(theme);
  context.textAlign = "right";
  context.textBaseline = "middle";
  if (frame.indexed) {
    context.fillStyle = theme.muted;
    for (const index of indexTicks(y, frame.length, 30)) {
      if (y.shows(index)) context.fillText(frame.names[index]!, right, y.at(index + 0.5));
    }
    return;
  }
  for (const index of thinLabels(y, frame.length, labelGap, frame.marks)) {
    context.fillStyle = labelColour(frame, index);
    context.fillText(fit(context, frame.names[index]!, right - 4), right, y.at(index + 0.5));
  }
}

/** Where labels near token `index` begin and end, so that marking it hides whole labels, not parts. */
function clearing(frame: Frame, axis: Axis, index: number): [number, number] {
  const centre = axis.at(index + 0.5);
  const half = labelGap / 2 + 1;
  let [from, to] = [centre - half, centre + half];
  for (const other of thinLabels(axis, frame.length, labelGap, frame.marks)) {
    const at = axis.at(other + 0.5);
    if (Math.abs(at - centre) < labelGap) {
      from = Math.min(from, at - half);
      to = Math.max(to, at + half);
    }
  }
  return [from, to];
}

/** Marks the brushed token among the column labels. */
export function markColumn(context: Context, frame: Frame, top: number): void {
  const { position, x, theme } = frame;
  if (position === null || !x.shows(position)) return;
  const room = columnLabelHeight(frame);
  context.fillStyle = theme.bg;
  context.font = font(theme, small, 600);
  if (frame.indexed) {
    const text = frame.names[position]!;
    const width = textWidth(context, text);
    const centre = x.at(position + 0.5);
    context.fillRect(centre - width / 2 - 14, top, width + 28, 18);
    context.fillStyle = theme.accent;
    context.textAlign = "center";
    context.fillText(text, centre, top + 9);
    return;
  }
  if (x.cell >= level) {
    context.fillRect(x.at(position) + 2, top, x.cell - 4, 18);
    context.fillStyle = theme.accent;
    context.textAlign = "center";
    context.fillText(fit(context, frame.names[position]!, x.cell - 8), x.at(position + 0.5), top + 9);
    return;
  }
  const [from, to] = clearing(frame, x, position);
  context.fillRect(from, top, to - from, room);
  context.fillStyle = theme.accent;
  turned(context, x.at(position + 0.5), top + 2, () => {
    context.textAlign = "right";
    context.fillText(fit(context, frame.names[position]!, room - 4), 0, 0);
  });
}

/** Marks the brushed token among the row labels. */
export function markRow(context: Context, frame: Frame, y: Axis, right: number): void {
  const { position, theme } = frame;
  if (position === null || !y.shows(position)) return;
  const centre = y.at(position + 0.5);
  const [from, to] = frame.indexed ? [centre - 13, centre + 13] : clearing(frame, y, position);
  context.fillStyle = theme.bg;
  context.fillRect(0, from, right + 2, to - from);
  context.font = font(theme, small, 600);
  context.fillStyle = theme.accent;
  context.textAlign = "right";
  context.fillText(fit(context, frame.names[position]!, right - 4), right, centre);
}

/** Positions of delimiters to draw: special ones always, punctuation where there is room. */
function delimiters(frame: Frame, axis: Axis): number[] {
  const all: number[] = [];
  const strong: number[] = [];
  for (let index = 1; index < frame.length; index++) {
    const mark = frame.marks[index] ?? 0;
    if (mark === 0 || index <= axis.start || index >= axis.end) continue;
    all.push(index);
    if (mark > 1) strong.push(index);
  }
  return all.length * 7 < axis.to - axis.from ? all : strong;
}

/** Dotted lines where delimiters begin; `end` says how far each reaches. */
export function delimiterLines(
  context: Context,
  frame: Frame,
  axis: Axis,
  draw: (pixel: number, index: number) => void,
): void {
  context.save();
  context.strokeStyle = frame.theme.delimiter;
  context.lineWidth = 1;
  context.setLineDash([1, 3]);
  const shown = delimiters(frame, axis);
  // Many of them are a pattern to sense, not lines to read.
  const strength = Math.max(0.3, Math.min(1, 12 / shown.length));
  for (const index of shown) {
    context.globalAlpha = strength * ((frame.marks[index] ?? 0) > 1 ? 0.9 : 0.65);
    draw(snap(axis.at(index), frame.ratio) + 0.5 / frame.ratio, index);
  }
  context.restore();
}

/** Shades the selected span in a plot. */
export function spanBand(context: Context, frame: Frame, plot: Box): void {
  const { span } = frame.state.selection;
  if (!span || span[0] >= frame.length) return;
  const from = snap(frame.x.clamped(span[0]), frame.ratio);
  const to = snap(frame.x.clamped(Math.min(span[1], frame.length)), frame.ratio);
  if (to <= from) return;
  context.fillStyle = frame.theme.span;
  context.fillRect(from, plot.top, to - from, plot.bottom - plot.top);
  context.fillStyle = withAlpha(frame.theme.span, 0.9);
  for (const edge of [from, to]) context.fillRect(edge - 0.5, plot.top, 1, plot.bottom - plot.top);
}

/** The hair-line at the brushed position; null where it is out of sight. */
export function hairLine(frame: Frame): number | null {
  const { position, x, ratio } = frame;
  if (position === null || position < x.start - 1e-9 || position > x.end + 1e-9) return null;
  return snap(x.at(position), ratio);
}

export function drawHair(context: Context, frame: Frame, top: number, bottom: number): void {
  const x = hairLine(frame);
  if (x === null) return;
  context.fillStyle = frame.theme.accent;
  const width = Math.max(1, Math.round(1.25 * frame.ratio) / frame.ratio);
  context.fillRect(snap(x - width / 2, frame.ratio), top, width, bottom - top);
}

/** What the flag on top of the hair-line says. */
function flagParts(context: Context, frame: Frame, room: number): Part[] {
  const { position, theme, curve, state } = frame;
  if (position === null) return [];
  const accent = theme.accent;
  const parts: Part[] = [{ text: String(position), colour: theme.muted }];
  const value = curve?.values[position];
  const end: Part[] = [];
  if (value !== undefined && Number.isFinite(value)) {
    end.push({ text: `ESS ${formatEss(value)}`, colour: accent, size: normal, weight: 650, space: 10 });
    const limit = limitAt(frame, position);
    if (limit !== null)
      end.push({ text: `of ${formatEss(limit)}`, colour: theme.muted, size: normal, space: 4 });
  }
  if (state.selection.pinned) end.push({ text: "pinned", colour: theme.muted, space: 10 });
  if (!frame.indexed) {
    const left = room - partsWidth(context, theme, [...parts, ...end]) - 6;
    context.font = font(theme, normal, 600);
    const text = left < 24 ? "" : fit(context, frame.labels[position]!, Math.min(220, left));
    if (text !== "") parts.push({ text, colour: theme.fg, size: normal, weight: 600, space: 6 });
  }
  return [...parts, ...end];
}

/** The limit that utilisation is taken against, at a position of the selected head. */
export function limitAt(frame: Frame, position: number): number | null {
  const { state, length } = frame;
  const { against } = state.settings;
  const data = selectedProfile(state);
  if (data?.length !== length) return against === "ceiling" ? Math.min(position, length - position) : null;
  return data[against][headAmong(state, data.heads) * length + position] ?? null;
}

export const flagHeight = 24;

/** The flag: position, token and ESS, riding on the hair-line within the plot's width. */
export function drawFlag(context: Context, frame: Frame, top: number): void {
  const x = hairLine(frame);
  if (x === null) return;
  const { theme } = frame;
  const available = frame.width - 8;
  const parts = flagParts(context, frame, available - 16);
  const width = partsWidth(context, theme, parts) + 16;
  const left = Math.max(4, Math.min(frame.width - 4 - width, x - width / 2));
  plate(context, withAlpha(theme.accent, theme.dark ? 0.18 : 0.06), left, top, width, 18);
  drawParts(context, theme, parts, left + 8, top + 9.5);
  context.fillStyle = theme.accent;
  context.fillRect(left, top + 17, width, 1.25);
  const stem = Math.max(1, Math.round(1.25 * frame.ratio) / frame.ratio);
  context.fillRect(snap(x - stem / 2, frame.ratio), top + 17, stem, flagHeight - 16);
}
