import { describe, expect, it } from "vitest";
import { ess, essProfile, sameMeasure, shapeRank, spectrumAt, threshold } from "../src/metrics";
import type { SpectrumData } from "../src/state";

const tolerance = { kind: "tolerance", tol: 1e-2, relative: false } as const;
const entropy = { kind: "entropy", tol: 1e-2, relative: false } as const;

function spectrum(rows: number[][]): SpectrumData {
  const rank = rows[0]!.length;
  return { layer: null, head: 0, length: rows.length, rank, values: Float32Array.from(rows.flat()) };
}

describe("ess of one position", () => {
  it("counts what is strictly above an absolute or a relative threshold", () => {
    const values = Float32Array.of(4, 1, 0.03125, 0.015625, 0);
    expect(ess(values, tolerance)).toBe(4);
    expect(ess(values, { ...tolerance, tol: 0.015625 })).toBe(3);
    expect(ess(values, { ...tolerance, relative: true })).toBe(2);
    expect(threshold({ ...tolerance, relative: true }, 4)).toBeCloseTo(0.04);
  });

  it("is the effective rank for the entropy: n for n equal values, blind to scale, 0 for none", () => {
    expect(ess(Float32Array.of(2, 2, 2, 0), entropy)).toBeCloseTo(3, 6);
    const values = [3, 1, 0.5];
    const scaled = values.map((value) => value * 1e-6);
    expect(ess(Float32Array.from(scaled), entropy)).toBeCloseTo(ess(Float32Array.from(values), entropy), 5);
    const total = 4.5;
    const direct = Math.exp(-values.reduce((sum, v) => sum + (v / total) * Math.log(v / total), 0));
    expect(ess(Float32Array.from(values), entropy)).toBeCloseTo(direct, 5);
    expect(ess(Float32Array.of(0, 0), entropy)).toBe(0);
    expect(ess(Float32Array.of(), entropy)).toBe(0);
    expect(ess(Float32Array.of(), tolerance)).toBe(0);
  });

  it("is not a number where singular values are not finite", () => {
    expect(ess(Float32Array.of(NaN, 1), tolerance)).toBeNaN();
    expect(ess(Float32Array.of(Infinity, 1), entropy)).toBeNaN();
  });
});

describe("ess along positions", () => {
  // Delay by two: min(2, i, L - i) ones.
  const delay = spectrum([
    [0, 0],
    [1, 0],
    [1, 1],
    [1, 1],
    [1, 0],
  ]);

  it("reads one row per position", () => {
    expect([...spectrumAt(delay, 2)]).toEqual([1, 1]);
    expect([...essProfile(delay, tolerance)]).toEqual([0, 1, 2, 2, 1]);
    expect([...essProfile(delay, entropy)].map(Math.round)).toEqual([0, 1, 2, 2, 1]);
  });

  it("says not a number where the spectrum was cut short of what the measure needs", () => {
    const short = spectrum([[0], [5], [5], [0.001], [5], [5]]);
    expect([...essProfile(short, tolerance)]).toEqual([0, 1, NaN, 0, NaN, 1]);
    expect([...essProfile(short, entropy)].map((value) => Number.isNaN(value))).toEqual([
      false,
      false,
      true,
      true,
      true,
      false,
    ]);
  });

  it("knows what the shape allows", () => {
    expect([0, 1, 3, 5, 6].map((i) => shapeRank(6, i))).toEqual([0, 1, 3, 1, 0]);
    expect([0, 1, 3, 5, 6].map((i) => shapeRank(6, i, 16))).toEqual([0, 16, 48, 16, 0]);
  });
});

it("compares measures: a threshold does not matter to the entropy", () => {
  expect(sameMeasure(entropy, { ...entropy, tol: 1, relative: true })).toBe(true);
  expect(sameMeasure(tolerance, { ...tolerance, tol: 1e-3 })).toBe(false);
  expect(sameMeasure(tolerance, { ...tolerance, relative: true })).toBe(false);
  expect(sameMeasure(tolerance, entropy)).toBe(false);
});
