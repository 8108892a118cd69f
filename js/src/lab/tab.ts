/** A tab with a widget that lives in the kernel: an explorer, or a diagnosis. */
import { MainAreaWidget, ToolbarButton } from "@jupyterlab/apputils";
import { MimeModel } from "@jupyterlab/rendermime";
import type { TranslationBundle } from "@jupyterlab/translation";
import type { Message } from "@lumino/messaging";
import { Debouncer } from "@lumino/polling";
import { memoryIcon } from "./icons";
import type { Asking, KernelLink, Loss } from "./kernel";
import { QUIET } from "./model";
import type { Source, ViewState } from "./protocol";
import type { Place } from "./tracker";
import { ViewBody } from "./view_body";
import { lossWords, stateWords } from "./words";

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

/** What a tab has done for it. */
export interface Deeds {
  compute(tab: ViewTab, asking: Asking): Promise<void>;
  check(tab: ViewTab): Promise<ViewState>;
  refresh(tab: ViewTab): Promise<void>;
  /** Whether views follow what cells have done without being told. */
  follows(): boolean;
  /** Its spec is another one. */
  save(tab: ViewTab): void;
}

export class ViewTab extends MainAreaWidget<ViewBody> {
  private readonly body: ViewBody;
  private readonly later = new Debouncer(() => this.check(), QUIET);
  private link: KernelLink | null = null;
  private place: Place | null = null;
  private running: AbortController | null = null;
  /** Cells have run since it was last compared with what its name means. */
  private stale = false;

  constructor(
    readonly spec: ViewSpec,
    private readonly trans: TranslationBundle,
    private readonly deeds: Deeds,
    toolbar: { label: string; tooltip: string; onClick: () => void }[],
  ) {
    const body = new ViewBody(trans);
    super({ content: body });
    this.body = body;
    this.id = spec.id;
    this.title.label = spec.kind === "explore" ? spec.name : trans.__("Diagnosis: %1", spec.name);
    this.caption();
    this.title.icon = memoryIcon;
    this.title.closable = true;
    for (const [k, button] of toolbar.entries()) {
      this.toolbar.addItem(`button-${k}`, new ToolbarButton(button));
    }
  }

  /** Say that something will come. */
  wait(): void {
    this.body.wait(this.waiting);
  }

  /** Say that a cell is running, for which it must wait. */
  waitForCell(): void {
    this.body.note(this.trans.__("A cell is running; the kernel answers when that has ended."));
  }

  /** Compute in the kernel and show; what is refused is said, with a way to try again. */
  async start(): Promise<void> {
    this.running?.abort();
    const running = (this.running = new AbortController());
    const stop = () => {
      running.abort();
      this.fail(this.trans.__("Stopped."));
    };
    const progress = this.body.wait(this.waiting, { label: this.trans.__("Stop"), press: stop });
    try {
      await this.deeds.compute(this, { progress, signal: running.signal });
    } catch (error) {
      if (this.isDisposed || running.signal.aborted) return;
      this.fail(error instanceof Error ? error.message : String(error));
    }
  }

  fail(why: string): void {
    this.body.say(why, { label: this.trans.__("Try again"), press: () => void this.start() });
  }

  /** Draw the kernel's widget with what draws the widgets of the notebook it belongs to. */
  async draw(place: Place, link: KernelLink, modelId: string): Promise<void> {
    this.spec.model = modelId;
    this.spec.kernel = link.kernel.id;
    if (this.link !== link) {
      this.unlink();
      this.link = link;
      link.lost.connect(this.onLost);
      link.executed.connect(this.onExecuted);
    }
    this.place?.renamed.disconnect(this.onRenamed);
    this.place = place;
    place.renamed.connect(this.onRenamed);
    this.deeds.save(this);
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

  override dispose(): void {
    this.running?.abort();
    this.later.dispose();
    this.unlink();
    this.place?.renamed.disconnect(this.onRenamed);
    super.dispose();
  }

  protected override onAfterShow(message: Message): void {
    super.onAfterShow(message);
    if (this.stale) void this.later.invoke();
  }

  private get waiting(): string {
    const { spec, trans } = this;
    return spec.kind === "explore"
      ? trans.__("Opening %1…", spec.name)
      : trans.__("Diagnosing %1: every layer and head is measured.", spec.name);
  }

  /** Whether this is still what the name means; an explorer whose weights have changed runs again. */
  private async check(): Promise<void> {
    const { spec, link } = this;
    if (!spec.model || !link || link.busy || this.isDisposed) return;
    this.stale = false;
    try {
      const state = await this.deeds.check(this);
      const follows = state === "changed" && spec.kind === "explore" && this.deeds.follows();
      this.tell(follows ? "current" : state);
      if (follows) await this.deeds.refresh(this);
    } catch (error) {
      console.debug("ess-widgets: a view could not be compared with its model.", error);
    }
  }

  private tell(state: ViewState): void {
    const { body, spec, trans } = this;
    if (this.isDisposed) return;
    if (state === "current") {
      body.tell("");
      return;
    }
    const anew = { label: trans.__("Show the new one"), press: () => void this.start() };
    const rerun = { label: trans.__("Run again"), press: () => void this.rerun() };
    body.tell(
      stateWords(state, spec.name, trans),
      state === "another" ? anew : state === "changed" ? rerun : null,
    );
  }

  private async rerun(): Promise<void> {
    if (this.spec.kind === "diagnose") return this.start();
    this.body.tell("");
    try {
      await this.deeds.refresh(this);
    } catch (error) {
      if (!this.isDisposed) this.fail(error instanceof Error ? error.message : String(error));
    }
  }

  private unlink(): void {
    this.link?.lost.disconnect(this.onLost);
    this.link?.executed.disconnect(this.onExecuted);
  }

  private caption(): void {
    this.title.caption = `${this.title.label} (${this.spec.path})`;
  }

  private readonly onRenamed = (): void => {
    if (!this.place || this.place.path === this.spec.path) return;
    this.spec.path = this.place.path;
    this.caption();
    this.deeds.save(this);
  };

  private readonly onExecuted = (): void => {
    this.stale = true;
    if (this.isVisible) void this.later.invoke();
  };

  private readonly onLost = (link: KernelLink, loss: Loss): void => {
    // Where only this page has lost it, the kernel still holds the view.
    if (loss !== "disconnected") this.spec.model = null;
    if (this.isDisposed) return;
    // Only where threads of the old process are in the way is there more to do than to try again.
    const plain = loss === "elsewhere" && !link.stranded ? "restarted" : loss;
    const words = lossWords(plain, this.spec, this.trans);
    if (link.stranded) {
      this.body.say(words, { label: this.trans.__("Reload the page"), press: () => location.reload() });
    } else this.fail(words);
  };
}
