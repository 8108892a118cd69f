import { describe, expect, it } from "vitest";
import type { SpectrumData } from "../src/state";
import { snapTolerance } from "../src/tau_handle";
import { niceTop } from "../src/views/profile_view";
import { spectrumRanges } from "../src/views/spectrum_view";

function spectrum(rows: number[][]): SpectrumData {
  const rank = rows[0]!.length;
  return { layer: null, head: 0, length: rows.length, rank, values: Float32Array.from(rows.flat()) };
}

describe("ranges of a head's spectra", () => {
  it("hold every position, within six decades", () => {
    const ranges = spectrumRanges(
      spectrum([
        [0, 0, 0],
        [2, 0.5, 1e-9],
        [1, 2e-5, 0],
      ]),
      "tolerance",
    );
    expect(ranges.high).toBeGreaterThan(2);
    expect(ranges.low).toBeLessThan(2e-5);
    expect(ranges.count).toBe(2);
  });

  it("are shares of the sum for the entropy", () => {
    const ranges = spectrumRanges(
      spectrum([
        [0, 0],
        [30, 10],
      ]),
      "entropy",
    );
    expect(ranges.high).toBe(1);
    expect(ranges.count).toBe(2);
  });

  it("exist for zeros, for nothing and for values that are not finite", () => {
    for (const rows of [[[0, 0]], [[]], [[NaN, NaN]]]) {
      const { low, high, count } = spectrumRanges(spectrum(rows), "tolerance");
      expect(low).toBeGreaterThan(0);
      expect(high).toBeGreaterThan(low);
      expect(count).toBeGreaterThanOrEqual(1);
    }
  });
});

describe("thresholds", () => {
  it("lie on twentieths of decades, powers of ten exactly", () => {
    expect(snapTolerance(0.0099)).toBe(0.01);
    expect(snapTolerance(1.02e-5)).toBe(1e-5);
    expect(snapTolerance(0.011)).toBe(0.01122);
  });

  it("step up and down to where they came from", () => {
    expect(snapTolerance(snapTolerance(0.01, 1), -1)).toBe(0.01);
    expect(snapTolerance(0.01, 20)).toBe(0.1);
  });
});

it("rounds axes up to quiet numbers", () => {
  expect([1, 2.2, 11.5, 16, 37, 99].map(niceTop)).toEqual([1, 3, 15, 20, 40, 100]);
});
