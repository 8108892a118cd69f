/** The weights of a singular vector as colours behind the tokens: one small canvas instead of a style per token. */
import { signed } from "../colour";
import { el } from "../dom";
import type { Theme } from "../theme";
import { largest, type Mode } from "../vectors";

/** Opacity of the colours: the text in front keeps a contrast of 4.5 even on the strongest. */
export const strength = { light: 0.5, dark: 0.35 };

type Box = readonly [left: number, top: number, width: number, height: number];

export interface TokenTint {
  node: HTMLCanvasElement;
  /** Draw the weights of past and future, each scaled to its own largest; null clears. */
  draw(mode: Mode | null, theme: Theme): void;
  /** The tokens may have moved. */
  moved(): void;
}

/** Tints `nodes()` inside `strip`, whose content box the canvas covers. */
export function tokenTint(strip: HTMLElement, nodes: () => HTMLElement[]): TokenTint {
  const node = el("canvas", "ess-tint", { "aria-hidden": "true" });
  let boxes: Box[][] | null = null;
  let drawn = false;

  const measure = (): Box[][] => {
    node.style.height = "0";
    const origin = strip.getBoundingClientRect();
    const [dx, dy] = [strip.scrollLeft - origin.left, strip.scrollTop - origin.top];
    const ratio = window.devicePixelRatio || 1;
    node.width = Math.round(strip.clientWidth * ratio);
    node.height = Math.round(strip.scrollHeight * ratio);
    node.style.width = `${strip.clientWidth}px`;
    node.style.height = `${strip.scrollHeight}px`;
    return nodes().map((token) =>
      [...token.getClientRects()].map((r): Box => [r.left + dx, r.top + dy, r.width, r.height]),
    );
  };

  const draw = (mode: Mode | null, theme: Theme) => {
    if (!mode && !drawn) return;
    if (mode) boxes ??= measure();
    const context = node.getContext("2d");
    if (!context) return;
    const ratio = window.devicePixelRatio || 1;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.globalAlpha = 1;
    context.clearRect(0, 0, node.width, node.height);
    drawn = mode !== null;
    if (!mode || !boxes) return;
    const colour = signed(theme);
    context.globalAlpha = theme.dark ? strength.dark : strength.light;
    const paint = (weights: Float32Array, first: number) => {
      const most = largest(weights);
      weights.forEach((weight, k) => {
        const share = weight / most;
        if (Math.abs(share) < 0.02) return;
        context.fillStyle = colour(share);
        for (const [x, y, w, h] of boxes![first + k] ?? []) context.fillRect(x, y, w, h);
      });
    };
    paint(mode.past, 0);
    paint(mode.future, mode.past.length);
  };
  return { node, draw, moved: () => (boxes = null) };
}
