/** A training as it happens: lines against the step, and what the layers remember at the chosen step. */
import { disposer, el, listen, setHidden, setText } from "../dom";
import { rowLabels, shortNames } from "../facts";
import { mountKeyboard } from "../keyboard";
import { displayLabel } from "../labels";
import type { Shown } from "../state";
import type { Store } from "../store";
import { onThemeChange, readTheme } from "../theme";
import { layerSeries, lineColours, valueAt } from "../training";
import { shorten } from "../wording";
import { controls } from "./controls";
import { memoryView } from "./memory_view";
import { readout } from "./readout";
import { segmented } from "./segmented";
import { spectrumView } from "./spectrum_view";
import { titleLine } from "./status";
import { trainingChart } from "./training_chart";

export function trainingView(root: HTMLElement, store: Store): () => void {
  const bar = el("header", "ess-header");
  const lines = el("section", "ess-section ess-lines");
  const memory = el("section", "ess-section ess-memory", {}, el("div", "ess-body"));
  const measures = el("section", "ess-section ess-measures", {}, el("h3", "", {}, "Head and measure"));
  const values = el("section", "ess-section ess-values", {}, el("div", "ess-body"));
  const reading = el("section", "ess-section ess-reading");
  const side = el("div", "ess-side", {}, measures, values, reading);
  const shell = el("div", "ess-training", {}, bar, lines, memory, side);
  root.append(shell);

  const shown = segmented<Shown>("Lines show", [
    { value: "ess", label: "ESS", title: "Average ESS of each layer" },
    { value: "ceiling", label: "of ceiling", title: "Utilisation: Σ ESS / Σ ceiling over positions" },
    { value: "state_size", label: "of TSS", title: "Utilisation: Σ ESS / Σ TSS over positions" },
  ]);
  const log = el(
    "button",
    "ess-button",
    { type: "button", "data-part": "log", title: "Logarithmic axis for losses" },
    "log loss",
  );
  const follow = el(
    "button",
    "ess-button",
    { type: "button", "data-part": "follow", title: "Show the newest step as training goes on (Esc)" },
    "follow newest",
  );
  const legend = el("div", "ess-legend", { role: "group", "aria-label": "Layers" });
  const tools = el("div", "ess-tools", {}, shown.node, log, follow);
  const failed = el("div", "ess-warning ess-clip", { "data-part": "failed" });
  lines.append(el("div", "ess-lines-head", {}, legend, tools), failed);

  let hovered: number | null = null;
  const chart = trainingChart(lines, store, (step) => {
    hovered = step;
    read();
  });

  let entries: { name: string; button: HTMLElement; swatch: HTMLElement; value: HTMLElement }[] = [];
  let theme = readTheme(shell);

  const toggle = (name: string, alone: boolean) => {
    const names = store.state.training_data?.names ?? [];
    const { hidden } = chart.settings;
    let next = new Set(hidden);
    if (alone) {
      const others = names.filter((other) => other !== name);
      const isAlone = !hidden.has(name) && others.every((other) => hidden.has(other));
      next = new Set(isAlone ? [] : others);
    } else if (!next.delete(name)) next.add(name);
    chart.settings = { ...chart.settings, hidden: next };
    chart.update();
    show();
  };

  const build = (names: string[]) => {
    if (names.length === entries.length && names.every((name, k) => name === entries[k]!.name)) return;
    const known = names.map((name) => store.state.layers.find((layer) => layer.name === name));
    const layers = known.map(
      (layer, k) => layer ?? { name: names[k]!, family: "", heads: 1, residual: null, limit: 1 },
    );
    const labels = names.length > 8 ? rowLabels(layers) : shortNames(layers);
    entries = names.map((name, k) => {
      const swatch = el("i", "ess-swatch");
      const value = el("span", "ess-legend-value");
      const short = displayLabel(names.length === 1 ? name : labels[k]!);
      const text = /^\d/.test(short) && names.length <= 8 ? `layer ${short}` : short;
      const label = el("span", "ess-clip", {}, shorten(text, 28));
      const button = el(
        "button",
        "ess-legend-entry",
        { type: "button", title: `${displayLabel(name)}: click hides it, a double click shows it alone` },
        swatch,
        label,
        value,
      );
      return { name, button, swatch, value };
    });
    legend.replaceChildren(...entries.map(({ button }) => button));
    for (const { name, button } of entries) {
      button.addEventListener("click", (event) => {
        if (event.detail < 2) toggle(name, false);
      });
      button.addEventListener("dblclick", () => {
        toggle(name, false); // the first click has hidden it
        toggle(name, true);
      });
    }
  };

  /** Numbers in the legend, at the step that is pointed at or chosen. */
  const read = () => {
    const { training_data: data, settings } = store.state;
    if (!data) return;
    const step = hovered ?? settings.step ?? Infinity;
    const series = layerSeries(data, settings.shown ?? "ess");
    for (const [k, { value }] of entries.entries()) {
      const number = valueAt(series[k]!, step);
      setText(value, Number.isFinite(number) ? number.toFixed(number < 10 ? 2 : 1) : "–");
    }
  };

  const show = () => {
    const { training_data: data, settings } = store.state;
    build(data?.names ?? []);
    const colours = lineColours(entries.length, theme);
    for (const [k, { name, button, swatch }] of entries.entries()) {
      swatch.style.background = colours[k]!;
      button.setAttribute("aria-pressed", String(!chart.settings.hidden.has(name)));
    }
    shown.set(settings.shown ?? "ess");
    log.setAttribute("aria-pressed", String(chart.settings.log));
    setHidden(log, !data?.metrics.some((name) => /loss|perplexity/i.test(name)));
    follow.setAttribute("aria-pressed", String((settings.step ?? null) === null));
    const reasons = data?.failed ?? [];
    setHidden(failed, reasons.length === 0);
    const last = reasons[reasons.length - 1];
    if (last) {
      const count = reasons.length === 1 ? "A measurement" : `${reasons.length} measurements`;
      setText(
        failed,
        `${count} failed, at step ${last.step}: ${displayLabel(last.reason).replaceAll("·", " ")}`,
      );
      failed.title = last.reason;
    }
    const none = store.state.operator_data === null;
    for (const node of [memory, side]) setHidden(node, none);
    read();
  };

  shown.onChange((value) => store.configure({ shown: value }));
  const undo = [
    titleLine(bar, store),
    memoryView(memory.firstElementChild as HTMLElement, store),
    controls(measures, store),
    spectrumView(values.firstElementChild as HTMLElement, store),
    readout(reading, store),
    listen(log, "click", () => {
      chart.settings = { ...chart.settings, log: !chart.settings.log };
      chart.update();
      show();
    }),
    listen(follow, "click", () => store.configure({ step: null })),
    store.on(["training_data", "settings", "operator_data", "layers"], show),
    onThemeChange(() => {
      theme = readTheme(shell);
      show();
    }),
    mountKeyboard(root, store),
  ];
  show();
  return disposer([() => shell.remove(), shown.dispose, chart.remove, ...undo]);
}
