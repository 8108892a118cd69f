/** Joins an anywidget model to a store: traits in, interaction out. */
import type { AnyModel } from "@anywidget/types";
import { watchSilence } from "./silence";
import type { DetailData, Selection, Settings, State, VectorData } from "./state";
import { Store } from "./store";

type Wire = Record<string, unknown>;
/** The part of a widget model that a linked `Selection` needs, whatever the host. */
interface SelectionModel {
  get(key: string): unknown;
  set(key: string, value: unknown): void;
  save_changes(): void;
  on(event: string, callback: () => void): void;
  off(event: string, callback: () => void): void;
}

const arrays = new Set(["matrix", "values", "ess", "state_size", "ceiling", "fresh", "closed_form"]);
for (const key of ["steps", "metric_steps", "metric_mean", "metric_low", "metric_high"]) arrays.add(key);
const dataKeys = [
  "training_data",
  "operator_data",
  "spectrum_data",
  "profile_data",
  "grid_data",
  "toy_data",
] as const;
const plainKeys = ["text", "title", "tokens", "layers", "menu", "status"] as const;
const settingKeys = ["step", "shown", "kind", "tol", "relative", "scale", "against"] as const;
const selectionKeys = ["layer", "head", "position", "span", "pinned", "mode"] as const;

/** Bytes as they arrive from the kernel may not be aligned to four: copy. */
export function floats(bytes: DataView | ArrayBuffer | Uint8Array): Float32Array {
  if (bytes instanceof ArrayBuffer) return new Float32Array(bytes.slice(0));
  const { buffer, byteOffset, byteLength } = bytes;
  return new Float32Array(buffer.slice(byteOffset, byteOffset + byteLength));
}

function isEmpty(value: unknown): boolean {
  return (
    typeof value === "object" && value !== null && !Array.isArray(value) && Object.keys(value).length === 0
  );
}

function decode(data: unknown): unknown {
  if (data === null || typeof data !== "object" || isEmpty(data)) return null;
  return Object.fromEntries(
    Object.entries(data as Wire).map(([key, value]) => [
      key,
      arrays.has(key) ? floats(value as DataView) : value,
    ]),
  );
}

export function readState(model: { get(key: string): unknown }): Partial<State> {
  const state: Wire = {};
  for (const key of plainKeys) {
    const value = model.get(key);
    // A dictionary that the kernel has not filled yet says nothing.
    if (value !== undefined && !isEmpty(value)) state[key] = value;
  }
  for (const key of dataKeys) if (model.get(key) !== undefined) state[key] = decode(model.get(key));
  return state;
}

function pick<T>(model: { get(key: string): unknown }, keys: readonly string[]): Partial<T> {
  return Object.fromEntries(
    keys.map((key) => [key, model.get(key)]).filter(([, value]) => value !== undefined),
  ) as Partial<T>;
}

/** Calls `send` at most once per `milliseconds`, always with the newest state in the end. */
function throttle(send: () => void, milliseconds: number): { call: () => void; stop: () => void } {
  let timer: ReturnType<typeof setTimeout> | null = null;
  let again = false;
  const tick = () => {
    timer = null;
    if (again) {
      again = false;
      call();
    }
  };
  const call = () => {
    if (timer !== null) {
      again = true;
      return;
    }
    send();
    timer = setTimeout(tick, milliseconds);
  };
  return {
    call,
    stop: () => {
      if (timer !== null) clearTimeout(timer);
      if (again) send();
      timer = null;
      again = false;
    },
  };
}

/**
 * Calls `send` when `call` has not been made for `quiet` milliseconds, at the latest after `patience`. Each message
 * to the kernel makes the host show it as busy, which costs a layout of the whole page while the pointer moves.
 */
function rest(
  send: () => void,
  quiet: number,
  patience: number,
): { call: () => void; now: () => void; stop: () => void } {
  let timer: ReturnType<typeof setTimeout> | null = null;
  let since = 0;
  const fire = () => {
    if (timer !== null) clearTimeout(timer);
    timer = null;
    send();
  };
  return {
    now: fire,
    call: () => {
      if (timer === null) since = performance.now();
      else clearTimeout(timer);
      timer = setTimeout(fire, Math.max(0, Math.min(quiet, since + patience - performance.now())));
    },
    stop: () => {
      if (timer !== null) fire();
    },
  };
}

async function selectionModel(model: AnyModel): Promise<SelectionModel | null> {
  const reference = model.get("selection") as unknown;
  const manager = model.widget_manager as { get_model?: (id: string) => Promise<unknown> } | undefined;
  if (typeof reference !== "string" || !manager?.get_model) return null;
  return (await manager.get_model(reference.replace("IPY_MODEL_", ""))) as SelectionModel;
}

/** A store that follows `model` and its linked Selection; call the second result to let go. */
export async function bind(model: AnyModel): Promise<[Store, () => void]> {
  const store = new Store(readState(model));
  store.state.settings = { ...store.state.settings, ...pick<Settings>(model, settingKeys) };
  store.send = (content) => model.send(content);
  const undo: (() => void)[] = [];

  // Traits of one update change together but announce themselves one by one: read them all once.
  let pending = false;
  const changed = new Set<string>();
  const listen = (key: string, read: () => void) => {
    const handler = () => {
      changed.add(key);
      if (pending) return;
      pending = true;
      queueMicrotask(() => {
        pending = false;
        read();
        changed.clear();
      });
    };
    model.on(`change:${key}`, handler);
    undo.push(() => model.off(`change:${key}`, handler));
  };
  const read = () => {
    const keys = new Set(changed);
    const only = { get: (key: string) => (keys.has(key) ? (model.get(key) as unknown) : undefined) };
    store.set(readState(only));
    const settings = pick<Settings>(only, settingKeys);
    if (Object.keys(settings).length > 0) store.configure(settings);
  };
  for (const key of [...plainKeys, ...dataKeys, ...settingKeys]) listen(key, read);

  // A detail that has no place among the traits: singular vectors and operator tiles, on request.
  const message = (content: Wire, buffers: DataView[]) => {
    const [first, second] = buffers;
    if (content["type"] === "vectors" && first && second) {
      store.set({
        vectors: { ...content, past: floats(first), future: floats(second) } as unknown as VectorData,
      });
    } else if (content["type"] === "detail" && first) {
      store.set({ detail: { ...content, matrix: floats(first) } as unknown as DetailData });
    }
  };
  model.on("msg:custom", message);
  undo.push(() => model.off("msg:custom", message));

  const silence = watchSilence(model, store);
  undo.push(
    silence.stop,
    store.on(["text"], () => {
      const { text } = store.state;
      if (text === null || text === model.get("text")) return;
      model.set("text", text);
      model.save_changes();
      silence.typed();
    }),
  );

  const settingsOut = throttle(() => {
    let dirty = false;
    for (const key of settingKeys) {
      if (model.get(key) !== undefined && model.get(key) !== store.state.settings[key]) {
        model.set(key, store.state.settings[key]);
        dirty = true;
      }
    }
    if (dirty) model.save_changes();
  }, 50);
  undo.push(store.on(["settings"], settingsOut.call), settingsOut.stop);

  const shared = await selectionModel(model);
  if (shared) {
    store.select(pick<Selection>(shared, selectionKeys));
    let repainting = false;
    // At the end of this task, not in the next frame: linked views repaint in the frame of the one that is brushed.
    const repaint = () => {
      if (repainting) return;
      repainting = true;
      queueMicrotask(() => {
        repainting = false;
        store.flush();
      });
    };
    for (const key of selectionKeys) {
      // Key by key: while `give` writes several, those still to be written must not be read back.
      const take = () => {
        store.select(pick<Selection>(shared, [key]));
        repaint();
      };
      shared.on(`change:${key}`, take);
      undo.push(() => shared.off(`change:${key}`, take));
    }
    // Other views of the same Selection hear of it at once, in the browser; Python a little later.
    const save = rest(() => shared.save_changes(), 120, 600);
    const give = () => {
      let dirty = false;
      let urgent = false; // another head is computed in the kernel: it should begin
      for (const key of selectionKeys) {
        const value = store.state.selection[key];
        if (String(shared.get(key)) !== String(value)) {
          shared.set(key, value);
          dirty = true;
          urgent ||= key === "layer" || key === "head";
        }
      }
      if (urgent) save.now();
      else if (dirty) save.call();
    };
    undo.push(store.on(["selection"], give), save.stop);
  }
  return [store, () => undo.reverse().forEach((stop) => stop())];
}
