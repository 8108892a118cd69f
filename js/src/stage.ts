/** A stack of panels on one pair of canvases and one horizontal axis, brushed, zoomed and repainted together. */
import { Axis, nearestPosition, pan, windows, zoomAt } from "./axis";
import { Layers, onResize } from "./canvas";
import { curveReader, type Curve } from "./curve";
import { attachGestures } from "./gestures";
import { axisLabel, displayLabel } from "./labels";
import type { State, Zoom } from "./state";
import type { Store } from "./store";
import { onThemeChange, readTheme, sameTheme, type Theme } from "./theme";
import { zoomButtons } from "./zoom_buttons";

export interface Box {
  left: number;
  top: number;
  right: number;
  bottom: number;
}

/** What panels draw from: everything they share in one frame. */
export interface Frame {
  state: State;
  theme: Theme;
  width: number;
  /** Device pixels per CSS pixel. */
  ratio: number;
  length: number;
  /** The plots' common horizontal axis. */
  x: Axis;
  window: Zoom;
  /** Drawable labels and marks, one per position; `indexed` where labels are only the indices. */
  labels: string[];
  /** The same for axes, shorter where a token is special. */
  names: string[];
  marks: number[];
  indexed: boolean;
  curve: Curve | null;
  /** The brushed position, where it exists in this length. */
  position: number | null;
  /** Pointer inside the stage, in its pixels. */
  pointer: { x: number; y: number } | null;
  /** True for a short while after the page scrolled over a zoomed plot. */
  hint: boolean;
}

export interface Panel {
  /** Where data is drawn; set by `place`. */
  plot: Box;
  /** Lays out below `top` and returns the height taken. */
  place(frame: Frame, top: number): number;
  /** What the static picture depends on beyond size, theme, zoom and tokens. */
  inputs(state: State): unknown[];
  paint(context: CanvasRenderingContext2D, frame: Frame): void;
  overlay(context: CanvasRenderingContext2D, frame: Frame): void;
  /** The vertical position axis, where the panel has one. */
  rows?(): Axis;
  /** Upper right corner for the zoom buttons. */
  corner(): { right: number; top: number };
  /** One sentence about what is shown. */
  describe(frame: Frame): string;
}

export interface StageOptions {
  panels: Panel[];
  length: (state: State) => number;
  /** True while what is shown is not yet what is selected. */
  waiting?: (state: State) => boolean;
  /** Room for row labels on the left. */
  rowLabels: boolean;
  /** What lies on the picture and can be dragged; placed after each painting. */
  attach?: (picture: HTMLElement) => { place(frame: Frame, plots: Box[]): void; remove(): void };
}

/** Parts of the state that panels draw. */
const shownKeys = [
  "operator_data",
  "spectrum_data",
  "profile_data",
  "tokens",
  "settings",
  "selection",
  "vectors",
  "zoom",
  "detail",
  "status",
  "toy_data",
] as const;

const hintTime = 1600;

function margin(width: number, rowLabels: boolean, indexed: boolean): number {
  if (!rowLabels) return 44;
  if (indexed) return 62;
  return width < 480 ? 74 : width < 760 ? 92 : 108;
}

export function mountStage(root: HTMLElement, store: Store, options: StageOptions): () => void {
  const { panels } = options;
  const container = document.createElement("div");
  container.className = "ess-stage";
  container.style.cssText = "position:relative;width:100%;overflow:hidden";
  const picture = document.createElement("div");
  picture.setAttribute("role", "img");
  picture.tabIndex = 0;
  picture.style.cssText =
    "position:absolute;inset:0;outline-offset:-2px;touch-action:pan-y;user-select:none;-webkit-user-select:none";
  container.append(picture);
  root.append(container);
  const layers = new Layers(picture);
  const attached = options.attach?.(picture);
  const buttons = zoomButtons(container, {
    zoom: (factor) => {
      const centre = frame.position ?? (frame.window.x[0] + frame.window.x[1]) / 2;
      store.set({ zoom: zoomAt(store.state.zoom, frame.length, factor, centre, centre) });
    },
    reset: () => store.set({ zoom: null }),
  });

  let theme = readTheme(container);
  let width = 0;
  let pointer: Frame["pointer"] = null;
  let hint: ReturnType<typeof setTimeout> | null = null;
  let queued: number | null = null;
  let describing: ReturnType<typeof setTimeout> | null = null;
  let tokens: {
    source: State["tokens"];
    length: number;
    labels: string[];
    names: string[];
    marks: number[];
  } = {
    source: null,
    length: -1,
    labels: [],
    names: [],
    marks: [],
  };
  const painted = new Map<Panel, unknown[]>();
  const readCurve = curveReader();
  let frame = makeFrame();

  function makeFrame(): Frame {
    const { state } = store;
    const length = Math.max(0, options.length(state));
    if (tokens.source !== state.tokens || tokens.length !== length) {
      const source = state.tokens;
      const fits = source?.labels.length === length;
      const raw = fits ? source.labels : Array.from({ length }, (_, index) => String(index));
      const marks = fits ? source.marks : [];
      tokens = {
        source,
        length,
        labels: raw.map(displayLabel),
        names: raw.map((label, k) => axisLabel(label, marks[k] ?? 0)),
        marks,
      };
    }
    const fits = state.tokens?.labels.length === length;
    const indexed = !fits || state.tokens?.indexed === true;
    const window = windows(state.zoom, length);
    const left = margin(width, options.rowLabels, indexed);
    const right = Math.max(left + 20, width - 14);
    const { position } = state.selection;
    return {
      state,
      theme,
      width,
      ratio: layers.ratio,
      length,
      x: new Axis(left, right, window.x[0], Math.max(window.x[1], window.x[0] + 1e-6)),
      window,
      labels: tokens.labels,
      names: tokens.names,
      marks: tokens.marks,
      indexed,
      curve: readCurve(state, length),
      position: position !== null && position >= 0 && position < length ? position : null,
      pointer,
      hint: hint !== null,
    };
  }

  function paintOverlay(): void {
    if (queued !== null) cancelAnimationFrame(queued);
    queued = null;
    const context = layers.overlay;
    if (!context || width === 0) return;
    context.clearRect(0, 0, layers.width, layers.height);
    for (const panel of panels) {
      context.save();
      panel.overlay(context, frame);
      context.restore();
    }
  }

  /** What only this view shows, in the next frame; a change of the store in the same frame does it too. */
  function later(): void {
    queued ??= requestAnimationFrame(() => {
      frame = makeFrame();
      paintOverlay();
    });
  }

  function update(): void {
    if (width === 0) return;
    frame = makeFrame();
    let top = 0;
    const extents = panels.map((panel) => {
      const height = panel.place(frame, top);
      top += height;
      return [top - height, height] as const;
    });
    if (layers.resize(width, Math.ceil(top))) {
      container.style.height = `${Math.ceil(top)}px`;
      frame.ratio = layers.ratio;
      painted.clear();
    }
    const { zoom, tokens: source } = frame.state;
    panels.forEach((panel, k) => {
      const inputs = [theme, zoom, source, frame.length, ...extents[k]!, ...panel.inputs(frame.state)];
      const before = painted.get(panel);
      if (before && inputs.every((value, n) => value === before[n])) return;
      painted.set(panel, inputs);
      const context = layers.base;
      if (!context) return;
      const [start, height] = extents[k]!;
      context.save();
      context.beginPath();
      context.rect(0, start, width, height);
      context.clip();
      context.clearRect(0, start, width, height);
      panel.paint(context, frame);
      context.restore();
    });
    buttons.place(panels[panels.length - 1]!.corner(), zoom !== null, theme, frame.length > 4);
    // Waiting shows only after a moment, so that quick answers do not flicker.
    const waits = options.waiting?.(frame.state) ?? false;
    picture.style.transition = waits ? "opacity 150ms ease 200ms" : "none";
    picture.style.opacity = waits ? "0.45" : "1";
    attached?.place(
      frame,
      panels.map((panel) => panel.plot),
    );
    paintOverlay();
    describing ??= setTimeout(() => {
      describing = null;
      picture.setAttribute("aria-label", panels.map((panel) => panel.describe(frame)).join(" "));
    }, 400);
  }

  const panelAt = (y: number) =>
    panels.find((panel) => y >= panel.plot.top - 2 && y <= panel.plot.bottom + 2) ?? panels[0]!;
  const rowAt = (x: number, y: number) => panelAt(y).rows?.().invert(y) ?? frame.x.invert(x);

  const unbrush = attachGestures(layers.element, {
    accepts: (x, y) =>
      frame.length > 0 &&
      x >= frame.x.from - 6 &&
      x <= frame.x.to + 6 &&
      y >= panels[0]!.plot.top - 24 &&
      y <= panels[panels.length - 1]!.plot.bottom + 16,
    move: (x, y) => {
      pointer = { x, y };
      const inside =
        x >= frame.x.from - 6 &&
        x <= frame.x.to + 6 &&
        y >= panels[0]!.plot.top - 24 &&
        y <= panels[panels.length - 1]!.plot.bottom + 16;
      if (inside && frame.length > 0 && !store.state.selection.pinned) {
        store.select({ position: nearestPosition(frame.x, x, frame.length) });
      }
      later();
    },
    leave: () => {
      pointer = null;
      later();
    },
    click: (x) => {
      const { pinned, span } = store.state.selection;
      const position = nearestPosition(frame.x, x, frame.length);
      const token = Math.floor(frame.x.invert(x));
      const outside = span !== null && (token < span[0] || token >= span[1]);
      store.select({
        pinned: !pinned,
        position: pinned ? store.state.selection.position : position,
        span: outside ? null : span,
      });
    },
    drag: (from, to) => {
      const bound = (x: number) => Math.max(0, Math.min(frame.length, Math.round(frame.x.invert(x))));
      const [a, b] = [bound(from), bound(to)];
      if (a !== b) store.select({ span: [Math.min(a, b), Math.max(a, b)] });
    },
    pan: (dx, dy) => {
      const columns = -dx / frame.x.cell;
      const rows = panels[panels.length - 1]!.rows?.();
      store.set({ zoom: pan(store.state.zoom, frame.length, columns, rows ? -dy / rows.cell : columns) });
    },
    zoom: (factor, x, y) =>
      store.set({ zoom: zoomAt(store.state.zoom, frame.length, factor, frame.x.invert(x), rowAt(x, y)) }),
    reset: () => store.set({ zoom: null }),
    scroll: () => {
      if (!store.state.zoom) return;
      if (hint !== null) clearTimeout(hint);
      hint = setTimeout(() => {
        hint = null;
        later();
      }, hintTime);
      later();
    },
  });

  const focus = () => {
    picture.style.outline = picture.matches(":focus-visible") ? `2px solid ${theme.series}` : "none";
  };
  const blur = () => (picture.style.outline = "none");
  picture.style.outline = "none";
  picture.addEventListener("focus", focus);
  picture.addEventListener("blur", blur);

  const stops = [
    unbrush,
    () => attached?.remove(),
    buttons.remove,
    onThemeChange(() => {
      const next = readTheme(container);
      if (sameTheme(theme, next)) return;
      theme = next;
      update();
    }),
    onResize(container, (next) => {
      width = Math.floor(next);
      update();
    }),
    store.on([...shownKeys], update),
  ];
  return () => {
    for (const stop of stops) stop();
    if (queued !== null) cancelAnimationFrame(queued);
    if (hint !== null) clearTimeout(hint);
    if (describing !== null) clearTimeout(describing);
    container.remove();
  };
}
