/** What can be done with a model: by the panel's buttons, the palette and the context menu alike. */
import type { JupyterFrontEnd } from "@jupyterlab/application";
import { Clipboard, InputDialog, Notification, type WidgetTracker } from "@jupyterlab/apputils";
import { UUID } from "@lumino/coreutils";
import type { TranslationBundle } from "@jupyterlab/translation";
import { insertCode } from "./insert_code";
import type { Asking, KernelLink } from "./kernel";
import type { Memory, PanelModel, Scanned } from "./model";
import type { Code, Model, Progress, Questions, Source } from "./protocol";
import type { Settings } from "./settings";
import { askSource, obvious } from "./source_dialog";
import { ViewTab, type ViewSpec } from "./tab";
import type { Place } from "./tracker";

const PASSAGE =
  "The past is what a model keeps of it. She collects vintage typewriters from the 1940s, and every one of them " +
  "still works. When the train left the station, nobody on the platform knew that it would come back empty. " +
  "Change this text, and see what it remembers.";

export class Actions {
  private readonly texts = new Map<string, string>();

  constructor(
    private readonly shell: JupyterFrontEnd.IShell,
    /** Whether documents stand beside each other: Notebook 7 has one a page. */
    private readonly manyDocuments: boolean,
    private readonly model: PanelModel,
    private readonly views: WidgetTracker<ViewTab>,
    private readonly settings: () => Settings,
    private readonly trans: TranslationBundle,
  ) {}

  expand(model: Model, open: boolean): void {
    this.model.expand(model.name, open);
  }

  explore(model: Model, layer: string | null = null): void {
    void this.open("explore", model, layer);
  }

  diagnose(model: Model): void {
    void this.open("diagnose", model, null);
  }

  scan(model: Model): void {
    void this.guarded(async () => {
      const { link, memory } = this.model;
      if (!link || !memory) return;
      const source = await this.source(model, memory);
      if (!source || memory.scans.get(model.id)?.state === "running") return;
      const abort = new AbortController();
      let mine: Scanned;
      const tell = (scanned: Scanned) => {
        memory.scans.set(model.id, (mine = scanned));
        this.model.announce();
      };
      // A restart, or a model that is gone, takes its scan along.
      const holds = () => memory.scans.get(model.id) === mine;
      const running = (progress: Progress | null) =>
        tell({ state: "running", progress, cancel: () => abort.abort() });
      memory.expanded.add(model.name);
      running(null);
      try {
        const { options } = this.settings();
        const asked = { name: model.name, source: withText(source), options };
        const progress = (done: Progress) => {
          if (holds()) running(done);
        };
        const scan = await link.ask("scan", asked, { progress, signal: abort.signal });
        if (holds()) tell({ state: "done", scan });
      } catch (error) {
        if (!holds()) return;
        if (abort.signal.aborted) {
          memory.scans.delete(model.id);
          this.model.announce();
        } else {
          tell({ state: "failed", why: message(error) });
          memory.sources.delete(model.id);
        }
      }
      if (!model.mixers) await this.model.refresh();
    });
  }

  code(model: Model, what: Code = "explore"): void {
    void this.guarded(async () => {
      const { link, memory, place } = this.model;
      if (!link || !memory) return;
      const source = await this.source(model, memory);
      if (!source) return;
      const { options } = this.settings();
      const { code } = await link.ask("code", { what, name: model.name, source: withText(source), options });
      this.insert(code, place);
    });
  }

  insert(code: string, place = this.model.place): void {
    if (place && insertCode(place, code)) return;
    Notification.warning(this.trans.__("There is no notebook or console to insert into."), {
      autoClose: 4000,
    });
  }

  copy(path: string): void {
    Clipboard.copyToSystem(path);
    Notification.success(this.trans.__("Copied %1", path), { autoClose: 2000 });
  }

  /** The model of a name; where that is not known, or none is given, the user is asked which. */
  async pick(name?: string): Promise<Model | null> {
    const { trans } = this;
    const found = name === undefined ? null : this.model.find(name);
    if (found) return found;
    await this.model.refresh();
    const again = name === undefined ? null : this.model.find(name);
    if (again) return again;
    const models = this.model.memory?.listing?.models ?? [];
    if (name !== undefined || models.length === 0) {
      Notification.info(
        name === undefined
          ? trans.__("There is no model in the kernel of this notebook yet.")
          : trans.__(
              "%1 is no torch.nn.Module in the kernel; while a cell is running that cannot be found out.",
              name,
            ),
        { autoClose: 5000 },
      );
      return null;
    }
    if (models.length === 1) return models[0]!;
    const { value } = await InputDialog.getItem({
      title: trans.__("Which model?"),
      items: models.map((one) => `${one.name}  ${one.kind}`),
    });
    return models.find((one) => `${one.name}  ${one.kind}` === value) ?? null;
  }

  /** Show again a view whose tab came back with the layout; `place` is there once its notebook is. */
  async restore(spec: ViewSpec, place: Promise<Place | null>): Promise<void> {
    const tab = this.add(spec);
    tab.wait();
    const found = await place;
    const link = this.model.places.link(found);
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

  private async open(kind: ViewSpec["kind"], model: Model, layer: string | null): Promise<void> {
    await this.guarded(async () => {
      const { link, memory } = this.model;
      const place = this.model.places.home(this.model.place);
      if (!link || !memory || !place) return;
      const source = await this.source(model, memory);
      if (!source) return;
      const { path } = place;
      const id = `ess-widgets-view-${UUID.uuid4()}`;
      const spec = { id, kind, path, name: model.name, source, layer, kernel: link.kernel.id, model: null };
      await this.add(spec).start();
    });
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
        save: (one) => void this.views.save(one),
      },
      spec.kind === "explore" ? [again, inPython] : [again],
    );
    const beside = this.views.find((one) => one.spec.path === spec.path && !one.isDisposed);
    void this.views.add(tab);
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
    const notebook = this.model.places.find(tab.spec.path)?.widget;
    if (beside) shell.add(tab, "main", { mode: "tab-after", ref: beside.id });
    else shell.add(tab, "main", { mode: "split-right", ...(notebook ? { ref: notebook.id } : {}) });
  }

  private async compute(tab: ViewTab, asking: Asking): Promise<void> {
    const { spec } = tab;
    const place = this.model.places.find(spec.path);
    const link = this.model.places.link(place);
    if (!place || !link) throw new Error(this.lacking(spec, place));
    if (link.busy && !link.kernel.supportsSubshells) tab.waitForCell();
    if (!link.busy && !(await link.prepare())) {
      throw new Error(this.trans.__("The kernel has no model called %1.", spec.name));
    }
    const { options } = this.settings();
    const replaces = link.kernel.id === spec.kernel ? spec.model : null;
    const asked = { name: spec.name, source: withText(spec.source), options, replaces };
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
    const place = this.model.places.find(spec.path);
    const link = this.model.places.link(place);
    if (!link || !spec.model || !(await link.prepare())) throw new Error(this.lacking(spec, place));
    return link.ask(what, { model_id: spec.model });
  }

  /** Nothing is kept in the kernel for a tab that is closed. */
  private release(spec: ViewSpec): void {
    const link = this.model.places.link(this.model.places.find(spec.path));
    const id = spec.model;
    spec.model = null;
    if (id && link?.kernel.id === spec.kernel) closeView(link, id);
  }

  private insertHandle(spec: ViewSpec): void {
    const place = this.model.places.find(spec.path);
    const name = JSON.stringify(spec.name);
    if (place)
      insertCode(place, `from ess_widgets import lab\n\nexplorer = lab.opened(${name})\nexplorer.selection`);
  }

  private async source(model: Model, memory: Memory): Promise<Source | null> {
    const { listing } = memory;
    if (!listing) return null;
    const known = memory.sources.get(model.id) ?? obvious(model, listing);
    const source =
      known ?? (await askSource(model, listing, this.texts.get(model.name) ?? PASSAGE, this.trans));
    if (!source) return null;
    if ("tokenizer" in source && source.text) this.texts.set(model.name, source.text);
    memory.sources.set(model.id, source);
    return source;
  }

  private async guarded(work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      Notification.error(message(error), { autoClose: 8000 });
    }
  }
}

function closeView(link: KernelLink, id: string): void {
  link.ask("close", { model_id: id }).catch((error: unknown) => {
    console.debug("ess-widgets: a view could not be closed in the kernel.", error);
  });
}

function withText(source: Source): Source {
  return "tokenizer" in source && !source.text ? { ...source, text: PASSAGE } : source;
}

function message(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
