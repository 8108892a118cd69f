import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { bind, floats } from "../src/bind";
import { bytes, Model } from "./model";

const traits = { text: "one", title: "A model", kind: "entropy", tol: 0.1, relative: false };
const selected = { layer: "a", head: 0, position: null, span: null, pinned: false, mode: null };

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
});

test("floats come out of unaligned bytes", () => {
  expect([...floats(bytes([1.5, -2]))]).toEqual([1.5, -2]);
  expect([...floats(Float32Array.of(3).buffer)]).toEqual([3]);
});

test("the store begins with what the model holds", async () => {
  const model = new Model({
    ...traits,
    operator_data: { layer: "a", head: 0, length: 1, side: 1, block: 1, matrix: bytes([0.25]) },
    grid_data: {},
  });
  const [store] = await bind(model.any);
  expect(store.state.text).toBe("one");
  expect(store.state.settings).toMatchObject({ kind: "entropy", tol: 0.1, scale: "log" });
  expect([...(store.state.operator_data?.matrix ?? [])]).toEqual([0.25]);
  expect(store.state.grid_data).toBeNull();
});

test("traits of one update arrive together", async () => {
  const model = new Model(traits);
  const [store] = await bind(model.any);
  const seen: unknown[] = [];
  store.on(["title", "text", "settings"], () => seen.push([store.state.title, store.state.settings.tol]));
  model.receive({ title: "Another", text: "two", tol: 0.5 });
  await vi.advanceTimersByTimeAsync(20);
  expect(seen).toEqual([["Another", 0.5]]);
  expect(store.state.text).toBe("two");
  expect(model.saved).toEqual([]);
});

test("a kernel that does not take up what was typed is not called up to date", async () => {
  const ready = { phase: "ready", message: "Up to date", progress: null };
  const model = new Model({ ...traits, status: ready });
  const [store, unbind] = await bind(model.any);
  const phase = () => store.state.status.phase;
  const type = async (text: string, wait: number) => {
    store.set({ text });
    await vi.advanceTimersByTimeAsync(wait);
  };
  await type("two", 900);
  expect(phase()).toBe("ready");
  await vi.advanceTimersByTimeAsync(200);
  expect(store.state.status).toMatchObject({
    phase: "idle",
    message: expect.stringContaining("waiting") as string,
  });
  model.receive({ status: { ...ready } });
  await vi.advanceTimersByTimeAsync(20);
  expect(phase()).toBe("ready");
  await type("three", 500);
  model.receive({ status: { ...ready, phase: "running" } });
  await vi.advanceTimersByTimeAsync(2000);
  expect(phase()).toBe("running");
  await type("four", 500);
  unbind();
  await vi.advanceTimersByTimeAsync(2000);
  expect(phase()).toBe("running");
  expect(model.listeners).toBe(0);
});

test("text that is typed goes to the kernel, text from the kernel does not return", async () => {
  const model = new Model(traits);
  const [store] = await bind(model.any);
  store.set({ text: "typed" });
  store.flush();
  expect(model.saved).toEqual([{ text: "typed" }]);
  model.receive({ text: "set in Python" });
  await vi.advanceTimersByTimeAsync(20);
  expect(store.state.text).toBe("set in Python");
  expect(model.saved).toHaveLength(1);
});

test("a slider sends few messages and its last value", async () => {
  const model = new Model(traits);
  const [store] = await bind(model.any);
  for (let k = 1; k <= 20; k++) {
    store.configure({ tol: k / 100 });
    store.flush();
    await vi.advanceTimersByTimeAsync(5);
  }
  await vi.advanceTimersByTimeAsync(100);
  expect(model.saved.length).toBeLessThanOrEqual(4);
  expect(model.get("tol")).toBe(0.2);
});

test("several parts of a selection change together", async () => {
  const shared = new Model(selected);
  const [store] = await bind(new Model(traits).link("s", shared).any);
  store.select({ layer: "b", head: 3, position: 7, span: [1, 4] });
  store.flush();
  expect(shared.get("head")).toBe(3);
  expect(shared.get("span")).toEqual([1, 4]);
  expect(store.state.selection).toMatchObject({ layer: "b", head: 3, position: 7, span: [1, 4] });
});

test("views of one Selection follow each other without the kernel", async () => {
  const shared = new Model(selected);
  const [one] = await bind(new Model(traits).link("s", shared).any);
  const [other] = await bind(new Model(traits).link("s", shared).any);
  const painted = vi.fn();
  other.on(["selection"], painted);
  one.select({ position: 5, layer: "b", head: 2 });
  one.flush();
  await Promise.resolve();
  expect(painted).toHaveBeenCalledTimes(1); // in the same frame
  expect(other.state.selection).toMatchObject({ position: 5, layer: "b", head: 2 });
  other.flush();
  one.flush();
  expect(one.state.selection).toMatchObject({ position: 5, layer: "b", head: 2 });
  await vi.advanceTimersByTimeAsync(200);
  expect(shared.saved).toEqual([{ layer: "b", head: 2, position: 5 }]);
});

test("a moving pointer tells the kernel a few times, and where it stopped", async () => {
  const shared = new Model(selected);
  const [store] = await bind(new Model(traits).link("s", shared).any);
  for (let k = 0; k < 60; k++) {
    store.select({ position: k });
    store.flush();
    await vi.advanceTimersByTimeAsync(8);
  }
  await vi.advanceTimersByTimeAsync(200);
  expect(shared.saved.length).toBeLessThan(12);
  expect(shared.saved.at(-1)).toEqual({ position: 59 });
});

test("singular vectors arrive as a message with two buffers", async () => {
  const model = new Model(traits);
  const [store] = await bind(model.any);
  const content = { type: "vectors", layer: "a", head: 0, position: 2, count: 1 };
  model.fire("msg:custom", content, [bytes([0.6, 0.8])]);
  expect(store.state.vectors).toBeNull();
  model.fire("msg:custom", content, [bytes([0.6, 0.8]), bytes([1])]);
  expect(store.state.vectors).toMatchObject({ position: 2, count: 1 });
  expect([...(store.state.vectors?.future ?? [])]).toEqual([1]);
});

test("views ask the kernel through the model", async () => {
  const model = new Model(traits);
  const [store] = await bind(model.any);
  store.send({ type: "vectors" });
  expect(model.sent).toEqual([{ type: "vectors" }]);
});

test("letting go leaves no listener and sends what was still to be sent", async () => {
  const shared = new Model(selected);
  const model = new Model(traits).link("s", shared);
  const [store, unbind] = await bind(model.any);
  store.configure({ tol: 0.3 });
  store.flush();
  store.configure({ tol: 0.4 });
  store.flush();
  unbind();
  expect(model.get("tol")).toBe(0.4);
  expect(model.saved.at(-1)).toEqual({ tol: 0.4 });
  expect(model.listeners).toBe(0);
  expect(shared.listeners).toBe(0);
});
