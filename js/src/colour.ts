/** Colour maps and the normalisation of an operator's entries. */
import { interpolateLab, piecewise } from "d3-interpolate";
import {
  interpolateCividis,
  interpolateGreys,
  interpolateMagma,
  interpolateViridis,
} from "d3-scale-chromatic";
import { ticks } from "d3-array";
import type { Cells } from "./detail";
import type { OperatorData, Scale } from "./state";
import { parseColour, type Theme } from "./theme";

// Equally spaced in CIE lightness, so that equal steps of the value look equal; cool hues leave the warm
// accent to the brushed position. In the dark the map is turned round: nothing remembered recedes.
const sequentialLight = [
  "#edf3e1",
  "#b3d9bc",
  "#76bdaa",
  "#409ea1",
  "#277d96",
  "#025c8c",
  "#15397e",
  "#241853",
];
const sequentialDark = [
  "#242a3b",
  "#334271",
  "#385f9c",
  "#3282b4",
  "#35a6b9",
  "#56c9b5",
  "#9ee7a8",
  "#f0fcbc",
];
const signedLight = "#442764 #774d99 #a57ebc #ceb5d8 #f1f1f1 #97c9aa #509b75 #216b4c #0d3c29".split(" ");
const signedDark = "#fedeff #d6a5ec #a276c3 #6a5182 #323233 #37644e #46976e #6cc994 #c4f4c2".split(" ");

/** Maps that the user may choose by the page's property `--ess-colours`; those that begin dark are turned round in light. */
const chosen = new Map<string, { map: (t: number) => string; startsDark: boolean }>([
  ["viridis", { map: interpolateViridis, startsDark: true }],
  ["magma", { map: interpolateMagma, startsDark: true }],
  ["cividis", { map: interpolateCividis, startsDark: true }],
  ["greys", { map: interpolateGreys, startsDark: false }],
]);

/** Colour of |T|, for 0 … 1. */
export function sequential(theme: Theme): (t: number) => string {
  const choice = chosen.get(theme.colours);
  if (choice) {
    const { map, startsDark } = choice;
    return startsDark === theme.dark ? map : (t) => map(1 - t);
  }
  return piecewise(interpolateLab, theme.dark ? sequentialDark : sequentialLight) as (t: number) => string;
}

const signedSteps = 256;
const signedTables = new Map<boolean, string[]>();

/** Colour of a signed weight, for −1 … 1, from a table: weights are drawn by the hundred at every move. */
export function signed(theme: Theme): (t: number) => string {
  let table = signedTables.get(theme.dark);
  if (!table) {
    const colour = piecewise(interpolateLab, theme.dark ? signedDark : signedLight) as (t: number) => string;
    table = Array.from({ length: signedSteps + 1 }, (_, k) => colour(k / signedSteps));
    signedTables.set(theme.dark, table);
  }
  const colours = table;
  return (t) => colours[Math.round(((Math.max(-1, Math.min(1, t)) + 1) / 2) * signedSteps)]!;
}

/** Colour of cells that are not finite. */
export function notFiniteColour(theme: Theme): string {
  return theme.dark ? "#ff5fa2" : "#d6006c";
}

/** How entries become positions on a colour map. */
export interface Normalisation {
  scale: Scale;
  /** True where there are negative entries. */
  signed: boolean;
  /** Smallest size that the log scale tells from zero. */
  low: number;
  high: number;
  /** True where some entries are not finite. */
  notFinite: boolean;
}

const decades = 4;

/** Fits the range to the lower triangle of `data`; decades are whole, so that heads look alike. */
export function normalise(data: OperatorData, scale: Scale): Normalisation {
  const { matrix, side } = data;
  const sizes: number[] = [];
  let high = 0;
  let negative = false;
  let notFinite = false;
  const stride = Math.max(1, Math.floor((side * side) / 40000));
  let count = 0;
  for (let row = 0; row < side; row++) {
    for (let column = 0; column <= row; column++) {
      const value = matrix[row * side + column]!;
      if (!Number.isFinite(value)) {
        notFinite = true;
        continue;
      }
      const size = Math.abs(value);
      if (value < 0) negative = true;
      if (size > high) high = size;
      if (size > 0 && count++ % stride === 0) sizes.push(size);
    }
  }
  if (high === 0) high = 1;
  sizes.sort((a, b) => a - b);
  const small = sizes[Math.floor(sizes.length * 0.05)] ?? high;
  const top = Math.ceil(Math.log10(high) - 1e-9);
  const bottom = Math.min(Math.max(Math.floor(Math.log10(small) + 1e-6), top - decades), top - 2);
  return { scale, signed: negative, low: Math.min(10 ** bottom, high / 10), high, notFinite };
}

/** Where `value` lies on the map: 0 … 1, or −1 … 1 where entries are signed. */
export function place(norm: Normalisation, value: number): number {
  const size = Math.abs(value);
  const t =
    norm.scale === "linear"
      ? size / norm.high
      : size <= norm.low
        ? 0
        : Math.log(size / norm.low) / Math.log(norm.high / norm.low);
  return Math.sign(value) * Math.min(1, t);
}

/** Values to label on a colour bar. */
export function barTicks(norm: Normalisation): number[] {
  let values: number[];
  if (norm.scale === "linear") values = ticks(0, norm.high, norm.signed ? 2 : 4);
  else {
    const from = Math.ceil(Math.log10(norm.low) - 1e-9);
    const to = Math.floor(Math.log10(norm.high) + 1e-9);
    values = Array.from({ length: to - from + 1 }, (_, k) => 10 ** (from + k));
  }
  if (!norm.signed) return values;
  const negative = values.filter((value) => value > 0).map((value) => -value);
  return [...negative.reverse(), ...values];
}

const steps = 512;
const littleEndian = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;

function pack(colour: string): number {
  const [r, g, b] = parseColour(colour);
  return (
    (littleEndian ? (255 << 24) | (b << 16) | (g << 8) | r : (r << 24) | (g << 16) | (b << 8) | 255) >>> 0
  );
}

/** One pixel per cell, transparent above the diagonal. */
export function heatPixels(cells: Cells, norm: Normalisation, theme: Theme): Uint32Array {
  const { matrix, rows, columns, block } = cells;
  const colour = norm.signed ? signed(theme) : sequential(theme);
  const from = norm.signed ? -1 : 0;
  const table = Uint32Array.from({ length: steps + 1 }, (_, k) =>
    pack(colour(from + ((1 - from) * k) / steps)),
  );
  const bad = pack(notFiniteColour(theme));
  const pixels = new Uint32Array(rows * columns);
  for (let row = 0; row < rows; row++) {
    const lastRow = cells.top + (row + 1) * block - 1;
    for (let column = 0; column < columns && cells.left + column * block <= lastRow; column++) {
      const index = row * columns + column;
      const value = matrix[index]!;
      pixels[index] = Number.isFinite(value)
        ? table[Math.round(((place(norm, value) - from) / (1 - from)) * steps)]!
        : bad;
    }
  }
  return pixels;
}

/** Cells as an image, one pixel each. */
export function heatImage(cells: Cells, norm: Normalisation, theme: Theme): HTMLCanvasElement {
  const canvas = document.createElement("canvas");
  canvas.width = cells.columns;
  canvas.height = cells.rows;
  const bytes = new Uint8ClampedArray(heatPixels(cells, norm, theme).buffer);
  if (bytes.length > 0) canvas.getContext("2d")?.putImageData(new ImageData(bytes, cells.columns), 0, 0);
  return canvas;
}
