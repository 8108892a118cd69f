import { describe, expect, it } from "vitest";
import { curveReader, rowOf } from "../src/curve";
import { initialState, type ProfileData, type SpectrumData, type State } from "../src/state";

const layer = "a";
const profile: ProfileData = {
  layer,
  heads: 2,
  length: 3,
  kind: "tolerance",
  tol: 0.1,
  relative: false,
  ess: Float32Array.of(0, 9, 9, 0, 1, 1),
  state_size: Float32Array.of(0, 1, 2, 0, 1, 2),
  ceiling: Float32Array.of(0, 1, 1, 0, 1, 1),
};
const spectrum: SpectrumData = {
  layer,
  head: 1,
  length: 3,
  rank: 1,
  values: Float32Array.of(0, 0.05, 0.5),
};
const layers = ["a", "b"].map((name) => ({ name, family: "", heads: 2, residual: null, limit: 1e-5 }));
function state(patch: Partial<State>, tol = 0.1): State {
  return {
    ...initialState,
    layers,
    settings: { ...initialState.settings, kind: "tolerance", tol },
    selection: { ...initialState.selection, layer, head: 1 },
    ...patch,
  };
}

describe("the selected head's curve", () => {
  it("follows τ from the spectrum, without the kernel", () => {
    const read = curveReader();
    const data = { profile_data: profile, spectrum_data: spectrum };
    expect([...read(state(data), 3)!.values]).toEqual([0, 0, 1]);
    expect([...read(state(data, 0.01), 3)!.values]).toEqual([0, 1, 1]);
    expect(read(state(data, 0.01), 3)!.stale).toBe(false);
  });

  it("is the kernel's where there is no spectrum, and says when that is out of date", () => {
    const read = curveReader();
    expect(read(state({ profile_data: profile }), 3)).toEqual({
      values: Float32Array.of(0, 1, 1),
      stale: false,
    });
    expect(read(state({ profile_data: profile }, 0.5), 3)!.stale).toBe(true);
  });

  it("does not take another head's spectrum, another layer's profile or another length", () => {
    const read = curveReader();
    const other = { ...spectrum, head: 0 };
    expect([...read(state({ profile_data: profile, spectrum_data: other }), 3)!.values]).toEqual([0, 1, 1]);
    expect(read(state({ profile_data: { ...profile, layer: "b" } }), 3)).toBeNull();
    expect(read(state({ profile_data: profile }), 4)).toBeNull();
    expect(read(state({}), 3)).toBeNull();
  });

  it("of a view without layers does not mind which layer others select, nor a head it has not", () => {
    const read = curveReader();
    const selection = { ...initialState.selection, layer: "elsewhere", head: 7 };
    const alone = { layers: [], selection, profile_data: { ...profile, layer: null } };
    expect([...read(state(alone), 3)!.values]).toEqual([0, 1, 1]);
    expect(read(state({ ...alone, layers }), 3)).toBeNull();
  });

  it("is computed once per change", () => {
    const read = curveReader();
    const now = state({ spectrum_data: spectrum });
    expect(read({ ...now, text: "x" }, 3)).toBe(read(now, 3));
  });

  it("reads rows of a profile", () => {
    expect([...rowOf(profile, profile.ceiling, 1)]).toEqual([0, 1, 1]);
  });
});
