/** When the panel reads the kernel's names, and what it remembers of them. */
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { PanelModel } from "../src/lab/model";
import { PlaceTracker } from "../src/lab/tracker";
import { aListing, aMixer, aModel, asNotebooks, FakeKernel, FakeNotebook, FakeTracker } from "./lab_fakes";

let kernel: FakeKernel;
let notebook: FakeNotebook;
let notebooks: FakeTracker<FakeNotebook>;
let model: PanelModel;

/** Longer than the panel waits after a cell. */
const pause = () => vi.advanceTimersByTimeAsync(200);
const names = () => model.memory?.listing?.models.map((one) => one.name);

beforeEach(() => {
  vi.useFakeTimers();
  kernel = new FakeKernel();
  kernel.handlers = { models: () => aListing(aModel({ name: "gla", aliases: ["same"] })) };
  notebook = new FakeNotebook("a.ipynb", kernel);
  notebooks = new FakeTracker(notebook);
  model = new PanelModel(new PlaceTracker(asNotebooks(notebooks), null));
});
afterEach(() => {
  vi.useRealTimers();
});

describe("reading", () => {
  it("asks nothing for a hidden panel", async () => {
    kernel.begin("a");
    kernel.end("a");
    await pause();
    expect(kernel.executed).toEqual([]);
    expect(kernel.asked).toEqual([]);
    model.visible = true;
    await pause();
    expect(names()).toEqual(["gla"]);
    model.visible = false;
    kernel.begin("b");
    kernel.end("b");
    await pause();
    expect(kernel.asked).toHaveLength(1);
    model.visible = true;
    await pause();
    expect(kernel.asked).toHaveLength(2);
  });

  it("asks nothing while a cell is running, and asks when it has ended", async () => {
    kernel.begin("a");
    model.visible = true;
    await pause();
    await model.refresh();
    expect(kernel.executed).toEqual([]);
    kernel.end("a");
    await pause();
    expect(names()).toEqual(["gla"]);
    expect(model.memory?.stale).toBe(false);
  });

  it("asks once for cells that follow each other", async () => {
    model.visible = true;
    for (const cell of ["a", "b", "c"]) {
      kernel.begin(cell);
      kernel.end(cell);
      await vi.advanceTimersByTimeAsync(20);
    }
    await pause();
    expect(kernel.asked).toEqual(["models"]);
  });

  it("does not ask again where nothing has run", async () => {
    model.visible = true;
    await pause();
    model.visible = false;
    model.visible = true;
    await pause();
    expect(kernel.asked).toHaveLength(1);
  });

  it("leaves the list old where it shall not refresh by itself", async () => {
    model.autoRefresh = false;
    model.visible = true;
    await pause();
    expect(names()).toEqual(["gla"]);
    kernel.begin("a");
    kernel.end("a");
    await pause();
    expect(kernel.asked).toHaveLength(1);
    expect(model.memory?.stale).toBe(true);
    await model.refresh();
    expect(kernel.asked).toHaveLength(2);
    expect(model.memory?.stale).toBe(false);
  });

  it("reads again where a cell ended while it was reading", async () => {
    kernel.handlers = {};
    model.visible = true;
    await pause();
    kernel.begin("a");
    kernel.end("a");
    await pause();
    expect(kernel.asked).toHaveLength(1);
    kernel.question("models").answer(aListing());
    await pause();
    expect(kernel.asked).toHaveLength(2);
    kernel.question("models").answer(aListing(aModel({ name: "new" })));
    await pause();
    expect(names()).toEqual(["new"]);
    expect(kernel.asked).toHaveLength(2);
  });

  it("asks for no models where there can be none", async () => {
    kernel.value = { status: "ok", data: { "text/plain": "'not loaded'" } };
    await model.refresh();
    expect(kernel.asked).toEqual([]);
    expect(model.memory?.listing).toBeNull();
    expect(model.memory?.error).toBe("");
  });

  it("lists none where the kernel has lost the package", async () => {
    await model.refresh();
    kernel.handlers = {};
    const reading = model.refresh();
    await pause();
    kernel.question("models").end();
    await reading;
    expect(names()).toEqual(["gla"]);
    kernel.value = { status: "ok", data: { "text/plain": "'no package'" } };
    await model.refresh();
    expect(model.memory?.listing).toBeNull();
  });

  it("keeps why it failed until it succeeds", async () => {
    kernel.handlers.models = () => {
      throw new Error("too many names");
    };
    await model.refresh();
    expect(model.memory?.error).toBe("too many names");
    expect(model.memory?.reading).toBe(false);
    kernel.handlers.models = () => aListing();
    await model.refresh();
    expect(model.memory?.error).toBe("");
  });

  it("asks a dead kernel nothing", async () => {
    model.visible = true;
    kernel.become("dead");
    await pause();
    expect(kernel.executed).toEqual([]);
  });
});

describe("a kernel that does not answer", () => {
  it("is asked again where a cell that raised took the question along", async () => {
    kernel.replyStatus = "aborted";
    model.visible = true;
    await pause();
    expect(kernel.executed).toHaveLength(1);
    kernel.replyStatus = "ok";
    await pause();
    expect(names()).toEqual(["gla"]);
    await pause();
    expect(kernel.executed).toHaveLength(2);
  });

  it("is looked at anew where it does not know a question any more", async () => {
    model.visible = true;
    await pause();
    const lost = model.link!.ask("close", { model_id: "1" }).catch(() => undefined);
    await pause();
    kernel.question("close").end();
    await lost;
    await pause();
    expect(kernel.executed).toHaveLength(2);
    expect(kernel.asked).toEqual(["models", "close", "models"]);
  });

  it("is said so after a while, and may be asked again", async () => {
    kernel.handlers = {};
    model.visible = true;
    await pause();
    expect([model.memory?.reading, model.memory?.slow]).toEqual([true, false]);
    void model.refresh();
    await pause();
    expect(kernel.asked).toEqual(["models"]);
    await vi.advanceTimersByTimeAsync(2500);
    expect(model.memory?.slow).toBe(true);
    const old = kernel.question("models");
    void model.refresh();
    await pause();
    expect(kernel.asked).toEqual(["models", "models"]);
    old.answer(aListing(aModel({ name: "late" })));
    await pause();
    expect(names()).toBeUndefined();
    kernel.question("models").answer(aListing(aModel({ name: "new" })));
    await pause();
    expect(names()).toEqual(["new"]);
    expect([model.memory?.reading, model.memory?.slow]).toEqual([false, false]);
  });

  it("that answers late is heeded", async () => {
    kernel.handlers = {};
    model.visible = true;
    await pause();
    await vi.advanceTimersByTimeAsync(2500);
    kernel.question("models").answer(aListing(aModel({ name: "late" })));
    await pause();
    expect(names()).toEqual(["late"]);
    expect(model.memory?.slow).toBe(false);
  });
});

describe("memory", () => {
  it("forgets what lived in a kernel that was restarted, and reads it anew", async () => {
    model.visible = true;
    await pause();
    model.memory?.scans.set("1", { state: "done", scan: { layers: [], skipped: {} } });
    model.expand("gla", true);
    await pause();
    kernel.handlers = {};
    kernel.become("restarting");
    expect(model.memory?.listing).toBeNull();
    expect(model.memory?.scans.size).toBe(0);
    kernel.handlers = { models: () => aListing(aModel({ name: "new" })) };
    kernel.become("idle");
    await pause();
    expect(names()).toEqual(["new"]);
    expect(model.memory?.error).toBe("");
  });

  it("is a kernel's own", async () => {
    const other = new FakeKernel("other");
    other.handlers = { models: () => aListing(aModel({ name: "mamba" })) };
    model.visible = true;
    await pause();
    model.expand("gla", true);
    notebooks.show(new FakeNotebook("b.ipynb", other));
    expect(model.memory?.listing).toBeNull();
    expect(model.memory?.expanded.size).toBe(0);
    await pause();
    expect(names()).toEqual(["mamba"]);
    other.begin("a");
    other.end("a");
    await pause();
    expect(other.asked).toHaveLength(2);
    const { length } = kernel.asked;
    notebooks.show(notebook);
    expect(names()).toEqual(["gla"]);
    expect([...(model.memory?.expanded ?? [])]).toEqual(["gla"]);
    await pause();
    expect(kernel.asked).toHaveLength(length);
  });

  it("grows old in a kernel that is not in front, and is read when it is", async () => {
    model.visible = true;
    await pause();
    notebooks.show(new FakeNotebook("b.ipynb", new FakeKernel("other")));
    kernel.begin("a");
    kernel.end("a");
    await pause();
    expect(kernel.asked).toHaveLength(1);
    notebooks.show(notebook);
    await pause();
    expect(kernel.asked).toHaveLength(2);
  });

  it("goes with another kernel of the same notebook", async () => {
    model.visible = true;
    await pause();
    const next = new FakeKernel("next");
    next.handlers = { models: () => aListing() };
    notebook.sessionContext.change(next);
    expect(model.memory?.listing).toBeNull();
    await pause();
    expect(names()).toEqual([]);
  });

  it("finds a model by each of its names", async () => {
    await model.refresh();
    expect(model.find("gla")).toBe(model.find("same"));
    expect(model.find("same")?.name).toBe("gla");
    expect(model.find("other")).toBeNull();
  });
});

describe("unfolding", () => {
  it("asks for the layers where they are not known", async () => {
    const asked: string[][] = [];
    kernel.handlers.models = ({ expanded }) => {
      asked.push(expanded);
      return aListing(aModel({ name: "gla", mixers: expanded.includes("gla") ? [aMixer()] : null }));
    };
    await model.refresh();
    model.expand("gla", true);
    await pause();
    expect(asked).toEqual([[], ["gla"]]);
    expect(model.find("gla")?.mixers).toHaveLength(1);
    model.expand("gla", false);
    model.expand("gla", true);
    await pause();
    expect(asked).toHaveLength(2);
  });

  it("tells of changes only", async () => {
    await model.refresh();
    let changes = 0;
    model.changed.connect(() => changes++);
    model.expand("gla", false);
    expect(changes).toBe(0);
    model.expand("gla", true);
    expect(changes).toBeGreaterThan(0);
  });
});

it("does nothing where there is no kernel", async () => {
  notebook.sessionContext.change(null);
  await model.refresh();
  model.expand("gla", true);
  expect(model.memory).toBeNull();
  expect(model.find("gla")).toBeNull();
});

describe("without refreshing by itself", () => {
  beforeEach(async () => {
    model.autoRefresh = false;
    model.visible = true;
    await pause();
    expect(kernel.asked).toEqual(["models"]);
  });

  it("reads when a cell has ended what was asked for while it was running", async () => {
    kernel.begin("a");
    model.expand("gla", true);
    kernel.end("a");
    await pause();
    expect(kernel.question("models").question).toMatchObject({ expanded: ["gla"] });
    kernel.begin("b");
    kernel.end("b");
    await pause();
    expect(kernel.asked).toHaveLength(2);
  });

  it("reads what has become old as soon as it refreshes again", async () => {
    kernel.begin("a");
    kernel.end("a");
    await pause();
    expect(kernel.asked).toHaveLength(1);
    const changed = vi.fn();
    model.changed.connect(changed);
    model.autoRefresh = true;
    expect(changed).toHaveBeenCalled();
    await pause();
    expect(kernel.asked).toHaveLength(2);
  });
});

it("keeps nothing of objects that are gone", async () => {
  await model.refresh();
  const memory = model.memory!;
  for (const id of ["1", "2"]) {
    memory.scans.set(id, { state: "failed", why: "" });
    memory.sources.set(id, { inputs: "x" });
  }
  await model.refresh();
  expect([...memory.scans.keys()]).toEqual(["1"]);
  expect([...memory.sources.keys()]).toEqual(["1"]);
});
