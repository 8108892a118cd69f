/** Positions to pixels: boundaries are whole numbers, token j lies between boundaries j and j + 1. */
import type { Zoom } from "./state";

export type Range = [number, number];

export class Axis {
  constructor(
    readonly from: number,
    readonly to: number,
    readonly start: number,
    readonly end: number,
  ) {}

  /** Pixels per token. */
  get cell(): number {
    return (this.to - this.from) / Math.max(this.end - this.start, 1e-9);
  }

  at(boundary: number): number {
    return this.from + (boundary - this.start) * this.cell;
  }

  invert(pixel: number): number {
    return this.start + (pixel - this.from) / this.cell;
  }

  /** The same, not beyond the ends of the axis. */
  clamped(boundary: number): number {
    return Math.min(this.to, Math.max(this.from, this.at(boundary)));
  }

  /** Whether the middle of token `index` is shown. */
  shows(index: number): boolean {
    return index + 0.5 >= this.start && index + 0.5 <= this.end;
  }
}

/** Where the middle of a label of this size goes: at `middle`, or as near as it can be between `from` and `to`. */
export function labelMiddle(middle: number, size: number, from: number, to: number): number {
  return Math.max(from + size / 2, Math.min(to - size / 2, middle));
}

/** The position that a pointer means: the nearest boundary that has a token to its right. */
export function nearestPosition(axis: Axis, pixel: number, length: number): number {
  return Math.max(0, Math.min(length - 1, Math.round(axis.invert(pixel))));
}

/**
 * Tokens to label so that neighbours are at least `gap` pixels apart. Special tokens come first; the rest
 * keeps a regular step that does not depend on what part of the axis is shown.
 */
export function thinLabels(axis: Axis, length: number, gap: number, marks: number[]): number[] {
  const first = Math.max(0, Math.floor(axis.start));
  const last = Math.min(length, Math.ceil(axis.end));
  const distance = gap / axis.cell;
  const step = Math.max(1, Math.ceil(distance - 1e-9));
  const chosen: number[] = [];
  const free = (index: number) => chosen.every((other) => Math.abs(other - index) >= distance);
  const add = (index: number) => {
    if (axis.shows(index) && free(index)) chosen.push(index);
  };
  for (let index = first; index < last; index++) if ((marks[index] ?? 0) > 1) add(index);
  for (let index = first - (first % step); index < last; index += step) if (index >= 0) add(index);
  return chosen.sort((a, b) => a - b);
}

const leastWindow = 4;

function within([from, to]: Range, length: number): Range {
  const size = Math.min(Math.max(to - from, Math.min(leastWindow, length)), length);
  const start = Math.max(0, Math.min(length - size, from));
  return [start, start + size];
}

/** The shown part of both axes. */
export function windows(zoom: Zoom | null, length: number): Zoom {
  if (!zoom) return { x: [0, length], y: [0, length] };
  return { x: within(zoom.x, length), y: within(zoom.y, length) };
}

/** Magnifies by `factor` about a point, which stays where it is; null where everything is shown again. */
export function zoomAt(
  zoom: Zoom | null,
  length: number,
  factor: number,
  column: number,
  row: number,
): Zoom | null {
  const { x, y } = windows(zoom, length);
  const size = Math.min(length, Math.max((x[1] - x[0]) / factor, Math.min(leastWindow, length)));
  if (size > length - 1e-6) return null;
  const about = ([from, to]: Range, fixed: number): Range => {
    const start = fixed - ((fixed - from) / (to - from)) * size;
    return within([start, start + size], length);
  };
  return { x: about(x, column), y: about(y, row) };
}

/** Moves the shown part by so many tokens. */
export function pan(zoom: Zoom | null, length: number, columns: number, rows: number): Zoom | null {
  if (!zoom) return null;
  const { x, y } = windows(zoom, length);
  return {
    x: within([x[0] + columns, x[1] + columns], length),
    y: within([y[0] + rows, y[1] + rows], length),
  };
}
