/** What the panel shows: for each kernel the models found, which are open, what a scan confirmed. */
import { Debouncer } from "@lumino/polling";
import { Signal, type ISignal } from "@lumino/signaling";
import type { KernelLink } from "./kernel";
import type { Listing, Model, Progress, Scan, Source } from "./protocol";
import type { Place, PlaceTracker } from "./tracker";

/** Milliseconds without a cell running before the namespace is read: between the cells of one run there are fewer. */
export const QUIET = 150;
/** Milliseconds after which it is said that the kernel does not answer; it may still. */
const PATIENCE = 2000;

export type Scanned =
  | { state: "running"; progress: Progress | null; cancel: () => void }
  | { state: "done"; scan: Scan }
  | { state: "failed"; why: string };

export class Memory {
  listing: Listing | null = null;
  /** Why the last reading failed. */
  error = "";
  reading = false;
  /** The kernel has not answered for a while; it may be asked again. */
  slow = false;
  /** Which reading is the newest: older answers are not heeded. */
  turn = 0;
  /** What was read may be old: cells have run since. */
  stale = true;
  /** Somebody asked for it to be read while it could not be. */
  wanted = false;
  readonly expanded = new Set<string>();
  /** By the object, not by its name. */
  readonly scans = new Map<string, Scanned>();
  readonly sources = new Map<string, Source>();

  outdated(): boolean {
    return this.stale;
  }

  /** What was kept of objects that are gone. */
  prune(): void {
    const there = new Set(this.listing?.models.map((model) => model.id));
    for (const kept of [this.scans, this.sources]) {
      for (const id of kept.keys()) if (!there.has(id)) kept.delete(id);
    }
  }

  forget(): void {
    this.turn += 1;
    this.reading = this.slow = false;
    this.listing = null;
    this.error = "";
    this.stale = true;
    this.scans.clear();
    this.sources.clear();
  }
}

export class PanelModel {
  private readonly memories = new WeakMap<KernelLink, Memory>();
  private readonly _changed = new Signal<this, void>(this);
  private readonly later: Debouncer;
  private _visible = false;
  private _autoRefresh = true;

  constructor(readonly places: PlaceTracker) {
    this.later = new Debouncer(() => this.refresh(), QUIET);
    places.changed.connect(() => {
      this.watch();
      this._changed.emit();
      this.wake();
    });
    this.watch();
  }

  get changed(): ISignal<this, void> {
    return this._changed;
  }

  get place(): Place | null {
    return this.places.current;
  }

  get link(): KernelLink | null {
    return this.places.link(this.place);
  }

  get memory(): Memory | null {
    return this.of(this.link);
  }

  of(link: KernelLink | null): Memory | null {
    if (!link) return null;
    let memory = this.memories.get(link);
    if (!memory) this.memories.set(link, (memory = new Memory()));
    return memory;
  }

  /** Nobody looks at a hidden panel: it asks no kernel. */
  set visible(visible: boolean) {
    this._visible = visible;
    this.wake();
  }

  get autoRefresh(): boolean {
    return this._autoRefresh;
  }
  set autoRefresh(autoRefresh: boolean) {
    if (autoRefresh === this._autoRefresh) return;
    this._autoRefresh = autoRefresh;
    this._changed.emit();
    this.wake();
  }

  find(name: string): Model | null {
    const models = this.memory?.listing?.models ?? [];
    return models.find((one) => one.name === name || one.aliases.includes(name)) ?? null;
  }

  expand(name: string, open: boolean): void {
    const { memory } = this;
    if (!memory || memory.expanded.has(name) === open) return;
    if (open) memory.expanded.add(name);
    else memory.expanded.delete(name);
    this._changed.emit();
    if (open && !this.find(name)?.mixers) void this.refresh();
  }

  announce(): void {
    this._changed.emit();
  }

  /** Read the namespace; while a cell is running nothing is asked, and it is read when that has ended. */
  async refresh(): Promise<void> {
    const { link } = this;
    const memory = this.of(link);
    if (!link || !memory) return;
    if ((memory.reading && !memory.slow) || link.busy || link.stranded || link.kernel.status === "dead") {
      memory.stale = memory.wanted = true;
      this._changed.emit();
      return;
    }
    const turn = (memory.turn += 1);
    memory.reading = true;
    memory.stale = memory.wanted = memory.slow = false;
    this._changed.emit();
    const late = setTimeout(() => {
      if (turn !== memory.turn) return;
      memory.slow = true;
      this._changed.emit();
    }, PATIENCE);
    let listing: Listing | null = null;
    let error = "";
    try {
      if (await link.prepare()) listing = await link.ask("models", { expanded: [...memory.expanded] });
    } catch (raised) {
      error = raised instanceof Error ? raised.message : String(raised);
    }
    clearTimeout(late);
    if (turn !== memory.turn) return;
    memory.reading = memory.slow = false;
    memory.error = error;
    if (!error) {
      memory.listing = listing;
      memory.prune();
    }
    // A cell that raises takes all that waits behind it along.
    if (!error && link.readiness === "unknown") memory.stale = memory.wanted = true;
    this._changed.emit();
    // A cell may have ended while the answer was on its way.
    if (memory.outdated()) this.wake();
  }

  private watch(): void {
    const { link } = this;
    if (!link || this.memories.has(link)) return;
    const memory = this.of(link)!;
    link.executed.connect(() => {
      memory.stale = true;
      this.wake();
    });
    link.changed.connect(() => {
      this._changed.emit();
      // It no longer knew a question that was asked: it must be looked at again.
      if (link.readiness !== "unknown" || memory.reading || memory.listing === null) return;
      memory.stale = true;
      this.wake();
    });
    link.lost.connect(() => {
      memory.forget();
      this._changed.emit();
      this.wake();
    });
  }

  private wake(): void {
    const { memory } = this;
    if (!memory?.outdated() || !this._visible) return;
    if (this.autoRefresh || memory.wanted || memory.listing === null) void this.later.invoke();
  }
}
