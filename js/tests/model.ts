/** A widget model as hosts give it: values, change events, messages. Counts what would go to the kernel. */
import type { AnyModel } from "@anywidget/types";

type Callback = (...values: unknown[]) => void;

export class Model {
  sent: unknown[] = [];
  /** Values at each `save_changes`, of the keys written since the last one. */
  saved: Record<string, unknown>[] = [];
  widget_manager = { get_model: (id: string) => Promise.resolve(this.others.get(id)) };
  private dirty = new Set<string>();
  private callbacks = new Map<string, Set<Callback>>();
  private others = new Map<string, Model>();

  private values: Record<string, unknown>;

  constructor(values: Record<string, unknown> = {}) {
    this.values = { ...values };
  }

  /** The model that `selection` refers to. */
  link(id: string, other: Model): this {
    this.others.set(id, other);
    this.values["selection"] = `IPY_MODEL_${id}`;
    return this;
  }
  get(key: string): unknown {
    return this.values[key];
  }
  set(key: string, value: unknown): void {
    if (this.values[key] === value) return;
    this.values[key] = value;
    this.dirty.add(key);
    this.fire(`change:${key}`);
  }
  save_changes(): void {
    this.saved.push(Object.fromEntries([...this.dirty].map((key) => [key, this.values[key]])));
    this.dirty.clear();
  }
  /** One update from the kernel: all values change, then each announces itself. */
  receive(values: Record<string, unknown>): void {
    Object.assign(this.values, values);
    for (const key of Object.keys(values)) this.fire(`change:${key}`);
  }
  send(content: unknown): void {
    this.sent.push(content);
  }
  on(event: string, callback: Callback): void {
    const callbacks = this.callbacks.get(event) ?? new Set();
    this.callbacks.set(event, callbacks.add(callback));
  }
  off(event: string, callback: Callback): void {
    this.callbacks.get(event)?.delete(callback);
  }
  fire(event: string, ...values: unknown[]): void {
    for (const callback of [...(this.callbacks.get(event) ?? [])]) callback(...values);
  }
  get listeners(): number {
    return [...this.callbacks.values()].reduce((sum, callbacks) => sum + callbacks.size, 0);
  }
  /** As the type that anywidget hands over. */
  get any(): AnyModel {
    return this as unknown as AnyModel;
  }
}

/** Numbers as the kernel sends them: bytes that need not be aligned to four. */
export function bytes(numbers: readonly number[]): DataView {
  const whole = new Uint8Array(1 + 4 * numbers.length);
  whole.set(new Uint8Array(Float32Array.from(numbers).buffer), 1);
  return new DataView(whole.buffer, 1);
}
