import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { initialState, type State, type VectorData } from "../src/state";
import { Store } from "../src/store";
import { currentMode, currentVectors, followVectors, largest } from "../src/vectors";

const layer = "model.layers.0";
const layers = [{ name: layer, family: "", heads: 2, residual: null, limit: 1e-5 }];

function vectors(position: number, length = 6, count = 2): VectorData {
  return {
    layer,
    head: 1,
    position,
    count,
    past: Float32Array.from({ length: count * position }, (_, k) => k),
    future: Float32Array.from({ length: count * (length - position) }, (_, k) => 100 + k),
  };
}

function select(patch: Partial<State["selection"]>): State["selection"] {
  return { ...initialState.selection, layer, head: 1, ...patch };
}

describe("asking for singular vectors", () => {
  let store: Store;
  let sent: object[];
  let stop: () => void;
  beforeEach(() => {
    vi.useFakeTimers();
    store = new Store({ layers, selection: select({ position: 3 }) });
    sent = [];
    store.send = (content) => sent.push(content);
    stop = followVectors(store);
  });
  afterEach(() => {
    stop();
    vi.useRealTimers();
  });
  const move = (patch: Partial<State["selection"]>) => {
    store.select(patch);
    store.flush();
  };

  it("waits until a singular value is pointed at, and there is a past", () => {
    move({ position: 2 });
    expect(sent).toEqual([]);
    move({ position: 0, mode: 0 });
    expect(sent).toEqual([]);
    move({ position: 2 });
    expect(sent).toEqual([{ type: "vectors", layer, head: 1, position: 2 }]);
  });

  it("has one request under way; the newest selection follows", () => {
    for (const position of [1, 2, 3, 4]) move({ position, mode: 0 });
    expect(sent).toHaveLength(1);
    store.set({ vectors: vectors(1) });
    store.flush();
    expect(sent.slice(1)).toEqual([{ type: "vectors", layer, head: 1, position: 4 }]);
    store.set({ vectors: vectors(4) });
    store.flush();
    move({ mode: 1 });
    expect(sent).toHaveLength(2);
  });

  it("does not wait for ever, nor ask the same again by itself", () => {
    move({ position: 1, mode: 0 });
    move({ position: 2 });
    vi.advanceTimersByTime(10_000);
    expect(sent).toHaveLength(2);
    vi.advanceTimersByTime(60_000);
    expect(sent).toHaveLength(2);
  });

  it("drops vectors of an operator that was replaced, and asks anew", () => {
    move({ position: 2, mode: 0 });
    store.set({ vectors: vectors(2) });
    store.flush();
    store.set({ spectrum_data: { layer, head: 1, length: 6, rank: 3, values: new Float32Array(18) } });
    store.flush();
    store.flush();
    expect(store.state.vectors).toBeNull();
    expect(sent).toHaveLength(2);
  });

  it("is shared by the views of a store and ends with the last of them", () => {
    const second = followVectors(store);
    move({ position: 2, mode: 0 });
    expect(sent).toHaveLength(1);
    stop();
    store.set({ vectors: vectors(2) });
    store.flush();
    move({ position: 4 });
    expect(sent).toHaveLength(2);
    second();
    store.set({ vectors: vectors(4) });
    store.flush();
    move({ position: 5 });
    expect(sent).toHaveLength(2);
  });
});

it("shows vectors only where they belong", () => {
  const state: State = {
    ...initialState,
    layers,
    vectors: vectors(2),
    selection: select({ position: 2, mode: 1 }),
  };
  const mode = currentMode(state)!;
  expect([...mode.past]).toEqual([2, 3]);
  expect([...mode.future]).toEqual([104, 105, 106, 107]);
  expect(currentMode({ ...state, selection: select({ position: 2, mode: 2 }) })).toBeNull();
  expect(currentMode({ ...state, selection: select({ position: 2 }) })).toBeNull();
  expect(currentVectors({ ...state, selection: select({ position: 3, mode: 0 }) })).toBeNull();
  expect(currentVectors({ ...state, selection: select({ position: 2, mode: 0, head: 0 }) })).toBeNull();
});

it("scales by the largest weight, never by zero", () => {
  expect(largest(Float32Array.of(0.5, -2, 1))).toBe(2);
  expect(largest(Float32Array.of(0, 0))).toBe(1);
});
