/** The picture that is the product: the profile on top of the operator, on one axis, one hair-line through both. */
import { followDetail } from "../detail";
import { mountStage, type StageOptions } from "../stage";
import type { Store } from "../store";
import { followVectors } from "../vectors";
import { OperatorPanel, operatorWaits } from "./operator_view";
import { ProfilePanel } from "./profile_view";

export function memoryView(root: HTMLElement, store: Store, attach?: StageOptions["attach"]): () => void {
  const undo = [followVectors(store), followDetail(store)];
  const unmount = mountStage(root, store, {
    panels: [new ProfilePanel(false), new OperatorPanel(false)],
    length: (state) => state.operator_data?.length ?? state.profile_data?.length ?? 0,
    waiting: operatorWaits,
    rowLabels: true,
    ...(attach && { attach }),
  });
  return () => {
    unmount();
    undo.forEach((stop) => stop());
  };
}
