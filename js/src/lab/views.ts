/** The tabs with views: opened beside their notebook, computed, found again, closed in the kernel with their tab. */
import type { JupyterFrontEnd } from "@jupyterlab/application";
import type { WidgetTracker } from "@jupyterlab/apputils";
import type { TranslationBundle } from "@jupyterlab/translation";
import { UUID } from "@lumino/coreutils";
import { insertCode } from "./insert_code";
import type { Asking, KernelLink } from "./kernel";
import type { Questions, Source } from "./protocol";
import type { Settings } from "./settings";
import { ViewTab, type ViewSpec } from "./tab";
import type { Place, PlaceTracker } from "./tracker";

export class Views {
  constructor(
    private readonly shell: JupyterFrontEnd.IShell,
    /** Whether documents stand beside each other: Notebook 7 has one a page. */
    private readonly manyDocuments: boolean,
    private readonly places: PlaceTracker,
    private readonly tabs: WidgetTracker<ViewTab>,
    private readonly settings: () => Settings,
    private readonly trans: TranslationBundle,
  ) {}

  async open(
    kind: ViewSpec["kind"],
    name: string,
    place: Place,
    source: Source,
    layer: string | null,
  ): Promise<void> {
    const id = `ess-widgets-view-${UUID.uuid4()}`;
    const kernel = place.session.session?.kernel?.id ?? "";
    await this.add({ id, kind, path: place.path, name, source, layer, kernel, model: null }).start();
  }

  /** Show again a view whose tab came back with the layout; `place` is there once its notebook is. */
  async restore(spec: ViewSpec, place: Promise<Place | null>): Promise<void> {
    const tab = this.add(spec);
    tab.wait();
    const found = await place;
    const link = this.places.link(found);
    const held = spec.model !== null && link !== null && (await this.holds(link, spec));
    if (tab.isDisposed) return;
    if (!found || !link) tab.fail(this.lacking(spec, found));
    else if (held) await tab.draw(found, link, spec.model!);
    else {
      tab.fail(
        this.trans.__(
          "The kernel that held this view is gone. When %1 is there again, try again.",
          spec.name,
        ),
      );
    }
  }

  private add(spec: ViewSpec): ViewTab {
    const { trans } = this;
    const inPython = {
      label: trans.__("Use in Python"),
      tooltip: trans.__("Insert a cell that holds this explorer: its selection and its numbers"),
      onClick: () => this.insertHandle(spec),
    };
    const again = {
      label: trans.__("Reopen"),
      tooltip: trans.__("Look the variable up again, and start anew"),
      onClick: () => void tab.start(),
    };
    const tab: ViewTab = new ViewTab(
      spec,
      trans,
      {
        compute: (one, asking) => this.compute(one, asking),
        check: async (one) => (await this.askAbout(one, "check")).state,
        refresh: async (one) => {
          await this.askAbout(one, "refresh");
        },
        follows: () => this.settings().autoRefresh,
        save: (one) => void this.tabs.save(one),
      },
      spec.kind === "explore" ? [again, inPython] : [again],
    );
    const beside = this.tabs.find((one) => one.spec.path === spec.path && !one.isDisposed);
    void this.tabs.add(tab);
    this.place(tab, beside ?? null);
    this.shell.activateById(tab.id);
    tab.disposed.connect(() => this.release(spec));
    return tab;
  }

  /** Beside the notebook; a second view of it becomes a tab with the first. */
  private place(tab: ViewTab, beside: ViewTab | null): void {
    const { shell } = this;
    if (!this.manyDocuments) {
      shell.add(tab, "right");
      return;
    }
    const notebook = this.places.find(tab.spec.path)?.widget;
    if (beside) shell.add(tab, "main", { mode: "tab-after", ref: beside.id });
    else shell.add(tab, "main", { mode: "split-right", ...(notebook ? { ref: notebook.id } : {}) });
  }

  private async compute(tab: ViewTab, asking: Asking): Promise<void> {
    const { spec } = tab;
    const place = this.places.find(spec.path);
    const link = this.places.link(place);
    if (!place || !link) throw new Error(this.lacking(spec, place));
    if (link.busy && !link.kernel.supportsSubshells) tab.waitForCell();
    if (!link.busy && !(await link.prepare())) {
      throw new Error(this.trans.__("The kernel has no model called %1.", spec.name));
    }
    const { options } = this.settings();
    const replaces = link.kernel.id === spec.kernel ? spec.model : null;
    const asked = { name: spec.name, source: spec.source, options, replaces };
    // An explorer is there in no time: it is not cancelled but closed again where nobody waits for it any more.
    const { model_id } =
      spec.kind === "explore"
        ? await link.ask("explore", { ...asked, layer: spec.layer })
        : await link.ask("diagnose", asked, asking);
    if (tab.isDisposed || asking.signal?.aborted) {
      closeView(link, model_id);
      return;
    }
    await tab.draw(place, link, model_id);
  }

  /** Whether the kernel still has what the view shows: one that was restarted keeps its id. */
  private async holds(link: KernelLink, spec: ViewSpec): Promise<boolean> {
    if (link.kernel.id !== spec.kernel) return false;
    try {
      return (await link.prepare()) && !!(await link.ask("check", { model_id: spec.model! }));
    } catch {
      return false;
    }
  }

  private lacking(spec: ViewSpec, place: Place | null): string {
    return place
      ? this.trans.__("%1 has no kernel. Start one, make %2 there, and try again.", spec.path, spec.name)
      : this.trans.__("Open %1 and try again.", spec.path);
  }

  private async askAbout<K extends "check" | "refresh">(tab: ViewTab, what: K): Promise<Questions[K][1]> {
    const { spec } = tab;
    const place = this.places.find(spec.path);
    const link = this.places.link(place);
    if (!link || !spec.model || !(await link.prepare())) throw new Error(this.lacking(spec, place));
    return link.ask(what, { model_id: spec.model });
  }

  /** Nothing is kept in the kernel for a tab that is closed. */
  private release(spec: ViewSpec): void {
    const link = this.places.link(this.places.find(spec.path));
    const id = spec.model;
    spec.model = null;
    if (id && link?.kernel.id === spec.kernel) closeView(link, id);
  }

  private insertHandle(spec: ViewSpec): void {
    const place = this.places.find(spec.path);
    const name = JSON.stringify(spec.name);
    if (place)
      insertCode(place, `from ess_widgets import lab\n\nexplorer = lab.opened(${name})\nexplorer.selection`);
  }
}

function closeView(link: KernelLink, id: string): void {
  link.ask("close", { model_id: id }).catch((error: unknown) => {
    console.debug("ess-widgets: a view could not be closed in the kernel.", error);
  });
}
