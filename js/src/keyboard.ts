/** Moving through positions, heads and layers by keyboard. */
import { listen } from "./dom";
import { headsOf, layerIndex, lengthOf } from "./facts";
import type { Store } from "./store";

const fields = "input, textarea, select, [contenteditable]";
const pressable = "button, summary, a[href]";

function within(value: number, low: number, high: number): number {
  return Math.min(Math.max(value, low), high);
}

function movePosition(store: Store, to: (position: number | null, last: number) => number): boolean {
  const length = lengthOf(store.state);
  if (length === 0) return false;
  const next = to(store.state.selection.position, length - 1);
  store.select({ position: within(next, 0, length - 1) });
  return true;
}

function moveHead(store: Store, step: number): boolean {
  store.select({ head: within(store.state.selection.head + step, 0, headsOf(store.state) - 1) });
  return true;
}

function moveLayer(store: Store, step: number): boolean {
  const { layers, selection } = store.state;
  const layer = layers[within(layerIndex(store.state) + step, 0, layers.length - 1)];
  if (!layer) return false;
  store.select({ layer: layer.name, head: within(selection.head, 0, layer.heads - 1) });
  return true;
}

function release(store: Store): boolean {
  const { mode, pinned, span } = store.state.selection;
  if (mode === null && !pinned && span === null) return false;
  store.select({ mode: null, pinned: false, span: null });
  return true;
}

/** True where the key meant something. */
export function press(store: Store, event: KeyboardEvent, onHelp?: () => void): boolean {
  if (event.ctrlKey || event.metaKey) return false;
  const step = event.shiftKey ? 10 : 1;
  switch (event.key) {
    case "ArrowLeft":
      return !event.altKey && movePosition(store, (at, last) => (at ?? last + step) - step);
    case "ArrowRight":
      return !event.altKey && movePosition(store, (at) => (at ?? -step) + step);
    case "Home":
      return movePosition(store, () => 0);
    case "End":
      return movePosition(store, (_, last) => last);
    case "ArrowUp":
      return event.altKey ? moveLayer(store, -1) : moveHead(store, -1);
    case "ArrowDown":
      return event.altKey ? moveLayer(store, 1) : moveHead(store, 1);
    case "PageUp":
      return moveLayer(store, -1);
    case "PageDown":
      return moveLayer(store, 1);
    case " ":
    case "Enter":
      if (store.state.selection.position === null) return false;
      store.select({ pinned: !store.state.selection.pinned });
      return true;
    case "Escape":
      return release(store);
    case "?":
      onHelp?.();
      return onHelp !== undefined;
    default:
      return false;
  }
}

/**
 * Make `root` take the keyboard. Hosts such as JupyterLab listen for shortcuts on the document: plain keys end
 * here, or "d d" would delete the cell. From text fields everything but "save" ends here, so that Ctrl+Z undoes
 * typing and not a cell; elsewhere combinations with Ctrl or Meta stay the host's.
 */
export function mountKeyboard(root: HTMLElement, store: Store, onHelp?: () => void): () => void {
  root.tabIndex = 0;
  const stop = listen(root, "keydown", (event) => {
    const target = event.composedPath()[0] as Element | undefined;
    const field = target?.closest(fields) != null;
    const combined = event.ctrlKey || event.metaKey;
    if (field ? !(combined && event.key.toLowerCase() === "s") : !combined) event.stopPropagation();
    if (event.defaultPrevented || event.isComposing) return;
    if (field) {
      if (event.key === "Escape") root.focus({ preventScroll: true });
      return;
    }
    if (target?.closest(pressable) != null && (event.key === " " || event.key === "Enter")) return;
    if (press(store, event, onHelp)) event.preventDefault();
  });
  return () => {
    stop();
    root.removeAttribute("tabindex");
  };
}
