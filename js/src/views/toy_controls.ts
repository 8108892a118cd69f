/** The parameters of a toy operator as sliders, choices and a button for another random draw. */
import { disposer, el, listen, setAttribute, setText } from "../dom";
import { fromStep, steps, toStep, valueText, type NumberControl } from "../slider_scale";
import type { ToyControl } from "../state";
import type { Store } from "../store";
import type { Wish } from "../wish";
import { polePlane } from "./pole_plane";
import { segmented } from "./segmented";

interface Row {
  node: HTMLElement;
  show: (control: ToyControl) => void;
  dispose: () => void;
}

function labelled(label: string, name: string, ...content: HTMLElement[]): HTMLElement {
  return el(
    "div",
    "ess-toy-row",
    { "data-parameter": name },
    el("span", "ess-label", {}, label),
    el("div", "ess-setting", {}, ...content),
  );
}

/** A slider with its value beside it; a whole number's value can be typed. */
function whole(control: Extract<ToyControl, { type: "whole" }>, wish: Wish): Row {
  const slider = el("input", "ess-slider", { type: "range", step: 1, "aria-label": control.label });
  const field = el("input", "ess-field ess-narrow", {
    type: "text",
    inputmode: "numeric",
    "aria-label": control.label,
  });
  const take = (value: number) => wish.set({ [control.name]: value });
  let range: [number, number] = [control.low, control.high];
  const undo = [
    listen(slider, "input", () => take(Number(slider.value))),
    listen(field, "input", () => {
      const value = field.value.trim() === "" ? NaN : Number(field.value);
      const valid = Number.isInteger(value) && value >= range[0] && value <= range[1];
      field.classList.toggle("ess-invalid", !valid);
      field.title = valid ? "" : `a whole number from ${range[0]} to ${range[1]}`;
      if (valid) take(value);
    }),
    listen(field, "blur", () => {
      field.classList.remove("ess-invalid");
      field.value = slider.value;
    }),
  ];
  return {
    node: labelled(control.label, control.name, slider, field),
    show: (next) => {
      if (next.type !== "whole") return;
      range = [next.low, next.high];
      setAttribute(slider, "min", String(next.low));
      setAttribute(slider, "max", String(next.high));
      const value = String(wish.value(next));
      if (slider.value !== value) slider.value = value;
      if (!field.matches(":focus") && field.value !== value) field.value = value;
    },
    dispose: disposer(undo),
  };
}

function real(control: NumberControl, wish: Wish): Row {
  const slider = el("input", "ess-slider", {
    type: "range",
    min: 0,
    max: steps,
    step: 1,
    "aria-label": control.label,
  });
  const value = el("span", "ess-value");
  return {
    node: labelled(control.label, control.name, slider, value),
    show: (next) => {
      if (next.type !== "number") return;
      const now = wish.value(next);
      const step = String(toStep(next, now));
      // Between two steps lie many values: a slider that stands where it should is left alone.
      if (slider.value !== step) slider.value = step;
      const text = valueText(next, now);
      setText(value, text);
      setAttribute(slider, "aria-valuetext", text);
    },
    dispose: listen(slider, "input", () =>
      wish.set({ [control.name]: fromStep(control, Number(slider.value)) }),
    ),
  };
}

function choice(control: Extract<ToyControl, { type: "choice" }>, wish: Wish): Row {
  const select = el(
    "select",
    "ess-field",
    { "aria-label": control.label },
    ...control.options.map(({ value, label }) => el("option", "", { value }, label)),
  );
  const wide = control.options.some(({ label }) => label.length > 12) || control.options.length > 2;
  const buttons = segmented(
    control.label,
    control.options.map(({ value, label }) => ({ value, label, title: label })),
  );
  buttons.onChange((value) => wish.set({ [control.name]: value }));
  return {
    node: labelled(control.label, control.name, wide ? select : buttons.node),
    show: (next) => {
      if (next.type !== "choice") return;
      const value = wish.value(next);
      buttons.set(value);
      if (select.value !== value) select.value = value;
    },
    dispose: disposer([
      buttons.dispose,
      listen(select, "change", () => wish.set({ [control.name]: select.value })),
    ]),
  };
}

function seed(control: Extract<ToyControl, { type: "seed" }>, wish: Wish): Row {
  const number = el("span", "ess-value ess-seed");
  const button = el(
    "button",
    "ess-button",
    { type: "button", title: "Draw other random numbers" },
    "another",
  );
  let now = control.value;
  return {
    node: labelled(control.label, control.name, number, button),
    show: (next) => {
      if (next.type !== "seed") return;
      now = wish.value(next);
      setText(number, String(now));
    },
    dispose: listen(button, "click", () => wish.set({ [control.name]: now + 1 })),
  };
}

function rowFor(control: ToyControl, wish: Wish): Row {
  switch (control.type) {
    case "whole":
      return whole(control, wish);
    case "number":
      return real(control, wish);
    case "choice":
      return choice(control, wish);
    case "seed":
      return seed(control, wish);
    case "poles":
      return polePlane(control, wish);
  }
}

export function toyControls(root: HTMLElement, store: Store, wish: Wish): () => void {
  const view = el("div", "ess-toy-controls");
  root.append(view);
  let toy = "";
  let rows: Row[] = [];
  const clear = () => {
    for (const row of rows.splice(0)) {
      row.dispose();
      row.node.remove();
    }
  };
  const show = () => {
    const data = store.state.toy_data;
    if (!data) return;
    if (data.toy !== toy) {
      clear();
      toy = data.toy;
      rows = data.controls.map((control) => rowFor(control, wish));
      view.append(...rows.map((row) => row.node));
    }
    rows.forEach((row, k) => row.show(data.controls[k]!));
  };
  show();
  return disposer([() => view.remove(), clear, wish.on(show)]);
}
