/** What jsdom lacks of a browser. Canvases have no context there: views must stand that too. */
import { vi } from "vitest";

HTMLCanvasElement.prototype.getContext = () => null;

globalThis.ResizeObserver = class {
  observe(): void {}
  unobserve(): void {}
  disconnect(): void {}
};

// JupyterLab's packages need these; two are extended as soon as they are imported.
globalThis.DragEvent = class extends MouseEvent {} as typeof DragEvent;
globalThis.IntersectionObserver = class extends ResizeObserver {} as never;
globalThis.requestIdleCallback = (work) =>
  window.setTimeout(() => work({ didTimeout: false, timeRemaining: () => 50 }));

// Custom elements that only a bundler can resolve and that jsdom cannot run: plain buttons stand in.
vi.mock("@jupyter/web-components", () => ({
  addJupyterLabThemeChangeListener: () => undefined,
  jpButton: () => undefined,
  jpToolbar: () => undefined,
  provideJupyterDesignSystem: () => ({ register: () => undefined }),
}));
vi.mock("@jupyter/react-components", () => ({
  Button: "button",
  Search: "input",
  TreeItem: "li",
  TreeView: "ul",
}));
