/** The text, editable: typing reruns the model after a short pause. */
import { disposer, el, listen, setHidden } from "../dom";
import type { Store } from "../store";

/** Milliseconds without typing after which the text goes out. */
const pause = 80;
/** Milliseconds without typing after which the text counts as not being edited. */
const rest = 1500;

export function editor(root: HTMLElement, store: Store): () => void {
  const area = el("textarea", "ess-text", {
    spellcheck: "false",
    autocapitalize: "off",
    autocomplete: "off",
    rows: 2,
    "aria-label": "Text that the model reads",
    placeholder: "Type a text for the model to read",
    "data-part": "text",
  });
  const view = el("div", "ess-editor", {}, area);
  root.append(view);

  let sending: ReturnType<typeof setTimeout> | null = null;
  let resting: ReturnType<typeof setTimeout> | null = null;
  let composing = false;
  /** Texts sent while typing and replaced by newer ones: their echoes are old news. */
  const superseded = new Set<string>();

  const stopTimer = (timer: ReturnType<typeof setTimeout> | null) => {
    if (timer !== null) clearTimeout(timer);
    return null;
  };
  const grow = () => {
    // Between the style sheet's least and greatest height; two pixels are the borders.
    area.style.height = "0";
    area.style.height = `${area.scrollHeight + 2}px`;
  };
  const send = () => {
    sending = stopTimer(sending);
    const before = store.state.text;
    if (before === null || before === area.value) return;
    superseded.add(before);
    superseded.delete(area.value);
    store.set({ text: area.value });
  };
  const adopt = () => {
    const { text } = store.state;
    setHidden(view, text === null);
    if (text === null || text === area.value) return;
    const { selectionStart, selectionEnd } = area;
    area.value = text;
    if (document.activeElement === area) area.setSelectionRange(selectionStart, selectionEnd);
    grow();
  };
  const settle = () => {
    resting = stopTimer(resting);
    if (composing) return;
    const { text } = store.state;
    // A host that answers with a text already replaced must not win over what was typed last.
    if (text !== null && text !== area.value && superseded.has(text)) store.set({ text: area.value });
    superseded.clear();
    adopt();
  };
  const typed = () => {
    grow();
    stopTimer(resting);
    resting = setTimeout(settle, rest);
    if (composing) return;
    stopTimer(sending);
    sending = setTimeout(send, pause);
  };

  let width = 0;
  const sizes = new ResizeObserver(([entry]) => {
    const next = entry?.contentRect.width ?? 0;
    if (next !== width) grow();
    width = next;
  });
  sizes.observe(view);
  const undo = [
    listen(area, "input", typed),
    listen(area, "compositionstart", () => (composing = true)),
    listen(area, "compositionend", () => {
      composing = false;
      typed();
    }),
    listen(area, "blur", () => {
      if (sending !== null) send();
      settle();
    }),
    store.on(["text"], () => {
      if (resting === null && !composing) adopt();
    }),
  ];
  adopt();
  setHidden(view, store.state.text === null);
  return disposer([
    () => view.remove(),
    () => sizes.disconnect(),
    () => {
      if (sending !== null) send();
      stopTimer(resting);
    },
    ...undo,
  ]);
}
