/** The singular values of H at the brushed position: what is kept at τ, and which one is pointed at. */
import { scaleLinear, scaleLog } from "d3-scale";
import { Layers, onResize } from "../canvas";
import { selectedSpectrum } from "../curve";
import { formatEss, formatNumber, formatPower, formatSubscript, formatTolerance } from "../format";
import { line, snap } from "../marks";
import { ess, shapeRank, spectrumAt, threshold } from "../metrics";
import type { Kind, SpectrumData } from "../state";
import type { Store } from "../store";
import { snapTolerance, tauHandle } from "../tau_handle";
import { drawParts, font, matrixName, normal, partsWidth, plate, type Part, textWidth } from "../text";
import { onThemeChange, readTheme, sameTheme, withAlpha } from "../theme";
import { followVectors } from "../vectors";

const margin = { left: 46, right: 12, top: 50, bottom: 34 };
const leastHeight = 236;
const decades = 6;

/** Axis ranges for a whole head, so that they stay while the position moves. */
export interface Ranges {
  low: number;
  high: number;
  count: number;
}

/** Ranges of σ, or of p = σ/Σσ for the entropy, over all positions. */
export function spectrumRanges(data: SpectrumData, kind: Kind): Ranges {
  const sums = new Float64Array(data.length).fill(1);
  let largest = 0;
  for (let i = 0; i < data.length; i++) {
    const values = spectrumAt(data, i);
    if (kind === "entropy") sums[i] = values.reduce((sum, value) => sum + value, 0) || 1;
    const first = values[0]! / sums[i]!;
    if (Number.isFinite(first) && first > largest) largest = first;
  }
  if (largest === 0) return { low: 1e-4, high: 1, count: Math.max(1, Math.min(data.rank, 8)) };
  const top = Math.ceil(Math.log10(largest) - 1e-9);
  const floor = 10 ** (top - decades);
  let least = largest;
  let count = 1;
  for (let i = 0; i < data.length; i++) {
    const values = spectrumAt(data, i);
    for (let k = 0; k < data.rank; k++) {
      const value = values[k]! / sums[i]!;
      if (!(value > floor)) break;
      if (value < least) least = value;
      if (k >= count) count = k + 1;
    }
  }
  const bottom = Math.min(Math.floor(Math.log10(least)), top - 4);
  return { low: 10 ** bottom, high: kind === "entropy" ? 1 : Math.min(10 ** top, largest * 2.2), count };
}

/** How many leading values are above zero. */
function positive(values: Float32Array): number {
  let count = 0;
  while (count < values.length && values[count]! > 0) count++;
  return count;
}

interface Scene {
  values: Float32Array;
  shown: Float32Array;
  position: number;
  count: number;
  ess: number;
  sum: number;
}

export function spectrumView(root: HTMLElement, store: Store): () => void {
  const container = document.createElement("div");
  container.className = "ess-spectrum";
  container.style.cssText = `position:relative;width:100%;height:100%;min-height:${leastHeight}px;overflow:hidden`;
  const picture = document.createElement("div");
  picture.setAttribute("role", "img");
  picture.tabIndex = 0;
  picture.style.cssText = "position:absolute;inset:0;outline:none;outline-offset:-2px;touch-action:pan-y";
  container.append(picture);
  root.append(container);
  const layers = new Layers(picture);
  let theme = readTheme(container);
  let size: [number, number] = [0, 0];
  let ranges: Ranges = { low: 1e-4, high: 1, count: 1 };
  let rangeInputs: unknown[] = [];
  let painted: unknown[] = [];
  let scene: Scene | null = null;
  /** True while a click keeps the mode after the pointer has left. */
  let kept = false;
  let over = false;
  let describing: ReturnType<typeof setTimeout> | null = null;
  const x = scaleLinear();
  const y = scaleLog();
  const plot = { left: 0, right: 0, top: 0, bottom: 0 };

  const sigmaAt = (pixel: number) => y.invert(Math.max(plot.top, Math.min(plot.bottom, pixel)));
  const configure = (tol: number) => {
    const { relative } = store.state.settings;
    const limit = relative ? 1 : 10 ** Math.ceil(Math.log10(ranges.high));
    store.configure({ tol: Math.min(Math.max(tol, 1e-12), limit) });
  };
  const handle = tauHandle(picture, {
    drag: (pixel) => {
      const first = store.state.settings.relative ? (scene?.values[0] ?? 0) : 1;
      if (first > 0) configure(snapTolerance(sigmaAt(pixel) / first));
    },
    step: (steps) => configure(snapTolerance(store.state.settings.tol, steps)),
    hover: (event) => point(event.clientX - picture.getBoundingClientRect().left, null),
  });

  function look(): Scene | null {
    const { state } = store;
    const data = selectedSpectrum(state);
    const { position } = state.selection;
    if (!data || position === null || position < 0 || position >= data.length) return null;
    const values = spectrumAt(data, position);
    const sum = values.reduce((total, value) => total + value, 0);
    const shown = state.settings.kind === "entropy" && sum > 0 ? values.map((value) => value / sum) : values;
    return { values, shown, position, count: positive(values), ess: ess(values, state.settings), sum };
  }

  function refreshRanges(): void {
    const data = selectedSpectrum(store.state);
    const inputs = [data, store.state.settings.kind];
    if (!data || inputs.every((value, k) => value === rangeInputs[k])) return;
    rangeInputs = inputs;
    ranges = spectrumRanges(data, store.state.settings.kind);
  }

  function update(): void {
    if (size[0] === 0) return;
    const width = Math.floor(size[0]);
    const height = Math.max(leastHeight, Math.floor(size[1]));
    if (layers.resize(width, height)) painted = [];
    refreshRanges();
    Object.assign(plot, {
      left: margin.left,
      right: Math.max(margin.left + 20, width - margin.right),
      top: margin.top,
      bottom: height - margin.bottom,
    });
    x.domain([0, ranges.count]).range([plot.left + 2, plot.right]);
    y.domain([ranges.low, ranges.high]).range([plot.bottom, plot.top]);
    const inputs = [ranges, theme, store.state.settings.kind, selectedSpectrum(store.state) === null];
    if (inputs.some((value, k) => value !== painted[k])) {
      painted = inputs;
      paint();
    }
    scene = look();
    overlay();
  }

  function paint(): void {
    const context = layers.base;
    if (!context) return;
    context.clearRect(0, 0, layers.width, layers.height);
    if (!selectedSpectrum(store.state)) return;
    const { ratio } = layers;
    context.font = font(theme);
    context.strokeStyle = theme.rule;
    context.fillStyle = theme.muted;
    context.lineWidth = 1;
    const base = snap(plot.bottom, ratio) + 0.5 / ratio;
    line(context, plot.left, base, plot.right, base);
    context.textAlign = "right";
    const from = Math.ceil(Math.log10(ranges.low) - 1e-9);
    const to = Math.floor(Math.log10(ranges.high) + 1e-9);
    const step = Math.max(1, Math.ceil(((to - from) * 22) / (plot.bottom - plot.top)));
    for (let e = from; e <= to; e++) {
      const at = snap(y(10 ** e), ratio) + 0.5 / ratio;
      const major = (to - e) % step === 0;
      context.globalAlpha = 0.55;
      if (e > from && major) line(context, plot.left, at, plot.right, at);
      context.globalAlpha = 1;
      if (major) context.fillText(e === 0 ? "1" : formatPower(e), plot.left - 6, y(10 ** e));
    }
    context.textAlign = "center";
    const ticks = x.ticks(Math.max(2, Math.floor((plot.right - plot.left) / 42)));
    for (const k of ticks.filter((value) => Number.isInteger(value) && value > 0)) {
      context.fillText(String(k), x(k - 0.5), plot.bottom + 11);
    }
    context.textAlign = "right";
    context.fillText("index of singular value", plot.right, plot.bottom + 25);
  }

  function overlay(): void {
    const context = layers.overlay;
    if (!context) return;
    context.clearRect(0, 0, layers.width, layers.height);
    const note = emptyReason();
    describing ??= setTimeout(() => {
      describing = null;
      picture.setAttribute("aria-label", emptyReason() ?? describe());
    }, 400);
    if (note !== null || !scene) {
      handle.hide();
      drawNote(context, note ?? "");
      return;
    }
    bars(context, scene);
    header(context, scene);
    if (store.state.settings.kind === "entropy") {
      handle.hide();
      rankMark(context, scene);
    } else placeHandle(scene);
  }

  function emptyReason(): string | null {
    const { state } = store;
    if (!selectedSpectrum(state)) {
      if (state.status.phase === "error") return "No spectrum.";
      return state.spectrum_data === null && state.status.phase === "idle"
        ? "No spectrum yet."
        : "Computing singular values …";
    }
    if (!scene) return "Point at a position to see the singular values of its H.";
    if (scene.position === 0) return "Position 0 has no past: its H is empty and ESS is 0.";
    if (Number.isNaN(scene.ess)) return "Computing singular values …";
    if (scene.count === 0) return "All singular values are zero: nothing of the past is carried on.";
    return null;
  }

  function describe(): string {
    if (!scene) return "Spectrum";
    const { kind } = store.state.settings;
    const what = kind === "entropy" ? `effective rank ${formatEss(scene.ess)}` : `${scene.ess} kept`;
    return `Singular values of H at position ${scene.position}: ${what} of ${allowed(scene)}.`;
  }

  const allowed = (now: Scene) => {
    const data = selectedSpectrum(store.state);
    return shapeRank(data?.length ?? 0, now.position, data?.block);
  };

  function bars(context: CanvasRenderingContext2D, now: Scene): void {
    const { mode } = store.state.selection;
    const pitch = x(1) - x(0);
    const gap = pitch >= 12 ? 3 : pitch >= 6 ? 2 : pitch >= 3.5 ? 1 : 0;
    if (mode !== null && mode < now.count) {
      context.fillStyle = withAlpha(theme.accent, 0.14);
      const wide = Math.max(pitch, 3);
      context.fillRect(x(mode + 0.5) - wide / 2, plot.top, wide, plot.bottom - plot.top);
    }
    for (let k = 0; k < now.count && k < ranges.count; k++) {
      const value = now.shown[k]!;
      if (value < ranges.low) break;
      const top = y(value);
      const share = Math.max(0, Math.min(1, now.ess - k));
      const left = snap(x(k) + gap / 2, layers.ratio);
      const width = Math.max(snap(x(k + 1) - gap / 2, layers.ratio) - left, 1 / layers.ratio);
      // For the entropy the strong part is as wide as the effective rank.
      context.fillStyle = theme.seriesFaint;
      if (share < 1) context.fillRect(left + width * share, top, width * (1 - share), plot.bottom - top);
      context.fillStyle = theme.series;
      if (share > 0) context.fillRect(left, top, width * share, plot.bottom - top);
      if (k === mode) {
        context.fillStyle = theme.accent;
        const wide = Math.max(width, 3);
        context.fillRect(x(k + 0.5) - wide / 2, top, wide, plot.bottom - top);
      }
    }
  }

  function header(context: CanvasRenderingContext2D, now: Scene): void {
    const { settings, selection } = store.state;
    const of = allowed(now);
    const room = layers.width - 4;
    const name = matrixName(theme.accent, now.position);
    const number = formatEss(now.ess);
    const entropy = settings.kind === "entropy";
    const sentence = (verb: string, rest: string): Part[] => [
      ...name,
      { text: verb, colour: theme.muted, size: normal, space: 6 },
      { text: number, colour: theme.series, size: normal, weight: 650, space: 5 },
      { text: rest, colour: theme.muted, size: normal, space: 5 },
    ];
    const wordings = entropy
      ? [sentence("has effective rank", `of ${of} possible`), sentence("rank", `of ${of}`)]
      : [sentence("keeps", `of ${of} singular values`), sentence("keeps", `of ${of}`)];
    const fitting = wordings.find((parts) => partsWidth(context, theme, parts) <= room) ?? name;
    drawParts(context, theme, fitting, 2, 11);

    const { mode } = selection;
    const axis = settings.kind === "entropy" ? "p = σ / Σσ" : "σ";
    let second: Part[] = [{ text: axis, colour: theme.muted }];
    if (mode !== null && mode < now.count) {
      const percent = (100 * now.values[mode]!) / now.sum;
      second = [
        { text: `σ${formatSubscript(mode + 1)}`, colour: theme.accent, weight: 650 },
        { text: formatNumber(now.values[mode]!), colour: theme.fg, weight: 600, space: 6 },
        { text: `${percent >= 0.1 ? percent.toFixed(1) : "< 0.1"} % of Σσ`, colour: theme.muted, space: 8 },
      ];
      if (kept) second.push({ text: "kept, Esc lets go", colour: theme.muted, space: 8 });
    } else if (over)
      second.push({ text: "point at one to see what it carries", colour: theme.muted, space: 12 });
    while (second.length > 1 && partsWidth(context, theme, second) > room) second.pop();
    drawParts(context, theme, second, 2, 31);
  }

  function rankMark(context: CanvasRenderingContext2D, now: Scene): void {
    const at = snap(x(Math.min(now.ess, ranges.count)), layers.ratio);
    context.fillStyle = theme.fg;
    context.fillRect(at - 0.75, plot.top, 1.5, plot.bottom - plot.top);
    const parts: Part[] = [{ text: formatEss(now.ess), colour: theme.bg, weight: 600 }];
    const width = partsWidth(context, theme, parts) + 16;
    const left = Math.max(plot.left, Math.min(at - width / 2, plot.right - width));
    plate(context, theme.fg, left, plot.top - 4, width, 18, 9);
    drawParts(context, theme, parts, left + 8, plot.top + 5.5);
  }

  function placeHandle(now: Scene): void {
    const { settings } = store.state;
    const limit = threshold(settings, now.values[0]!);
    const [low, high] = y.domain() as [number, number];
    const arrow = limit < low ? " ↓" : limit > high ? " ↑" : "";
    const unit = settings.relative ? " σ₁" : "";
    handle.place({
      left: plot.left,
      width: plot.right - plot.left,
      y: y(Math.max(low, Math.min(high, limit > 0 ? limit : low))),
      text: `τ = ${formatTolerance(settings.tol)}${unit}${arrow}`,
      value: settings.tol,
      theme,
    });
  }

  function drawNote(context: CanvasRenderingContext2D, text: string): void {
    const waiting = selectedSpectrum(store.state) === null;
    const [left, right] = waiting ? [8, layers.width - 8] : [plot.left + 8, plot.right - 4];
    context.font = font(theme, normal);
    context.textAlign = "center";
    const lines: string[] = [];
    for (const word of text.split(" ")) {
      const longer = lines.length > 0 ? `${lines[lines.length - 1]!} ${word}` : word;
      const fits = textWidth(context, longer) <= right - left - 16;
      if (lines.length > 0 && fits) lines[lines.length - 1] = longer;
      else lines.push(word);
    }
    const height = 18 * lines.length;
    const top = (plot.top + plot.bottom - height) / 2;
    plate(context, theme.bg, left, top - 8, right - left, height + 16);
    context.fillStyle = theme.muted;
    lines.forEach((part, k) => context.fillText(part, (left + right) / 2, top + 9 + 18 * k));
  }

  /** Selects the singular value at a pixel; `py` null where only the column counts. */
  function point(px: number, py: number | null): void {
    over = true;
    const k = Math.floor(x.invert(px));
    const inside =
      px >= plot.left && px <= plot.right && (py === null || (py >= plot.top - 4 && py <= plot.bottom + 14));
    const hit =
      inside && scene !== null && emptyReason() === null && k >= 0 && k < Math.min(scene.count, ranges.count);
    if (kept) return;
    store.select({ mode: hit ? k : null });
  }

  function release(): void {
    kept = false;
    store.select({ mode: null });
    update();
  }

  const stop = new AbortController();
  const options = { signal: stop.signal };
  layers.element.addEventListener(
    "pointermove",
    (event) => {
      const before = over;
      point(event.offsetX, event.offsetY);
      if (!before) update();
    },
    options,
  );
  picture.addEventListener(
    "pointerleave",
    () => {
      over = false;
      if (!kept) store.select({ mode: null });
      update();
    },
    options,
  );
  layers.element.addEventListener(
    "click",
    (event) => {
      const before = store.state.selection.mode;
      const wasKept = kept;
      kept = false;
      point(event.offsetX, event.offsetY);
      const { mode } = store.state.selection;
      kept = mode !== null && !(wasKept && mode === before);
      picture.focus({ preventScroll: true });
      update();
    },
    options,
  );
  picture.addEventListener(
    "keydown",
    (event) => {
      if (event.key === "Escape" && store.state.selection.mode !== null) {
        event.stopPropagation();
        release();
      }
    },
    options,
  );
  picture.addEventListener(
    "focus",
    () => {
      if (picture.matches(":focus-visible")) picture.style.outline = `2px solid ${theme.series}`;
    },
    options,
  );
  picture.addEventListener("blur", () => (picture.style.outline = "none"), options);

  const stops = [
    () => stop.abort(),
    () => {
      if (describing !== null) clearTimeout(describing);
    },
    handle.remove,
    followVectors(store),
    onThemeChange(() => {
      const next = readTheme(container);
      if (sameTheme(theme, next)) return;
      theme = next;
      update();
    }),
    onResize(container, (width, height) => {
      size = [width, height];
      update();
    }),
    store.on(["spectrum_data", "selection", "settings", "status"], () => {
      if (store.state.selection.mode === null) kept = false;
      update();
    }),
  ];
  return () => {
    for (const end of stops) end();
    container.remove();
  };
}
