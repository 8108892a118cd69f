/** What to see in a toy operator, its closed form, and how the measurement compares. */
import { compare, same, verdict } from "../closed_form";
import { disposer, el, setHidden, setText } from "../dom";
import { formatEss } from "../format";
import { whenResting } from "../resting";
import type { Store } from "../store";

/** The sentence under the menu. */
export function toySentence(root: HTMLElement, store: Store): () => void {
  const see = el("p", "ess-toy-see", { "data-part": "see" });
  root.append(see);
  const show = () => setText(see, store.state.toy_data?.see ?? "");
  show();
  return disposer([() => see.remove(), store.on(["toy_data"], show)]);
}

export function toyLesson(root: HTMLElement, store: Store): () => void {
  const formula = el("div", "ess-toy-formula", { "data-part": "formula" });
  const [closed, visible, measured] = [el("b"), el("b"), el("b")];
  const place = el("span", "ess-label");
  const figure = (label: string, title: string, value: HTMLElement) =>
    el("div", "ess-line", { title }, label, value);
  const numbers = el(
    "div",
    "ess-toy-numbers",
    { "data-part": "comparison" },
    figure("closed form", "Rank of Hᵢ in exact arithmetic", closed),
    figure("σ above rounding error", "Singular values that are not lost in float64", visible),
    figure("measured", "By the measure that is chosen", measured),
  );
  const said = el("p", "ess-toy-verdict", { role: "status", "aria-live": "polite", "data-part": "verdict" });
  const differs = el("p", "ess-muted", { "data-part": "differs" });
  const warnings = el("ul", "ess-toy-warnings", { "data-part": "warnings" });
  const view = el(
    "div",
    "ess-toy-lesson",
    {},
    el("h3", "", {}, el("i", "ess-toy-swatch", { "aria-hidden": "true" }), "Closed form"),
    formula,
    place,
    numbers,
    said,
    warnings,
    differs,
  );
  root.append(view);

  const showToy = () => {
    const data = store.state.toy_data;
    setText(formula, data?.formula ?? "");
    setText(differs, data?.differs ?? "");
    const list = data?.warnings ?? [];
    if (warnings.children.length === list.length)
      list.forEach((text, k) => setText(warnings.children[k]!, text));
    else warnings.replaceChildren(...list.map((text) => el("li", "", {}, text)));
    setHidden(warnings, list.length === 0);
  };
  const showComparison = () => {
    const comparison = compare(store.state);
    const at = comparison?.at ?? null;
    setHidden(numbers, at === null);
    setText(place, at ? `At position ${at.position}` : "Point at a position");
    if (at) {
      setText(closed, String(at.closed));
      setText(visible, String(at.visible));
      setText(measured, formatEss(at.measured));
      numbers.classList.toggle("ess-toy-apart", Math.abs(at.measured - at.closed) > same);
    }
    setText(said, comparison ? verdict(comparison, store.state.settings.kind).join(" ") : "");
  };
  const resting = whenResting(showComparison);
  showToy();
  showComparison();
  return disposer([
    () => view.remove(),
    resting.stop,
    store.on(["toy_data"], showToy),
    store.on(["toy_data", "spectrum_data", "settings", "selection"], (changed) => {
      if (changed.size === 1 && changed.has("selection")) resting.later();
      else resting.now();
    }),
  ]);
}
