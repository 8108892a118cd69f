/** What is shown, whether it can be trusted, and what the kernel is doing. */
import { disposer, el, setHidden, setText } from "../dom";
import { doubt, groupName, layerIndex, lengthOf, shortNames, worstLayer } from "../facts";
import { formatNumber } from "../format";
import { displayLabel } from "../labels";
import type { Status } from "../state";
import type { Store } from "../store";
import { counted, shorten } from "../wording";

const phases: Record<Status["phase"], string> = {
  idle: "waiting for the kernel",
  running: "running the model",
  computing: "computing",
  ready: "up to date",
  error: "error",
};

/** The line on top: model, tokens, layer, head, residual; at its end the phase. */
export function titleLine(root: HTMLElement, store: Store): () => void {
  const title = el("strong", "ess-clip ess-name");
  const tokens = el("span");
  const layer = el("span", "ess-clip");
  const family = el("span", "ess-clip");
  const head = el("span");
  const residual = el("span", "ess-residual");
  const phase = el("span", "ess-phase", { role: "status", "aria-live": "polite", "data-part": "status" });
  const dot = el("i", "ess-dot", { "aria-hidden": "true" });
  const percent = el("span", "ess-percent", { "aria-hidden": "true" });
  const facts = el("div", "ess-facts", {}, title, tokens, layer, family, head, residual);
  const state = el("div", "ess-state", {}, dot, phase, percent);
  root.append(facts, state);

  const show = () => {
    const { title: name, selection, layers, status } = store.state;
    const length = lengthOf(store.state);
    setText(title, name);
    setHidden(title, name === "");
    title.title = name;
    const unit = store.state.tokens?.indexed === false ? "token" : "position";
    setText(tokens, length > 0 ? counted(length, unit) : "");
    setHidden(tokens, length === 0);
    const index = layerIndex(store.state);
    const short = index < 0 ? selection.layer : shortNames(layers)[index];
    setHidden(layer, short == null);
    setText(layer, short == null ? "" : `layer ${shorten(displayLabel(short), 32)}`);
    layer.title = selection.layer === null ? "" : displayLabel(selection.layer);
    const chosen = layers[index];
    setText(family, chosen?.family ?? "");
    setHidden(family, !chosen?.family);
    setText(head, groupName(chosen, selection.head));
    setHidden(head, length === 0);
    const worst = worstLayer(layers);
    setHidden(residual, worst === null);
    if (worst) {
      const doubtful = doubt(worst) > 1;
      const amount = formatNumber(Number((worst.residual ?? NaN).toPrecision(1)));
      setText(residual, `${doubtful ? "⚠ " : ""}residual ${doubtful ? amount : `≤ ${amount}`}`);
      residual.classList.toggle("ess-warning", doubtful);
      residual.title =
        `‖T u − y‖ / ‖y‖, worst of all layers: ${displayLabel(worst.name)}. ` +
        `The dtype explains up to ${formatNumber(worst.limit)}.` +
        (doubtful ? " The operator does not reproduce what the model computed: do not trust it." : "");
    }
    state.dataset["phase"] = status.phase;
    const message = status.phase === "error" ? phases.error : status.message || phases[status.phase];
    setText(phase, shorten(displayLabel(message).replaceAll("·", " "), 80));
    const { progress } = status;
    setText(percent, progress === null ? "" : `${Math.round(100 * progress)} %`);
  };
  const undo = store.on(["title", "layers", "status", "tokens", "profile_data", "operator_data"], show);
  let { layer: path, head: number } = store.state.selection;
  const undoSelection = store.on(["selection"], () => {
    const next = store.state.selection;
    if (next.layer === path && next.head === number) return;
    ({ layer: path, head: number } = next);
    show();
  });
  show();
  return disposer([() => facts.remove(), () => state.remove(), undo, undoSelection]);
}

/** A thin bar while something is computed, and the error when something went wrong. */
export function statusLine(root: HTMLElement, store: Store): () => void {
  const done = el("div", "ess-done");
  const progress = el("div", "ess-progress", { role: "progressbar", "aria-label": "Progress" }, done);
  const error = el("div", "ess-error", { role: "alert", "data-part": "error" });
  root.append(progress, error);

  const show = () => {
    const { phase, message, progress: part } = store.state.status;
    const busy = phase === "running" || phase === "computing";
    progress.classList.toggle("ess-busy", busy);
    progress.classList.toggle("ess-unknown", busy && part === null);
    done.style.transform = `scaleX(${busy ? (part ?? 0.3) : 0})`;
    if (busy && part !== null) progress.setAttribute("aria-valuenow", String(Math.round(100 * part)));
    else progress.removeAttribute("aria-valuenow");
    setHidden(error, phase !== "error");
    // As it came: an error may have several lines, but never markup.
    if (phase === "error") setText(error, message);
  };
  const undo = store.on(["status"], show);
  show();
  return disposer([() => progress.remove(), () => error.remove(), undo]);
}
