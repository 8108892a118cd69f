/** Rows of the panel's tree. */
import { beforeEach, describe, expect, it, vi } from "vitest";
import type { Actions } from "../src/lab/actions";
import { Memory } from "../src/lab/model";
import type { Model } from "../src/lab/protocol";
import { layers, rows } from "../src/lab/rows";
import { aListing, aMixer, aModel, aScannedLayer, trans } from "./lab_fakes";

const actions = {
  expand: vi.fn<Actions["expand"]>(),
  explore: vi.fn<Actions["explore"]>(),
  diagnose: vi.fn<Actions["diagnose"]>(),
  scan: vi.fn<Actions["scan"]>(),
  code: vi.fn<Actions["code"]>(),
  copy: vi.fn<Actions["copy"]>(),
};
let memory: Memory;
let tree: HTMLElement;
let keys: string[];

function draw(...models: Model[]): void {
  const list = rows(aListing(...models), memory, actions as unknown as Actions, trans);
  keys = list.map((row) => row.key);
  tree.replaceChildren(...list.map((row) => row.node));
}
function row(key: string): HTMLElement {
  const found = [...tree.children].find((one) => (one as HTMLElement).dataset["key"] === key);
  if (!found) throw new Error(`no row ${key} among ${keys.join(", ")}`);
  return found as HTMLElement;
}
function press(key: string, action: string): void {
  row(key).querySelector<HTMLElement>(`[data-action=${action}]`)?.click();
}

beforeEach(() => {
  vi.clearAllMocks();
  memory = new Memory();
  tree = document.createElement("ul");
});

describe("guesses and what a scan found", () => {
  it("are joined by path, in the model's order", () => {
    const guesses = ["b", "a", "c"].map((path) => aMixer({ path }));
    const scanned = ["new", "a", "b"].map((path) => aScannedLayer({ path }));
    const joined = layers(guesses, scanned);
    expect(joined.map(({ path, guess, scanned: layer }) => [path, guess?.path, layer?.path])).toEqual([
      ["b", "b", "b"],
      ["a", "a", "a"],
      ["c", "c", undefined],
      ["new", undefined, "new"],
    ]);
  });
  it("may both be missing", () => {
    expect(layers([], [])).toEqual([]);
  });
});

describe("a model's row", () => {
  it("is folded until it is unfolded", () => {
    const model = aModel({ mixers: [aMixer()] });
    draw(model);
    expect(keys).toEqual(["model"]);
    expect(row("model").getAttribute("aria-expanded")).toBe("false");
    press("model", "toggle");
    expect(actions.expand).toHaveBeenLastCalledWith(model, true);
    memory.expanded.add("model");
    draw(model);
    expect(keys).toEqual(["model", "model layer layers.0"]);
    expect(row("model").getAttribute("aria-expanded")).toBe("true");
    press("model", "toggle");
    expect(actions.expand).toHaveBeenLastCalledWith(model, false);
    expect(actions.expand).toHaveBeenCalledTimes(2);
  });

  it("unfolds where its name is pressed, once", () => {
    const model = aModel();
    draw(model);
    row("model").querySelector<HTMLElement>(".jp-ess-name")?.click();
    expect(actions.expand.mock.calls).toEqual([[model, true]]);
  });

  it("does what its buttons say", () => {
    const model = aModel();
    draw(model);
    for (const action of ["explore", "scan", "diagnose", "code"]) press("model", action);
    for (const action of ["explore", "scan", "diagnose", "code"] as const) {
      expect(actions[action].mock.calls).toEqual([[model]]);
    }
    expect(actions.expand).not.toHaveBeenCalled();
  });

  it("names the other names", () => {
    draw(aModel({ aliases: ["net", "models['GLA']"] }));
    expect(row("model").textContent).toContain("also net, models['GLA']");
    draw(aModel());
    expect(row("model").textContent).not.toContain("also");
  });
});

describe("a scan", () => {
  it("that runs can only be ended", () => {
    const cancel = vi.fn();
    memory.scans.set("1", { state: "running", progress: { done: 2, of: 5 }, cancel });
    draw(aModel());
    expect(row("model").textContent).toContain("2 of 5 layers");
    press("model", "scan");
    expect(cancel).toHaveBeenCalledOnce();
    expect(actions.scan).not.toHaveBeenCalled();
  });

  it("that failed says why, at once", () => {
    memory.scans.set("1", { state: "failed", why: "the text is too long" });
    draw(aModel());
    expect(row("model").querySelector("[role=alert]")?.textContent).toBe("the text is too long");
    press("model", "scan");
    expect(actions.scan).toHaveBeenCalledOnce();
  });

  it("is summed up", () => {
    const found = [aScannedLayer(), aScannedLayer({ path: "layers.1", residual: 0.3, verified: false })];
    memory.scans.set("1", { state: "done", scan: { layers: found, skipped: {} } });
    draw(aModel());
    expect(row("model").querySelector("[role=status]")?.textContent).toMatch(/^1 of 2 layers confirmed/);
  });

  it("belongs to the object, not to its name", () => {
    memory.scans.set("1", { state: "failed", why: "the text is too long" });
    draw(aModel({ id: "2" }));
    expect(row("model").querySelector("[role=alert]")).toBeNull();
  });

  it("says of each layer whether it is confirmed", () => {
    memory.expanded.add("model");
    const found = [
      aScannedLayer({ path: "a" }),
      aScannedLayer({ path: "b", residual: 0.3, verified: false }),
      aScannedLayer({ path: "c", residual: null, verified: false }),
    ];
    memory.scans.set("1", { state: "done", scan: { layers: found, skipped: {} } });
    draw(aModel({ mixers: ["a", "b", "d"].map((path) => aMixer({ path })) }));
    const mark = (path: string) => row(`model layer ${path}`).querySelector(".jp-ess-mark");
    expect(mark("a")?.textContent).toMatch(/^✓ 2/);
    expect(mark("a")?.classList).toContain("jp-ess-sound");
    expect(mark("b")?.textContent).toMatch(/^! 0.3/);
    expect(mark("b")?.classList).toContain("jp-ess-unsound");
    expect(mark("c")?.textContent).toBe("! not finite");
    expect(mark("d")?.textContent).toBe("not seen");
    expect(keys).toEqual(["model", ...["a", "b", "d", "c"].map((path) => `model layer ${path}`)]);
  });

  it("says why a layer that was guessed is left out", () => {
    memory.expanded.add("model");
    const skipped = { "layers.0": "reads ahead" };
    memory.scans.set("1", { state: "done", scan: { layers: [], skipped } });
    draw(aModel({ mixers: [aMixer()] }));
    const mark = row("model layer layers.0").querySelector<HTMLElement>(".jp-ess-mark");
    expect([mark?.textContent, mark?.title]).toEqual(["left out", "reads ahead"]);
  });

  it("offers no explorer of a layer that reads ahead", () => {
    memory.expanded.add("model");
    const ahead = aMixer({ path: "b", family: "bidirectional attention", grows: false });
    draw(aModel({ mixers: [aMixer({ path: "a" }), ahead] }));
    const actions = (path: string) =>
      [...row(`model layer ${path}`).querySelectorAll<HTMLElement>("button")].map(
        (one) => one.dataset["action"],
      );
    expect([actions("a"), actions("b")]).toEqual([["explore", "copy"], ["copy"]]);
  });

  it("says what it skipped, where that has no row of its own", () => {
    memory.expanded.add("model");
    const skipped = { "layers.0": "no output", "layers.1": "cross attention" };
    memory.scans.set("1", { state: "done", scan: { layers: [], skipped } });
    draw(aModel({ mixers: [aMixer()] }));
    expect(keys).toEqual(["model", "model layer layers.0", "model skipped layers.1"]);
    expect(row("model skipped layers.1").textContent).toBe("layers.1: cross attention");
  });
});

describe("a layer's row", () => {
  beforeEach(() => {
    memory.expanded.add("model");
  });

  it("is a guess before a scan", () => {
    draw(aModel({ mixers: [aMixer()] }));
    const node = row("model layer layers.0");
    expect(node.querySelector(".jp-ess-mark")?.textContent).toBe("guessed");
    expect(node.textContent).toContain("softmax attention · 2 heads, state ∞");
    expect(node.querySelector("[title='Its state grows with the input']")).not.toBeNull();
  });

  it("is explored and copied by its path", () => {
    const model = aModel({ mixers: [aMixer()] });
    draw(model);
    press("model layer layers.0", "explore");
    press("model layer layers.0", "copy");
    expect(actions.explore.mock.calls).toEqual([[model, "layers.0"]]);
    expect(actions.copy.mock.calls).toEqual([["layers.0"]]);
  });

  it("has words for the model itself", () => {
    draw(aModel({ mixers: [aMixer({ path: "" })] }));
    expect(row("model layer ").querySelector(".jp-ess-path")?.textContent).toBe("(the model itself)");
  });

  it("is one of words where there is no layer; none while they are not known", () => {
    draw(aModel({ mixers: [] }));
    expect(row("model none").textContent).toContain("No sequence mixer recognised");
    draw(aModel({ mixers: null }));
    expect(keys).toEqual(["model"]);
  });
});

it("shows names of any kind as text", () => {
  const odd = (what: string) => `${what}<img src=x onerror=alert(1)>`;
  const model = aModel({
    name: odd("name"),
    kind: odd("kind"),
    module: odd("module"),
    device: odd("device"),
    aliases: [odd("alias")],
    mixers: [aMixer({ path: odd("path"), family: odd("guessed") })],
  });
  memory.expanded.add(model.name);
  memory.scans.set("1", {
    state: "done",
    scan: { layers: [aScannedLayer({ path: "b", family: odd("family") })], skipped: { c: odd("skipped") } },
  });
  memory.scans.set("2", { state: "failed", why: odd("why") });
  draw(model, aModel({ name: "other", id: "2" }));
  expect(tree.querySelector("img")).toBeNull();
  for (const what of ["name", "kind", "device", "alias", "path", "guessed", "family", "skipped", "why"]) {
    expect(tree.textContent).toContain(odd(what));
  }
  expect(tree.querySelector(".jp-ess-kind")?.getAttribute("title")).toBe(`${odd("module")}.${odd("kind")}`);
});
