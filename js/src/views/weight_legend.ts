/** What the colours of weights mean: minus, zero, plus. */
import { signed } from "../colour";
import { el } from "../dom";
import { onThemeChange, readTheme } from "../theme";

const steps = 8;

/** Appends the legend to `root`; returns the way to remove it. */
export function weightLegend(root: HTMLElement): () => void {
  const swatches = el("span", "ess-swatches", { "aria-hidden": "true" });
  const node = el("span", "ess-weight-legend", { title: "Weight, negative to positive" }, "−", swatches, "+");
  root.append(node);
  const paint = () => {
    const colour = signed(readTheme(root));
    swatches.replaceChildren(
      ...Array.from({ length: 2 * steps + 1 }, (_, k) => {
        const swatch = el("i");
        swatch.style.background = colour(k / steps - 1);
        return swatch;
      }),
    );
  };
  paint();
  const stop = onThemeChange(paint);
  return () => {
    stop();
    node.remove();
  };
}
