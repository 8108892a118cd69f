/** What a pointer does on a plot: brush, click, select a span, pan and zoom, without taking the page's scrolling. */

export interface Gestures {
  move(x: number, y: number): void;
  leave(): void;
  click(x: number, y: number): void;
  /** While a span is dragged, from where it began to where the pointer is. */
  drag(from: number, to: number): void;
  pan(dx: number, dy: number): void;
  zoom(factor: number, x: number, y: number): void;
  reset(): void;
  /** The page's own wheel passed over the plot. */
  scroll(): void;
  /** Whether a gesture may begin here. */
  accepts(x: number, y: number): boolean;
}

/** From this many pixels a press is a drag. */
export const dragDistance = 4;

type Mode = "idle" | "press" | "span" | "pan" | "pinch";

export function attachGestures(element: HTMLElement, on: Gestures): () => void {
  let mode: Mode = "idle";
  let start = { x: 0, y: 0 };
  let last = { x: 0, y: 0 };
  const pointers = new Map<number, { x: number; y: number }>();
  const stop = new AbortController();
  const options = { signal: stop.signal };

  const at = (event: MouseEvent) => ({ x: event.offsetX, y: event.offsetY });
  const spread = () => {
    const [a, b] = [...pointers.values()];
    if (!a || !b) return null;
    return { size: Math.hypot(a.x - b.x, a.y - b.y), x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 };
  };

  const down = (event: PointerEvent) => {
    const point = at(event);
    if (event.button > 1 || !on.accepts(point.x, point.y)) return;
    pointers.set(event.pointerId, point);
    start = last = point;
    if (pointers.size > 1) mode = "pinch";
    else mode = event.button === 1 || event.shiftKey ? "pan" : "press";
    element.setPointerCapture(event.pointerId);
  };

  const move = (event: PointerEvent) => {
    const point = at(event);
    if (mode === "pinch" && pointers.has(event.pointerId)) {
      const before = spread();
      pointers.set(event.pointerId, point);
      const after = spread();
      if (before && after && before.size > 0) {
        on.pan(after.x - before.x, after.y - before.y);
        on.zoom(after.size / before.size, after.x, after.y);
      }
    } else if (mode === "pan") on.pan(point.x - last.x, point.y - last.y);
    else {
      if (mode === "press" && Math.abs(point.x - start.x) >= dragDistance) mode = "span";
      if (mode === "span") on.drag(start.x, point.x);
      else if (mode === "idle") on.move(point.x, point.y);
    }
    last = point;
  };

  const up = (event: PointerEvent) => {
    if (!pointers.delete(event.pointerId)) return;
    const point = at(event);
    if (mode === "press" && event.type === "pointerup") {
      if (event.pointerType !== "mouse") on.move(point.x, point.y);
      on.click(point.x, point.y);
    }
    if (pointers.size === 0) mode = "idle";
  };

  const wheel = (event: WheelEvent) => {
    const { x, y } = at(event);
    if (!on.accepts(x, y)) return;
    if (!event.ctrlKey && !event.metaKey) {
      on.scroll();
      return;
    }
    event.preventDefault();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
    const delta = Math.max(-60, Math.min(60, event.deltaY * lines));
    on.zoom(Math.exp(-delta * 0.008), x, y);
  };

  element.addEventListener("pointerdown", down, options);
  element.addEventListener("pointermove", move, options);
  element.addEventListener("pointerup", up, options);
  element.addEventListener("pointercancel", up, options);
  element.addEventListener(
    "pointerleave",
    () => {
      if (mode === "idle") on.leave();
    },
    options,
  );
  element.addEventListener("wheel", wheel, { ...options, passive: false });
  element.addEventListener(
    "dblclick",
    (event) => {
      const { x, y } = at(event);
      if (on.accepts(x, y)) on.reset();
    },
    options,
  );
  // The middle button pans: keep the browser from scrolling or pasting with it.
  element.addEventListener(
    "mousedown",
    (event) => {
      if (event.button === 1) event.preventDefault();
    },
    options,
  );
  return () => stop.abort();
}
