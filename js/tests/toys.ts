/** Toy operators as the kernel describes them. */
import type { SpectrumData, ToyControl, ToyData } from "../src/state";

export const controls = {
  k: { name: "k", label: "delay k", type: "whole", value: 2, low: 0, high: 4 },
  temperature: {
    name: "temperature",
    label: "temperature",
    type: "number",
    value: 1,
    low: 0.01,
    high: 100,
    logarithmic: true,
    ends: [0, "inf"],
    words: ["hard", "uniform"],
  },
  beta: {
    name: "beta",
    label: "strength β",
    type: "number",
    value: 1,
    low: 0,
    high: 2,
    logarithmic: false,
    ends: [null, null],
    words: ["", ""],
  },
  rows: {
    name: "rows",
    label: "each row",
    type: "choice",
    value: "sum",
    options: [
      { value: "sum", label: "all ones" },
      { value: "mean", label: "mean" },
    ],
  },
  seed: { name: "seed", label: "random draw", type: "seed", value: 3 },
  poles: {
    name: "poles",
    label: "poles",
    type: "poles",
    value: [
      [0.5, 0, 1],
      [0.2, 0.6, 1],
    ],
    most: 6,
    largest: 2,
  },
} satisfies Record<string, ToyControl>;

export function toyData(patch: Partial<ToyData> = {}): ToyData {
  return {
    toy: "delay",
    length: 4,
    stamp: 0,
    see: "Look.",
    differs: "Because.",
    formula: "ESSᵢ = 2",
    warnings: [],
    controls: [controls.k],
    handle: { parameter: "k", offset: 0, corner: false },
    closed_form: Float32Array.of(0, 1, 2, 1),
    ...patch,
  };
}

/** Singular values of four positions, two each. */
export function spectrum(values: number[]): SpectrumData {
  return { layer: "playground", head: 0, length: 4, rank: 2, values: Float32Array.from(values) };
}
