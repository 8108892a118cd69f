/** From the value of a real parameter to its place on a slider, and back. */
import { formatNumber } from "./format";
import type { ToyControl } from "./state";

export type NumberControl = Extract<ToyControl, { type: "number" }>;
type Value = NumberControl["value"];

/** Steps of every slider of a real number. */
export const steps = 200;

const real = (value: Value): number => (value === "inf" ? Infinity : value);

/** The slider's steps without those that stand for what lies beyond. */
function inner(control: NumberControl): [number, number] {
  return [control.ends[0] === null ? 0 : 1, control.ends[1] === null ? steps : steps - 1];
}

export function toStep(control: NumberControl, value: Value): number {
  const number = real(value);
  const [from, to] = inner(control);
  const [least, most] = control.ends;
  if (least !== null && number <= real(least)) return 0;
  if (most !== null && number >= real(most)) return steps;
  const { low, high, logarithmic } = control;
  const part = logarithmic ? Math.log(number / low) / Math.log(high / low) : (number - low) / (high - low);
  return Math.round(from + Math.max(0, Math.min(1, part)) * (to - from));
}

export function fromStep(control: NumberControl, step: number): Value {
  const [from, to] = inner(control);
  const [least, most] = control.ends;
  if (step <= 0 && least !== null) return least;
  if (step >= steps && most !== null) return most;
  const part = Math.max(0, Math.min(1, (step - from) / (to - from)));
  const { low, high, logarithmic } = control;
  const value = logarithmic ? low * (high / low) ** part : low + part * (high - low);
  return Math.min(high, Math.max(low, Number(value.toPrecision(3))));
}

/** The value in words or in three digits. */
export function valueText(control: NumberControl, value: Value): string {
  const [least, most] = control.ends;
  if (least !== null && value === least && control.words[0]) return control.words[0];
  if (most !== null && value === most && control.words[1]) return control.words[1];
  const number = real(value);
  // β = 0.9999 is not 1, and makes all the difference.
  const exact = !Number.isFinite(number) || Number(number.toPrecision(3)) === number;
  return `${exact ? "" : "≈ "}${formatNumber(number)}`;
}
