/** Text on a canvas. */
import { fitText } from "./labels";
import type { Theme } from "./theme";

export const small = 11;
export const normal = 12;

export function font(theme: Theme, size = small, weight = 400, style = "normal"): string {
  return `${style} ${weight} ${size}px ${theme.font}`;
}

const widths = new Map<string, number>();

/** Width of `text` in the context's font. Remembered: the same few words are measured at every move. */
export function textWidth(context: CanvasRenderingContext2D, text: string): number {
  const key = `${context.font}\n${text}`;
  let width = widths.get(key);
  if (width === undefined) {
    width = context.measureText(text).width;
    if (widths.size > 5000) widths.clear();
    widths.set(key, width);
  }
  return width;
}

/** A run of text in one style. */
export interface Part {
  text: string;
  colour: string;
  size?: number;
  weight?: number;
  italic?: boolean;
  /** Pixels below the line: subscripts. */
  drop?: number;
  /** Pixels of space before it. */
  space?: number;
}

function use(context: CanvasRenderingContext2D, theme: Theme, part: Part): void {
  context.font = font(theme, part.size, part.weight, part.italic ? "italic" : "normal");
  context.fillStyle = part.colour;
}

export function partsWidth(context: CanvasRenderingContext2D, theme: Theme, parts: Part[]): number {
  let width = 0;
  for (const part of parts) {
    use(context, theme, part);
    width += textWidth(context, part.text) + (part.space ?? 0);
  }
  return width;
}

/** Draws runs one after another from `x`, middled on `y`; each keeps its own direction of writing. */
export function drawParts(
  context: CanvasRenderingContext2D,
  theme: Theme,
  parts: Part[],
  x: number,
  y: number,
): void {
  context.textAlign = "left";
  context.textBaseline = "middle";
  for (const part of parts) {
    use(context, theme, part);
    x += part.space ?? 0;
    context.fillText(part.text, x, y + (part.drop ?? 0));
    x += textWidth(context, part.text);
  }
}

/** H with a subscript. */
export function matrixName(colour: string, position: number | string): Part[] {
  return [
    { text: "H", colour, size: normal, weight: 600, italic: true },
    { text: String(position), colour, size: 9, weight: 600, drop: 4, space: 1 },
  ];
}

/** Cuts `text` to `width` in the context's current font. */
export function fit(context: CanvasRenderingContext2D, text: string, width: number): string {
  return fitText(text, width, (part) => textWidth(context, part));
}

/** A filled box with round corners, to write on. */
export function plate(
  context: CanvasRenderingContext2D,
  colour: string,
  x: number,
  y: number,
  width: number,
  height: number,
  radius = 3,
): void {
  context.fillStyle = colour;
  context.beginPath();
  context.roundRect(x, y, width, height, radius);
  context.fill();
}
