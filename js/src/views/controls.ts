/** How ESS is measured and drawn, and which head. */
import { disposer, el, listen, setHidden, setText } from "../dom";
import { headsOf, selectedLayer, shortNames } from "../facts";
import { formatNumber } from "../format";
import { displayLabel } from "../labels";
import type { Kind, Limit, Scale } from "../state";
import type { Store } from "../store";
import { shorten } from "../wording";
import { segmented } from "./segmented";

/** Range of the slider in decades, and its step. */
const decades = { from: -8, to: 1, step: 0.05 };

/** τ on the slider's grid, free of rounding dust: 0.01, not 0.010000000000000002. */
export function tolAt(exponent: number): number {
  return Number((10 ** Number(exponent.toFixed(2))).toPrecision(6));
}

/** A threshold that was typed; null unless it is a positive finite number. */
export function parseTol(text: string): number | null {
  const value = text.trim() === "" ? NaN : Number(text.trim().replace(",", "."));
  return Number.isFinite(value) && value > 0 ? value : null;
}

function plain(tol: number): string {
  return tol >= 1e-3 && tol < 1e4 ? String(Number(tol.toPrecision(4))) : tol.toExponential().replace("+", "");
}

export function controls(root: HTMLElement, store: Store): () => void {
  const kind = segmented<Kind>("Kind of ESS", [
    { value: "tolerance", label: "tolerance", title: "How many singular values of Hᵢ exceed τ" },
    { value: "entropy", label: "entropy", title: "exp of the entropy of the normalised singular values" },
  ]);
  const reference = segmented<"absolute" | "relative">("What τ refers to", [
    { value: "absolute", label: "τ", title: "Count σ > τ" },
    {
      value: "relative",
      label: "τ · σ₁",
      title: "Count σ > τ times the largest singular value at that position",
    },
  ]);
  const scale = segmented<Scale>("Colour scale of the operator", [
    { value: "log", label: "log", title: "Logarithmic colour scale" },
    { value: "linear", label: "linear", title: "Linear colour scale" },
  ]);
  const against = segmented<Limit>("Utilisation against", [
    { value: "ceiling", label: "of ceiling", title: "What the shape of Hᵢ allows: min(TSS, i, L − i)" },
    { value: "state_size", label: "of TSS", title: "The state-size that the architecture provides" },
  ]);
  const slider = el("input", "ess-slider", {
    type: "range",
    min: decades.from,
    max: decades.to,
    step: decades.step,
    "aria-label": "Threshold τ, logarithmic",
    "data-part": "tol",
  });
  const field = el("input", "ess-field", { type: "text", inputmode: "decimal", "aria-label": "Threshold τ" });
  const layer = el("select", "ess-field", { "aria-label": "Layer", "data-part": "layer" });
  const noun = el("span", "ess-label", {}, "head");
  const head = el("select", "ess-field", { "aria-label": "Head", "data-part": "head" });

  const row = (label: string, ...content: HTMLElement[]) =>
    el(
      "div",
      "ess-control",
      {},
      el("span", "ess-label", {}, label),
      el("div", "ess-setting", {}, ...content),
    );
  const threshold = row("τ", slider, field);
  const count = row("count σ >", reference.node);
  const view = el(
    "div",
    "ess-controls",
    {},
    row("layer", layer, noun, head),
    row("ESS", kind.node),
    threshold,
    count,
    row("utilisation", against.node),
    row("colour |T|", scale.node),
  );
  root.append(view);

  const fill = (select: HTMLSelectElement, names: readonly string[]) => {
    const same =
      select.options.length === names.length && names.every((name, k) => select.options[k]?.text === name);
    if (!same) select.replaceChildren(...names.map((name, k) => el("option", "", { value: k }, name)));
  };

  const show = () => {
    const { settings, selection, layers } = store.state;
    kind.set(settings.kind);
    reference.set(settings.relative ? "relative" : "absolute");
    scale.set(settings.scale);
    against.set(settings.against);
    const entropy = settings.kind === "entropy";
    slider.disabled = field.disabled = entropy;
    reference.disable(entropy);
    threshold.classList.toggle("ess-off", entropy);
    count.classList.toggle("ess-off", entropy);
    const exponent = String(Math.log10(settings.tol));
    if (document.activeElement !== slider || slider.value !== exponent) slider.value = exponent;
    slider.setAttribute("aria-valuetext", formatNumber(settings.tol));
    if (!field.matches(":focus")) field.value = plain(settings.tol);
    fill(
      layer,
      shortNames(layers).map((name) => shorten(displayLabel(name), 40)),
    );
    layer.selectedIndex = layers.findIndex(({ name }) => name === selection.layer);
    layer.disabled = layers.length < 2;
    const heads = headsOf(store.state);
    const chosen = selectedLayer(store.state);
    fill(
      head,
      Array.from({ length: heads }, (_, k) => String(chosen?.groups?.[k] ?? k)),
    );
    setText(noun, chosen?.group ?? "head");
    for (const node of [noun, head]) setHidden(node, chosen?.group === "layer");
    head.selectedIndex = selection.head;
    head.disabled = heads < 2;
    layer.title = selection.layer === null ? "" : displayLabel(selection.layer);
  };

  const takeField = () => {
    const tol = parseTol(field.value);
    field.classList.toggle("ess-invalid", tol === null);
    field.title = tol === null ? "τ is a positive number, such as 0.01 or 1e-3" : "";
    if (tol !== null) store.configure({ tol });
  };

  kind.onChange((value) => store.configure({ kind: value }));
  reference.onChange((value) => store.configure({ relative: value === "relative" }));
  scale.onChange((value) => store.configure({ scale: value }));
  against.onChange((value) => store.configure({ against: value }));
  const undo = [
    listen(slider, "input", () => store.configure({ tol: tolAt(Number(slider.value)) })),
    listen(field, "input", takeField),
    listen(field, "blur", () => {
      field.classList.remove("ess-invalid");
      field.value = plain(store.state.settings.tol);
    }),
    listen(layer, "change", () => {
      const chosen = store.state.layers[layer.selectedIndex];
      if (!chosen) return;
      const last = Math.max(0, chosen.heads - 1);
      store.select({ layer: chosen.name, head: Math.min(store.state.selection.head, last) });
    }),
    listen(head, "change", () => store.select({ head: head.selectedIndex })),
    store.on(["settings", "layers", "profile_data"], show),
    watchHead(store, show),
  ];
  show();
  return disposer([
    () => view.remove(),
    ...[kind, reference, scale, against].map((choice) => choice.dispose),
    ...undo,
  ]);
}

/** The pointer changes the selection all the time; the pickers only care for layer and head. */
function watchHead(store: Store, show: () => void): () => void {
  let { layer, head } = store.state.selection;
  return store.on(["selection"], () => {
    const next = store.state.selection;
    if (next.layer === layer && next.head === head) return;
    ({ layer, head } = next);
    show();
  });
}
