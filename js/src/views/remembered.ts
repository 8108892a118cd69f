/** What the singular value that is pointed at carries, in words. */
import { disposer, el, setHidden, setText } from "../dom";
import { strongest, type Weight } from "../facts";
import { formatNumber, formatSubscript } from "../format";
import { displayLabel } from "../labels";
import { spectrumAt } from "../metrics";
import type { State } from "../state";
import type { Store } from "../store";
import { currentMode } from "../vectors";
import { shorten } from "../wording";
import { weightLegend } from "./weight_legend";

const named = 4;

function singularValue({ spectrum_data: data, selection }: State): number | null {
  const { position, mode } = selection;
  if (!data || position === null || mode === null || position >= data.length) return null;
  return spectrumAt(data, position)[mode] ?? null;
}

export function remembered(root: HTMLElement, store: Store): () => void {
  const headline = el("span");
  const line = el("div", "ess-line", {}, headline);
  const removeLegend = weightLegend(line);
  const past = el("ul", "ess-weights");
  const future = el("ul", "ess-weights");
  const detail = el(
    "div",
    "ess-carried",
    {},
    el("div", "", {}, el("div", "ess-label", {}, "from the past"), past),
    el("div", "", {}, el("div", "ess-label", {}, "to the future"), future),
  );
  const view = el("div", "ess-remembered", { "data-part": "remembered" }, line, detail);
  root.append(view);

  const list = (node: HTMLElement, weights: Weight[]) => {
    const { tokens } = store.state;
    node.replaceChildren(
      ...weights.map(({ position, weight }) => {
        const label =
          tokens && !tokens.indexed ? shorten(displayLabel(tokens.labels[position] ?? ""), 16) : "";
        return el(
          "li",
          "",
          {},
          el("span", "ess-index", {}, String(position)),
          el("span", "ess-clip", {}, label),
          el("span", "ess-weight", {}, `${weight < 0 ? "−" : "+"}${Math.abs(weight).toFixed(2)}`),
        );
      }),
    );
  };

  const show = () => {
    const { state } = store;
    const mode = currentMode(state);
    const sigma = singularValue(state);
    const index = state.selection.mode;
    view.classList.toggle("ess-empty", index === null);
    setHidden(detail, mode === null);
    if (index === null || sigma === null) {
      setText(headline, "Point at a singular value to see what it carries.");
      return;
    }
    setText(headline, `σ${formatSubscript(index + 1)} = ${formatNumber(sigma)} carries`);
    if (!mode) return;
    list(past, strongest(mode.past, 0, named));
    list(future, strongest(mode.future, mode.past.length, named));
  };
  let before: unknown = null;
  const undo = store.on(["selection", "vectors", "spectrum_data", "tokens"], (changed) => {
    // Moving along positions without a singular value in hand changes nothing here.
    if (before === null && store.state.selection.mode === null && !changed.has("tokens")) return;
    before = store.state.selection.mode;
    show();
  });
  show();
  return disposer([() => view.remove(), removeLegend, undo]);
}
