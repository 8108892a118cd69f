/** The closed form against what is measured: pure functions of the state. */
import { selectedSpectrum } from "./curve";
import { ess, spectrumAt, threshold } from "./metrics";
import type { State } from "./state";

/** Singular values below this part of the largest one, per position of the length, are rounding error. */
const epsilon = 2 ** -52;
/** Differences up to this are those of float32, in which singular values travel. */
export const same = 1e-4;

export interface Comparison {
  /** Positions at which measured and closed form differ, of how many. */
  differing: number;
  of: number;
  /** Where they differ most. */
  worst: number;
  at: {
    position: number;
    closed: number;
    /** Singular values above rounding error. */
    visible: number;
    /** ESS by the measure that is chosen. */
    measured: number;
    /** τ as it holds here is itself below rounding error. */
    belowRounding: boolean;
  } | null;
}

export function compare(state: State): Comparison | null {
  const { toy_data: toy, selection, settings } = state;
  const spectrum = selectedSpectrum(state);
  if (!toy || !spectrum || spectrum.length !== toy.length) return null;
  const { length } = toy;
  let differing = 0;
  let [worst, largest] = [0, 0];
  for (let i = 1; i < length; i++) {
    const difference = Math.abs(ess(spectrumAt(spectrum, i), settings) - toy.closed_form[i]!);
    if (difference > same) differing++;
    if (difference > largest) [worst, largest] = [i, difference];
  }
  const { position } = selection;
  if (position === null || position < 0 || position >= length)
    return { differing, of: length - 1, worst, at: null };
  const values = spectrumAt(spectrum, position);
  const first = values[0] ?? 0;
  const noise = epsilon * length * first;
  const at = {
    position,
    closed: toy.closed_form[position]!,
    visible: values.filter((value) => value > noise).length,
    measured: ess(values, settings),
    belowRounding: settings.kind === "tolerance" && first > 0 && threshold(settings, first) < noise,
  };
  return { differing, of: length - 1, worst, at };
}

/** What the comparison says, in sentences. */
export function verdict(comparison: Comparison, kind: "tolerance" | "entropy"): string[] {
  const { differing, of, worst, at } = comparison;
  const said: string[] = [];
  if (differing === 0) said.push(`Measured and closed form agree at all ${of} positions.`);
  else said.push(`They differ at ${differing} of ${of} positions, most at ${worst}.`);
  if (!at) return said;
  if (kind === "entropy" && differing > 0) {
    said.push("Entropy weighs the singular values: it equals their number only where all are equal.");
  }
  const lost = at.closed - at.visible;
  if (lost > 0) {
    said.push(
      `${lost} of the ${at.closed} at this position ${lost === 1 ? "is" : "are"} smaller than rounding error: ` +
        "no tolerance can show what exact arithmetic counts.",
    );
  }
  if (kind === "tolerance") {
    const below = Math.min(at.visible, at.closed) - at.measured;
    if (below > 0) said.push(`${below} ${below === 1 ? "lies" : "lie"} below τ at this position.`);
    if (at.measured > at.closed && at.belowRounding) {
      said.push("τ is below rounding error: noise is counted.");
    }
  }
  return said;
}
