/** A parameter that is a position (a boundary, a reset, a delay), as a line on the picture that can be dragged. */
import type { Frame, StageOptions } from "../stage";
import type { ToyControl } from "../state";
import type { Store } from "../store";
import type { Wish } from "../wish";

type Whole = Extract<ToyControl, { type: "whole" }>;

/** Half the width at which the line can be taken hold of. */
const reach = 5;
const keys: Record<string, number> = {
  ArrowLeft: -1,
  ArrowDown: -1,
  ArrowRight: 1,
  ArrowUp: 1,
  PageUp: 10,
  PageDown: -10,
};

function box(parent: HTMLElement, style: string): HTMLElement {
  const node = document.createElement("div");
  node.style.cssText = `position:absolute;${style}`;
  parent.append(node);
  return node;
}

export function toyHandle(store: Store, wish: Wish): NonNullable<StageOptions["attach"]> {
  return (picture) => {
    const element = box(
      picture,
      `top:0;left:0;width:${2 * reach}px;cursor:ew-resize;touch-action:none;outline:none;` +
        "user-select:none;-webkit-user-select:none",
    );
    element.setAttribute("role", "slider");
    element.dataset["part"] = "toy-handle";
    element.tabIndex = 0;
    const line = box(element, `left:${reach - 0.75}px;width:0;top:0;bottom:0;border-left:1.5px dashed`);
    const corner = box(
      element,
      `right:${reach}px;height:0;bottom:0;border-top:1.5px dashed;pointer-events:none`,
    );
    const pill = box(
      element,
      "height:18px;line-height:18px;padding:0 8px;border-radius:9px;font-size:11px;font-weight:600;" +
        "white-space:nowrap;font-variant-numeric:tabular-nums",
    );
    let frame: Frame | null = null;
    let dragging = false;

    const control = (): Whole | null => {
      const data = store.state.toy_data;
      const found = data?.controls.find(({ name }) => name === data.handle?.parameter);
      return found?.type === "whole" ? found : null;
    };
    const take = (value: number) => {
      const now = control();
      if (now) wish.set({ [now.name]: Math.max(now.low, Math.min(now.high, value)) });
    };
    element.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      dragging = true;
      element.setPointerCapture(event.pointerId);
    });
    element.addEventListener("pointermove", (event) => {
      const offset = store.state.toy_data?.handle?.offset ?? 0;
      if (!dragging || !frame) return;
      const at = frame.x.invert(event.clientX - picture.getBoundingClientRect().left);
      take(Math.max(0, Math.min(frame.length, Math.round(at))) - offset);
    });
    const end = () => (dragging = false);
    element.addEventListener("pointerup", end);
    element.addEventListener("pointercancel", end);
    element.addEventListener("keydown", (event) => {
      const now = control();
      if (!now || event.ctrlKey || event.metaKey || event.altKey) return;
      const step = keys[event.key];
      if (step !== undefined) take(wish.value(now) + step * (event.shiftKey ? 10 : 1));
      else if (event.key === "Home") take(now.low);
      else if (event.key === "End") take(Math.min(now.high, frame?.length ?? now.high));
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    element.addEventListener("focus", () => {
      if (element.matches(":focus-visible")) pill.style.boxShadow = "0 0 0 2px currentColor inset";
    });
    element.addEventListener("blur", () => (pill.style.boxShadow = "none"));

    let plots: { left: number; top: number; right: number; bottom: number }[] = [];
    const place = () => {
      const [profile, operator] = plots;
      const data = store.state.toy_data;
      const now = control();
      if (!frame || !profile || !operator || !data?.handle || !now || frame.length !== data.length) {
        element.style.display = "none";
        return;
      }
      const { x, theme, window } = frame;
      const value = wish.value(now);
      const position = Math.max(0, Math.min(frame.length, value + data.handle.offset));
      const left = x.at(position);
      if (left < x.from - 1 || left > x.to + 1) {
        element.style.display = "none";
        return;
      }
      const [from, to] = window.y;
      const down = operator.top + ((position - from) / (to - from)) * (operator.bottom - operator.top);
      const foot = Math.max(operator.top + 24, Math.min(operator.bottom, down));
      element.style.display = "";
      element.style.transform = `translate(${left - reach}px, ${profile.top}px)`;
      element.style.height = `${foot - profile.top}px`;
      line.style.borderColor = corner.style.borderColor = theme.fg;
      corner.style.display =
        data.handle.corner && down <= operator.bottom && down >= operator.top ? "" : "none";
      corner.style.bottom = `${foot - down}px`;
      corner.style.width = `${Math.max(0, left - operator.left)}px`;
      pill.style.background = theme.fg;
      pill.style.color = theme.bg;
      pill.style.fontFamily = theme.font;
      const text = `${now.label} ${value}`;
      if (pill.textContent !== text) pill.textContent = text;
      pill.style.top = `${operator.top - profile.top + 4}px`;
      const rightwards = left + 110 < operator.right;
      pill.style.left = rightwards ? `${reach + 3}px` : "";
      pill.style.right = rightwards ? "" : `${reach + 3}px`;
      element.setAttribute("aria-label", now.label);
      element.setAttribute("aria-valuemin", String(now.low));
      element.setAttribute("aria-valuemax", String(now.high));
      element.setAttribute("aria-valuenow", String(value));
    };
    const stop = wish.on(place);
    return {
      place: (next, boxes) => {
        frame = next;
        plots = boxes;
        place();
      },
      remove: () => {
        stop();
        element.remove();
      },
    };
  };
}
