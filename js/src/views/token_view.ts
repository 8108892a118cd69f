/** The text as tokens: where the position is, what is past and future to it, what a singular value carries. */
import { disposer, el, listen, setHidden, setText } from "../dom";
import { formatSubscript } from "../format";
import { displayLabel } from "../labels";
import type { Selection, Tokens } from "../state";
import type { Store } from "../store";
import { onThemeChange, readTheme } from "../theme";
import { currentMode, followVectors } from "../vectors";
import { shorten } from "../wording";
import { tokenMarks } from "./token_marks";
import { weightLegend } from "./weight_legend";

type Range = readonly [number, number];
const nothing: Range = [0, 0];

function token(label: string, mark: number, index: number): HTMLElement {
  const shown = shorten(displayLabel(label), mark === 2 ? 24 : 40);
  const node = el(
    "span",
    mark === 2 ? "ess-token ess-special" : mark === 1 ? "ess-token ess-mark" : "ess-token",
  );
  node.dataset["index"] = String(index);
  // A leading space separates words but is part of the token: a quiet dot.
  const dots = mark === 2 ? 0 : (/^·+/.exec(shown)?.[0].length ?? 0);
  if (dots > 0) node.append(el("i", "", {}, shown.slice(0, dots)));
  node.append(shown.slice(dots));
  return node;
}

export function tokenView(root: HTMLElement, store: Store): () => void {
  const strip = el("div", "ess-tokens", { "data-part": "tokens" });
  const legend = el("div", "ess-token-legend");
  const view = el("div", "ess-token-view", {}, strip, legend);
  root.append(view);

  let nodes: HTMLElement[] = [];
  let shownTokens: Tokens | null = null;
  let position: number | null = null;
  let span: Range = nothing;
  /** Where tokens are; null after anything that may have moved them. */
  let place: { tops: number[]; line: number; height: number; scrolls: boolean } | null = null;
  let scrolled = 0;
  let pointing = false;

  const build = (tokens: Tokens | null) => {
    shownTokens = tokens;
    const length = tokens?.labels.length ?? 0;
    nodes = [];
    const content = document.createDocumentFragment();
    for (let i = 0; i < length; i++) {
      const label = tokens!.labels[i] ?? "";
      const node = token(label, tokens!.marks[i] ?? 0, i);
      // Lines break before a word, not inside one, and where the text itself breaks.
      if (/^\s/.test(label) || tokens!.marks[i] === 2) content.append(el("wbr"));
      content.append(node);
      if (label.endsWith("\n") && i < length - 1) content.append(el("br"));
      else if (tokens!.marks[i] === 2 || tokens!.indexed) content.append(el("wbr"));
      nodes.push(node);
    }
    strip.replaceChildren(behind.node, content);
    scrolled = 0;
    strip.classList.toggle("ess-indexed", tokens?.indexed ?? false);
    setHidden(view, length === 0);
    position = null;
    span = nothing;
    place = null;
    behind.moved();
  };

  const mark = ({ position: next, span: range }: Selection) => {
    position = next;
    if (next === null) delete strip.dataset["position"];
    else strip.dataset["position"] = String(next);
    const [a, b] = range ?? nothing;
    if (a !== span[0] || b !== span[1]) {
      for (let i = span[0]; i < span[1]; i++) if (i < a || i >= b) nodes[i]?.classList.remove("ess-spanned");
      for (let i = a; i < b; i++) if (i < span[0] || i >= span[1]) nodes[i]?.classList.add("ess-spanned");
      span = [a, b];
    }
  };

  const caption = el("span", "ess-clip");
  legend.append(caption);
  const removeLegend = weightLegend(legend);

  let theme = readTheme(root);
  const behind = tokenMarks(strip, () => nodes);
  const drawMarks = () => {
    const { pinned } = store.state.selection;
    const mode = currentMode(store.state);
    const fits = mode !== null && mode.past.length + mode.future.length === nodes.length;
    view.classList.toggle("ess-weighted", fits);
    behind.draw({ position, pinned, mode: fits ? mode : null }, theme);
    const name = `σ${formatSubscript((store.state.selection.mode ?? 0) + 1)}`;
    if (mode) setText(caption, `${name}: weight of each past input and each future output`);
  };

  /** Scrolls the strip, never the page. Not while the pointer is in it: the token is in view already. */
  const reveal = () => {
    if (position === null || pointing || nodes.length === 0) return;
    // Measured once after a change: to ask at every move would make the browser lay out the page each time.
    place ??= {
      tops: nodes.map((node) => node.offsetTop),
      line: parseFloat(getComputedStyle(strip).lineHeight),
      height: strip.clientHeight,
      scrolls: strip.scrollHeight > strip.clientHeight + 1,
    };
    if (!place.scrolls) return;
    const { tops, line, height } = place;
    // By whole lines, counted from the first: none is left half shown.
    const top = tops[position]! - tops[0]!;
    if (top < scrolled) strip.scrollTop = scrolled = top;
    else if (top + line > scrolled + height)
      strip.scrollTop = scrolled = Math.ceil((top + line - height) / line) * line;
  };

  const indexAt = (event: Event): number | null => {
    const node = (event.target as Element | null)?.closest<HTMLElement>("[data-index]");
    return node ? Number(node.dataset["index"]) : null;
  };
  let from: number | null = null;
  let dragged = false;

  const undo = [
    listen(strip, "pointerenter", () => (pointing = true)),
    listen(strip, "pointerleave", () => (pointing = false)),
    listen(strip, "pointerover", (event) => {
      const index = indexAt(event);
      if (index === null) return;
      const node = nodes[index]!;
      // The whole label, whatever its length, only where it is asked for.
      if (!node.title) node.title = `${index}: ${displayLabel(shownTokens?.labels[index] ?? "")}`;
      if (from !== null) {
        dragged ||= index !== from;
        if (dragged) store.select({ span: [Math.min(from, index), Math.max(from, index) + 1] });
      }
      if (!store.state.selection.pinned) store.select({ position: index });
    }),
    listen(strip, "pointerdown", (event) => {
      if (event.button !== 0) return;
      from = indexAt(event);
      dragged = false;
    }),
    listen(window, "pointerup", () => {
      if (from === null) return;
      const { pinned, position: at, span: range } = store.state.selection;
      const outside = range !== null && (from < range[0] || from >= range[1]);
      if (!dragged) {
        const again = pinned && at === from;
        store.select({ position: from, pinned: !again, span: outside ? null : range });
      }
      from = null;
    }),
    listen(window, "pointercancel", () => (from = null)),
    listen(strip, "scroll", () => (scrolled = strip.scrollTop)),
    onThemeChange(() => {
      theme = readTheme(root);
      drawMarks();
    }),
    followVectors(store),
    store.on(["tokens", "selection", "vectors"], () => {
      if (store.state.tokens !== shownTokens) build(store.state.tokens);
      mark(store.state.selection);
      drawMarks();
      reveal();
    }),
  ];
  const sizes = new ResizeObserver(() => {
    place = null;
    behind.moved();
    drawMarks();
    reveal();
  });
  sizes.observe(strip);

  build(store.state.tokens);
  mark(store.state.selection);
  drawMarks();
  reveal();
  return disposer([() => view.remove(), () => sizes.disconnect(), removeLegend, ...undo]);
}
