/** Which data belongs to what is selected. */
import type { State } from "./state";

/** What data of one head is marked with. */
interface OfHead {
  layer: string | null;
  head: number;
}

/**
 * True for a view that shows one operator and has no layers to choose from. Linked to others it follows their
 * position and head; the layer that they select means nothing to it.
 */
export function single(state: State): boolean {
  return state.layers.length === 0;
}

export function ofLayer(state: State, data: { layer: string | null }): boolean {
  return single(state) || data.layer === state.selection.layer;
}

/** A single view is sent the selected head, or its last one where it has fewer. */
export function ofHead(state: State, data: OfHead): boolean {
  return single(state) || (data.layer === state.selection.layer && data.head === state.selection.head);
}

/** The selected head among so many. */
export function headAmong(state: State, heads: number): number {
  return Math.max(0, Math.min(state.selection.head, heads - 1));
}
