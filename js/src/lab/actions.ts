/** What can be done with a model: by the panel's buttons, the palette and the context menu alike. */
import { Clipboard, InputDialog, Notification } from "@jupyterlab/apputils";
import type { TranslationBundle } from "@jupyterlab/translation";
import { insertCode } from "./insert_code";
import type { Memory, PanelModel, Scanned } from "./model";
import type { Code, Model, Progress, Source } from "./protocol";
import type { Settings } from "./settings";
import { askSource, obvious } from "./source_dialog";
import type { ViewSpec } from "./tab";
import type { Views } from "./views";

const PASSAGE =
  "The past is what a model keeps of it. She collects vintage typewriters from the 1940s, and every one of them " +
  "still works. When the train left the station, nobody on the platform knew that it would come back empty. " +
  "Change this text, and see what it remembers.";

export class Actions {
  private readonly texts = new Map<string, string>();

  constructor(
    private readonly model: PanelModel,
    readonly views: Views,
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

  private async open(kind: ViewSpec["kind"], model: Model, layer: string | null): Promise<void> {
    await this.guarded(async () => {
      const { link, memory } = this.model;
      const place = this.model.places.home(this.model.place);
      if (!link || !memory || !place) return;
      const source = await this.source(model, memory);
      if (source) await this.views.open(kind, model.name, place, withText(source), layer);
    });
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

function withText(source: Source): Source {
  return "tokenizer" in source && !source.text ? { ...source, text: PASSAGE } : source;
}

function message(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
