import { initialState, type Selection, type Settings, type State } from "./state";

type Key = keyof State;
type Listener = (changed: ReadonlySet<Key>) => void;

/**
 * The one state behind linked views. Writers call `set`, `select` or `configure`; listeners are called
 * once per animation frame with the keys that changed, so that all views repaint in the same frame.
 */
export class Store {
  state: State;
  /** Asks the kernel for something; does nothing where there is none. */
  send: (content: object) => void = () => {};
  private listeners = new Map<Listener, ReadonlySet<Key>>();
  private changed = new Set<Key>();
  private frame: number | null = null;

  constructor(state: Partial<State> = {}) {
    this.state = { ...initialState, ...state };
  }

  set(patch: Partial<State>): void {
    for (const key of Object.keys(patch) as Key[]) {
      if (this.state[key] !== patch[key]) this.changed.add(key);
    }
    this.state = { ...this.state, ...patch };
    if (this.changed.size > 0 && this.frame === null) {
      this.frame = requestAnimationFrame(() => this.flush());
    }
  }

  select(patch: Partial<Selection>): void {
    const next = { ...this.state.selection, ...patch };
    const same = (Object.keys(patch) as (keyof Selection)[]).every(
      (key) => String(this.state.selection[key]) === String(next[key]),
    );
    if (!same) this.set({ selection: next });
  }

  configure(patch: Partial<Settings>): void {
    this.set({ settings: { ...this.state.settings, ...patch } });
  }

  /** Calls `listener` after any of `keys` changed; returns the way to stop. */
  on(keys: Key[], listener: Listener): () => void {
    this.listeners.set(listener, new Set(keys));
    return () => this.listeners.delete(listener);
  }

  /** Deliver pending changes now. */
  flush(): void {
    if (this.frame !== null) cancelAnimationFrame(this.frame);
    this.frame = null;
    const changed = this.changed;
    this.changed = new Set();
    if (changed.size === 0) return;
    for (const [listener, keys] of [...this.listeners]) {
      if (this.listeners.has(listener) && [...keys].some((key) => changed.has(key))) listener(changed);
    }
  }
}
