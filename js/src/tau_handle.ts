/** The τ line over a spectrum: a slider that can be dragged, or moved with the keyboard. */
import type { Theme } from "./theme";

export interface TauHandle {
  element: HTMLElement;
  place(at: { left: number; width: number; y: number; text: string; value: number; theme: Theme }): void;
  hide: () => void;
  remove: () => void;
}

/** Thresholds lie on a grid of twentieths of a decade. */
const perDecade = 20;

/** `tol` on the grid, moved by so many grid steps, with four digits. */
export function snapTolerance(tol: number, steps = 0): number {
  return Number((10 ** (Math.round(Math.log10(tol) * perDecade + steps) / perDecade)).toPrecision(4));
}

const keys: Record<string, number> = {
  ArrowUp: 1,
  ArrowRight: 1,
  ArrowDown: -1,
  ArrowLeft: -1,
  PageUp: 10,
  PageDown: -10,
};
const reach = 8;

export function tauHandle(
  parent: HTMLElement,
  on: { drag(y: number): void; step(steps: number): void; hover(event: PointerEvent): void },
): TauHandle {
  const element = document.createElement("div");
  element.setAttribute("role", "slider");
  element.setAttribute("aria-label", "Threshold τ");
  element.setAttribute("aria-orientation", "vertical");
  element.tabIndex = 0;
  element.style.cssText =
    `position:absolute;top:0;left:0;height:${2 * reach}px;cursor:ns-resize;touch-action:none;` +
    "user-select:none;-webkit-user-select:none;outline:none";
  const rule = document.createElement("div");
  rule.style.cssText = `position:absolute;left:0;right:0;top:${reach - 0.75}px;height:1.5px`;
  const pill = document.createElement("div");
  pill.style.cssText =
    `position:absolute;right:0;top:${reach - 9}px;height:18px;line-height:18px;padding:0 8px;border-radius:9px;` +
    "font-size:11px;font-weight:600;white-space:nowrap;font-variant-numeric:tabular-nums";
  element.append(rule, pill);
  parent.append(element);

  let dragging = false;
  let key = "";
  const toY = (event: PointerEvent) => event.clientY - parent.getBoundingClientRect().top;
  element.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    dragging = true;
    element.setPointerCapture(event.pointerId);
  });
  element.addEventListener("pointermove", (event) => {
    if (dragging) on.drag(toY(event));
    else on.hover(event);
  });
  const end = () => (dragging = false);
  element.addEventListener("pointerup", end);
  element.addEventListener("pointercancel", end);
  element.addEventListener("keydown", (event) => {
    const steps = keys[event.key];
    if (steps === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    on.step(steps);
  });
  element.addEventListener("focus", () => {
    if (element.matches(":focus-visible")) pill.style.boxShadow = "0 0 0 2px currentColor inset";
  });
  element.addEventListener("blur", () => (pill.style.boxShadow = "none"));

  return {
    element,
    place: (at) => {
      const { left, width, y, text, value, theme } = at;
      const next = [left, width, y, text, value, theme.fg, theme.bg, theme.font].join();
      if (next === key) return;
      key = next;
      element.style.display = "";
      element.style.transform = `translate(${left}px, ${y - reach}px)`;
      element.style.width = `${width}px`;
      rule.style.background = pill.style.background = theme.fg;
      pill.style.color = theme.bg;
      pill.style.fontFamily = theme.font;
      if (pill.textContent !== text) pill.textContent = text;
      element.setAttribute("aria-valuenow", String(Math.log10(value)));
      element.setAttribute("aria-valuetext", text);
    },
    hide: () => {
      key = "";
      element.style.display = "none";
    },
    remove: () => element.remove(),
  };
}
