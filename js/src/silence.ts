/** Says that the kernel has not taken up what was typed: a running cell may keep it from that. */
import type { AnyModel } from "@anywidget/types";
import type { Store } from "./store";

/** Milliseconds without a word from the kernel. */
const SILENCE = 1000;

export function watchSilence(model: AnyModel, store: Store): { typed: () => void; stop: () => void } {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const heard = () => clearTimeout(timer);
  model.on("change:status", heard);
  return {
    typed: () => {
      clearTimeout(timer);
      if (model.get("status") === undefined) return;
      timer = setTimeout(() => {
        store.set({
          status: { phase: "idle", message: "waiting for the kernel: a cell may be running", progress: null },
        });
      }, SILENCE);
    },
    stop: () => {
      clearTimeout(timer);
      model.off("change:status", heard);
    },
  };
}
