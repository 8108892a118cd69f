import { expect, test } from "vitest";
import { Store } from "../src/store";

test("all changes of a frame arrive in one call", () => {
  const store = new Store();
  const calls: string[][] = [];
  store.on(["selection", "settings"], (changed) => calls.push([...changed].sort()));
  store.select({ position: 3 });
  store.configure({ tol: 0.1 });
  store.select({ position: 4 });
  store.flush();
  expect(calls).toEqual([["selection", "settings"]]);
  expect(store.state.selection.position).toBe(4);
});

test("selecting what is selected already tells nobody", () => {
  const store = new Store();
  store.select({ span: [2, 5] });
  store.flush();
  let calls = 0;
  store.on(["selection"], () => calls++);
  store.select({ span: [2, 5] });
  store.flush();
  expect(calls).toBe(0);
});
