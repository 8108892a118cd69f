/** A tab with a widget that lives in the kernel: an explorer, or a diagnosis. */
import { MainAreaWidget, ToolbarButton } from "@jupyterlab/apputils";
import { MimeModel } from "@jupyterlab/rendermime";
import type { TranslationBundle } from "@jupyterlab/translation";
import { Widget, PanelLayout } from "@lumino/widgets";
import { el } from "../dom";
import { memoryIcon } from "./icons";
import type { KernelLink } from "./kernel";
import type { Source } from "./protocol";
import type { Place } from "./tracker";

const WIDGET_VIEW = "application/vnd.jupyter.widget-view+json";

/** Everything that finds the view again after the page was loaded anew; plain JSON. */
export interface ViewSpec {
  /** The tab's id: the page's saved layout finds its place by it. */
  id: string;
  kind: "explore" | "diagnose";
  path: string;
  name: string;
  source: Source;
  layer: string | null;
  kernel: string;
  model: string | null;
}

class Body extends Widget {
  constructor() {
    super();
    this.addClass("jp-ess-view");
    this.layout = new PanelLayout();
  }

  say(text: string, busy: boolean, buttons: HTMLElement[] = []): void {
    this.clear();
    const words = el("p", "jp-ess-words", { role: "status", "aria-live": "polite" }, text);
    const mark = busy ? el("div", "jp-ess-spinner", { "aria-hidden": "true" }) : null;
    const row = el("div", "jp-ess-buttons", {}, ...buttons);
    this.replace(new Widget({ node: el("div", "jp-ess-notice", {}, mark, words, row) }));
  }

  replace(widget: Widget): void {
    this.clear();
    (this.layout as PanelLayout).addWidget(widget);
  }

  private clear(): void {
    for (const widget of [...(this.layout as PanelLayout).widgets]) widget.dispose();
  }
}

export class ViewTab extends MainAreaWidget<Body> {
  private readonly body: Body;
  private link: KernelLink | null = null;

  constructor(
    readonly spec: ViewSpec,
    private readonly trans: TranslationBundle,
    private readonly run: (tab: ViewTab) => Promise<void>,
    toolbar: { label: string; tooltip: string; onClick: () => void }[],
  ) {
    const body = new Body();
    super({ content: body });
    this.body = body;
    this.id = spec.id;
    this.title.label = spec.kind === "explore" ? spec.name : trans.__("Diagnosis: %1", spec.name);
    this.title.caption = `${this.title.label} (${spec.path})`;
    this.title.icon = memoryIcon;
    this.title.closable = true;
    for (const [k, button] of toolbar.entries()) {
      this.toolbar.addItem(`button-${k}`, new ToolbarButton(button));
    }
  }

  /** Say that something will come. */
  wait(): void {
    this.body.say(
      this.spec.kind === "explore"
        ? this.trans.__("Opening %1…", this.spec.name)
        : this.trans.__("Diagnosing %1: every layer and head is measured…", this.spec.name),
      true,
    );
  }

  /** Compute in the kernel and show; what is refused is said, with a way to try again. */
  async start(): Promise<void> {
    this.wait();
    try {
      await this.run(this);
    } catch (error) {
      if (!this.isDisposed) this.fail(error instanceof Error ? error.message : String(error));
    }
  }

  fail(why: string): void {
    const again = el("button", "jp-mod-styled jp-mod-accept", { type: "button" }, this.trans.__("Try again"));
    again.onclick = () => void this.start();
    this.body.say(why, false, [again]);
  }

  /** Draw the kernel's widget with what draws the widgets of the notebook it belongs to. */
  async draw(place: Place, link: KernelLink, modelId: string): Promise<void> {
    this.spec.model = modelId;
    this.spec.kernel = link.kernel.id;
    if (this.link !== link) {
      this.link?.restarted.disconnect(this.onRestart);
      this.link = link;
      link.restarted.connect(this.onRestart);
    }
    if (!place.rendermime.preferredMimeType({ [WIDGET_VIEW]: {} }, "any")) {
      this.fail(
        this.trans.__(
          "JupyterLab cannot draw widgets: install jupyterlab_widgets where JupyterLab runs, and reload the page.",
        ),
      );
      return;
    }
    const renderer = place.rendermime.createRenderer(WIDGET_VIEW);
    const data = { [WIDGET_VIEW]: { version_major: 2, version_minor: 0, model_id: modelId } };
    this.body.replace(renderer);
    await renderer.renderModel(new MimeModel({ data }));
  }

  private readonly onRestart = (): void => {
    this.spec.model = null;
    if (!this.isDisposed) {
      this.fail(
        this.trans.__(
          "The kernel was restarted, and what this view showed is gone. When %1 is there again, try again.",
          this.spec.name,
        ),
      );
    }
  };

  override dispose(): void {
    this.link?.restarted.disconnect(this.onRestart);
    super.dispose();
  }
}
