/** Which notebook or console is in front, and where its kernel is. */
import { Signal } from "@lumino/signaling";
import { Widget } from "@lumino/widgets";
import { beforeEach, describe, expect, it } from "vitest";
import { PlaceTracker } from "../src/lab/tracker";
import { asConsoles, asNotebooks, FakeConsole, FakeKernel, FakeNotebook, FakeTracker } from "./lab_fakes";

let kernel: FakeKernel;
let notebook: FakeNotebook;
let notebooks: FakeTracker<FakeNotebook>;
let consoles: FakeTracker<FakeConsole>;
let tracker: PlaceTracker;
let changes: number;

function track(): void {
  tracker = new PlaceTracker(asNotebooks(notebooks), asConsoles(consoles));
  changes = 0;
  tracker.changed.connect(() => changes++);
}

beforeEach(() => {
  kernel = new FakeKernel();
  notebook = new FakeNotebook("work/a.ipynb", kernel);
  notebooks = new FakeTracker(notebook);
  consoles = new FakeTracker();
  track();
});

describe("the place in front", () => {
  it("is the notebook that was there first", () => {
    expect(tracker.current).toMatchObject({ path: "work/a.ipynb", name: "a.ipynb", console: null });
    expect(tracker.current?.notebook).toBe(notebook);
  });

  it("is nowhere where there is nothing", () => {
    notebooks = new FakeTracker();
    track();
    expect(tracker.current).toBeNull();
    expect(tracker.link(tracker.current)).toBeNull();
    expect(tracker.home(null)).toBeNull();
  });

  it("is a console where there is no notebook, and needs no tracker of consoles", () => {
    notebooks = new FakeTracker();
    consoles.show(new FakeConsole("Console 1", kernel));
    track();
    expect(tracker.current).toMatchObject({ path: "console-Console 1", name: "Console 1", notebook: null });
    expect(new PlaceTracker(asNotebooks(notebooks), null).current).toBeNull();
  });

  it("follows back to the last one of its kind, of which its tracker says nothing", () => {
    const console = new FakeConsole("Console 1", kernel);
    const shell = { currentWidget: null as Widget | null, currentChanged: new Signal<object, never>({}) };
    tracker = new PlaceTracker(asNotebooks(notebooks), asConsoles(consoles), shell as never);
    const bring = (widget: Widget | null) => {
      shell.currentWidget = widget;
      shell.currentChanged.emit(undefined as never);
    };
    consoles.show(console);
    for (const widget of [notebook, console, notebook]) {
      bring(widget);
      expect(tracker.current?.widget).toBe(widget);
    }
    bring(new Widget());
    bring(null);
    expect(tracker.current?.widget).toBe(notebook);
  });

  it("follows notebooks and consoles", () => {
    const other = new FakeNotebook("b.ipynb", null);
    notebooks.show(other);
    expect(tracker.current?.widget).toBe(other);
    const console = new FakeConsole("Console 1", kernel);
    consoles.show(console);
    expect(tracker.current?.widget).toBe(console);
    notebooks.show(notebook);
    expect(tracker.current?.widget).toBe(notebook);
    expect(changes).toBe(3);
    notebooks.show(notebook);
    expect(changes).toBe(3);
  });

  it("is the console that is left when the last notebook is gone", () => {
    const console = new FakeConsole("Console 1", kernel);
    consoles.show(console);
    notebooks.show(notebook);
    notebooks.show(null);
    expect(tracker.current?.widget).toBe(console);
  });
});

describe("closing the place in front", () => {
  it("leads to what the trackers have in front", () => {
    const console = new FakeConsole("Console 1", kernel);
    consoles.show(console);
    console.dispose();
    expect(tracker.current?.widget).toBe(notebook);
    expect(changes).toBe(2);
  });

  it("leads nowhere while that is itself", () => {
    notebook.dispose();
    expect(tracker.current).toBeNull();
    expect(changes).toBe(1);
  });

  it("of another place changes nothing", () => {
    const other = new FakeNotebook("b.ipynb", null);
    notebooks.show(other);
    changes = 0;
    notebook.dispose();
    expect(tracker.current?.widget).toBe(other);
    expect(changes).toBe(0);
  });
});

describe("kernels", () => {
  it("have one link each", () => {
    const link = tracker.link(tracker.current);
    expect(link?.kernel).toBe(kernel);
    expect(tracker.link(tracker.current)).toBe(link);
    const next = new FakeKernel("next");
    notebook.sessionContext.change(next);
    expect(changes).toBe(1);
    expect(tracker.link(tracker.current)?.kernel).toBe(next);
    notebook.sessionContext.change(kernel);
    expect(tracker.link(tracker.current)).toBe(link);
  });

  it("have none once they are gone", () => {
    kernel.dispose();
    expect(tracker.link(tracker.current)).toBeNull();
    notebook.sessionContext.change(null);
    expect(tracker.link(tracker.current)).toBeNull();
  });

  it("of a notebook that is no longer in front are not followed", () => {
    notebooks.show(new FakeNotebook("b.ipynb", null));
    changes = 0;
    notebook.sessionContext.change(new FakeKernel("next"));
    expect(changes).toBe(0);
  });
});

describe("a console that shares the kernel of a notebook", () => {
  let console: FakeConsole;

  beforeEach(() => {
    const connection = new FakeKernel(kernel.id);
    connection.handleComms = false;
    console = new FakeConsole("Console 1", connection);
    consoles.show(console);
  });

  it("is asked through the notebook", () => {
    expect(tracker.current?.widget).toBe(console);
    expect(tracker.home(tracker.current)?.widget).toBe(notebook);
    expect(tracker.link(tracker.current)?.kernel).toBe(kernel);
  });

  it("is asked through another console where that talks to widgets", () => {
    notebook.sessionContext.change(null);
    const first = new FakeConsole("Console 0", kernel);
    consoles.all.push(first);
    expect(tracker.home(tracker.current)?.widget).toBe(first);
  });

  it("is asked itself where no place talks to widgets", () => {
    notebook.sessionContext.change(new FakeKernel("other"));
    expect(tracker.home(tracker.current)?.widget).toBe(console);
    kernel.handleComms = false;
    notebook.sessionContext.change(kernel);
    expect(tracker.home(tracker.current)?.widget).toBe(console);
  });
});

it("asks a notebook itself where two share a kernel and both talk to widgets", () => {
  const second = new FakeNotebook("b.ipynb", new FakeKernel(kernel.id));
  notebooks.show(second);
  expect(tracker.home(tracker.current)?.widget).toBe(second);
});

it("finds an open place by its path", () => {
  consoles.show(new FakeConsole("Console 1", kernel));
  expect(tracker.find("work/a.ipynb")?.notebook).toBe(notebook);
  expect(tracker.find("console-Console 1")?.name).toBe("Console 1");
  expect(tracker.find("b.ipynb")).toBeNull();
});
