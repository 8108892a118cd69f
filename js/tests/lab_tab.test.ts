/** A tab with a view: what it says, and what it does when cells have run. */
import { Widget } from "@lumino/widgets";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { KernelLink } from "../src/lab/kernel";
import { ViewTab, type Deeds, type ViewSpec } from "../src/lab/tab";
import { notebookPlace } from "../src/lab/tracker";
import { FakeKernel, FakeNotebook, trans } from "./lab_fakes";

let kernel: FakeKernel;
let link: KernelLink;
let notebook: FakeNotebook;
let tab: ViewTab;
const deeds = {
  compute: vi.fn<Deeds["compute"]>(),
  check: vi.fn<Deeds["check"]>(),
  refresh: vi.fn<Deeds["refresh"]>(),
  follows: vi.fn<Deeds["follows"]>(),
  save: vi.fn<Deeds["save"]>(),
};

function show(kind: ViewSpec["kind"] = "explore"): void {
  tab = new ViewTab(
    {
      id: "tab",
      kind,
      path: "a.ipynb",
      name: "gla",
      source: { inputs: "x" },
      layer: null,
      kernel: "kernel",
      model: null,
    },
    trans,
    deeds,
    [],
  );
  Widget.attach(tab, document.body);
}
const draw = () => tab.draw(notebookPlace(notebook as never), link, "view");
const bar = () => tab.node.querySelector<HTMLElement>(".jp-ess-bar")!;
const words = () => tab.node.querySelector(".jp-ess-words")?.textContent;
const labels = () => [...tab.node.querySelectorAll("button")].map((one) => one.textContent);
async function runCell(): Promise<void> {
  kernel.begin("a");
  kernel.end("a");
  await vi.advanceTimersByTimeAsync(200);
}

beforeEach(() => {
  vi.useFakeTimers();
  kernel = new FakeKernel();
  link = new KernelLink(kernel.connection);
  notebook = new FakeNotebook("a.ipynb", kernel);
  deeds.compute.mockReset().mockImplementation(draw);
  deeds.check.mockReset().mockResolvedValue("current");
  deeds.refresh.mockReset().mockResolvedValue(undefined);
  deeds.follows.mockReset().mockReturnValue(true);
  deeds.save.mockReset();
});
afterEach(() => {
  tab.dispose();
  vi.useRealTimers();
});

describe("computing", () => {
  it("tells what it waits for, how far that is, and can be stopped", async () => {
    deeds.compute.mockImplementation(
      (_, { signal, progress }) =>
        new Promise((_resolve, reject) => {
          progress?.({ done: 2, of: 5 });
          signal?.addEventListener("abort", () => reject(new Error("Stopped.")));
        }),
    );
    show("diagnose");
    const started = tab.start();
    expect(words()).toMatch(/^Diagnosing gla/);
    expect(tab.node.textContent).toContain("2 of 5 layers");
    expect(tab.node.querySelector("progress")).toMatchObject({ value: 2, max: 5 });
    tab.node.querySelector("button")?.click();
    await started;
    expect(words()).toBe("Stopped.");
    expect(labels()).toEqual(["Try again"]);
  });

  it("heeds only what was started last", async () => {
    const rejects: ((error: Error) => void)[] = [];
    deeds.compute.mockImplementation(() => new Promise((_, reject) => rejects.push(reject)));
    show();
    const first = tab.start();
    void tab.start();
    expect(deeds.compute.mock.calls[0]?.[1].signal?.aborted).toBe(true);
    rejects[0]?.(new Error("Stopped."));
    await first;
    expect(words()).toMatch(/^Opening gla/);
    rejects[1]?.(new Error("too long"));
    await vi.waitFor(() => expect(words()).toBe("too long"));
  });

  it("ends with its tab", () => {
    deeds.compute.mockReturnValue(new Promise(() => undefined));
    show();
    void tab.start();
    const { signal } = deeds.compute.mock.calls[0]![1];
    expect(signal?.aborted).toBe(false);
    tab.dispose();
    expect(signal?.aborted).toBe(true);
  });
});

describe("after a cell", () => {
  it("nothing is said where it still shows what its name means", async () => {
    show();
    await draw();
    await runCell();
    expect(deeds.check).toHaveBeenCalledOnce();
    expect(deeds.refresh).not.toHaveBeenCalled();
    expect(tab.node.querySelector(".jp-ess-bar.lm-mod-hidden")).not.toBeNull();
  });

  it("an explorer runs again where weights have changed", async () => {
    deeds.check.mockResolvedValue("changed");
    show();
    await draw();
    await runCell();
    expect(deeds.refresh).toHaveBeenCalledOnce();
  });

  it("it is offered where views do not follow", async () => {
    deeds.check.mockResolvedValue("changed");
    deeds.follows.mockReturnValue(false);
    show();
    await draw();
    await runCell();
    expect(deeds.refresh).not.toHaveBeenCalled();
    expect(bar().textContent).toContain("The weights of gla have changed since.");
    bar().querySelector("button")?.click();
    expect(deeds.refresh).toHaveBeenCalledOnce();
    expect(deeds.compute).not.toHaveBeenCalled();
  });

  it("a diagnosis is made anew, when that is asked for", async () => {
    deeds.check.mockResolvedValue("changed");
    show("diagnose");
    await draw();
    await runCell();
    expect(deeds.refresh).not.toHaveBeenCalled();
    bar().querySelector("button")?.click();
    expect(deeds.compute).toHaveBeenCalledOnce();
  });

  it("another object of its name can be shown, none that is gone", async () => {
    deeds.check.mockResolvedValue("gone");
    show();
    await draw();
    await runCell();
    expect(bar().textContent).toContain("gla is no longer");
    expect(bar().querySelector("button")).toBeNull();
    deeds.check.mockResolvedValue("another");
    await runCell();
    expect(bar().textContent).toContain("gla is another object now");
    bar().querySelector("button")?.click();
    expect(deeds.compute).toHaveBeenCalledOnce();
  });

  it("it waits until it is seen", async () => {
    show();
    await draw();
    tab.hide();
    await runCell();
    expect(deeds.check).not.toHaveBeenCalled();
    tab.show();
    await vi.advanceTimersByTimeAsync(200);
    expect(deeds.check).toHaveBeenCalledOnce();
    tab.hide();
    tab.show();
    await vi.advanceTimersByTimeAsync(200);
    expect(deeds.check).toHaveBeenCalledOnce();
  });

  it("nothing is asked once it is closed", async () => {
    show();
    await draw();
    tab.dispose();
    await runCell();
    expect(deeds.check).not.toHaveBeenCalled();
  });
});

it("asks nothing of a kernel that was restarted, and says so", async () => {
  show();
  await draw();
  kernel.become("restarting");
  expect(words()).toMatch(/^The kernel was restarted/);
  expect(tab.spec.model).toBeNull();
  await runCell();
  expect(deeds.check).not.toHaveBeenCalled();
});

it.each([
  [true, /by another page/, "Reload the page"],
  [false, /^The kernel was restarted, and/, "Try again"],
])("of a restart by another page says how to go on; threads: %s", async (subshells, said, label) => {
  kernel.supportsSubshells = subshells;
  show();
  await draw();
  kernel.tell("x", "busy", "shutdown_request");
  expect(words()).toMatch(said);
  expect(labels()).toContain(label);
});

it("that has lost its notebook can be shown again with what was set in it", async () => {
  show();
  await draw();
  kernel.dispose();
  expect(words()).toMatch(/^a.ipynb was closed/);
  expect(tab.spec.model).toBe("view");
});

it("goes with its notebook to another name", async () => {
  show();
  await tab.start();
  expect(deeds.save).toHaveBeenCalledTimes(1);
  notebook.rename("folder/b.ipynb");
  expect(tab.spec.path).toBe("folder/b.ipynb");
  expect(tab.title.caption).toBe("gla (folder/b.ipynb)");
  expect(deeds.save).toHaveBeenCalledTimes(2);
  tab.dispose();
  notebook.rename("c.ipynb");
  expect(tab.spec.path).toBe("folder/b.ipynb");
});
