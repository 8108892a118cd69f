/** What the singular value that is pointed at carries, in words. */
import { disposer, el, setHidden, setText } from "../dom";
import { strongest, type Weight } from "../facts";
import { formatNumber, formatSubscript } from "../format";
import { displayLabel } from "../labels";
import { whenResting } from "../resting";
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
  const box = el("div", "ess-remembered", { "data-part": "remembered" }, line, detail);
  const view = el("div", "ess-card", {}, box);
  root.append(view);

  /** Rows are made once and refilled: the list changes with every move along the spectrum. */
  const list = (node: HTMLElement) => {
    const rows = Array.from({ length: named }, () => {
      const [index, label, weight] = [
        el("span", "ess-index"),
        el("span", "ess-clip"),
        el("span", "ess-weight"),
      ];
      const row = el("li", "", {}, index, label, weight);
      node.append(row);
      return { row, index, label, weight };
    });
    return (weights: Weight[]) => {
      const { tokens } = store.state;
      rows.forEach(({ row, index, label, weight: amount }, k) => {
        const found = weights[k];
        setHidden(row, !found);
        if (!found) return;
        const { position, weight } = found;
        setText(index, String(position));
        setText(
          label,
          tokens && !tokens.indexed ? shorten(displayLabel(tokens.labels[position] ?? ""), 16) : "",
        );
        setText(amount, `${weight < 0 ? "−" : "+"}${Math.abs(weight).toFixed(2)}`);
      });
    };
  };
  const [listPast, listFuture] = [list(past), list(future)];

  const show = () => {
    const { state } = store;
    const mode = currentMode(state);
    const sigma = singularValue(state);
    const index = state.selection.mode;
    box.classList.toggle("ess-empty", index === null);
    setHidden(detail, mode === null);
    if (index === null || sigma === null) {
      setText(headline, "Point at a singular value to see what it carries.");
      return;
    }
    setText(headline, `σ${formatSubscript(index + 1)} = ${formatNumber(sigma)} carries`);
    if (!mode) return;
    listPast(strongest(mode.past, 0, named));
    listFuture(strongest(mode.future, mode.past.length, named));
  };
  let before: unknown = null;
  const resting = whenResting(show);
  const undo = store.on(["selection", "vectors", "spectrum_data", "tokens"], (changed) => {
    // Moving along positions without a singular value in hand changes nothing here.
    const { mode } = store.state.selection;
    if (before === null && mode === null && !changed.has("tokens")) return;
    before = mode;
    if (mode !== null && changed.size === 1 && changed.has("selection")) resting.later();
    else resting.now();
  });
  show();
  return disposer([() => view.remove(), removeLegend, undo, resting.stop]);
}
