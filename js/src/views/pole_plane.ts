/** The complex plane with the poles of a recurrence, which can be dragged, added, removed and paired. */
import { disposer, el, listen, setAttribute, setText } from "../dom";
import { formatNumber } from "../format";
import { dragged, moved, poleText, stateOf, stepped, totalState } from "../poles";
import type { ToyControl, WirePole } from "../state";
import type { Wish } from "../wish";

type PolesControl = Extract<ToyControl, { type: "poles" }>;

const namespace = "http://www.w3.org/2000/svg";
/** Half the side of the picture, in units of the plane. */
const least = 1.28;
const keys: Record<string, [number, number]> = {
  ArrowLeft: [-1, 0],
  ArrowRight: [1, 0],
  ArrowUp: [0, 1],
  ArrowDown: [0, -1],
};

function svg(
  tag: string,
  className: string,
  attributes: Record<string, string | number> = {},
  ...children: SVGElement[]
): SVGElement {
  const node = document.createElementNS(namespace, tag);
  if (className) node.setAttribute("class", className);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  node.append(...children);
  return node;
}

/** A cross with an invisible disc to hold it by, and a ring for a Jordan block. */
function mark(className: string): SVGElement {
  return svg(
    "g",
    className,
    {},
    svg("circle", "ess-pole-reach", { r: 12 }),
    svg("circle", "ess-pole-ring", { r: 8 }),
    svg("path", "ess-pole-cross", { d: "M-4.5-4.5 4.5 4.5M-4.5 4.5 4.5-4.5" }),
  );
}

const side = 240;

export function polePlane(
  control: PolesControl,
  wish: Wish,
): { node: HTMLElement; show: (control: ToyControl) => void; dispose: () => void } {
  const backdrop = svg("g", "");
  const marks = svg("g", "");
  const picture = svg(
    "svg",
    "ess-plane",
    { viewBox: `0 0 ${side} ${side}`, role: "group", "aria-label": "Poles in the complex plane" },
    backdrop,
    marks,
  ) as SVGSVGElement;
  const button = (label: string, title: string, part: string) =>
    el("button", "ess-button", { type: "button", title, "data-part": part }, label);
  const addReal = button("+ real", "Add a real pole", "add-real");
  const addPair = button("+ pair", "Add a conjugate pair", "add-pair");
  const jordan = button("Jordan", "Make the chosen pole a Jordan pair, or single again (J)", "jordan");
  const remove = button("remove", "Remove the chosen pole (Delete)", "remove-pole");
  const reading = el("div", "ess-pole-reading", { "aria-live": "polite" });
  const hint = el("div", "ess-label", {}, "Drag, or arrow keys (⇧ ten times as far).");
  const node = el(
    "div",
    "ess-poles",
    { "data-parameter": control.name },
    picture as unknown as HTMLElement,
    reading,
    el("div", "ess-pole-buttons", {}, addReal, addPair, jordan, remove),
    hint,
  );

  let data = control;
  let poles: WirePole[] = [];
  let chosen = 0;
  let extent = least;
  let drawnExtent = 0;
  let handles: { upper: SVGElement; lower: SVGElement }[] = [];
  let dragging: number | null = null;

  const scale = () => side / (2 * extent);
  const place = (re: number, im: number) =>
    `translate(${side / 2 + re * scale()} ${side / 2 - im * scale()})`;
  const send = (next: WirePole[]) => {
    poles = next;
    wish.set({ [data.name]: next });
  };
  const choose = (index: number) => {
    chosen = Math.max(0, Math.min(index, poles.length - 1));
    paint();
  };

  const toPlane = (event: PointerEvent): [number, number] => {
    const box = picture.getBoundingClientRect();
    const unit = (2 * extent) / Math.max(box.width, 1);
    return [(event.clientX - box.left) * unit - extent, extent - (event.clientY - box.top) * unit];
  };

  function drawBackdrop(): void {
    if (drawnExtent === extent) return;
    drawnExtent = extent;
    const middle = side / 2;
    const text = (x: number, y: number, label: string, anchor: string) => {
      const element = svg("text", "ess-plane-label", { x, y, "text-anchor": anchor });
      element.textContent = label;
      return element;
    };
    backdrop.replaceChildren(
      svg("circle", "ess-plane-disc", { cx: middle, cy: middle, r: scale() }),
      svg("path", "ess-plane-axis", { d: `M0 ${middle}H${side}M${middle} 0V${side}` }),
      svg("circle", "ess-plane-circle", { cx: middle, cy: middle, r: scale() }),
      text(middle + scale() + 4, middle + 12, "1", "start"),
      text(middle - scale() - 4, middle + 12, "−1", "end"),
      text(middle + 5, middle - scale() - 4, "i", "start"),
      text(side - 3, middle - 5, "Re", "end"),
      text(middle - 5, 11, "Im", "end"),
    );
  }

  function build(): void {
    const focused = handles.findIndex(({ upper }) => upper === document.activeElement);
    handles = poles.map((_, index) => {
      const lower = mark("ess-pole ess-pole-mirror");
      const upper = mark("ess-pole");
      upper.setAttribute("tabindex", "0");
      upper.setAttribute("role", "slider");
      upper.setAttribute("aria-valuemin", "0");
      for (const element of [lower, upper]) {
        element.addEventListener("pointerdown", (event) => {
          if (event.button !== 0) return;
          event.preventDefault();
          element.setPointerCapture(event.pointerId);
          dragging = index;
          choose(index);
          upper.focus({ preventScroll: true });
        });
        element.addEventListener("pointermove", (event) => {
          if (dragging !== index) return;
          const at = dragged(poles, index, ...toPlane(event), data.largest);
          send(moved(poles, index, at, data.most));
        });
        const end = () => {
          dragging = null;
          paint(); // the picture may grow or shrink again
        };
        element.addEventListener("pointerup", end);
        element.addEventListener("pointercancel", end);
      }
      upper.addEventListener("focus", () => {
        if (chosen !== index) choose(index);
      });
      upper.addEventListener("keydown", (event) => onKey(event, index));
      return { upper, lower };
    });
    marks.replaceChildren(...handles.map(({ lower }) => lower), ...handles.map(({ upper }) => upper));
    if (focused >= 0) handles[Math.min(focused, handles.length - 1)]?.upper.focus();
  }

  function onKey(event: KeyboardEvent, index: number): void {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = keys[event.key];
    const pole = poles[index];
    if (!pole) return;
    if (step) {
      const size = event.shiftKey ? 0.1 : 0.01;
      const at = stepped(pole, step[0] * size, step[1] * size, data.largest);
      send(moved(poles, index, at, data.most));
    } else if (event.key === "Delete" || event.key === "Backspace") drop(index);
    else if (event.key.toLowerCase() === "j") toggle(index);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  const room = (state: number) => totalState(poles) + state <= data.most;
  const toggle = (index: number) => {
    const next = poles.map((pole, k): WirePole =>
      k === index ? [pole[0], pole[1], pole[2] > 1 ? 1 : 2] : pole,
    );
    if (totalState(next) <= data.most) send(next);
  };
  const drop = (index: number) => {
    send(poles.filter((_, k) => k !== index));
    chosen = Math.max(0, Math.min(index, poles.length - 1));
  };
  /** A new pole where there is none yet. */
  const add = (imaginary: number) => {
    const free = [0.5, -0.3, 0.75, 0.2, -0.8, 0.35, -0.5, 0.6, -0.1, 0.85].find((re) =>
      poles.every((pole) => Math.hypot(pole[0] - re, pole[1] - imaginary) > 0.1),
    );
    chosen = poles.length;
    send([...poles, [free ?? 0.4, imaginary, 1]]);
  };

  function paint(): void {
    const farthest = Math.max(0, ...poles.map(([re, im]) => Math.hypot(re, im)));
    if (dragging === null) extent = Math.max(least, farthest * 1.1);
    drawBackdrop();
    if (handles.length !== poles.length) build();
    poles.forEach((pole, index) => {
      const { upper, lower } = handles[index]!;
      const [re, im, order] = pole;
      setAttribute(upper, "transform", place(re, im));
      setAttribute(lower, "transform", place(re, -im));
      setAttribute(lower, "visibility", im === 0 ? "hidden" : "visible");
      for (const element of [upper, lower]) {
        element.classList.toggle("ess-pole-chosen", index === chosen);
        element.classList.toggle("ess-pole-jordan", order > 1);
      }
      setAttribute(upper, "aria-label", `Pole ${index + 1} of ${poles.length}`);
      setAttribute(upper, "aria-valuemax", String(Math.max(1, Number(data.largest.toFixed(3)))));
      setAttribute(upper, "aria-valuenow", String(Number(Math.hypot(re, im).toFixed(3))));
      setAttribute(upper, "aria-valuetext", poleText(pole));
    });
    const pole = poles[chosen];
    const size = pole ? Math.hypot(pole[0], pole[1]) : 0;
    setText(reading, pole ? `p = ${poleText(pole)}   |p| = ${formatNumber(size)}` : "No poles: T is zero.");
    setAttribute(jordan, "aria-pressed", String((pole?.[2] ?? 1) > 1));
    jordan.disabled = !pole || (pole[2] === 1 && !room(stateOf(pole)));
    remove.disabled = !pole;
    addReal.disabled = !room(1);
    addPair.disabled = !room(2);
  }

  const undo = [
    listen(addReal, "click", () => add(0)),
    listen(addPair, "click", () => add(0.5)),
    listen(jordan, "click", () => toggle(chosen)),
    listen(remove, "click", () => drop(chosen)),
  ];
  return {
    node,
    show: (next) => {
      if (next.type !== "poles") return;
      data = next;
      poles = wish.value(next);
      if (chosen >= poles.length) chosen = Math.max(0, poles.length - 1);
      paint();
    },
    dispose: disposer(undo),
  };
}
