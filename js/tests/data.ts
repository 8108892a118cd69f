/** A small state: two layers of different width, four tokens. */
import { initialState, type State } from "../src/state";

export const layers = [
  { name: "model.layers.0.attn", family: "softmax attention", heads: 2, residual: 2e-7, limit: 1e-5 },
  { name: "model.layers.1.attn", family: "softmax attention", heads: 1, residual: 0.3, limit: 1e-5 },
];

export function smallState(patch: Partial<State> = {}): Partial<State> {
  return {
    text: "one two.",
    title: "A model",
    settings: { ...initialState.settings, kind: "tolerance", tol: 0.01 },
    selection: { ...initialState.selection, layer: layers[0]!.name, position: 2 },
    tokens: { labels: ["<s>", "one", " two", "."], marks: [2, 0, 0, 1], indexed: false },
    layers,
    profile_data: {
      layer: layers[0]!.name,
      heads: 2,
      length: 4,
      kind: "tolerance",
      tol: 0.01,
      relative: false,
      ess: Float32Array.of(0, 1, 2, 1, 0, 1, 1, 1),
      state_size: Float32Array.of(0, 1, 2, 3, 0, 1, 2, 3),
      ceiling: Float32Array.of(0, 1, 2, 1, 0, 1, 2, 1),
    },
    grid_data: {
      rows: 2,
      columns: 2,
      kind: "tolerance",
      tol: 0.01,
      relative: false,
      ess: Float32Array.of(1, 0.75, NaN, NaN),
      state_size: Float32Array.of(0.66, 0.5, NaN, NaN),
      ceiling: Float32Array.of(1, 0.75, NaN, NaN),
    },
    status: { phase: "ready", message: "up to date", progress: null },
    ...patch,
  };
}
