/** A choice of a few, side by side: radio buttons that look like one control. */
import { el, listen } from "../dom";

export interface Option<T extends string> {
  value: T;
  label: string;
  title: string;
}

export interface Segmented<T extends string> {
  node: HTMLElement;
  set: (value: T) => void;
  disable: (disabled: boolean) => void;
  onChange: (callback: (value: T) => void) => void;
  dispose: () => void;
}

// Jupyter loads this module once for each widget, so that a count alone would come again in the next widget of the page,
// and radio buttons of one name switch each other off.
const module = Math.random().toString(36).slice(2);
let groups = 0;

export function segmented<T extends string>(label: string, options: readonly Option<T>[]): Segmented<T> {
  const name = `ess-choice-${module}-${groups++}`;
  const inputs = new Map<T, HTMLInputElement>();
  let callback: (value: T) => void = () => undefined;
  const node = el("div", "ess-segmented", { role: "radiogroup", "aria-label": label });
  const undo: (() => void)[] = [];
  for (const { value, label: text, title } of options) {
    const input = el("input", "", { type: "radio", name, value });
    inputs.set(value, input);
    node.append(el("label", "", { title }, input, el("span", "", {}, text)));
    undo.push(listen(input, "change", () => callback(value)));
  }
  return {
    node,
    set: (value) => {
      const input = inputs.get(value);
      if (input && !input.checked) input.checked = true;
    },
    disable: (disabled) => {
      for (const input of inputs.values()) input.disabled = disabled;
    },
    onChange: (next) => (callback = next),
    dispose: () => undo.forEach((stop) => stop()),
  };
}
