/** Models, layers and states of the kernel in words. */
import { describe, expect, it, test } from "vitest";
import { KernelLink } from "../src/lab/kernel";
import { Memory } from "../src/lab/model";
import { notebookPlace } from "../src/lab/tracker";
import {
  mixerFacts,
  modelFacts,
  notice as noticeOf,
  progressWords,
  short,
  stateWords,
  lossWords,
} from "../src/lab/words";
import { aListing, aMixer, aModel, aScannedLayer, FakeKernel, FakeNotebook, trans } from "./lab_fakes";

test.each([
  [0, "0"],
  [1, "1"],
  [999, "999"],
  [1000, "1 k"],
  [1234, "1.23 k"],
  [99_949, "99.9 k"],
  [99_951, "100 k"],
  [999_499, "999 k"],
  [999_500, "1 M"],
  [134_515_008, "135 M"],
  [999_499_999, "999 M"],
  [999_500_000, "1 B"],
  [1.234e12, "1234 B"],
])("%d is short for %s", (count, text) => {
  expect(short(count)).toBe(text);
});

describe("facts of a model", () => {
  it("are its size, where it is, and its mode", () => {
    expect(modelFacts(aModel(), trans)).toBe("1.23 k parameters · cpu · float32 · eval");
    expect(modelFacts(aModel({ training: true, device: "cuda:0" }), trans)).toContain(
      "cuda:0 · float32 · training",
    );
  });
  it("leave out what is not known", () => {
    expect(modelFacts(aModel({ device: "", dtype: "", parameters: 0 }), trans)).toBe("0 parameters · eval");
  });
  it("say that counting was cut short", () => {
    expect(modelFacts(aModel({ complete: false }), trans)).toMatch(/^≥ 1.23 k parameters/);
  });
});

describe("facts of a layer", () => {
  it("are its heads or channels, and its state", () => {
    const state = { state: 64, grows: false };
    expect(mixerFacts(aMixer({ count: 1, ...state }), trans)).toBe("1 head, state 64");
    expect(mixerFacts(aMixer({ count: 2, ...state }), trans)).toBe("2 heads, state 64");
    expect(mixerFacts(aMixer({ count: 1, group: "channel", ...state }), trans)).toBe("1 channel, state 64");
    expect(mixerFacts(aScannedLayer({ count: 512, group: "channel", ...state }), trans)).toBe(
      "512 channels, state 64",
    );
  });
  it("say that the state grows, whatever it is", () => {
    expect(mixerFacts(aMixer({ state: 3, grows: true }), trans)).toBe("2 heads, state ∞");
  });
  it("leave out what is not known, and the one operator of a whole layer", () => {
    expect(mixerFacts(aMixer({ count: null, state: null, grows: false }), trans)).toBe("");
    expect(mixerFacts(aMixer({ count: 1, group: "layer", state: 8, grows: false }), trans)).toBe("state 8");
    expect(mixerFacts(aMixer({ state: 0, grows: false }), trans)).toBe("2 heads, state 0");
  });
});

it("says how far a slow question is", () => {
  expect(progressWords({ done: 2, of: 5 }, trans)).toBe("2 of 5 layers");
  expect(progressWords(null, trans)).toBe("Running the model…");
});

it("says why a view shows something else than its name means", () => {
  const words = (["changed", "another", "gone"] as const).map((state) => stateWords(state, "gla", trans));
  expect(words).toEqual([
    expect.stringMatching(/weights of gla have changed/),
    expect.stringMatching(/^gla is another object/),
    expect.stringMatching(/^gla is no longer/),
  ]);
});

it("says why a view shows nothing any more", () => {
  const spec = { name: "gla", path: "a.ipynb" };
  expect(lossWords("restarted", spec, trans)).toMatch(/was restarted, .* When gla is there again, try again/);
  expect(lossWords("elsewhere", spec, trans)).toMatch(/by another page. Reload/);
  expect(lossWords("dead", spec, trans)).toMatch(/^The kernel died/);
  expect(lossWords("disconnected", spec, trans)).toMatch(/^a.ipynb was closed, or no longer has the kernel/);
});

describe("why nothing is listed", () => {
  const link = (readiness: KernelLink["readiness"], kernel = new FakeKernel()) =>
    Object.assign(new KernelLink(kernel.connection), { readiness });

  const place = notebookPlace(new FakeNotebook("work/a.ipynb", null) as never);
  const notice = (...rest: [KernelLink | null, Memory | null, typeof trans]) => noticeOf(place, ...rest);

  it("there is no notebook, or it has no kernel", () => {
    expect(noticeOf(null, null, null, trans)?.text).toMatch(/^Open a notebook/);
    expect(notice(null, null, trans)?.text).toMatch(/^a.ipynb has no kernel. Start one/);
  });

  it("the page must be loaded anew", () => {
    const stranded = Object.assign(link("unknown"), { stranded: true });
    expect(notice(stranded, new Memory(), trans)).toMatchObject({ reload: true });
  });

  it("there is no answer", () => {
    const memory = Object.assign(new Memory(), { reading: true, slow: true });
    expect(notice(link("unknown"), memory, trans)?.text).toMatch(/^The kernel has not answered yet/);
  });

  test.each([
    ["dead", /Restart it/, undefined],
    ["not python", /does not run Python/, undefined],
    ["no package", /lacks ess_widgets/, "%pip install ess-widgets"],
    ["no torch", /lacks PyTorch/, "%pip install torch"],
    ["not loaded", /torch has not been imported/, undefined],
    ["broken", /cannot be used \(ImportError: no\)/, "%pip install --upgrade ess-widgets"],
    ["unknown", /^Looking for models/, undefined],
    ["ready", /^Looking for models/, undefined],
  ] as const)("%s", (readiness, text, install) => {
    const found = notice(Object.assign(link(readiness), { problem: "ImportError: no" }), new Memory(), trans);
    expect(found?.text).toMatch(text);
    expect(found?.install).toBe(install);
  });

  it("a cell is running", () => {
    const kernel = new FakeKernel();
    const running = link("ready", kernel);
    kernel.begin("a");
    expect(notice(running, new Memory(), trans)?.text).toMatch(/^A cell is running/);
  });

  it("reading failed, even where there is an older list", () => {
    const memory = Object.assign(new Memory(), { error: "too slow", listing: aListing(aModel()) });
    expect(notice(link("ready"), memory, trans)).toEqual({ text: "too slow" });
  });

  it("there is no model", () => {
    const memory = Object.assign(new Memory(), { listing: aListing() });
    expect(notice(link("ready"), memory, trans)?.text).toMatch(/^No torch.nn.Module/);
    memory.listing = aListing(aModel());
    expect(notice(link("ready"), memory, trans)).toBeNull();
  });
});
