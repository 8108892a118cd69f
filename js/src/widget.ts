/** The anywidget entry point: one module serves every view; the trait `_view` names which. */
import type { RenderProps } from "@anywidget/types";
import { bind } from "./bind";
import { explorer } from "./views/explorer";
import { layerGridView } from "./views/layer_grid_view";
import { operatorView } from "./views/operator_view";
import { playground } from "./views/playground";
import { profileView } from "./views/profile_view";
import { single, type View } from "./views/single";
import { spectrumView } from "./views/spectrum_view";
import { tokenView } from "./views/token_view";
import { trainingView } from "./views/training_view";

const views: Record<string, View> = {
  Explorer: explorer,
  Playground: playground,
  OperatorView: single("operator", operatorView),
  ProfileView: single("profile", profileView),
  SpectrumView: single("spectrum", spectrumView),
  TokenView: single("tokens", tokenView),
  LayerGridView: single("layers", layerGridView),
  TrainingView: trainingView,
};

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
