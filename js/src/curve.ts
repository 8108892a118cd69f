/** The selected head's ESS along positions, from what the browser knows. */
import { headAmong, ofHead, ofLayer, single } from "./belongs";
import { essProfile, sameMeasure } from "./metrics";
import type { ProfileData, SpectrumData, State } from "./state";

export interface Curve {
  values: Float32Array;
  /** True where it was measured with other settings than the present ones. */
  stale: boolean;
}

/** Spectrum of the selected head, where it is here. */
export function selectedSpectrum(state: State): SpectrumData | null {
  const data = state.spectrum_data;
  return data && ofHead(state, data) ? data : null;
}

/** Profile of the selected layer, where it is here. */
export function selectedProfile(state: State): ProfileData | null {
  const data = state.profile_data;
  return data && ofLayer(state, data) ? data : null;
}

/** One row of an array of a profile. */
export function rowOf(data: ProfileData, array: Float32Array, head: number): Float32Array {
  return array.subarray(head * data.length, (head + 1) * data.length);
}

function compute(state: State, length: number): Curve | null {
  const spectrum = selectedSpectrum(state);
  const profile = selectedProfile(state);
  const row =
    profile?.length === length ? rowOf(profile, profile.ess, headAmong(state, profile.heads)) : null;
  const fresh = profile !== null && sameMeasure(profile, state.settings);
  if (spectrum?.length === length) {
    const values = essProfile(spectrum, state.settings);
    if (!values.some(Number.isNaN)) return { values, stale: false };
    if (!row) return { values, stale: false };
    if (fresh)
      return { values: values.map((value, i) => (Number.isNaN(value) ? row[i]! : value)), stale: false };
  }
  return row ? { values: row, stale: !fresh } : null;
}

/** A memo of the curve for one view. */
export function curveReader(): (state: State, length: number) => Curve | null {
  let inputs: unknown[] = [];
  let curve: Curve | null = null;
  return (state, length) => {
    const { kind, tol, relative } = state.settings;
    const { layer, head } = state.selection;
    const next = [
      single(state),
      state.spectrum_data,
      state.profile_data,
      kind,
      tol,
      relative,
      layer,
      head,
      length,
    ];
    if (next.some((value, k) => value !== inputs[k])) curve = compute(state, length);
    inputs = next;
    return curve;
  };
}
