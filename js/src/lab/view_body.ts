/** What fills a view's tab: the widget, or what is to be said instead of it, or in a bar above it. */
import type { TranslationBundle } from "@jupyterlab/translation";
import { PanelLayout, Widget } from "@lumino/widgets";
import { el, setText } from "../dom";
import { progressBar, setProgress } from "./progress";
import type { Progress } from "./protocol";
import { progressWords } from "./words";

export interface Press {
  label: string;
  press: () => void;
}

export class ViewBody extends Widget {
  private readonly bar = new Widget({ node: el("div", "jp-ess-bar", { role: "status" }) });
  private readonly count = el("span");
  private content: Widget | null = null;

  constructor(private readonly trans: TranslationBundle) {
    super();
    this.addClass("jp-ess-view");
    const layout = new PanelLayout();
    layout.addWidget(this.bar);
    this.layout = layout;
    this.tell("");
  }

  /** Words in the middle of the tab. */
  say(text: string, button: Press | null = null, below: Node | null = null): void {
    const words = el("p", "jp-ess-words", { role: "status", "aria-live": "polite" }, text);
    const node = el("div", "jp-ess-notice", {}, words, below, button && pressed(button, below === null));
    this.replace(new Widget({ node }));
  }

  /** Words, and how far it is: what is returned is to be called with that. */
  wait(text: string, button: Press | null = null): (progress: Progress | null) => void {
    const bar = progressBar(null);
    this.note("");
    this.say(text, button, el("div", "jp-ess-wait", {}, bar, this.count));
    return (progress) => {
      setProgress(bar, progress);
      this.note(progressWords(progress, this.trans));
    };
  }

  /** Words beside the bar of what is waited for. */
  note(text: string): void {
    setText(this.count, text);
  }

  replace(widget: Widget): void {
    this.content?.dispose();
    this.content = widget;
    (this.layout as PanelLayout).addWidget(widget);
    this.tell("");
  }

  /** Words above the widget; none where the text is empty. */
  tell(text: string, button: Press | null = null): void {
    this.bar.setHidden(text === "");
    this.bar.node.replaceChildren(el("span", "", {}, text), ...(button ? [pressed(button, false)] : []));
  }
}

function pressed({ label, press }: Press, accept: boolean): HTMLElement {
  const style = `jp-mod-styled${accept ? " jp-mod-accept" : ""}`;
  const node = el("button", style, { type: "button" }, label);
  node.onclick = press;
  return node;
}
