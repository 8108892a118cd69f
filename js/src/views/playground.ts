/** Toy operators: a lesson and its parameters beside the explorer's linked views. */
import { disposer, el, listen, setText } from "../dom";
import { mountKeyboard } from "../keyboard";
import type { Store } from "../store";
import { Wish } from "../wish";
import { controls } from "./controls";
import { help } from "./help";
import { memoryView } from "./memory_view";
import { readout } from "./readout";
import { remembered } from "./remembered";
import { spectrumView } from "./spectrum_view";
import { statusLine } from "./status";
import { toyControls } from "./toy_controls";
import { toyHandle } from "./toy_handle";
import { toyLesson, toySentence } from "./toy_lesson";

const lengths = [16, 32, 64, 96, 128];

function section(area: string, heading: string | null): [HTMLElement, HTMLElement] {
  const body = el("div", "ess-body");
  const node = el("section", `ess-section ess-${area}`, {}, heading && el("h3", "", {}, heading), body);
  return [node, body];
}

/** Which operator, and how long. */
function toyMenu(root: HTMLElement, store: Store, wish: Wish): () => void {
  const toy = el("select", "ess-field", { "aria-label": "Operator", "data-part": "toy" });
  const length = el("select", "ess-field ess-toy-length", {
    "aria-label": "Length L",
    "data-part": "length",
  });
  const view = el("div", "ess-toy-menu", {}, toy, el("span", "ess-label", {}, "L"), length);
  root.append(view);
  const show = () => {
    const { menu } = store.state;
    if (toy.options.length !== menu.length) {
      toy.replaceChildren(...menu.map(({ name, title }) => el("option", "", { value: name }, title)));
    }
    if (toy.value !== wish.toy) toy.value = wish.toy;
    const offered = [...new Set([...lengths, wish.length])].filter((size) => size > 0).sort((a, b) => a - b);
    if (offered.join() !== [...length.options].map(({ value }) => value).join()) {
      length.replaceChildren(...offered.map((size) => el("option", "", { value: size }, String(size))));
    }
    if (length.value !== String(wish.length)) length.value = String(wish.length);
  };
  show();
  return disposer([
    () => view.remove(),
    listen(toy, "change", () => wish.choose(toy.value)),
    listen(length, "change", () => wish.resize(Number(length.value))),
    store.on(["menu"], show),
    wish.on(show),
  ]);
}

/** What is shown, in a line; while something is dragged, how long an answer takes. */
function titleBar(root: HTMLElement, store: Store, wish: Wish): () => void {
  const title = el("strong", "ess-clip ess-name");
  const caption = el("span", "ess-clip");
  const time = el("span", "ess-label", {
    "data-part": "round-trip",
    title: "From the last change to its picture",
  });
  const facts = el("div", "ess-facts", {}, title, caption);
  root.append(facts, time);
  const show = () => {
    const { title: name, layers, toy_data: toy } = store.state;
    setText(title, name);
    setText(caption, toy ? `${layers[0]?.family ?? toy.toy}, ${toy.length} positions` : "");
    setText(time, wish.roundTrip === null ? "" : `answered in ${Math.round(wish.roundTrip)} ms`);
  };
  show();
  return disposer([
    () => facts.remove(),
    () => time.remove(),
    store.on(["title", "layers", "toy_data"], show),
  ]);
}

export function playground(root: HTMLElement, store: Store): () => void {
  const wish = new Wish(store);
  const bar = el("header", "ess-header");
  const status = el("div", "ess-toy-status");
  const [lesson, lessonBody] = section("lesson", null);
  const [memory, memoryBody] = section("memory", null);
  const [measures, measuresBody] = section("measures", "Measure");
  const [spectrum, spectrumBody] = section("values", null);
  const [reading, readingBody] = section("reading", null);
  const side = el("div", "ess-side", {}, measures, spectrum, reading);
  const shell = el("div", "ess-explorer ess-playground", {}, bar, status, lesson, memory, side);
  root.append(shell);
  const undo = [
    () => wish.stop(),
    titleBar(bar, store, wish),
    statusLine(status, store),
    toyMenu(lessonBody, store, wish),
    toySentence(lessonBody, store),
    toyControls(lessonBody, store, wish),
    toyLesson(lessonBody, store),
    memoryView(memoryBody, store, toyHandle(store, wish)),
    controls(measuresBody, store),
    spectrumView(spectrumBody, store),
    readout(readingBody, store),
    remembered(readingBody, store),
  ];
  const guide = help(bar, shell);
  undo.push(guide.dispose, mountKeyboard(root, store, guide.toggle));
  return disposer([() => shell.remove(), ...undo]);
}
