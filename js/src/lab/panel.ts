/** The side panel: the models in the kernel as a tree, each with what can be done. */
import type { TranslationBundle } from "@jupyterlab/translation";
import { refreshIcon } from "@jupyterlab/ui-components";
import type { Message } from "@lumino/messaging";
import { Widget } from "@lumino/widgets";
import { el, setText } from "../dom";
import type { Actions } from "./actions";
import { memoryIcon } from "./icons";
import type { PanelModel } from "./model";
import { rows, type Row } from "./rows";
import { treeKeys } from "./tree_keys";
import { notice } from "./words";

export class MemoryPanel extends Widget {
  private readonly place = el("span", "jp-ess-place");
  private readonly state = el("span", "jp-ess-state", { role: "status", "aria-live": "polite" });
  private readonly refresh = el("button", "jp-ess-icon-button", { type: "button" });
  private readonly words = el("div", "jp-ess-words", { role: "status" });
  private readonly tree = el("ul", "jp-ess-tree", { role: "tree" });
  private readonly foot = el("p", "jp-ess-foot");
  /** The row that takes the keyboard. */
  private current = "";

  constructor(
    private readonly model: PanelModel,
    private readonly actions: Actions,
    private readonly trans: TranslationBundle,
  ) {
    super();
    this.id = "ess-widgets-memory";
    this.addClass("jp-ess-panel");
    this.title.icon = memoryIcon;
    this.title.caption = trans.__("Memory (ESS)");
    this.node.setAttribute("role", "region");
    this.node.setAttribute("aria-label", trans.__("Memory (ESS)"));
    this.tree.setAttribute("aria-label", trans.__("Models in the kernel"));
    this.refresh.title = trans.__("Refresh");
    this.refresh.setAttribute("aria-label", trans.__("Refresh"));
    refreshIcon.element({ container: this.refresh, tag: "span" });
    this.refresh.onclick = () => void model.refresh();
    const head = el("div", "jp-ess-head", {}, el("h2", "", {}, trans.__("Memory (ESS)")), this.refresh);
    this.node.append(
      head,
      el("div", "jp-ess-where", {}, this.place, this.state),
      this.words,
      this.tree,
      this.foot,
    );
    treeKeys(this.tree, (key) => this.focus(key));
    this.tree.addEventListener("focusin", (event) => {
      const row = (event.target as Element).closest<HTMLElement>("[data-key]");
      if (row) this.mark(row.dataset["key"] ?? "");
    });
    model.changed.connect(() => this.update());
    this.update();
  }

  protected override onAfterShow(message: Message): void {
    super.onAfterShow(message);
    this.model.visible = true;
  }

  protected override onAfterAttach(message: Message): void {
    super.onAfterAttach(message);
    if (this.isVisible) this.model.visible = true;
  }

  protected override onAfterHide(message: Message): void {
    super.onAfterHide(message);
    this.model.visible = false;
  }

  protected override onActivateRequest(): void {
    const row = this.tree.querySelector<HTMLElement>("[tabindex='0'][data-key]");
    (row ?? this.refresh).focus();
  }

  protected override onUpdateRequest(): void {
    const { model, trans } = this;
    const { link, memory, place } = model;
    setText(this.place, place?.name ?? trans.__("No notebook"));
    this.place.title = place?.path ?? "";
    setText(
      this.state,
      link?.busy
        ? trans.__("busy")
        : memory?.slow
          ? trans.__("no answer yet")
          : memory?.reading
            ? trans.__("reading…")
            : memory?.stale && memory.listing && !model.autoRefresh
              ? trans.__("cells have run since")
              : "",
    );
    this.refresh.disabled = !link || link.busy;
    const said = notice(place, link, memory, trans);
    this.words.hidden = said === null;
    this.words.replaceChildren();
    if (said) {
      this.words.append(el("p", "", {}, said.text));
      if (said.install !== undefined) this.words.append(this.installLine(said.install));
      if (said.reload) this.words.append(this.reloadButton());
    }
    const listing = said && !memory?.error ? null : (memory?.listing ?? null);
    const list = listing && memory ? rows(listing, memory, this.actions, trans) : [];
    this.draw(list);
    const omitted = listing?.omitted ?? 0;
    this.foot.hidden = omitted === 0;
    setText(this.foot, trans._n("%1 more model is not listed.", "%1 more models are not listed.", omitted));
  }

  private reloadButton(): HTMLElement {
    const reload = el("button", "jp-mod-styled", { type: "button" }, this.trans.__("Reload the page"));
    reload.onclick = () => location.reload();
    return reload;
  }

  private installLine(line: string): HTMLElement {
    const insert = el("button", "jp-mod-styled", { type: "button" }, this.trans.__("Insert in a cell"));
    insert.onclick = () => this.actions.insert(line);
    return el("div", "jp-ess-install", {}, el("code", "", {}, line), insert);
  }

  /** Rows are made anew; the one with the keyboard, and which of its buttons, are found again by their names. */
  private draw(list: Row[]): void {
    const active = this.tree.contains(document.activeElement) ? document.activeElement : null;
    const key = active?.closest<HTMLElement>("[data-key]")?.dataset["key"];
    const action = active instanceof HTMLElement ? active.dataset["action"] : undefined;
    const top = this.node.scrollTop;
    this.tree.replaceChildren(...list.map((row) => row.node));
    this.tree.hidden = list.length === 0;
    this.node.scrollTop = top;
    const keys = list.map((row) => row.key);
    this.mark(keys.includes(this.current) ? this.current : (keys[0] ?? ""));
    if (key === undefined) return;
    const row = this.row(key) ?? this.row(this.current);
    const button = action === undefined ? null : row?.querySelector<HTMLElement>(`[data-action=${action}]`);
    (button ?? row)?.focus();
  }

  private row(key: string): HTMLElement | null {
    const all = this.tree.querySelectorAll<HTMLElement>("[data-key]");
    return [...all].find((row) => row.dataset["key"] === key) ?? null;
  }

  private focus(key: string): void {
    this.row(key)?.focus();
  }

  private mark(key: string): void {
    this.current = key;
    for (const row of this.tree.querySelectorAll<HTMLElement>("[data-key]")) {
      const mine = row.dataset["key"] === key;
      row.tabIndex = mine ? 0 : -1;
      for (const button of row.querySelectorAll("button")) button.tabIndex = mine ? 0 : -1;
    }
  }
}
