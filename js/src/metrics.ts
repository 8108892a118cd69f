/** ESS from singular values; names and meanings as in `ess_widgets.metrics`. */
import type { Settings, SpectrumData } from "./state";

export type Measure = Pick<Settings, "kind" | "tol" | "relative">;

/** The threshold τ that holds for singular values whose largest is `sigma1`. */
export function threshold(measure: Measure, sigma1: number): number {
  return measure.relative ? measure.tol * sigma1 : measure.tol;
}

/** How many of `values` (descending) are above `limit`. */
function countAbove(values: Float32Array, limit: number): number {
  let low = 0;
  let high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle]! > limit) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** exp(−Σ p log p) with p = σ/Σσ; 0 where all are zero. */
function effectiveRank(values: Float32Array): number {
  let sum = 0;
  let sumLog = 0;
  for (const value of values) {
    if (value > 0) {
      sum += value;
      sumLog += value * Math.log(value);
    }
  }
  return sum > 0 ? Math.exp(Math.log(sum) - sumLog / sum) : 0;
}

/** ESS of one position from its singular values, descending and zero-padded; NaN where they are not finite. */
export function ess(values: Float32Array, measure: Measure): number {
  for (const value of values) if (!Number.isFinite(value)) return NaN;
  if (measure.kind === "entropy") return effectiveRank(values);
  return countAbove(values, threshold(measure, values[0] ?? 0));
}

/** Singular values of H at `position`, without copying. */
export function spectrumAt(data: SpectrumData, position: number): Float32Array {
  return data.values.subarray(position * data.rank, (position + 1) * data.rank);
}

/** Number of singular values that the shape of H at `position` allows: min(i, L − i), times the rows per position. */
export function shapeRank(length: number, position: number, block = 1): number {
  return block * Math.max(0, Math.min(position, length - position));
}

/**
 * ESS at all positions. NaN where the spectrum is cut short of what the measure needs: the entropy needs
 * all of it, a count only what is above τ.
 */
export function essProfile(data: SpectrumData, measure: Measure): Float32Array {
  const profile = new Float32Array(data.length);
  for (let i = 0; i < data.length; i++) {
    const values = spectrumAt(data, i);
    const value = ess(values, measure);
    const complete =
      data.rank >= shapeRank(data.length, i, data.block) ||
      (measure.kind === "tolerance" && value < data.rank);
    profile[i] = complete ? value : NaN;
  }
  return profile;
}

/** The same measure: an absolute τ has no meaning for the entropy. */
export function sameMeasure(a: Measure, b: Measure): boolean {
  return a.kind === b.kind && (a.kind === "entropy" || (a.tol === b.tol && a.relative === b.relative));
}
