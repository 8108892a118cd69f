/** The sequential colour map of ESS: one hue, perceptually even, from the background to the strongest. */
import { interpolateLab, piecewise } from "d3-interpolate";

const light = ["#eef3f9", "#b9d3ec", "#6fa6d6", "#2f72b5", "#164a86", "#0b2346"];
const dark = ["#1c2530", "#1f4468", "#2a6ba6", "#4f9ad8", "#9accf3", "#eaf5ff"];
const size = 256;

/** Colours for 0 … 1 in 256 steps. */
export function ramp(isDark: boolean): string[] {
  const colour = piecewise(interpolateLab, isDark ? dark : light) as (t: number) => string;
  return Array.from({ length: size }, (_, k) => colour(k / (size - 1)));
}

export function colourAt(colours: readonly string[], value: number): string {
  const last = colours.length - 1;
  return colours[Math.min(last, Math.max(0, Math.round(value * last)))]!;
}

/** The same map as a CSS gradient. */
export function gradient(colours: readonly string[], direction = "to right"): string {
  const stops = Array.from({ length: 9 }, (_, k) => colourAt(colours, k / 8));
  return `linear-gradient(${direction}, ${stops.join(", ")})`;
}
