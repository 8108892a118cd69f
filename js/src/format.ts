/** Numbers as text, short and with typographic exponents. */
import { format } from "d3-format";

const superscripts = "⁰¹²³⁴⁵⁶⁷⁸⁹";
const subscripts = "₀₁₂₃₄₅₆₇₈₉";
const fixed = format(".3~r");
const scientific = format(".2~e");

function digits(value: number, alphabet: string, minus: string): string {
  return [...String(value)].map((c) => (c === "-" ? minus : (alphabet[Number(c)] ?? c))).join("");
}

/** 10⁻³; with a mantissa 3.2×10⁻³. */
export function formatPower(exponent: number, mantissa = "1"): string {
  const power = `10${digits(exponent, superscripts, "⁻")}`;
  return mantissa === "1" ? power : `${mantissa}×${power}`;
}

export function formatSubscript(value: number): string {
  return digits(value, subscripts, "₋");
}

/** Three significant digits. */
export function formatNumber(value: number): string {
  if (Number.isNaN(value)) return "not a number";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e-3 && size < 1e4) return fixed(value).replace("-", "−");
  const [mantissa, exponent] = scientific(value).replace("−", "-").split("e");
  return formatPower(Number(exponent), mantissa!.replace("-", "−"));
}

/** A threshold: powers of ten as such. */
export function formatTolerance(value: number): string {
  const exponent = Math.log10(value);
  if (Math.abs(exponent - Math.round(exponent)) < 1e-6) return formatPower(Math.round(exponent));
  return formatNumber(Number(value.toPrecision(2)));
}

/** Counts as integers, effective ranks with one decimal. */
export function formatEss(value: number): string {
  if (!Number.isFinite(value)) return "–";
  return Number.isInteger(value) ? String(value) : value.toFixed(1);
}
