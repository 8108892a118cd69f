/** The operator of the selected head as a heat map, with H_i framed on it and what it remembers at its edges. */
import { Axis } from "../axis";
import { ofHead } from "../belongs";
import {
  barTicks,
  heatImage,
  normalise,
  notFiniteColour,
  place as placeValue,
  sequential,
  signed,
  type Normalisation,
} from "../colour";
import { cellAt, cellsOf, currentDetail, followDetail, type Cell, type Cells } from "../detail";
import { groupName, selectedLayer } from "../facts";
import { formatNumber, formatPower } from "../format";
import {
  columnLabelHeight,
  columnLabels,
  delimiterLines,
  drawFlag,
  drawHair,
  flagHeight,
  hairLine,
  line,
  markColumn,
  markRow,
  rowLabels,
  snap,
} from "../marks";
import { mountStage, type Box, type Frame, type Panel } from "../stage";
import type { OperatorData, State } from "../state";
import type { Store } from "../store";
import {
  drawParts,
  fit,
  font,
  matrixName,
  normal,
  partsWidth,
  plate,
  small,
  type Part,
  textWidth,
} from "../text";
import { withAlpha } from "../theme";
import { currentMode, followVectors, largest } from "../vectors";

type Context = CanvasRenderingContext2D;

const strip = 14;
const stripGap = 3;
const barHeight = 40;
const highestPlot = 640;
/** Above the plot, for the upper half of the first row's label. */
const headroom = 7;

export class OperatorPanel implements Panel {
  plot: Box = { left: 0, top: 0, right: 0, bottom: 0 };
  private top = 0;
  private y = new Axis(0, 1, 0, 1);
  private norm: Normalisation | null = null;
  private normInputs: unknown[] = [];
  private images = new Map<Float32Array, HTMLCanvasElement>();
  private bar: Box = { left: 0, top: 0, right: 0, bottom: 0 };

  /** `alone`: with a flag of its own above. */
  constructor(private alone: boolean) {}

  place(frame: Frame, top: number): number {
    this.top = top;
    const start = top + (this.alone ? flagHeight + 4 : headroom);
    const width = frame.x.to - frame.x.from;
    const height = Math.round(Math.min(width, highestPlot));
    this.plot = { left: frame.x.from, right: frame.x.to, top: start, bottom: start + height };
    const { y } = frame.window;
    this.y = new Axis(start, start + height, y[0], Math.max(y[1], y[0] + 1e-6));
    return this.labelTop + columnLabelHeight(frame) + barHeight - top;
  }

  private get labelTop(): number {
    return this.plot.bottom + stripGap + strip + 4;
  }

  rows(): Axis {
    return this.y;
  }

  inputs(state: State): unknown[] {
    return [state.operator_data, currentDetail(state), state.settings.scale, state.status.phase];
  }

  corner(): { right: number; top: number } {
    return { right: this.plot.right, top: this.bar.top - 6 };
  }

  describe(frame: Frame): string {
    const { state, position } = frame;
    const data = state.operator_data;
    if (!data) return "Operator: no data yet.";
    const here =
      position === null
        ? ""
        : ` H at position ${position}: the ${frame.length - position} rows from there on, ${position} columns before.`;
    return `Operator of ${groupName(selectedLayer(state), data.head)} as a heat map, ${data.length} by ${data.length}, ${state.settings.scale} scale.${here}`;
  }

  private refresh(data: OperatorData, frame: Frame): void {
    const inputs = [data, frame.state.settings.scale, frame.theme];
    if (inputs.every((value, k) => value === this.normInputs[k])) return;
    this.normInputs = inputs;
    this.norm = normalise(data, frame.state.settings.scale);
    this.images.clear();
  }

  /** Draws cells where they lie; an image is made once, and the last two are kept: all, and the detail. */
  private heat(context: Context, frame: Frame, cells: Cells): void {
    const { x, theme, ratio } = frame;
    const { y } = this;
    if (!this.norm || cells.matrix.length === 0) return;
    const image = this.images.get(cells.matrix) ?? heatImage(cells, this.norm, theme);
    this.images.set(cells.matrix, image);
    for (const old of [...this.images.keys()].slice(0, -2)) this.images.delete(old);
    const { top, left, rows, columns, block } = cells;
    const [x1, x2] = [x.at(left), x.at(left + columns * block)];
    const [y1, y2] = [y.at(top), y.at(top + rows * block)];
    // Cells smaller than a pixel are averaged, larger ones keep sharp edges.
    context.imageSmoothingEnabled = x.cell * block * ratio < 1;
    context.imageSmoothingQuality = "high";
    context.drawImage(image, x1, y1, x2 - x1, y2 - y1);
  }

  paint(context: Context, frame: Frame): void {
    const { plot, y } = this;
    const { theme, x, state, length, ratio } = frame;
    const data = state.operator_data;
    this.bar = {
      left: plot.left,
      right: plot.left + Math.min(260, (plot.right - plot.left) * 0.6),
      top: this.labelTop + columnLabelHeight(frame) + 8,
      bottom: this.labelTop + columnLabelHeight(frame) + 16,
    };
    if (!data || length === 0 || data.side === 0) {
      this.skeleton(context, frame);
      return;
    }
    this.refresh(data, frame);
    context.save();
    context.beginPath();
    context.rect(plot.left, plot.top, plot.right - plot.left, plot.bottom - plot.top);
    context.clip();
    this.heat(context, frame, cellsOf(data));
    const detail = currentDetail(state);
    if (detail) this.heat(context, frame, detail);
    delimiterLines(context, frame, x, (at) => line(context, at, plot.top, at, plot.bottom));
    delimiterLines(context, frame, y, (at, index) =>
      line(context, plot.left, at, Math.max(plot.left, x.clamped(index)), at),
    );
    context.restore();
    context.strokeStyle = theme.rule;
    context.lineWidth = 1;
    const half = 0.5 / ratio;
    const [left, bottom] = [snap(plot.left, ratio) - half, snap(plot.bottom, ratio) + half];
    line(context, left, plot.top, left, bottom);
    line(context, left, bottom, plot.right, bottom);
    rowLabels(context, frame, y, this.rowLabelEnd);
    columnLabels(context, frame, this.labelTop);
    this.captions(context, frame);
    this.colourBar(context, frame);
  }

  private get rowLabelEnd(): number {
    return this.plot.left - stripGap - strip - 5;
  }

  /** Says which axis is which, in the corners that labels leave free. */
  private captions(context: Context, frame: Frame): void {
    const { theme } = frame;
    context.font = font(theme, small, 400, "italic");
    context.fillStyle = theme.muted;
    context.textAlign = "right";
    context.fillText("input →", this.plot.left - 8, this.labelTop + (frame.indexed ? 9 : 12));
    turnedText(context, "← output", this.plot.left - stripGap - strip / 2, this.plot.top + 2);
  }

  private skeleton(context: Context, frame: Frame): void {
    const { plot } = this;
    const { theme, state } = frame;
    context.fillStyle = theme.shade;
    context.beginPath();
    context.moveTo(plot.left, plot.top);
    context.lineTo(plot.right, plot.bottom);
    context.lineTo(plot.left, plot.bottom);
    context.fill();
    const text = state.status.phase === "error" ? "No operator" : "Waiting for an operator";
    context.font = font(theme, normal);
    context.fillStyle = theme.muted;
    context.textAlign = "left";
    context.fillText(text, plot.left + 16, plot.bottom - 22);
  }

  private colourBar(context: Context, frame: Frame): void {
    const { bar, norm } = this;
    const { theme } = frame;
    if (!norm) return;
    const width = bar.right - bar.left;
    const colour = norm.signed ? signed(theme) : sequential(theme);
    const from = norm.signed ? -1 : 0;
    for (let k = 0; k < width; k++) {
      context.fillStyle = colour(from + ((1 - from) * k) / (width - 1));
      context.fillRect(bar.left + k, bar.top, Math.min(1.5, width - k), bar.bottom - bar.top);
    }
    context.font = font(theme);
    context.fillStyle = theme.muted;
    context.strokeStyle = theme.muted;
    context.lineWidth = 1;
    context.textAlign = "right";
    context.fillText(norm.signed ? "T" : "|T|", bar.left - 8, (bar.top + bar.bottom) / 2);
    context.textAlign = "center";
    let end = -Infinity;
    for (const value of barTicks(norm)) {
      const at = this.barAt(value);
      const text = norm.scale === "log" && value !== 0 ? signedPower(value) : formatNumber(value);
      const half = textWidth(context, text) / 2;
      if (at - half < end + 6) continue;
      end = at + half;
      line(context, at, bar.bottom, at, bar.bottom + 3);
      context.fillText(text, at, bar.bottom + 11);
    }
    if (norm.notFinite) {
      const x = Math.max(bar.right + 14, end + 14);
      context.fillStyle = notFiniteColour(theme);
      context.fillRect(x, bar.top, 8, 8);
      context.fillStyle = theme.muted;
      context.textAlign = "left";
      context.fillText("not finite", x + 12, bar.top + 4.5);
    }
  }

  private barAt(value: number): number {
    const { bar, norm } = this;
    const t = norm ? placeValue(norm, value) : 0;
    const share = norm?.signed ? (t + 1) / 2 : t;
    return bar.left + share * (bar.right - bar.left);
  }

  overlay(context: Context, frame: Frame): void {
    const data = frame.state.operator_data;
    if (!data || frame.length === 0 || data.length !== frame.length) {
      if (this.alone) drawFlag(context, frame, this.top);
      return;
    }
    this.frameH(context, frame);
    this.span(context, frame);
    markRow(context, frame, this.y, this.rowLabelEnd);
    markColumn(context, frame, this.labelTop);
    this.mode(context, frame);
    const reading = this.readout(context, frame, data);
    this.nameH(context, frame, reading);
    if (this.alone) drawFlag(context, frame, this.top);
    if (frame.hint) this.hint(context, frame);
  }

  /** H_i = T[i:, :i]: what is left of the hair-line and below it; the rest recedes. */
  private frameH(context: Context, frame: Frame): void {
    const { plot, y } = this;
    const { position, x, theme, ratio } = frame;
    if (position === null) return;
    const at = snap(x.clamped(position), ratio);
    const row = snap(y.clamped(position), ratio);
    context.fillStyle = withAlpha(theme.bg, 0.42);
    if (position > 0) {
      context.fillRect(plot.left, plot.top, plot.right - plot.left, row - plot.top);
      context.fillRect(at, row, plot.right - at, plot.bottom - row);
    }
    drawHair(context, frame, this.alone ? this.top + flagHeight - 2 : this.top, plot.bottom);
    if (position === 0 || at <= plot.left || row >= plot.bottom) return;
    // The frame lies on the boundaries themselves: column i begins right of it, row i below it.
    const edges: [number, number, number, number][] = [];
    if (y.start <= position) edges.push([plot.left, row, at, row]);
    if (x.end >= position) edges.push([at, row, at, plot.bottom]);
    if (x.start <= 0) edges.push([plot.left, row, plot.left, plot.bottom]);
    if (y.end >= frame.length) edges.push([plot.left, plot.bottom, at, plot.bottom]);
    for (const [colour, width] of [
      [withAlpha(theme.bg, 0.75), 4],
      [theme.accent, 2],
    ] as const) {
      context.fillStyle = colour;
      for (const [x1, y1, x2, y2] of edges) {
        context.fillRect(x1 - width / 2, y1 - width / 2, x2 - x1 + width, y2 - y1 + width);
      }
    }
  }

  private span(context: Context, frame: Frame): void {
    const { plot, y } = this;
    const { theme, x, ratio, length } = frame;
    const { span } = frame.state.selection;
    if (!span || span[0] >= length) return;
    const end = Math.min(span[1], length);
    const [x1, x2] = [span[0], end].map((value) => snap(x.clamped(value), ratio)) as [number, number];
    const [y1, y2] = [span[0], end].map((value) => snap(y.clamped(value), ratio)) as [number, number];
    context.globalAlpha = 0.4;
    context.fillStyle = theme.span;
    context.fillRect(x1, plot.top, x2 - x1, plot.bottom - plot.top);
    context.globalAlpha = 1;
    // Brackets on both edges, where the tokens are named.
    context.fillStyle = withAlpha(theme.span, 0.9);
    context.fillRect(x1, plot.bottom + 1, x2 - x1, 2);
    context.fillRect(plot.left - 3, y1, 2, y2 - y1);
    for (const edge of [x1, x2]) context.fillRect(edge - 0.5, plot.top, 1, plot.bottom - plot.top);
  }

  /** Names the frame in the future, which is blank: up and right of its corner no cell is hidden. */
  private nameH(context: Context, frame: Frame, reading: Box | null): void {
    const { plot, y } = this;
    const { position, x, theme } = frame;
    const at = hairLine(frame);
    if (position === null || at === null || position === 0) return;
    const name = matrixName(theme.accent, position);
    const words = (text: string): Part => ({ text, colour: theme.fg, space: 8 });
    const height = 20;
    for (const text of ["past → present and future", "past → future", ""]) {
      const parts = text === "" ? name : [...name, words(text)];
      const width = partsWidth(context, theme, parts) + 4;
      let left = Math.min(at + 8, plot.right - width);
      if (text !== "" && left < at + 4) continue; // it would lie on the hair-line
      // Up to where the row of the label's left end leaves the triangle.
      const beside = y.at(position) - height - 1;
      let top = Math.min(beside, y.at(Math.max(0, x.invert(left - 4))) - height - 1);
      if (text !== "" && beside - top > 14) continue;
      if (top < plot.top + 2) {
        top = plot.top + 2;
        left = Math.max(left, x.at(y.invert(top + height)) + 6);
      }
      const fits = left + width <= plot.right + 1 && top + height <= plot.bottom && left >= plot.left;
      const free =
        !reading || top >= reading.bottom + 2 || left + width <= reading.left - 6 || left >= reading.right;
      if (!fits || !free) continue;
      if (frame.state.zoom)
        plate(context, withAlpha(theme.bg, 0.9), left - 4, top + 1, width + 8, height - 2);
      drawParts(context, theme, parts, left, top + height / 2);
      return;
    }
  }

  /** The cell under the pointer, in the upper right corner, where the future leaves room. */
  private readout(context: Context, frame: Frame, data: OperatorData): Box | null {
    const { plot, y } = this;
    const { pointer, x, theme, length, labels } = frame;
    if (!pointer || !this.norm) return null;
    const inside =
      pointer.x >= plot.left && pointer.x < plot.right && pointer.y >= plot.top && pointer.y < plot.bottom;
    if (!inside) return null;
    const [row, column] = [Math.floor(y.invert(pointer.y)), Math.floor(x.invert(pointer.x))];
    const detail = currentDetail(frame.state);
    const cell =
      (detail && cellAt(detail, length, row, column)) ?? cellAt(cellsOf(data), length, row, column);
    if (!cell) return null;
    const { rows, columns, value } = cell;
    const where = (range: [number, number]) =>
      range[0] === range[1] ? String(range[0]) : `${range[0]}–${range[1]}`;
    const first: Part[] = [
      { text: `T[${where(rows)}, ${where(columns)}]`, colour: theme.muted },
      { text: formatNumber(value), colour: theme.fg, size: normal, weight: 650, space: 8 },
    ];
    if (rows[0] !== rows[1]) first.push({ text: "largest", colour: theme.muted, space: 6 });
    const second: Part[] = [];
    if (!frame.indexed) {
      const room = Math.min(110, (plot.right - plot.left) * 0.24);
      context.font = font(theme, small, 600);
      const name = (range: [number, number]) => fit(context, labels[range[0]]!, room);
      second.push({ text: name(rows), colour: theme.fg, weight: 600 });
      second.push({ text: "reads", colour: theme.muted, space: 6 });
      second.push({ text: name(columns), colour: theme.fg, weight: 600, space: 6 });
    }
    const width = Math.max(partsWidth(context, theme, first), partsWidth(context, theme, second)) + 12;
    const height = second.length > 0 ? 38 : 22;
    const box = {
      left: plot.right - width,
      right: plot.right,
      top: plot.top + 2,
      bottom: plot.top + 2 + height,
    };
    plate(context, withAlpha(theme.bg, 0.92), box.left, box.top, width, height);
    const end = (parts: Part[]) => plot.right - 6 - partsWidth(context, theme, parts);
    drawParts(context, theme, first, end(first), box.top + 11);
    drawParts(context, theme, second, end(second), box.top + 28);
    this.outline(context, frame, cell);
    if (Number.isFinite(value)) this.pointOnBar(context, frame, value);
    return box;
  }

  private outline(context: Context, frame: Frame, { rows, columns }: Cell): void {
    const { x, theme } = frame;
    const [left, right] = [x.clamped(columns[0]), x.clamped(columns[1] + 1)];
    const [top, bottom] = [this.y.clamped(rows[0]), this.y.clamped(rows[1] + 1)];
    if (right - left < 5) return;
    context.lineWidth = 1.5;
    context.strokeStyle = theme.fg;
    context.strokeRect(left, top, right - left, bottom - top);
  }

  private pointOnBar(context: Context, frame: Frame, value: number): void {
    const { bar } = this;
    const at = this.barAt(value);
    context.fillStyle = frame.theme.fg;
    context.beginPath();
    context.moveTo(at, bar.top + 1);
    context.lineTo(at - 4, bar.top - 6);
    context.lineTo(at + 4, bar.top - 6);
    context.fill();
  }

  /** The singular vectors of the mode that is pointed at: weights on past inputs below, on outputs at the left. */
  private mode(context: Context, frame: Frame): void {
    const { plot, y } = this;
    const { position, state, x, theme } = frame;
    if (position === null || state.selection.mode === null) return;
    const mode = currentMode(state);
    if (!mode) return;
    const colour = signed(theme);
    const middle = plot.bottom + stripGap + strip / 2;
    const centre = plot.left - stripGap - strip / 2;
    context.fillStyle = theme.bg;
    context.fillRect(plot.left - stripGap - strip, plot.top, strip, plot.bottom - plot.top);
    context.fillStyle = theme.rule;
    context.fillRect(plot.left, middle - 0.5, x.clamped(position) - plot.left, 1);
    context.fillRect(centre - 0.5, y.clamped(position), 1, plot.bottom - y.clamped(position));
    const bars = (
      weights: Float32Array,
      axis: Axis,
      first: number,
      draw: (from: number, size: number, height: number) => void,
    ) => {
      const scale = largest(weights);
      const gap = axis.cell > 5 ? 1 : 0;
      for (let k = 0; k < weights.length; k++) {
        const from = axis.clamped(first + k);
        const to = axis.clamped(first + k + 1);
        const share = weights[k]! / scale;
        if (to <= from || share === 0 || !Number.isFinite(share)) continue;
        // Faint weights keep a visible colour; their size says that they are faint.
        context.fillStyle = colour(Math.sign(share) * (0.45 + 0.45 * Math.abs(share)));
        draw(from, Math.max(to - from - gap, 0.5), (share * strip) / 2);
      }
    };
    bars(mode.past, x, 0, (from, size, height) =>
      context.fillRect(from, middle - Math.max(height, 0), size, Math.abs(height)),
    );
    bars(mode.future, y, position, (from, size, height) =>
      context.fillRect(centre + Math.min(height, 0), from, Math.abs(height), size),
    );
    context.font = font(theme, small, 600);
    context.fillStyle = theme.fg;
    context.textAlign = "right";
    const caption = textWidth(context, "carried from") <= plot.left - 8 ? "carried from" : "from";
    context.fillText(caption, plot.left - 6, middle);
    if (y.clamped(position) - plot.top > 52) {
      turnedText(context, "goes to", centre, y.clamped(position) - 4, "left");
    }
  }

  private hint(context: Context, frame: Frame): void {
    const { plot } = this;
    const { theme } = frame;
    const mac = /Mac|iPhone|iPad/.test(navigator.userAgent);
    const parts: Part[] = [
      { text: `${mac ? "⌘" : "Ctrl"} + wheel zooms, Shift + drag moves`, colour: theme.bg, size: normal },
    ];
    const width = partsWidth(context, theme, parts) + 20;
    const left = (plot.left + plot.right - width) / 2;
    plate(context, withAlpha(theme.fg, 0.86), left, plot.bottom - 40, width, 26, 13);
    drawParts(context, theme, parts, left + 10, plot.bottom - 26.5);
  }
}

function turnedText(
  context: Context,
  text: string,
  x: number,
  y: number,
  align: CanvasTextAlign = "right",
): void {
  context.save();
  context.translate(x, y);
  context.rotate(-Math.PI / 2);
  context.textAlign = align;
  context.fillText(text, 0, 0);
  context.restore();
}

function signedPower(value: number): string {
  const power = formatPower(Math.round(Math.log10(Math.abs(value))));
  return value < 0 ? `−${power}` : power === "10⁰" ? "1" : power;
}

export function operatorWaits(state: State): boolean {
  return state.operator_data !== null && !ofHead(state, state.operator_data);
}

/** The operator on its own. */
export function operatorView(root: HTMLElement, store: Store): () => void {
  const undo = [followVectors(store), followDetail(store)];
  const unmount = mountStage(root, store, {
    panels: [new OperatorPanel(true)],
    length: (state) => state.operator_data?.length ?? 0,
    waiting: operatorWaits,
    rowLabels: true,
  });
  return () => {
    unmount();
    undo.forEach((stop) => stop());
  };
}
