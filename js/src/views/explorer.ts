/** Everything about one input in one picture: text, tokens, layer grid, memory, spectrum. */
import { disposer, el, setText } from "../dom";
import { formatSubscript } from "../format";
import { mountKeyboard } from "../keyboard";
import { lengthOf } from "../facts";
import type { Store } from "../store";
import { controls } from "./controls";
import { editor } from "./editor";
import { help } from "./help";
import { layerGridView } from "./layer_grid_view";
import { memoryView } from "./memory_view";
import { readout } from "./readout";
import { remembered } from "./remembered";
import { spectrumView } from "./spectrum_view";
import { statusLine, titleLine } from "./status";
import { tokenView } from "./token_view";

function section(area: string, heading: string | HTMLElement | null): [HTMLElement, HTMLElement] {
  const body = el("div", "ess-body");
  const node = el("section", `ess-section ess-${area}`, {}, heading && el("h3", "", {}, heading), body);
  return [node, body];
}

export function explorer(root: HTMLElement, store: Store): () => void {
  const bar = el("header", "ess-header");
  const texts = el("div", "ess-section ess-input");
  const [tokens, tokensBody] = section("strip", null);
  const [grid, gridBody] = section("layers", "Layers × heads");
  const [memory, memoryBody] = section("memory", null);
  const [measures, measuresBody] = section("measures", "Head and measure");
  const title = el("span");
  const [spectrum, spectrumBody] = section("values", title);
  const side = el("div", "ess-side", {}, measures, spectrum);
  const shell = el("div", "ess-explorer", {}, bar, texts, tokens, grid, memory, side);
  root.append(shell);

  const heading = () => {
    const { position } = store.state.selection;
    const index = position !== null && position < lengthOf(store.state) ? formatSubscript(position) : "ᵢ";
    setText(title, `Singular values of H${index}`);
    tokens.hidden = store.state.tokens === null || store.state.tokens.indexed;
    texts.classList.toggle("ess-no-text", store.state.text === null);
  };
  heading();

  const undo = [
    titleLine(bar, store),
    editor(texts, store),
    statusLine(texts, store),
    tokenView(tokensBody, store),
    layerGridView(gridBody, store),
    memoryView(memoryBody, store),
    controls(measuresBody, store),
    readout(measuresBody, store),
    spectrumView(spectrumBody, store),
    remembered(spectrumBody, store),
    store.on(["selection", "tokens", "text"], heading),
  ];
  const guide = help(bar, shell);
  undo.push(guide.dispose, mountKeyboard(root, store, guide.toggle));
  return disposer([() => shell.remove(), ...undo]);
}
