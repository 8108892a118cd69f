import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { cellAt, cellsOf, currentDetail, followDetail } from "../src/detail";
import type { DetailData, OperatorData } from "../src/state";
import { Store } from "../src/store";

const coarse: OperatorData = {
  layer: "a",
  head: 1,
  length: 5,
  side: 3,
  block: 2,
  matrix: Float32Array.from([1, 0, 0, 2, 3, 0, 4, 5, 6]),
};
const fine: DetailData = {
  layer: "a",
  head: 1,
  top: 2,
  left: 1,
  rows: 2,
  columns: 2,
  block: 1,
  matrix: Float32Array.from([7, 8, 9, 10]),
};
const selection = { layer: "a", head: 1, position: 2, span: null, pinned: false, mode: null };
const layers = [{ name: "a", family: "", heads: 2, residual: null, limit: 1 }];

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

test("an entry is found in its block, cut off at the edge", () => {
  expect(cellAt(cellsOf(coarse), 5, 3, 1)).toEqual({ rows: [2, 3], columns: [0, 1], value: 2 });
  expect(cellAt(cellsOf(coarse), 5, 4, 4)).toEqual({ rows: [4, 4], columns: [4, 4], value: 6 });
  expect(cellAt(cellsOf(coarse), 5, 1, 4)).toBeNull();
  expect(cellAt(cellsOf(coarse), 5, -1, 0)).toBeNull();
});

test("a detail is exact where it lies and says nothing elsewhere", () => {
  expect(cellAt(fine, 5, 3, 1)).toEqual({ rows: [3, 3], columns: [1, 1], value: 9 });
  expect(cellAt(fine, 5, 3, 0)).toBeNull();
  expect(cellAt(fine, 5, 4, 1)).toBeNull();
});

test("zooming into a large operator asks for that part, once it rests", () => {
  const store = new Store({ operator_data: coarse, selection, layers });
  const sent = vi.fn();
  store.send = sent;
  const stop = followDetail(store);
  for (const from of [0.2, 0.6, 1.3]) {
    store.set({ zoom: { x: [from, from + 2], y: [2.5, 4.5] } });
    store.flush();
  }
  expect(sent).not.toHaveBeenCalled();
  vi.advanceTimersByTime(200);
  expect(sent.mock.calls).toEqual([[{ type: "detail", layer: "a", head: 1, rows: [2, 5], columns: [1, 4] }]]);
  store.set({ zoom: null });
  store.flush();
  vi.advanceTimersByTime(200);
  expect(sent).toHaveBeenCalledTimes(1);
  stop();
});

test("an operator that is sent whole has no more detail", () => {
  const whole = { ...coarse, length: 3, block: 1 };
  const store = new Store({ operator_data: whole, selection, layers });
  const sent = vi.fn();
  store.send = sent;
  followDetail(store);
  store.set({ zoom: { x: [0, 1], y: [0, 1] } });
  store.flush();
  vi.advanceTimersByTime(200);
  expect(sent).not.toHaveBeenCalled();
});

test("a detail of another head or operator is not shown", () => {
  const store = new Store({ operator_data: coarse, selection, layers, detail: fine });
  const stop = followDetail(store);
  expect(currentDetail(store.state)).toBeNull(); // not zoomed
  store.set({ zoom: { x: [1, 3], y: [2, 4] } });
  expect(currentDetail(store.state)).toBe(fine);
  store.select({ head: 0 });
  expect(currentDetail(store.state)).toBeNull();
  store.set({ operator_data: { ...coarse } });
  store.flush();
  expect(store.state.detail).toBeNull();
  stop();
});
