/** The keyboard in a tree, as WAI-ARIA describes it: arrows, Home and End; Enter presses a row's first button. */

export function treeKeys(tree: HTMLElement, focus: (key: string) => void): void {
  tree.addEventListener("keydown", (event) => {
    const row = (event.target as Element).closest<HTMLElement>("[data-key]");
    if (!row || event.ctrlKey || event.metaKey || event.altKey) return;
    const all = [...tree.querySelectorAll<HTMLElement>("[data-key]")];
    const at = all.indexOf(row);
    const open = row.getAttribute("aria-expanded");
    const parent = all
      .slice(0, at)
      .reverse()
      .find((one) => one.ariaLevel === "1");
    const toggle = () => row.querySelector<HTMLElement>("[data-action=toggle]")?.click();
    let next: HTMLElement | undefined;
    switch (event.key) {
      case "ArrowDown":
        next = all[at + 1];
        break;
      case "ArrowUp":
        next = all[at - 1];
        break;
      case "Home":
        next = all[0];
        break;
      case "End":
        next = all[all.length - 1];
        break;
      case "ArrowRight":
        if (open === "false") toggle();
        else if (open === "true") next = all[at + 1];
        break;
      case "ArrowLeft":
        if (open === "true") toggle();
        else if (open === null) next = parent;
        break;
      case "Enter":
        // A button that has the focus is pressed by the browser itself.
        if (event.target !== row) return;
        row.querySelector<HTMLElement>("[data-action=explore]")?.click();
        break;
      default:
        return;
    }
    event.preventDefault();
    event.stopPropagation();
    if (next) focus(next.dataset["key"] ?? "");
  });
}
