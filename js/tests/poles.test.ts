/** Poles: where a drag puts them, how sliders reach every value, and the plane by pointer and keyboard. */
import { afterEach, beforeEach, expect, test } from "vitest";
import { dragged, moved, poleText, stepped, totalState } from "../src/poles";
import { fromStep, steps, toStep, valueText } from "../src/slider_scale";
import type { WirePole } from "../src/state";
import { Store } from "../src/store";
import { polePlane } from "../src/views/pole_plane";
import { Wish } from "../src/wish";
import { controls, toyData } from "./toys";

const poles = controls.poles.value as WirePole[];

test("a dragged pole settles on others, on zero and on the real axis", () => {
  expect(dragged(poles, 0, 0.21, 0.59, 2)).toEqual([0.2, 0.6]);
  expect(dragged(poles, 0, 0.21, -0.59, 2)).toEqual([0.2, 0.6]); // by its conjugate
  expect(dragged(poles, 0, 0.01, -0.02, 2)).toEqual([0, 0]);
  expect(dragged(poles, 0, 0.7, 0.02, 2)).toEqual([0.7, 0]);
  expect(dragged(poles, 0, 0.123, -0.456, 2)).toEqual([0.12, 0.46]);
  expect(Math.hypot(...dragged(poles, 0, 3, 3, 2))).toBeLessThan(2);
});

test("keys move in exact steps, also next to other poles", () => {
  expect(stepped([0.49, 0, 1], 0.01, 0, 2)).toEqual([0.5, 0]);
  expect(stepped([0.5, 0.005, 1], 0, -0.01, 2)).toEqual([0.5, 0]);
  expect(stepped([0.1, 0, 1], -0.1, 0, 2)).toEqual([0, 0]);
});

test("a real pole leaves the axis only where there is room for two", () => {
  expect(totalState(poles)).toBe(3);
  expect(moved(poles, 0, [0.5, 0.1], 4)[0]).toEqual([0.5, 0.1, 1]);
  expect(moved(poles, 0, [0.5, 0.1], 3)).toEqual(poles);
  expect(poleText([0.65, 0.55, 2])).toBe("0.65 ± 0.55 i, order 2");
  expect(poleText([-0.5, 0, 1])).toBe("−0.5");
});

test("sliders reach their ends, 1 and what lies between", () => {
  const { temperature, beta } = controls;
  expect(fromStep(temperature, 0)).toBe(0);
  expect(fromStep(temperature, steps)).toBe("inf");
  expect(fromStep(temperature, 1)).toBe(0.01);
  expect(fromStep(temperature, steps - 1)).toBe(100);
  expect(fromStep(temperature, steps / 2)).toBe(1);
  expect(fromStep(beta, 0)).toBe(0);
  expect(fromStep(beta, steps / 2)).toBe(1);
  expect(fromStep(beta, steps)).toBe(2);
  for (const control of [temperature, beta]) {
    for (let step = 0; step <= steps; step++) expect(toStep(control, fromStep(control, step))).toBe(step);
  }
  expect(toStep(temperature, 1e-9)).toBe(1); // beyond the slider, and not yet hard
  expect([0, 1, "inf" as const].map((value) => valueText(temperature, value))).toEqual([
    "hard",
    "1",
    "uniform",
  ]);
  expect(valueText(beta, 0.9999999)).toBe("≈ 1");
});

let store: Store;
let wish: Wish;
let plane: ReturnType<typeof polePlane>;

const handles = () => [...plane.node.querySelectorAll<SVGElement>(".ess-pole[role=slider]")];
const button = (part: string) => plane.node.querySelector<HTMLButtonElement>(`[data-part=${part}]`)!;
const current = () => wish.value(controls.poles);
function press(element: SVGElement, key: string, shiftKey = false): void {
  element.dispatchEvent(new KeyboardEvent("keydown", { key, shiftKey, bubbles: true, cancelable: true }));
}

beforeEach(() => {
  store = new Store({ toy_data: toyData({ toy: "poles", controls: [controls.poles], handle: null }) });
  wish = new Wish(store);
  plane = polePlane(controls.poles, wish);
  wish.on(() => plane.show(controls.poles));
  document.body.append(plane.node);
  plane.show(controls.poles);
});
afterEach(() => {
  plane.dispose();
  plane.node.remove();
  wish.stop();
});

test("every pole can be reached and moved by keys", () => {
  expect(handles().map((node) => node.getAttribute("aria-label"))).toEqual(["Pole 1 of 2", "Pole 2 of 2"]);
  expect(handles().every((node) => node.getAttribute("tabindex") === "0")).toBe(true);
  press(handles()[1]!, "ArrowRight");
  press(handles()[1]!, "ArrowDown", true);
  expect(current()[1]).toEqual([0.21, 0.5, 1]);
  expect(handles()[1]!.getAttribute("aria-valuetext")).toBe("0.21 ± 0.5 i");
  press(handles()[0]!, "ArrowUp");
  expect(current()[0]).toEqual([0.5, 0.01, 1]);
});

test("poles are paired, added up to what fits, and removed", () => {
  press(handles()[0]!, "j");
  expect(current()[0]).toEqual([0.5, 0, 2]);
  button("add-pair").click();
  expect(totalState(current())).toBe(6);
  expect(handles()).toHaveLength(3);
  expect(button("add-real").disabled).toBe(true);
  press(handles()[1]!, "j"); // no room
  expect(current()[1]![2]).toBe(1);
  press(handles()[1]!, "Delete");
  expect(handles()).toHaveLength(2);
  expect(button("add-pair").disabled).toBe(false);
  button("remove-pole").click();
  button("remove-pole").click();
  expect(current()).toEqual([]);
  expect(button("jordan").disabled).toBe(true);
  expect(plane.node.textContent).toContain("No poles");
  button("add-real").click();
  expect(current()).toHaveLength(1);
});

test("the conjugate is drawn, and hidden on the real axis", () => {
  const mirrors = [...plane.node.querySelectorAll(".ess-pole-mirror")];
  expect(mirrors.map((node) => node.getAttribute("visibility"))).toEqual(["hidden", "visible"]);
});
