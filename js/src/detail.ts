/** Asks the kernel for the part of a large operator that is zoomed in on, and says which cell lies where. */
import { ofHead } from "./belongs";
import type { DetailData, OperatorData, State } from "./state";
import type { Store } from "./store";

/** Milliseconds for which the zoom must rest. */
const rest = 80;

/** Cells of `block` × `block` entries each, from entry (`top`, `left`) on. */
export interface Cells {
  top: number;
  left: number;
  rows: number;
  columns: number;
  block: number;
  matrix: Float32Array;
}

export function cellsOf(data: OperatorData): Cells {
  return { top: 0, left: 0, rows: data.side, columns: data.side, block: data.block, matrix: data.matrix };
}

/** One cell: the entries it stands for (last included) and its value. */
export interface Cell {
  rows: [number, number];
  columns: [number, number];
  value: number;
}

/** The cell in which entry (`row`, `column`) lies; null outside, and in the future. */
export function cellAt(cells: Cells, length: number, row: number, column: number): Cell | null {
  const { top, left, block } = cells;
  const [r, c] = [Math.floor((row - top) / block), Math.floor((column - left) / block)];
  if (r < 0 || c < 0 || r >= cells.rows || c >= cells.columns) return null;
  const range = (first: number): [number, number] => [first, Math.min(first + block, length) - 1];
  const [rows, columns] = [range(top + r * block), range(left + c * block)];
  return columns[0] > rows[1] ? null : { rows, columns, value: cells.matrix[r * cells.columns + c]! };
}

/** The detail in the store, where it belongs to the operator that is shown. */
export function currentDetail(state: State): DetailData | null {
  return state.detail && state.zoom && ofHead(state, state.detail) ? state.detail : null;
}

function wanted({ operator_data: data, zoom }: State): { rows: number[]; columns: number[] } | null {
  if (!data || data.block === 1 || !zoom) return null;
  const range = ([from, to]: [number, number]) => [
    Math.max(0, Math.floor(from)),
    Math.min(data.length, Math.ceil(to)),
  ];
  return { rows: range(zoom.y), columns: range(zoom.x) };
}

/** Keeps the detail of the zoomed part in the store; the result stops it. */
export function followDetail(store: Store): () => void {
  let timer: ReturnType<typeof setTimeout> | null = null;
  let asked = "";
  const ask = () => {
    timer = null;
    const { layer, head } = store.state.selection;
    const request = wanted(store.state);
    const key = JSON.stringify([layer, head, request]);
    if (!request || key === asked) return;
    asked = key;
    store.send({ type: "detail", layer, head, ...request });
  };
  const stop = store.on(["zoom", "operator_data"], (changed) => {
    if (changed.has("operator_data")) {
      asked = "";
      if (store.state.detail) store.set({ detail: null });
    }
    if (timer !== null) clearTimeout(timer);
    timer = wanted(store.state) ? setTimeout(ask, rest) : null;
  });
  return () => {
    stop();
    if (timer !== null) clearTimeout(timer);
  };
}
