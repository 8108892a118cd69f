/** Rows of the panel's tree. All words from the kernel are set as text. */
import type { TranslationBundle } from "@jupyterlab/translation";
import { formatNumber } from "../format";
import { el } from "../dom";
import type { Actions } from "./actions";
import type { Memory, Scanned } from "./model";
import type { Listing, Mixer, Model, Scan, ScannedLayer } from "./protocol";
import { progressBar } from "./progress";
import { mixerFacts, modelFacts, progressWords } from "./words";

export interface Row {
  key: string;
  node: HTMLElement;
}

/** A family that only guesses know: a scan leaves it out. */
const AHEAD = "bidirectional attention";

/** A guess and what a scan says of it; one of the two may be missing. */
export interface Layer {
  path: string;
  guess: Mixer | null;
  scanned: ScannedLayer | null;
}

/** Guessed layers in the model's order, then what only the scan found. */
export function layers(guesses: readonly Mixer[], scanned: readonly ScannedLayer[]): Layer[] {
  const found = new Map(scanned.map((layer) => [layer.path, layer]));
  const joined: Layer[] = guesses.map((guess) => {
    const layer = found.get(guess.path) ?? null;
    found.delete(guess.path);
    return { path: guess.path, guess, scanned: layer };
  });
  return [
    ...joined,
    ...[...found.values()].map((layer) => ({ path: layer.path, guess: null, scanned: layer })),
  ];
}

export function rows(listing: Listing, memory: Memory, actions: Actions, trans: TranslationBundle): Row[] {
  return listing.models.flatMap((model) => {
    const open = memory.expanded.has(model.name);
    const scanned = memory.scans.get(model.id);
    const own: Row[] = [modelRow(model, open, scanned, actions, trans)];
    if (!open) return own;
    const scan = scanned?.state === "done" ? scanned.scan : null;
    const found = layers(model.mixers ?? [], scan?.layers ?? []);
    if (found.length === 0 && model.mixers) {
      own.push(
        note(`${model.name} none`, trans.__("No sequence mixer recognised; Scan looks at what it does.")),
      );
    }
    for (const layer of found) own.push(layerRow(model, layer, scan, actions, trans));
    for (const [path, why] of Object.entries(scan?.skipped ?? {})) {
      if (!found.some((layer) => layer.path === path)) {
        own.push(note(`${model.name} skipped ${path}`, `${path}: ${why}`));
      }
    }
    return own;
  });
}

function button(action: string, label: string, title: string, press: () => void): HTMLButtonElement {
  const node = el("button", "jp-ess-action", { type: "button", title, "data-action": action }, label);
  node.onclick = (event) => {
    event.stopPropagation();
    press();
  };
  return node;
}

function modelRow(
  model: Model,
  open: boolean,
  scanned: Scanned | undefined,
  actions: Actions,
  trans: TranslationBundle,
): Row {
  const toggle = el("button", "jp-ess-caret", {
    type: "button",
    "aria-label": open ? trans.__("Fold %1", model.name) : trans.__("Unfold %1", model.name),
    "data-action": "toggle",
  });
  toggle.onclick = () => actions.expand(model, !open);
  const name = el("span", "jp-ess-name", { title: model.name }, model.name);
  const kind = el("span", "jp-ess-kind", { title: `${model.module}.${model.kind}` }, model.kind);
  const title = el("div", "jp-ess-title", {}, toggle, name, kind);
  title.onclick = (event) => {
    if (event.target !== toggle) actions.expand(model, !open);
  };
  const also =
    model.aliases.length > 0
      ? el("div", "jp-ess-facts", {}, trans.__("also %1", model.aliases.join(", ")))
      : null;
  const running = scanned?.state === "running";
  const buttons = el(
    "div",
    "jp-ess-actions",
    {},
    button("explore", trans.__("Explore"), trans.__("Linked views of what each layer remembers"), () =>
      actions.explore(model),
    ),
    running
      ? button("scan", trans.__("Stop"), trans.__("End the scan"), scanned.cancel)
      : button("scan", trans.__("Scan"), trans.__("Run once; confirm each layer by its residual"), () =>
          actions.scan(model),
        ),
    button(
      "diagnose",
      trans.__("Diagnose"),
      trans.__("Saturation, collapse, dead heads: what is wrong, worst first"),
      () => actions.diagnose(model),
    ),
    button("code", trans.__("Code"), trans.__("The same in Python, in a new cell"), () =>
      actions.code(model),
    ),
  );
  const node = el(
    "li",
    "jp-ess-model",
    { role: "treeitem", "aria-level": 1, "aria-expanded": String(open), "data-key": model.name },
    title,
    el("div", "jp-ess-facts", {}, modelFacts(model, trans)),
    also,
    buttons,
    scanned ? told(scanned, trans) : null,
  );
  return { key: model.name, node };
}

function told(scanned: Scanned, trans: TranslationBundle): HTMLElement {
  switch (scanned.state) {
    case "running":
      return el(
        "div",
        "jp-ess-facts",
        {},
        progressBar(scanned.progress),
        progressWords(scanned.progress, trans),
      );
    case "failed":
      return el("div", "jp-ess-error", { role: "alert" }, scanned.why);
    case "done":
      return el("div", "jp-ess-facts", { role: "status" }, verdict(scanned.scan.layers, trans));
  }
}

function verdict(found: readonly ScannedLayer[], trans: TranslationBundle): string {
  const sound = found.filter((layer) => layer.verified).length;
  return trans.__("%1 of %2 layers confirmed by what the model computed", sound, found.length);
}

function layerRow(
  model: Model,
  layer: Layer,
  scan: Scan | null,
  actions: Actions,
  trans: TranslationBundle,
): Row {
  const { path, guess, scanned } = layer;
  const known = (scanned ?? guess)!;
  const key = `${model.name} layer ${path}`;
  let mark = trans.__("guessed");
  let style = "jp-ess-guess";
  let why = trans.__("From the module's class and shapes; Scan confirms it");
  if (scanned) {
    mark = `${scanned.verified ? "✓" : "!"} ${scanned.residual === null ? trans.__("not finite") : formatNumber(scanned.residual)}`;
    style = scanned.verified ? "jp-ess-sound" : "jp-ess-unsound";
    why = trans.__(
      "Residual of T u against the model's own output; at most %1 is explained by the dtype",
      formatNumber(scanned.limit),
    );
  } else if (scan) {
    const reason = scan.skipped[path];
    mark = reason === undefined ? trans.__("not seen") : trans.__("left out");
    why = reason ?? trans.__("The scan did not capture this layer");
  } else if (known.family === AHEAD) {
    why = trans.__("It reads ahead: only a causal layer has an effective state-size");
  }
  const label = path === "" ? trans.__("(the model itself)") : path;
  const node = el(
    "li",
    "jp-ess-layer",
    { role: "treeitem", "aria-level": 2, "data-key": key },
    el(
      "div",
      "jp-ess-title",
      {},
      el("span", "jp-ess-path", { title: label }, el("bdi", "", {}, label)),
      el("span", `jp-ess-mark ${style}`, { title: why }, mark),
    ),
    el(
      "div",
      "jp-ess-facts",
      { title: known.grows ? trans.__("Its state grows with the input") : null },
      [known.family, mixerFacts(known, trans)].filter((part) => part !== "").join(" · "),
    ),
    el(
      "div",
      "jp-ess-actions",
      {},
      known.family === AHEAD
        ? null
        : button("explore", trans.__("Explore"), trans.__("Open the explorer at this layer"), () =>
            actions.explore(model, path),
          ),
      button("copy", trans.__("Copy path"), trans.__("Copy the layer's path"), () => actions.copy(path)),
    ),
  );
  return { key, node };
}

function note(key: string, text: string): Row {
  return { key, node: el("li", "jp-ess-note", { role: "treeitem", "aria-level": 2, "data-key": key }, text) };
}
