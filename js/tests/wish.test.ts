/** The newest wish wins, one at a time is on its way, and silence is not waited for. */
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { Store } from "../src/store";
import { Wish } from "../src/wish";
import { controls, toyData } from "./toys";

interface Sent {
  toy: string;
  length: number;
  parameters: Record<string, unknown>;
  stamp: number;
}
let store: Store;
let wish: Wish;
let sent: Sent[];

function answer(stamp: number, value: number): void {
  store.set({ toy_data: toyData({ stamp, controls: [{ ...controls.k, value }] }) });
  store.flush();
}

beforeEach(() => {
  vi.useFakeTimers();
  sent = [];
  store = new Store({ toy_data: toyData() });
  store.send = (content) => sent.push(content as Sent);
  wish = new Wish(store);
});
afterEach(() => {
  wish.stop();
  vi.useRealTimers();
});

test("what is dragged is shown at once, and only its newest place follows the first answer", () => {
  for (const k of [1, 3, 4]) wish.set({ k });
  expect(sent.map(({ parameters }) => parameters)).toEqual([{ k: 1 }]);
  expect(wish.value(controls.k)).toBe(4);
  answer(1, 1);
  expect(sent.map(({ parameters }) => parameters)).toEqual([{ k: 1 }, { k: 4 }]);
  expect(wish.value(controls.k)).toBe(4);
  answer(2, 4);
  expect(sent).toHaveLength(2);
  expect(wish.roundTrip).not.toBeNull();
  // Nothing is wished for any more: what the kernel says holds.
  expect(wish.value({ ...controls.k, value: 0 })).toBe(0);
});

test("several parameters are sent together; another toy forgets them", () => {
  wish.set({ k: 1 });
  wish.set({ k: 2 });
  wish.set({ seed: 5 });
  answer(1, 1);
  expect(sent[1]!.parameters).toEqual({ k: 2, seed: 5 });
  wish.choose("poles");
  answer(2, 2);
  expect(sent[2]).toMatchObject({ toy: "poles", length: 4, parameters: {} });
  // Until the other toy is here, its values are not those of the one that is shown.
  expect(wish.value(controls.k)).toBe(2);
  expect(wish.toy).toBe("poles");
});

test("choosing what is chosen asks for nothing", () => {
  wish.choose("delay");
  wish.resize(4);
  expect(sent).toHaveLength(0);
  wish.resize(8);
  expect(sent[0]).toMatchObject({ length: 8, stamp: 1 });
});

test("without a kernel the last state comes back", () => {
  const heard = vi.fn();
  wish.on(heard);
  wish.set({ k: 4 });
  expect(wish.value(controls.k)).toBe(4);
  vi.advanceTimersByTime(5000);
  expect(wish.value(controls.k)).toBe(2);
  expect(heard).toHaveBeenCalledTimes(2);
});

test("an answer to somebody else's older wish frees nothing, stamps go on after a reload", () => {
  answer(7, 3);
  wish.set({ k: 1 });
  expect(sent[0]!.stamp).toBe(8);
  answer(7, 3);
  wish.set({ k: 0 });
  expect(sent).toHaveLength(1);
  answer(8, 1);
  expect(sent).toHaveLength(2);
});
