/** A view on its own: what stands around it, and the keyboard. */
import { disposer, el } from "../dom";
import { mountKeyboard } from "../keyboard";
import type { Store } from "../store";

export type View = (root: HTMLElement, store: Store) => () => void;

/** `view` in a frame of its own. */
export function single(name: string, view: View): View {
  return (root, store) => {
    const body = el("div", "ess-body");
    root.append(el("div", `ess-single ess-single-${name}`, {}, body));
    return disposer([() => body.parentElement?.remove(), mountKeyboard(root, store), view(body, store)]);
  };
}
