/** Two canvases on top of each other: what stays, and what follows the pointer. */

export class Layers {
  readonly base: CanvasRenderingContext2D | null;
  readonly overlay: CanvasRenderingContext2D | null;
  readonly element: HTMLCanvasElement;
  width = 0;
  height = 0;
  ratio = 1;
  private canvases: HTMLCanvasElement[];

  constructor(parent: HTMLElement) {
    this.canvases = [0, 1].map(() => {
      const canvas = document.createElement("canvas");
      canvas.style.cssText = "position:absolute;left:0;top:0;display:block";
      canvas.setAttribute("aria-hidden", "true");
      parent.append(canvas);
      return canvas;
    });
    const [base, overlay] = this.canvases;
    this.element = overlay!;
    this.base = base!.getContext("2d");
    this.overlay = overlay!.getContext("2d");
  }

  /** Sizes in CSS pixels; true where anything changed, and then both canvases are empty. */
  resize(width: number, height: number): boolean {
    const ratio = globalThis.devicePixelRatio || 1;
    if (width === this.width && height === this.height && ratio === this.ratio) return false;
    Object.assign(this, { width, height, ratio });
    for (const canvas of this.canvases) {
      canvas.width = Math.max(1, Math.round(width * ratio));
      canvas.height = Math.max(1, Math.round(height * ratio));
      // Whole device pixels, so that a ratio of 1.5 does not resample.
      canvas.style.width = `${canvas.width / ratio}px`;
      canvas.style.height = `${canvas.height / ratio}px`;
      const context = canvas.getContext("2d");
      context?.setTransform(ratio, 0, 0, ratio, 0, 0);
      if (context) context.textBaseline = "middle";
    }
    return true;
  }
}

/**
 * Calls `callback` in a frame after the width or height of `element` or the pixel ratio changed. A height
 * that follows the width can bring a scroll bar that takes the width back: such a swing is answered once.
 */
export function onResize(
  element: HTMLElement,
  callback: (width: number, height: number) => void,
): () => void {
  let frame: number | null = null;
  let query: MediaQueryList | null = null;
  let size: [number, number] = [0, 0];
  const past: { width: number; time: number }[] = [];
  const call = () => {
    frame = null;
    callback(...size);
  };
  const later = () => (frame ??= requestAnimationFrame(call));
  const observer = new ResizeObserver((entries) => {
    const box = entries[entries.length - 1]?.contentRect;
    if (!box || box.width === 0) return;
    const time = performance.now();
    const swings = past.filter((entry) => time - entry.time < 300 && entry.width === box.width).length;
    const grows = size[0] > 0 && box.width > size[0];
    past.push({ width: box.width, time });
    if (past.length > 8) past.shift();
    if (swings >= 2 && grows) return;
    size = [box.width, box.height];
    later();
  });
  const watchRatio = () => {
    query?.removeEventListener("change", watchRatio);
    if (query) later();
    query = matchMedia(`(resolution: ${devicePixelRatio}dppx)`);
    query.addEventListener("change", watchRatio);
  };
  if (typeof matchMedia === "function") watchRatio();
  observer.observe(element);
  return () => {
    observer.disconnect();
    query?.removeEventListener("change", watchRatio);
    if (frame !== null) cancelAnimationFrame(frame);
  };
}
