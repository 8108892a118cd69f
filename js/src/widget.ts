/** The anywidget entry point: one module serves every view; the trait `_view` names which. */
import type { RenderProps } from "@anywidget/types";
import { bind } from "./bind";
import type { Store } from "./store";

type View = (root: HTMLElement, store: Store) => () => void;

const views: Record<string, View> = {};

async function render({ model, el }: RenderProps): Promise<() => void> {
  const [store, unbind] = await bind(model);
  const name = String(model.get("_view"));
  const view = views[name];
  el.classList.add("ess");
  if (!view) {
    el.textContent = `ess_widgets has no view named ${name}.`;
    return unbind;
  }
  const unmount = view(el, store);
  return () => {
    unmount();
    unbind();
  };
}

export default { render };
