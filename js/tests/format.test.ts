import { expect, it } from "vitest";
import { formatEss, formatNumber, formatPower, formatSubscript, formatTolerance } from "../src/format";

it("writes numbers with three digits and typographic powers", () => {
  expect([0, 1, 0.0123456, -0.5, 1234.5].map(formatNumber)).toEqual(["0", "1", "0.0123", "−0.5", "1230"]);
  expect(formatNumber(3.21e-7)).toBe("3.21×10⁻⁷");
  expect(formatNumber(-2e6)).toBe("−2×10⁶");
  expect(formatNumber(1e-4)).toBe("10⁻⁴");
  expect([NaN, Infinity, -Infinity].map(formatNumber)).toEqual(["not a number", "∞", "−∞"]);
});

it("writes thresholds as powers of ten where they are", () => {
  expect(formatTolerance(1e-3)).toBe("10⁻³");
  expect(formatTolerance(1)).toBe("10⁰");
  expect(formatTolerance(0.01122)).toBe("0.011");
  expect(formatTolerance(1.122e-5)).toBe("1.1×10⁻⁵");
});

it("writes counts whole and effective ranks with one decimal", () => {
  expect([7, 3.94, NaN].map(formatEss)).toEqual(["7", "3.9", "–"]);
});

it("sets indices and exponents", () => {
  expect(formatSubscript(41)).toBe("₄₁");
  expect(formatPower(-12)).toBe("10⁻¹²");
});
