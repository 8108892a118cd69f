import { describe, expect, it } from "vitest";
import { barTicks, heatPixels, normalise, notFiniteColour, place, sequential, signed } from "../src/colour";
import { cellsOf } from "../src/detail";
import type { OperatorData } from "../src/state";
import { luminance, parseColour, readTheme, type Theme } from "../src/theme";

function theme(dark: boolean): Theme {
  const root = document.createElement("div");
  root.style.setProperty("--ess-bg", dark ? "#111111" : "#ffffff");
  document.body.append(root);
  const found = readTheme(root);
  root.remove();
  return { ...found, dark };
}

function operator(rows: number[][]): OperatorData {
  const side = rows.length;
  return { layer: null, head: 0, length: side, side, block: 1, matrix: Float32Array.from(rows.flat()) };
}

const attention = operator([
  [1, 0, 0],
  [0.25, 0.75, 0],
  [0.001, 0.099, 0.9],
]);

describe("normalisation", () => {
  it("covers whole decades up to the largest entry", () => {
    const norm = normalise(attention, "log");
    expect(norm.high).toBe(1);
    expect(norm.low).toBeCloseTo(1e-3, 9);
    expect(norm.signed).toBe(false);
    expect(place(norm, 1)).toBe(1);
    expect(place(norm, 1e-9)).toBe(0);
    expect(place(norm, Math.sqrt(1e-3))).toBeCloseTo(0.5, 6);
    expect(barTicks(norm).map((value) => Math.round(Math.log10(value)))).toEqual([-3, -2, -1, 0]);
  });

  it("keeps the sign of signed entries, on either scale", () => {
    const data = operator([
      [2, 0],
      [-1, 0.5],
    ]);
    for (const scale of ["log", "linear"] as const) {
      const norm = normalise(data, scale);
      expect(norm.signed).toBe(true);
      expect(place(norm, 2)).toBe(1);
      expect(place(norm, -2)).toBe(-1);
      expect(place(norm, -1)).toBeLessThan(0);
      expect(barTicks(norm).some((value) => value < 0)).toBe(true);
    }
    expect(place(normalise(data, "linear"), -1)).toBe(-0.5);
  });

  it("ignores what lies above the diagonal", () => {
    const data = operator([
      [1, -50],
      [0.5, 0.5],
    ]);
    expect(normalise(data, "linear")).toMatchObject({ high: 1, signed: false });
  });

  it("survives zeros and entries that are not finite", () => {
    const zeros = normalise(
      operator([
        [0, 0],
        [0, 0],
      ]),
      "log",
    );
    expect(place(zeros, 0)).toBe(0);
    const norm = normalise(
      operator([
        [NaN, 0],
        [Infinity, 3],
      ]),
      "linear",
    );
    expect(norm).toMatchObject({ notFinite: true, high: 3 });
  });
});

describe("colour maps", () => {
  it.each([false, true])("grow evenly in lightness away from the background (dark: %s)", (dark) => {
    const colour = sequential(theme(dark));
    const lightness = (t: number) => {
      const y = luminance(colour(t));
      return y > 0.008856 ? 116 * Math.cbrt(y) - 16 : 903.3 * y;
    };
    const steps = Array.from({ length: 9 }, (_, k) => lightness(k / 8));
    const mean = (steps[8]! - steps[0]!) / 8;
    expect(Math.sign(mean)).toBe(dark ? 1 : -1);
    for (let k = 1; k < 9; k++) expect((steps[k]! - steps[k - 1]!) / mean).toBeCloseTo(1, 0);
  });

  it("tell signs apart and agree at zero", () => {
    const colour = signed(theme(false));
    const [r, g, b] = parseColour(colour(0));
    expect(Math.max(r, g, b) - Math.min(r, g, b)).toBeLessThan(6);
    expect(parseColour(colour(0.6))[1]).toBeGreaterThan(parseColour(colour(0.6))[0]);
    expect(parseColour(colour(-0.6))[0]).toBeGreaterThan(parseColour(colour(-0.6))[1]);
  });
});

it("paints cells, leaves the future blank and marks what is not finite", () => {
  const light = theme(false);
  const data = operator([
    [1, 0, 0],
    [NaN, 0.1, 0],
    [0, 0.01, 1],
  ]);
  const bytes = new Uint8Array(heatPixels(cellsOf(data), normalise(data, "log"), light).buffer);
  const cell = (row: number, column: number) => [
    ...bytes.subarray((row * 3 + column) * 4, (row * 3 + column) * 4 + 4),
  ];
  expect(cell(0, 1)[3]).toBe(0);
  expect(cell(1, 2)[3]).toBe(0);
  expect(cell(1, 0)).toEqual([...parseColour(notFiniteColour(light)).slice(0, 3), 255]);
  expect(cell(0, 0)).toEqual(cell(2, 2));
  expect(cell(2, 0)[3]).toBe(255);
  expect(cell(2, 0)).not.toEqual(cell(0, 0));
});
