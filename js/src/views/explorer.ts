/** Everything about one input in one picture: text, tokens, layer grid, memory, spectrum. */
import { disposer, el } from "../dom";
import { mountKeyboard } from "../keyboard";
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

function section(area: string, heading: string | null): [HTMLElement, HTMLElement] {
  const body = el("div", "ess-body");
  const node = el("section", `ess-section ess-${area}`, {}, heading && el("h3", "", {}, heading), body);
  return [node, body];
}

/** Where the text is beside the picture, what is read at a position stands with the text. */
const wide = 1360;

export function explorer(root: HTMLElement, store: Store): () => void {
  const bar = el("header", "ess-header");
  const input = el("div", "ess-section ess-input");
  const [tokens, tokensBody] = section("strip", null);
  const [grid, gridBody] = section("layers", "Layers × heads");
  const [memory, memoryBody] = section("memory", null);
  const [measures, measuresBody] = section("measures", "Head and measure");
  const [spectrum, spectrumBody] = section("values", null);
  const [reading, readingBody] = section("reading", null);
  const texts = el("div", "ess-texts", {}, input, tokens);
  const side = el("div", "ess-side", {}, measures, spectrum, reading);
  const shell = el("div", "ess-explorer", {}, bar, texts, grid, memory, side);
  root.append(shell);

  const arrange = () => {
    const home = shell.clientWidth >= wide ? texts : side;
    if (reading.parentElement !== home) home.append(reading);
  };
  arrange();
  const sizes = new ResizeObserver(arrange);
  sizes.observe(shell);

  const show = () => {
    tokens.hidden = store.state.tokens === null || store.state.tokens.indexed;
    input.classList.toggle("ess-no-text", store.state.text === null);
  };
  show();

  const undo = [
    titleLine(bar, store),
    editor(input, store),
    statusLine(input, store),
    tokenView(tokensBody, store),
    layerGridView(gridBody, store),
    memoryView(memoryBody, store),
    controls(measuresBody, store),
    spectrumView(spectrumBody, store),
    readout(readingBody, store),
    remembered(readingBody, store),
    store.on(["tokens", "text"], show),
  ];
  const guide = help(bar, shell);
  undo.push(guide.dispose, mountKeyboard(root, store, guide.toggle));
  return disposer([() => shell.remove(), () => sizes.disconnect(), ...undo]);
}
