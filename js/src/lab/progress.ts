/** The bar of a slow question; without numbers while the model is running. */
import { el } from "../dom";
import type { Progress } from "./protocol";

export function progressBar(progress: Progress | null): HTMLProgressElement {
  const bar = el("progress", "jp-ess-progress");
  setProgress(bar, progress);
  return bar;
}

export function setProgress(bar: HTMLProgressElement, progress: Progress | null): void {
  if (progress === null) {
    bar.removeAttribute("value");
    return;
  }
  bar.max = progress.of;
  bar.value = progress.done;
}
