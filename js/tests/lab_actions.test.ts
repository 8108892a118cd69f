/** What the panel's buttons and commands do, down to the questions in the kernel. */
import type { JupyterFrontEnd } from "@jupyterlab/application";
import { Dialog, Notification, WidgetTracker } from "@jupyterlab/apputils";
import { Widget } from "@lumino/widgets";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { Actions } from "../src/lab/actions";
import { PanelModel } from "../src/lab/model";
import type { Model } from "../src/lab/protocol";
import { defaults } from "../src/lab/settings";
import type { ViewTab } from "../src/lab/tab";
import { PlaceTracker } from "../src/lab/tracker";
import { Views } from "../src/lab/views";
import {
  aListing,
  aModel,
  asConsoles,
  asNotebooks,
  aScannedLayer,
  FakeConsole,
  FakeKernel,
  FakeNotebook,
  FakeTracker,
  trans,
} from "./lab_fakes";

let kernel: FakeKernel;
let notebook: FakeNotebook;
let console: FakeConsole;
let notebooks: FakeTracker<FakeNotebook>;
let consoles: FakeTracker<FakeConsole>;
let model: PanelModel;
let tabs: WidgetTracker<ViewTab>;
let added: { tab: ViewTab; area: string; options: unknown }[];
let gla: Model;

/** Everything that waits has happened. */
const settle = () => new Promise((resolve) => setTimeout(resolve, 5));
const told = () => Notification.manager.notifications.map(({ message }) => message);
const memory = () => model.memory!;
const tab = () => added.at(-1)!.tab;

const shell = {
  add: (widget: ViewTab, area: string, options: unknown) => {
    added.push({ tab: widget, area, options });
    Widget.attach(widget, document.body);
  },
  activateById: vi.fn(),
};

function actionsOf(manyDocuments = true): Actions {
  const own = [() => defaults, trans] as const;
  const views = new Views(
    shell as unknown as JupyterFrontEnd.IShell,
    manyDocuments,
    model.places,
    tabs,
    ...own,
  );
  return new Actions(model, views, ...own);
}

beforeEach(async () => {
  added = [];
  Notification.dismiss();
  gla = aModel({ name: "gla" });
  kernel = new FakeKernel();
  kernel.handlers = {
    models: () => ({ ...aListing(gla), tokenizers: [{ name: "tok", kind: "BPE" }] }),
    close: () => null,
  };
  notebook = new FakeNotebook("a.ipynb", kernel);
  console = new FakeConsole("Console 1", kernel);
  notebooks = new FakeTracker(notebook);
  consoles = new FakeTracker();
  model = new PanelModel(new PlaceTracker(asNotebooks(notebooks), asConsoles(consoles)));
  tabs = new WidgetTracker<ViewTab>({ namespace: "views" });
  await model.refresh();
});
afterEach(() => {
  for (const { tab } of added) tab.dispose();
  Dialog.flush();
});

describe("scanning", () => {
  it("keeps what was found, and unfolds the model", async () => {
    const scan = { layers: [aScannedLayer()], skipped: {} };
    actionsOf().scan(gla);
    await settle();
    expect(memory().scans.get("1")?.state).toBe("running");
    expect([...memory().expanded]).toEqual(["gla"]);
    kernel.question("scan").answer(scan);
    await settle();
    expect(memory().scans.get("1")).toEqual({ state: "done", scan });
  });

  it("asks with the one tokenizer, a text and the settings", async () => {
    actionsOf().scan(gla);
    await settle();
    const { question } = kernel.question("scan");
    expect(question).toMatchObject({ name: "gla", source: { tokenizer: "tok" }, options: defaults.options });
    expect((question?.["source"] as { text: string }).text).toMatch(/^The past is/);
  });

  it("says why it failed, and lets the source be chosen anew", async () => {
    actionsOf().scan(gla);
    await settle();
    expect(memory().sources.size).toBe(1);
    kernel.question("scan").refuse("ValueError", "the text is too long");
    await settle();
    expect(memory().scans.get("1")).toEqual({ state: "failed", why: "the text is too long" });
    expect(memory().sources.size).toBe(0);
  });

  it("shows how far it is, and can be stopped", async () => {
    actionsOf().scan(gla);
    await settle();
    const comm = kernel.question("scan");
    comm.send({ progress: { done: 2, of: 5 } });
    const scanned = memory().scans.get("1");
    expect(scanned).toMatchObject({ state: "running", progress: { done: 2, of: 5 } });
    if (scanned?.state === "running") scanned.cancel();
    await settle();
    expect(comm.closed).toBe(true);
    expect(memory().scans.size).toBe(0);
    expect(memory().sources.size).toBe(1);
  });

  it("then reads the layers where they were not known", async () => {
    kernel.handlers.scan = () => ({ layers: [], skipped: {} });
    actionsOf().scan({ ...gla, mixers: [] });
    await settle();
    expect(kernel.asked).toEqual(["models", "scan"]);
    actionsOf().scan(gla);
    await settle();
    expect(kernel.asked).toEqual(["models", "scan", "scan", "models"]);
  });

  it("is one at a time for a model", async () => {
    const actions = actionsOf();
    actions.scan(gla);
    await settle();
    actions.scan(gla);
    await settle();
    expect(kernel.asked.filter((ask) => ask === "scan")).toHaveLength(1);
  });

  it("goes with the kernel that is restarted", async () => {
    actionsOf().scan(gla);
    await settle();
    kernel.become("restarting");
    await settle();
    expect(memory().scans.size).toBe(0);
    expect(memory().sources.size).toBe(0);
  });

  it("asks nothing where the user does not say what the model shall read", async () => {
    memory().listing = aListing(gla);
    actionsOf().scan(gla);
    await vi.waitFor(() => {
      document.querySelector<HTMLElement>(".jp-Dialog .jp-mod-reject")!.click();
    });
    await settle();
    expect(kernel.asked).toEqual(["models"]);
    expect(memory().scans.size).toBe(0);
  });
});

describe("code", () => {
  beforeEach(() => {
    kernel.handlers.code = ({ what, name }) => ({ code: `${what}(${name})` });
  });

  it("is put in the console's prompt", async () => {
    consoles.show(console);
    await model.refresh();
    actionsOf().code(gla);
    await settle();
    actionsOf().code(gla, "capture");
    await settle();
    expect(console.typed).toEqual(["explore(gla)", "capture(gla)"]);
    expect(told()).toEqual([]);
  });

  it("has no place where there is no notebook, and no prompt", () => {
    consoles.show(Object.assign(console, { console: { promptCell: null } }));
    actionsOf().insert("x");
    expect(told()).toEqual(["There is no notebook or console to insert into."]);
    Notification.dismiss();
    consoles.show(null);
    notebooks.show(null);
    actionsOf().insert("x");
    expect(told()).toEqual(["There is no notebook or console to insert into."]);
  });

  it("goes where it was asked for, though another notebook is in front by then", async () => {
    delete kernel.handlers.code;
    const first = new FakeConsole("first", kernel);
    consoles.show(first);
    await model.refresh();
    actionsOf().code(gla);
    await settle();
    consoles.show(console);
    kernel.question("code").answer({ code: "ew.explore(gla)" });
    await settle();
    expect([first.typed, console.typed]).toEqual([["ew.explore(gla)"], []]);
  });

  it("that the kernel refuses is told", async () => {
    kernel.handlers.code = () => {
      throw new Error("gla is gone");
    };
    actionsOf().code(gla);
    await settle();
    expect(told()).toEqual(["gla is gone"]);
  });
});

describe("views", () => {
  beforeEach(() => {
    let count = 0;
    kernel.handlers.explore = () => ({ model_id: `view ${++count}` });
    kernel.handlers.diagnose = () => ({ model_id: "diagnosis" });
  });
  const closed = () =>
    kernel.comms.flatMap(({ question }) => (question?.["ask"] === "close" ? [question["model_id"]] : []));

  it("open beside the notebook and draw what the kernel made", async () => {
    actionsOf().explore(gla, "layers.3");
    await settle();
    expect(added).toMatchObject([{ area: "main", options: { mode: "split-right", ref: notebook.id } }]);
    expect(kernel.question("explore").question).toMatchObject({ name: "gla", layer: "layers.3" });
    expect(notebook.content.rendermime.drawn).toEqual(["view 1"]);
    expect(tab().title.label).toBe("gla");
    expect(shell.activateById).toHaveBeenLastCalledWith(tab().id);
  });

  it("gather in one place", async () => {
    const actions = actionsOf();
    actions.explore(gla);
    await settle();
    actions.diagnose(gla);
    await settle();
    expect(added[1]?.options).toEqual({ mode: "tab-after", ref: added[0]?.tab.id });
    expect(notebook.content.rendermime.drawn).toEqual(["view 1", "diagnosis"]);
  });

  it("stand at the side where there is one document a page", async () => {
    actionsOf(false).explore(gla);
    await settle();
    expect(added[0]?.area).toBe("right");
  });

  it("are closed in the kernel with their tab", async () => {
    actionsOf().explore(gla);
    await settle();
    expect(closed()).toEqual([]);
    tab().dispose();
    await settle();
    expect(closed()).toEqual(["view 1"]);
  });

  it("draw nothing in a tab that is closed before they are there", async () => {
    delete kernel.handlers.diagnose;
    actionsOf().diagnose(gla);
    await settle();
    const comm = kernel.question("diagnose");
    expect(comm.isDisposed).toBe(false);
    tab().dispose();
    expect(comm.closed).toBe(true);
    await settle();
    expect(notebook.content.rendermime.drawn).toEqual([]);
  });

  it.each(["close", "stop"])("are closed again where nobody waits for them any more: %s", async (how) => {
    delete kernel.handlers.explore;
    actionsOf().explore(gla);
    await settle();
    const late = kernel.question("explore");
    if (how === "close") tab().dispose();
    else [...tab().node.querySelectorAll("button")].find((one) => one.textContent === "Stop")!.click();
    if (how === "stop") expect(tab().node.textContent).toContain("Stopped.");
    late.answer({ model_id: "late" });
    await settle();
    expect(closed()).toEqual(["late"]);
    expect(notebook.content.rendermime.drawn).toEqual([]);
  });

  it("follow their notebook to another name", async () => {
    actionsOf().explore(gla);
    await settle();
    notebook.rename("b.ipynb");
    await tab().start();
    expect(notebook.content.rendermime.drawn).toEqual(["view 1", "view 2"]);
    tab().dispose();
    await settle();
    expect(closed()).toEqual(["view 2"]);
  });

  it("take the place of the ones before them", async () => {
    actionsOf().explore(gla);
    await settle();
    expect(kernel.question("explore").question?.["replaces"]).toBeNull();
    await tab().start();
    expect(kernel.question("explore").question?.["replaces"]).toBe("view 1");
    expect(notebook.content.rendermime.drawn).toEqual(["view 1", "view 2"]);
    tab().dispose();
    await settle();
    expect(closed()).toEqual(["view 2"]);
  });

  it("are not closed in a kernel that was restarted", async () => {
    actionsOf().explore(gla);
    await settle();
    kernel.become("restarting");
    expect(tab().node.textContent).toContain("The kernel was restarted");
    tab().dispose();
    await settle();
    expect(closed()).toEqual([]);
  });

  it("are not closed in another kernel of their notebook", async () => {
    actionsOf().explore(gla);
    await settle();
    const next = new FakeKernel("next");
    notebook.sessionContext.change(next);
    tab().dispose();
    await settle();
    expect(next.asked).toEqual([]);
  });

  it("say what the kernel refused, and try again", async () => {
    const explore = kernel.handlers.explore!;
    kernel.handlers.explore = () => {
      throw new Error("<b>too long</b>");
    };
    actionsOf().explore(gla);
    await settle();
    expect(tab().node.textContent).toContain("<b>too long</b>");
    kernel.handlers.explore = explore;
    const again = [...tab().node.querySelectorAll("button")].find((one) => one.textContent === "Try again");
    again?.click();
    await settle();
    expect(notebook.content.rendermime.drawn).toEqual(["view 1"]);
    expect(tab().node.textContent).not.toContain("too long");
  });

  it("say that JupyterLab cannot draw them", async () => {
    notebook.content.rendermime.canDraw = false;
    actionsOf().explore(gla);
    await settle();
    expect(tab().node.textContent).toContain("install jupyterlab_widgets");
  });

  it("of a console that shares a kernel belong to the notebook", async () => {
    const connection = new FakeKernel(kernel.id);
    connection.handleComms = false;
    consoles.show(new FakeConsole("Console 2", connection));
    actionsOf().explore(gla);
    await settle();
    expect(tab().spec.path).toBe("a.ipynb");
    expect(notebook.content.rendermime.drawn).toEqual(["view 1"]);
  });
});

describe("views that come back with the page", () => {
  const spec = () => ({
    id: "tab",
    kind: "explore" as const,
    path: "a.ipynb",
    name: "gla",
    source: { tokenizer: "tok", text: null },
    layer: null,
    kernel: "kernel",
    model: "view 7",
  });

  it("are drawn where their kernel still has them", async () => {
    kernel.handlers.check = () => ({ state: "changed" });
    await actionsOf().views.restore(spec(), Promise.resolve(model.place));
    expect(notebook.content.rendermime.drawn).toEqual(["view 7"]);
    expect(kernel.asked).toEqual(["models", "check"]);
  });

  it.each(["LabError", "not loaded"])("are not where it was restarted: %s", async (how) => {
    if (how === "LabError") {
      kernel.handlers.check = () => {
        throw new Error("This view was closed in the kernel; open it again.");
      };
    } else {
      kernel.become("restarting");
      kernel.value = { status: "ok", data: { "text/plain": "'not loaded'" } };
    }
    await actionsOf().views.restore(spec(), Promise.resolve(model.place));
    expect(tab().node.textContent).toContain("The kernel that held this view is gone");
    expect(notebook.content.rendermime.drawn).toEqual([]);
  });

  it("say that their kernel is gone", async () => {
    await actionsOf().views.restore({ ...spec(), kernel: "old" }, Promise.resolve(model.place));
    expect(tab().node.textContent).toContain("The kernel that held this view is gone");
    expect(notebook.content.rendermime.drawn).toEqual([]);
  });

  it("ask for their notebook", async () => {
    await actionsOf().views.restore(spec(), Promise.resolve(null));
    expect(tab().node.textContent).toContain("Open a.ipynb and try again.");
  });
});

describe("which model a command means", () => {
  it("is known by name", async () => {
    expect(await actionsOf().pick("gla")).toMatchObject({ name: "gla" });
    expect(kernel.asked).toEqual(["models"]);
  });

  it("is looked up where it is new", async () => {
    kernel.handlers.models = () => aListing(gla, aModel({ name: "new", id: "2" }));
    expect(await actionsOf().pick("new")).toMatchObject({ name: "new" });
  });

  it("is the only one", async () => {
    expect(await actionsOf().pick()).toMatchObject({ name: "gla" });
  });

  it("is none, which is told", async () => {
    expect(await actionsOf().pick("x")).toBeNull();
    kernel.handlers.models = () => aListing();
    expect(await actionsOf().pick()).toBeNull();
    expect(told()).toEqual([
      expect.stringMatching(/^There is no model/),
      expect.stringMatching(/^x is no torch.nn.Module/),
    ]);
  });

  it("is asked where there are more", async () => {
    kernel.handlers.models = () => aListing(gla, aModel({ name: "new", id: "2" }));
    const picked = actionsOf().pick();
    await vi.waitFor(() => {
      const select = document.querySelector<HTMLSelectElement>(".jp-Dialog select")!;
      select.selectedIndex = 1;
      document.querySelector<HTMLElement>(".jp-Dialog button.jp-mod-accept")!.click();
    });
    expect(await picked).toMatchObject({ name: "new" });
  });
});
