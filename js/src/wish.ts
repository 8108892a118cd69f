/** What the browser asks of the kernel while something is dragged: the newest wish wins, one at a time is on its way. */
import type { ToyControl, ToyData } from "./state";
import type { Store } from "./store";

export type WireValue = ToyControl["value"];

/** After this many milliseconds without an answer the next wish may go out, or the last one is given up. */
const patience = 2000;

interface Wanted {
  toy: string;
  length: number;
  parameters: Record<string, WireValue>;
}

export class Wish {
  private wanted: Wanted | null = null;
  private dirty = false;
  private stamp = 0;
  private waiting: number | null = null;
  private timer: ReturnType<typeof setTimeout> | null = null;
  private listeners = new Set<() => void>();
  private unsubscribe: () => void;
  /** Milliseconds from a wish to the arrival of its answer. */
  roundTrip: number | null = null;
  private sentAt = 0;

  constructor(private store: Store) {
    this.unsubscribe = store.on(["toy_data"], () => this.arrived());
  }

  private get data(): ToyData | null {
    return this.store.state.toy_data;
  }

  get toy(): string {
    return this.wanted?.toy ?? this.data?.toy ?? "";
  }

  get length(): number {
    return this.wanted?.length ?? this.data?.length ?? 0;
  }

  /** The value that is wished for, else the one that is shown. */
  value<T extends WireValue>(control: { name: string; value: T }): T {
    const own = this.wanted?.toy === this.data?.toy ? this.wanted?.parameters[control.name] : undefined;
    return (own ?? control.value) as T;
  }

  set(parameters: Record<string, WireValue>): void {
    this.ask({ parameters });
  }

  choose(toy: string): void {
    if (toy !== this.toy) this.ask({ toy });
  }

  resize(length: number): void {
    if (length !== this.length) this.ask({ length });
  }

  /** Calls `listener` when what is wished for changes, or was answered. */
  on(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  stop(): void {
    this.unsubscribe();
    if (this.timer !== null) clearTimeout(this.timer);
    this.listeners.clear();
  }

  private ask({ toy = this.toy, length = this.length, parameters = {} }: Partial<Wanted>): void {
    const kept = this.wanted?.toy === toy ? this.wanted.parameters : {};
    this.wanted = { toy, length, parameters: { ...kept, ...parameters } };
    this.dirty = true;
    this.announce();
    this.send();
  }

  private send(): void {
    if (this.waiting !== null || !this.dirty || !this.wanted) return;
    this.dirty = false;
    // Never one that the kernel has answered before, after this page was loaded again.
    this.stamp = Math.max(this.stamp, this.data?.stamp ?? 0) + 1;
    this.waiting = this.stamp;
    this.sentAt = performance.now();
    this.timer = setTimeout(() => this.free(), patience);
    this.store.send({ type: "toy", ...this.wanted, stamp: this.stamp });
  }

  private arrived(): void {
    const answered = this.waiting !== null && (this.data?.stamp ?? 0) >= this.waiting;
    if (answered) {
      this.roundTrip = performance.now() - this.sentAt;
      this.free();
    } else this.announce();
  }

  /** The way is free: the next wish goes out, or what the kernel shows holds again. */
  private free(): void {
    if (this.timer !== null) clearTimeout(this.timer);
    this.timer = this.waiting = null;
    if (this.dirty) this.send();
    else this.wanted = null;
    this.announce();
  }

  private announce(): void {
    for (const listener of [...this.listeners]) listener();
  }
}
