/** The side panel itself: what it says, and the keyboard in it. */
import { MessageLoop } from "@lumino/messaging";
import { Widget } from "@lumino/widgets";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { Actions } from "../src/lab/actions";
import { PanelModel } from "../src/lab/model";
import { MemoryPanel } from "../src/lab/panel";
import { PlaceTracker } from "../src/lab/tracker";
import {
  aListing,
  aMixer,
  aModel,
  asNotebooks,
  FakeKernel,
  FakeNotebook,
  FakeTracker,
  trans,
} from "./lab_fakes";

let kernel: FakeKernel;
let notebooks: FakeTracker<FakeNotebook>;
let model: PanelModel;
let panel: MemoryPanel;
const insert = vi.fn<Actions["insert"]>();

beforeEach(() => {
  insert.mockClear();
  kernel = new FakeKernel();
  kernel.handlers = {
    models: () => aListing(aModel({ name: "a", mixers: [aMixer()] }), aModel({ name: "b" })),
  };
  notebooks = new FakeTracker(new FakeNotebook("work/a.ipynb", kernel));
  model = new PanelModel(new PlaceTracker(asNotebooks(notebooks), null));
  const actions = {
    insert,
    expand: ({ name }: { name: string }, open: boolean) => model.expand(name, open),
  };
  panel = new MemoryPanel(model, actions as unknown as Actions, trans);
  Widget.attach(panel, document.body);
});
afterEach(() => {
  panel.dispose();
});

function find(selector: string): HTMLElement {
  const found = panel.node.querySelector<HTMLElement>(selector);
  if (!found) throw new Error(`nothing matches ${selector}`);
  return found;
}
const text = (selector: string) => find(selector).textContent;
const row = (key: string) => find(`[data-key="${key}"]`);
const refresh = () => find(".jp-ess-icon-button") as HTMLButtonElement;
const redraw = () => {
  model.announce();
  MessageLoop.flush();
};
async function read(): Promise<void> {
  await model.refresh();
  MessageLoop.flush();
}
/** What the tab key can reach in the tree. */
function stops(): (string | undefined)[] {
  const reached = [...panel.node.querySelectorAll<HTMLElement>("li, li button")].filter(
    (node) => node.tabIndex === 0,
  );
  return [...new Set(reached.map((node) => node.closest<HTMLElement>("[data-key]")?.dataset["key"]))];
}

describe("words", () => {
  it("name the place", () => {
    MessageLoop.flush();
    expect(text(".jp-ess-place")).toBe("a.ipynb");
    expect(find(".jp-ess-place").title).toBe("work/a.ipynb");
    notebooks.show(null);
    MessageLoop.flush();
    expect(text(".jp-ess-place")).toBe("No notebook");
    expect(text(".jp-ess-words")).toMatch(/^Open a notebook/);
    expect(refresh().disabled).toBe(true);
  });

  it("name the place by its file, whatever that is called", () => {
    notebooks.show(new FakeNotebook("<img src=x>.ipynb", kernel));
    MessageLoop.flush();
    expect(text(".jp-ess-place")).toBe("<img src=x>.ipynb");
    expect(panel.node.querySelector("img")).toBeNull();
  });

  it("offer the line that installs what is missing", async () => {
    kernel.value = { status: "ok", data: { "text/plain": "'no package'" } };
    await read();
    expect(text(".jp-ess-install code")).toBe("%pip install ess-widgets");
    find(".jp-ess-install button").click();
    expect(insert.mock.calls).toEqual([["%pip install ess-widgets"]]);
    expect(find(".jp-ess-tree").hidden).toBe(true);
  });

  it("offer to load the page anew where it cannot reach the kernel", async () => {
    kernel.supportsSubshells = true;
    kernel.subshell = Promise.resolve();
    await read();
    kernel.tell("x", "busy", "shutdown_request");
    MessageLoop.flush();
    expect(text(".jp-ess-words button")).toBe("Reload the page");
    expect(find(".jp-ess-tree").hidden).toBe(true);
  });

  it("give way to the list", async () => {
    MessageLoop.flush();
    expect(find(".jp-ess-words").hidden).toBe(false);
    await read();
    expect(find(".jp-ess-words").hidden).toBe(true);
    expect(find(".jp-ess-tree").hidden).toBe(false);
    expect(panel.node.querySelectorAll("li")).toHaveLength(2);
  });

  it("stand above an older list where reading failed", async () => {
    await read();
    kernel.handlers.models = () => {
      throw new Error("<b>too slow</b>");
    };
    await read();
    expect(text(".jp-ess-words")).toBe("<b>too slow</b>");
    expect(panel.node.querySelectorAll("li")).toHaveLength(2);
  });

  it("count what is not listed", async () => {
    await read();
    expect(find(".jp-ess-foot").hidden).toBe(true);
    kernel.handlers.models = () => ({ ...aListing(aModel()), omitted: 3 });
    await read();
    expect(find(".jp-ess-foot").hidden).toBe(false);
    expect(text(".jp-ess-foot")).toBe("3 more models are not listed.");
  });
});

describe("state", () => {
  it("is busy while a cell is running, when nothing can be read", () => {
    kernel.begin("cell");
    MessageLoop.flush();
    expect(text(".jp-ess-state")).toBe("busy");
    expect(refresh().disabled).toBe(true);
    kernel.end("cell");
    MessageLoop.flush();
    expect(text(".jp-ess-state")).toBe("");
    expect(refresh().disabled).toBe(false);
  });

  it("is reading until the answer is there", async () => {
    const reading = model.refresh();
    MessageLoop.flush();
    expect(text(".jp-ess-state")).toBe("reading…");
    await reading;
    MessageLoop.flush();
    expect(text(".jp-ess-state")).toBe("");
  });

  it("is old only where the user refreshes", async () => {
    await read();
    kernel.begin("cell");
    kernel.end("cell");
    redraw();
    expect(text(".jp-ess-state")).toBe("");
    model.autoRefresh = false;
    redraw();
    expect(text(".jp-ess-state")).toBe("cells have run since");
    refresh().click();
    await vi.waitFor(() => {
      MessageLoop.flush();
      expect(text(".jp-ess-state")).toBe("");
    });
    expect(kernel.asked).toHaveLength(2);
  });
});

describe("the keyboard", () => {
  it("stops at one row", async () => {
    await read();
    expect(stops()).toEqual(["a"]);
    row("b").focus();
    expect(stops()).toEqual(["b"]);
    redraw();
    expect(stops()).toEqual(["b"]);
  });

  it("moves by arrows", async () => {
    await read();
    row("a").focus();
    row("a").dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown", bubbles: true }));
    expect(document.activeElement).toBe(row("b"));
    expect(stops()).toEqual(["b"]);
  });

  it("stays in its row and on its button when all is drawn anew", async () => {
    await read();
    const before = row("b");
    before.focus();
    redraw();
    expect(row("b")).not.toBe(before);
    expect(document.activeElement).toBe(row("b"));
    find('[data-key="b"] [data-action=scan]').focus();
    redraw();
    expect(document.activeElement).toBe(find('[data-key="b"] [data-action=scan]'));
  });

  it("goes to the first row where its own is gone", async () => {
    await read();
    row("b").focus();
    kernel.handlers.models = () => aListing(aModel({ name: "a" }));
    await read();
    expect(document.activeElement).toBe(row("a"));
    expect(stops()).toEqual(["a"]);
  });

  it("is not taken from elsewhere, and finds its row again", async () => {
    await read();
    row("b").focus();
    refresh().focus();
    redraw();
    expect(document.activeElement).toBe(refresh());
    expect(stops()).toEqual(["b"]);
  });

  it("enters the tree where the panel is activated, or what there is", async () => {
    MessageLoop.flush();
    MessageLoop.sendMessage(panel, Widget.Msg.ActivateRequest);
    expect(document.activeElement).toBe(refresh());
    await read();
    row("b").focus();
    refresh().focus();
    MessageLoop.sendMessage(panel, Widget.Msg.ActivateRequest);
    expect(document.activeElement).toBe(row("b"));
  });

  it("keeps its place over unfolding", async () => {
    await read();
    find('[data-key="a"] [data-action=toggle]').focus();
    find('[data-key="a"] [data-action=toggle]').click();
    MessageLoop.flush();
    expect(row("a").getAttribute("aria-expanded")).toBe("true");
    expect(document.activeElement).toBe(find('[data-key="a"] [data-action=toggle]'));
    expect(row("a layer layers.0").tabIndex).toBe(-1);
  });
});

it("lets the kernel be asked only while it is shown", async () => {
  await vi.waitFor(() => expect(kernel.asked).toHaveLength(1));
  panel.hide();
  vi.useFakeTimers();
  kernel.begin("cell");
  kernel.end("cell");
  await vi.advanceTimersByTimeAsync(1000);
  expect(kernel.asked).toHaveLength(1);
  panel.show();
  await vi.advanceTimersByTimeAsync(1000);
  vi.useRealTimers();
  expect(kernel.asked).toHaveLength(2);
});
