/** Asks the kernel for singular vectors while a singular value is pointed at. */
import { ofHead } from "./belongs";
import type { State, VectorData } from "./state";
import type { Store } from "./store";

/** After this many milliseconds without an answer the next request may go out. */
const patience = 3000;

function wanted({ selection }: State): { layer: string | null; head: number; position: number } | null {
  const { layer, head, position, mode } = selection;
  return mode === null || position === null || position < 1 ? null : { layer, head, position };
}

/** The vectors in the store, where they belong to what is selected; else null. */
export function currentVectors(state: State): VectorData | null {
  const { vectors, selection } = state;
  const valid = vectors !== null && vectors.position === selection.position && ofHead(state, vectors);
  return valid ? vectors : null;
}

/** One singular mode: weights on the past inputs and on the present and future outputs. */
export interface Mode {
  past: Float32Array;
  future: Float32Array;
}

/** The mode that is pointed at, where its vectors have arrived. */
export function currentMode(state: State): Mode | null {
  const vectors = currentVectors(state);
  const { mode } = state.selection;
  if (!vectors || mode === null || mode < 0 || mode >= vectors.count) return null;
  const { past, future, position, count } = vectors;
  const rows = future.length / count;
  return {
    past: past.subarray(mode * position, (mode + 1) * position),
    future: future.subarray(mode * rows, (mode + 1) * rows),
  };
}

/** Largest size among the weights; 1 where there is none, to divide by. */
export function largest(weights: Float32Array): number {
  let size = 0;
  for (const weight of weights) if (Math.abs(weight) > size) size = Math.abs(weight);
  return size > 0 ? size : 1;
}

function start(store: Store): () => void {
  let timer: ReturnType<typeof setTimeout> | null = null;
  let asked = "";
  const settle = () => {
    if (timer !== null) clearTimeout(timer);
    timer = null;
  };
  const ask = () => {
    const request = wanted(store.state);
    if (!request) asked = "";
    if (timer !== null || !request || currentVectors(store.state)) return;
    const key = JSON.stringify(request);
    if (key === asked) return;
    asked = key;
    timer = setTimeout(() => {
      timer = null;
      ask();
    }, patience);
    store.send({ type: "vectors", ...request });
  };
  const stop = store.on(["selection", "vectors", "operator_data", "spectrum_data"], (changed) => {
    if (changed.has("vectors")) settle();
    else if (changed.has("operator_data") || changed.has("spectrum_data")) {
      // Another operator under the same name: what was fetched no longer belongs to it.
      asked = "";
      if (store.state.vectors) store.set({ vectors: null });
    }
    ask();
  });
  ask();
  return () => {
    stop();
    settle();
  };
}

const running = new WeakMap<Store, { users: number; stop: () => void }>();

/**
 * Keeps the vectors of the selected mode in the store: one request under way, the newest selection is asked
 * for when its answer is there. Views of one store share the controller; the result lets go of it.
 */
export function followVectors(store: Store): () => void {
  const entry = running.get(store) ?? { users: 0, stop: start(store) };
  running.set(store, entry);
  entry.users++;
  let held = true;
  return () => {
    if (!held) return;
    held = false;
    if (--entry.users > 0) return;
    entry.stop();
    running.delete(store);
  };
}
