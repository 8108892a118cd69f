/** Labels and counts inside sentences. */
import { displayLabel } from "./labels";

/** The first `limit` characters, with an ellipsis where something is left out. */
export function shorten(text: string, limit: number): string {
  const characters = [...text.slice(0, 4 * limit)];
  return characters.length > limit ? `${characters.slice(0, limit - 1).join("")}…` : characters.join("");
}

/** A token in running text: in quotation marks, without its outer spaces unless it has nothing else. */
export function quoted(label: string, limit = 20): string {
  const inner = label.trim();
  if (inner === "") return `“${shorten(displayLabel(label), limit)}”`;
  return `“${shorten(displayLabel(inner).replaceAll("·", " "), limit)}”`;
}

/** 1,234 tokens */
export function counted(value: number, one: string): string {
  return `${value.toLocaleString("en-US")} ${value === 1 ? one : `${one}s`}`;
}

/** A ratio with two decimals. */
export function ratio(value: number): string {
  return Number.isFinite(value) ? value.toFixed(2) : "–";
}
