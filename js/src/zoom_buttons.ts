/** Small − + and reset buttons for those who do not know the gesture. */
import type { Theme } from "./theme";

export interface ZoomButtons {
  place: (corner: { right: number; top: number }, zoomed: boolean, theme: Theme, shown: boolean) => void;
  remove: () => void;
}

export const buttonSize = 22;

export function zoomButtons(
  parent: HTMLElement,
  on: { zoom: (factor: number) => void; reset: () => void },
): ZoomButtons {
  const group = document.createElement("div");
  group.style.cssText = "position:absolute;display:flex;gap:2px;flex-direction:row-reverse";
  const add = (text: string, label: string, action: () => void) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.title = button.ariaLabel = label;
    button.style.cssText =
      `width:${buttonSize}px;height:${buttonSize}px;padding:0;margin:0;border-radius:4px;cursor:pointer;` +
      "font-size:14px;line-height:1;background:transparent;box-sizing:border-box";
    button.addEventListener("click", action);
    group.append(button);
    return button;
  };
  const all = [
    add("+", "Zoom in (Ctrl or ⌘ and wheel)", () => on.zoom(1.6)),
    add("−", "Zoom out", () => on.zoom(1 / 1.6)),
    add("⤢", "Show everything (double click)", on.reset),
  ];
  parent.append(group);
  let key = "";
  return {
    place: (corner, zoomed, theme, shown) => {
      const next = [corner.right, corner.top, zoomed, theme.muted, theme.rule, shown].join();
      if (next === key) return;
      key = next;
      group.style.left = `${corner.right - 3 * buttonSize - 4}px`;
      group.style.top = `${corner.top}px`;
      group.style.width = `${3 * buttonSize + 4}px`;
      group.style.visibility = shown ? "visible" : "hidden";
      for (const button of all) {
        button.style.color = theme.muted;
        button.style.border = `1px solid ${theme.rule}`;
      }
      for (const button of all.slice(1)) button.style.display = zoomed ? "" : "none";
    },
    remove: () => group.remove(),
  };
}
