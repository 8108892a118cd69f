/** All layers and heads at once: mean ESS or utilisation, filling in as it is computed; a click selects. */
import { disposer, el, listen, setHidden, setText } from "../dom";
import { doubt, groupName, layerIndex, rowLabels } from "../facts";
import { formatEss, formatNumber, formatTolerance } from "../format";
import { displayLabel, fitText } from "../labels";
import { colourAt, gradient, ramp } from "../ramp";
import type { GridData, Layer, State } from "../state";
import type { Store } from "../store";
import { onThemeChange, readTheme, type Theme } from "../theme";
import { ratio, shorten } from "../wording";
import { segmented } from "./segmented";

type Shown = "mean" | "utilisation";

interface Plot {
  left: number;
  top: number;
  width: number;
  height: number;
  rows: number;
  columns: number;
}

const gutter = { top: 2, bottom: 28 };
const largest = 28;
const widestLabel = 72;

/** What the columns are, if they are the same everywhere. */
function groupNoun(layers: readonly Layer[]): string {
  const nouns = new Set(layers.map((layer) => layer.group ?? "head"));
  return nouns.size === 1 ? [...nouns][0]! : nouns.size > 1 ? "head or channel" : "head";
}

function dimensions({ grid_data: grid, layers }: State): [number, number] {
  if (grid) return [grid.rows, grid.columns];
  return [layers.length, Math.max(0, ...layers.map((layer) => layer.heads))];
}

function exists(layers: readonly Layer[], row: number, column: number): boolean {
  const layer = layers[row];
  return layer === undefined || column < layer.heads;
}

function valuesOf(grid: GridData, shown: Shown, against: "state_size" | "ceiling"): Float32Array {
  return shown === "mean" ? grid.ess : grid[against];
}

/** The next number of 1, 1.5, 2, 3, 5, 7.5, 10 × 10ⁿ: a scale that stays put while cells fill in. */
function roundUp(value: number): number {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  for (const step of [1, 1.5, 2, 3, 5, 7.5]) if (value <= step * power * (1 + 1e-9)) return step * power;
  return 10 * power;
}

/** What the numbers are: never one kind of ESS as if it were the other. */
function measure(grid: GridData | null): string {
  if (!grid) return "";
  if (grid.kind === "entropy") return "ESS by entropy";
  return `ESS by σ > ${formatTolerance(grid.tol)}${grid.relative ? "·σ₁" : ""}`;
}

/** Labels at every `step`-th place so that they stay `room` pixels apart. */
function stride(pitch: number, room: number): number {
  for (const step of [1, 2, 5, 10, 20, 50, 100, 200, 500]) if (step * pitch >= room) return step;
  return 1000;
}

export function layerGridView(root: HTMLElement, store: Store): () => void {
  let shown: Shown = "mean";
  let theme: Theme = readTheme(root);
  let colours = ramp(theme.dark);
  let plot: Plot = { left: 0, top: 0, width: 0, height: 0, rows: 0, columns: 0 };
  let hovered: [number, number] | null = null;
  let most = 1;
  /** Whether any layer needs a warning beside its label. */
  let doubtful = false;

  const choice = segmented<Shown>("Colour shows", [
    { value: "mean", label: "mean ESS", title: "Mean of ESS over positions" },
    { value: "utilisation", label: "utilisation", title: "Σ ESS / Σ limit over positions" },
  ]);
  const bar = el("span", "ess-bar");
  const high = el("span");
  const scale = el("div", "ess-scale", {}, el("span", "", {}, "0"), bar, high);
  const canvas = el("canvas", "", { role: "img", "data-part": "grid" });
  const frame = el("div", "ess-cell ess-cell-selected");
  const hover = el("div", "ess-cell ess-cell-hovered");
  const area = el("div", "ess-grid-plot", {}, canvas, hover, frame);
  const readout = el("div", "ess-readout");
  const view = el("div", "ess-grid-view", {}, choice.node, scale, area, readout);
  const waiting = el("div", "ess-muted", {}, "Layers show when the model has run.");
  root.append(view, waiting);

  const measureWidth = (text: string, size: number) => {
    const context = canvas.getContext("2d");
    if (!context) return 0;
    context.font = `${size}px ${theme.font}`;
    return context.measureText(text).width;
  };

  const layout = () => {
    const [rows, columns] = dimensions(store.state);
    const names = rowLabels(store.state.layers).map((name) =>
      fitText(displayLabel(name), widestLabel, (text) => measureWidth(text, 10)),
    );
    const labels = rows === names.length ? names : Array.from({ length: rows }, (_, k) => String(k));
    const widest = Math.max(14, ...labels.map((label) => measureWidth(label, 10)));
    doubtful = store.state.layers.some((layer) => doubt(layer) > 1);
    const left = Math.ceil(widest) + (doubtful ? 18 : 6);
    const width = Math.min(Math.max(0, area.clientWidth - left - 2), columns * largest);
    const height = Math.min(Math.max(0, area.clientHeight - gutter.top - gutter.bottom), rows * largest);
    plot = { left, top: gutter.top, width, height, rows, columns };
    return labels;
  };

  const edge = (from: number, size: number, cells: number, k: number) =>
    from + (cells > 0 ? (size * k) / cells : 0);

  const place = (node: HTMLElement, cell: readonly [number, number] | null) => {
    setHidden(node, cell === null || plot.width === 0);
    if (!cell) return;
    const [row, column] = cell;
    const x = edge(plot.left, plot.width, plot.columns, column);
    const y = edge(plot.top, plot.height, plot.rows, row);
    // At least five pixels each way: the frame must show where cells are small.
    const w = Math.max(5, plot.width / plot.columns);
    const h = Math.max(5, plot.height / plot.rows);
    node.style.transform = `translate(${x.toFixed(1)}px, ${y.toFixed(1)}px)`;
    node.style.width = `${w.toFixed(1)}px`;
    node.style.height = `${h.toFixed(1)}px`;
  };

  const draw = () => {
    const ratioOfPixels = window.devicePixelRatio || 1;
    const labels = layout();
    const { state } = store;
    canvas.width = Math.round(area.clientWidth * ratioOfPixels);
    canvas.height = Math.round(area.clientHeight * ratioOfPixels);
    const context = canvas.getContext("2d");
    const grid = state.grid_data;
    const values = grid ? valuesOf(grid, shown, state.settings.against) : null;
    let top = 0;
    for (const value of values ?? []) if (Number.isFinite(value)) top = Math.max(top, value);
    most = shown === "utilisation" && top > 0.55 ? 1 : roundUp(top);
    setText(high, most >= 1 ? String(Number(most.toPrecision(2))) : formatNumber(most));
    bar.style.background = gradient(colours);
    const what = shown === "mean" ? "Mean ESS" : "Utilisation";
    canvas.setAttribute(
      "aria-label",
      `${what} of ${plot.rows} layers by up to ${plot.columns} heads or channels`,
    );
    if (!context || plot.width <= 0 || plot.height <= 0) return;
    context.setTransform(ratioOfPixels, 0, 0, ratioOfPixels, 0, 0);

    const pitchX = plot.width / plot.columns;
    const pitchY = plot.height / plot.rows;
    const gapX = pitchX >= 7 ? 1 : 0;
    const gapY = pitchY >= 7 ? 1 : 0;
    const snap = (value: number) => Math.round(value * ratioOfPixels) / ratioOfPixels;
    for (let row = 0; row < plot.rows; row++) {
      const y = snap(edge(plot.top, plot.height, plot.rows, row));
      const h = snap(edge(plot.top, plot.height, plot.rows, row + 1)) - y - gapY;
      for (let column = 0; column < plot.columns; column++) {
        if (!exists(state.layers, row, column)) continue;
        const value = values?.[row * plot.columns + column] ?? NaN;
        const x = snap(edge(plot.left, plot.width, plot.columns, column));
        const w = snap(edge(plot.left, plot.width, plot.columns, column + 1)) - x - gapX;
        if (Number.isFinite(value)) {
          // What is left of an earlier input or measure stays, pale, until its successor is there.
          const stale = grid?.fresh?.[row * plot.columns + column] === 0;
          context.globalAlpha = stale ? 0.35 : 1;
          context.fillStyle = colourAt(colours, value / most);
          context.fillRect(x, y, w, h);
          context.globalAlpha = 1;
        } else pendingCell(context, x, y, w, h);
      }
    }

    context.font = `10px ${theme.font}`;
    context.textBaseline = "middle";
    context.textAlign = "right";
    const everyRow = stride(pitchY, 13);
    const chosen = layerIndex(state);
    for (let row = 0; row < plot.rows; row++) {
      const y = edge(plot.top, plot.height, plot.rows, row + 0.5);
      const layer = state.layers[row];
      if (layer && doubt(layer) > 1) warn(context, plot.left - 8, y);
      // The selected layer is always named; its neighbours give way.
      const near = chosen >= 0 && row !== chosen && Math.abs(row - chosen) * pitchY < 13;
      if (row !== chosen && (row % everyRow !== 0 || near)) continue;
      context.fillStyle = row === chosen ? theme.fg : theme.muted;
      context.fillText(labels[row]!, plot.left - (doubtful ? 16 : 5), y);
    }
    context.textAlign = "center";
    context.textBaseline = "top";
    context.fillStyle = theme.muted;
    const everyColumn = stride(pitchX, 16);
    const bottom = plot.top + plot.height + 3;
    for (let column = 0; column < plot.columns; column += everyColumn) {
      context.fillText(String(column), edge(plot.left, plot.width, plot.columns, column + 0.5), bottom);
    }
    context.textAlign = plot.width > 60 ? "center" : "left";
    context.fillText(
      groupNoun(store.state.layers),
      plot.width > 60 ? plot.left + plot.width / 2 : plot.left,
      bottom + 12,
    );
  };

  /** Not known yet: an outline with a dot, which no value looks like. */
  const pendingCell = (context: CanvasRenderingContext2D, x: number, y: number, w: number, h: number) => {
    context.fillStyle = theme.shade;
    context.fillRect(x, y, w, h);
    if (w < 6 || h < 6) return;
    context.fillStyle = theme.muted;
    context.fillRect(x + w / 2 - 1, y + h / 2 - 1, 2, 2);
  };

  const warn = (context: CanvasRenderingContext2D, x: number, y: number) => {
    context.fillStyle = getComputedStyle(view).getPropertyValue("--ess-warn") || theme.accent;
    context.beginPath();
    context.moveTo(x, y - 4);
    context.lineTo(x + 4.5, y + 4);
    context.lineTo(x - 4.5, y + 4);
    context.fill();
  };

  const selectedCell = (): [number, number] | null => {
    const row = layerIndex(store.state);
    return row < 0 ? null : [row, store.state.selection.head];
  };

  const read = () => {
    const { state } = store;
    const cell = hovered ?? selectedCell();
    place(frame, selectedCell());
    place(hover, hovered);
    setHidden(readout, cell === null);
    if (!cell) return;
    const [row, column] = cell;
    const layer = state.layers[row];
    const grid = state.grid_data;
    const at = row * plot.columns + column;
    const value = grid ? (shown === "mean" ? grid.ess[at] : grid[state.settings.against][at]) : undefined;
    const stale = grid?.fresh?.[at] === 0 ? "before: " : "";
    const name = layer ? shorten(displayLabel(layer.name), 60) : `layer ${row}`;
    const number =
      value === undefined || !Number.isFinite(value)
        ? "not computed yet"
        : shown === "mean"
          ? `${stale}mean ESS ${formatEss(Number(value.toFixed(2)))}`
          : `${stale}utilisation ${ratio(value)} of ${state.settings.against === "ceiling" ? "the ceiling" : "TSS"}`;
    setText(nameLine, name);
    setText(valueLine, `${groupName(layer, column)} · ${number}`);
    const warned = layer !== undefined && doubt(layer) > 1;
    setText(unitLine, warned ? "" : measure(grid));
    setHidden(unitLine, warned);
    setHidden(warnLine, !warned);
    if (warned) setText(warnLine, `residual ${formatNumber(layer.residual ?? NaN)}: not to be trusted`);
    nameLine.title = layer ? displayLabel(layer.name) : "";
  };
  const nameLine = el("div", "ess-clip");
  const valueLine = el("div", "ess-strong");
  const unitLine = el("div", "ess-muted");
  const warnLine = el("div", "ess-warning");
  readout.append(nameLine, valueLine, unitLine, warnLine);

  const cellAt = (event: PointerEvent): [number, number] | null => {
    const box = area.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left - plot.left) / plot.width) * plot.columns);
    const row = Math.floor(((event.clientY - box.top - plot.top) / plot.height) * plot.rows);
    if (!(row >= 0 && row < plot.rows && column >= 0 && column < plot.columns)) return null;
    return exists(store.state.layers, row, column) ? [row, column] : null;
  };
  const point = (cell: [number, number] | null) => {
    if (String(cell) === String(hovered)) return;
    hovered = cell;
    area.style.cursor = cell ? "pointer" : "";
    read();
  };

  const redraw = () => {
    choice.set(shown);
    const [rows] = dimensions(store.state);
    view.style.setProperty("--ess-rows", String(Math.max(1, rows)));
    setHidden(view, rows === 0);
    setHidden(waiting, rows > 0);
    draw();
    read();
  };
  choice.onChange((value) => {
    shown = value;
    redraw();
  });
  let layer = store.state.selection.layer;
  const sizes = new ResizeObserver(redraw);
  sizes.observe(area);
  const undo = [
    listen(area, "pointermove", (event) => point(cellAt(event))),
    listen(area, "pointerleave", () => point(null)),
    listen(area, "click", (event) => {
      const cell = cellAt(event as PointerEvent);
      const chosen = cell && store.state.layers[cell[0]];
      if (chosen) store.select({ layer: chosen.name, head: cell[1] });
    }),
    store.on(["grid_data", "layers", "settings"], redraw),
    store.on(["selection"], () => {
      // Cells do not depend on the selection; only the selected layer's label does.
      if (store.state.selection.layer !== layer) redraw();
      else read();
      layer = store.state.selection.layer;
    }),
    onThemeChange(() => {
      theme = readTheme(root);
      colours = ramp(theme.dark);
      redraw();
    }),
  ];
  redraw();
  return disposer([
    () => view.remove(),
    () => waiting.remove(),
    () => sizes.disconnect(),
    () => choice.dispose(),
    ...undo,
  ]);
}
