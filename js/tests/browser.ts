/** What jsdom lacks of a browser. Canvases have no context there: views must stand that too. */
HTMLCanvasElement.prototype.getContext = () => null;

globalThis.ResizeObserver = class {
  observe(): void {}
  unobserve(): void {}
  disconnect(): void {}
};
