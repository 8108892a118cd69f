/**
 * What is marked behind the tokens: past and future, the position, the weights of a singular vector. On one canvas,
 * because a style that changes with every move of the pointer would make the browser paint the page again.
 */
import { signed } from "../colour";
import { el } from "../dom";
import type { Theme } from "../theme";
import { largest, type Mode } from "../vectors";

/** Opacity of weights: the text in front keeps a contrast of 4.5 even on the strongest. */
export const strength = { light: 0.5, dark: 0.35 };
/** Opacity of the mark at the position. */
const here = { light: 0.26, dark: 0.4 };

export interface Marks {
  position: number | null;
  pinned: boolean;
  /** Weights to show in place of past and future. */
  mode: Mode | null;
}

type Box = readonly [left: number, top: number, width: number, height: number];

export interface TokenMarks {
  node: HTMLCanvasElement;
  draw(marks: Marks, theme: Theme): void;
  /** The tokens may have moved. */
  moved(): void;
}

/** Marks `nodes()` inside `strip`, whose content the canvas covers. */
export function tokenMarks(strip: HTMLElement, nodes: () => HTMLElement[]): TokenMarks {
  const node = el("canvas", "ess-token-marks", { "aria-hidden": "true" });
  let boxes: Box[][] | null = null;

  const measure = (): Box[][] => {
    node.style.height = "0";
    const origin = strip.getBoundingClientRect();
    const [dx, dy] = [strip.scrollLeft - origin.left, strip.scrollTop - origin.top];
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [strip.clientWidth, strip.scrollHeight];
    node.width = Math.round(width * ratio);
    node.height = Math.round(height * ratio);
    node.style.width = `${width}px`;
    node.style.height = `${height}px`;
    return nodes().map((token) =>
      [...token.getClientRects()].map((r): Box => [r.left + dx, r.top + dy, r.width - 1, r.height]),
    );
  };

  const draw = ({ position, pinned, mode }: Marks, theme: Theme) => {
    boxes ??= measure();
    const context = node.getContext("2d");
    if (!context) return;
    const ratio = window.devicePixelRatio || 1;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.globalAlpha = 1;
    context.clearRect(0, 0, node.width, node.height);
    const fill = (colour: string, tokens: Box[][]) => {
      context.fillStyle = colour;
      context.beginPath();
      for (const token of tokens) for (const [x, y, w, h] of token) context.rect(x, y, w, h);
      context.fill();
    };
    if (mode) {
      const colour = signed(theme);
      context.globalAlpha = theme.dark ? strength.dark : strength.light;
      for (const [weights, first] of [
        [mode.past, 0],
        [mode.future, mode.past.length],
      ] as const) {
        const most = largest(weights);
        for (let k = 0; k < weights.length; k++) {
          const weight = weights[k]! / most;
          const token = boxes[first + k];
          if (!token || Math.abs(weight) < 0.02) continue;
          context.fillStyle = colour(weight);
          for (const [x, y, w, h] of token) context.fillRect(x, y, w, h);
        }
      }
    } else {
      fill(theme.past, boxes.slice(0, position ?? 0));
      fill(theme.field, boxes.slice(position ?? 0));
    }
    if (position === null) return;
    const at = boxes.slice(position, position + 1);
    context.globalAlpha = theme.dark ? here.dark : here.light;
    fill(theme.accent, at);
    context.globalAlpha = 1;
    fill(
      theme.accent,
      at.map((token) => token.map(([x, y, w, h]): Box => [x, y + h - 2, w, 2])),
    );
    if (!pinned) return;
    context.strokeStyle = theme.accent;
    context.lineWidth = 2;
    for (const [x, y, w, h] of at[0] ?? []) context.strokeRect(x + 1, y + 1, w - 2, h - 2);
  };
  return { node, draw, moved: () => (boxes = null) };
}
