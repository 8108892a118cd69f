/** Poles as pure data: where a drag may put them, and what they are called. */
import { formatNumber } from "./format";
import type { WirePole } from "./state";

/** Within this distance a dragged pole settles on another one, on zero or on the real axis. */
const reach = 0.035;

/** State that a pole takes: its order, twice for a conjugate pair. */
export function stateOf([, imaginary, order]: WirePole): number {
  return order * (imaginary === 0 ? 1 : 2);
}

export function totalState(poles: readonly WirePole[]): number {
  return poles.reduce((sum, pole) => sum + stateOf(pole), 0);
}

function round(value: number, digits: number): number {
  return Number(value.toFixed(digits)) + 0;
}

/** A number within the radius that the kernel accepts. */
function bounded(re: number, im: number, largest: number): [number, number] {
  const size = Math.hypot(re, im);
  const factor = size > largest ? (largest / size) * (1 - 1e-6) : 1;
  return [re * factor, im * factor];
}

/** Where pole `index` comes to lie when it is dragged to a point. */
export function dragged(
  poles: readonly WirePole[],
  index: number,
  re: number,
  im: number,
  largest: number,
): [number, number] {
  const y = Math.abs(im);
  for (const [k, [otherRe, otherIm]] of poles.entries()) {
    if (k !== index && Math.hypot(re - otherRe, y - otherIm) < reach) return [otherRe, otherIm];
  }
  if (Math.hypot(re, y) < reach) return [0, 0];
  return bounded(round(re, 2), y < reach ? 0 : round(y, 2), largest);
}

/** Where it comes to lie when it is moved by keys, in exact steps and without settling anywhere. */
export function stepped([re, im]: WirePole, dre: number, dim: number, largest: number): [number, number] {
  return bounded(round(re + dre, 3), Math.max(0, round(im + dim, 3)), largest);
}

/** The poles with one at another place; as they were where there is no room for its state. */
export function moved(
  poles: readonly WirePole[],
  index: number,
  [re, im]: [number, number],
  most: number,
): WirePole[] {
  const next = poles.map((pole, k): WirePole => (k === index ? [re, im, pole[2]] : pole));
  return totalState(next) <= most ? next : [...poles];
}

/** "0.65 ± 0.55 i" */
export function poleText([re, im, order]: WirePole): string {
  const number = im === 0 ? formatNumber(re) : `${formatNumber(re)} ± ${formatNumber(im)} i`;
  return order > 1 ? `${number}, order ${order}` : number;
}
