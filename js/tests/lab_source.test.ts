/** What a model reads: where there is nothing to ask, and what the dialog brings. */
import { Dialog } from "@jupyterlab/apputils";
import { afterEach, describe, expect, it, test, vi } from "vitest";
import type { Listing, Model, Source } from "../src/lab/protocol";
import { askSource, obvious } from "../src/lab/source_dialog";
import { aListing, aModel, trans } from "./lab_fakes";

const bpe = { name: "tok", kind: "BPE" };
const words = { name: "words", kind: "WordLevel" };
const ids = { name: "ids", kind: "Tensor", shape: [1, 64], dtype: "int64" };
const batch = { name: "batch", kind: "dict", shape: null, dtype: null };

describe("nothing to ask", () => {
  it("of a model that reads tokens where there is one tokenizer", () => {
    expect(obvious(aModel(), { ...aListing(), tokenizers: [bpe], inputs: [ids] })).toEqual({
      tokenizer: "tok",
      text: null,
    });
  });
  test.each([
    ["there is none", aModel(), []],
    ["there are two", aModel(), [bpe, words]],
    ["the model reads no tokens", aModel({ language: false }), [bpe]],
  ])("but not where %s", (_, model, tokenizers) => {
    expect(obvious(model, { ...aListing(), tokenizers })).toBeNull();
  });
});

describe("the dialog", () => {
  let answer: Promise<Source | null>;

  async function open(listing: Partial<Listing>, model: Partial<Model> = {}): Promise<void> {
    answer = askSource(aModel(model), { ...aListing(), ...listing }, "Once.", trans);
    await vi.waitFor(() => {
      find(".jp-ess-source");
    });
  }
  function find(selector: string): HTMLElement {
    const found = document.querySelector<HTMLElement>(`.jp-Dialog ${selector}`);
    if (!found) throw new Error(`nothing matches ${selector}`);
    return found;
  }
  const radio = (way: string) => find(`[type=radio][value=${way}]`) as HTMLInputElement;
  const chosen = () => (find("[type=radio]:checked") as HTMLInputElement).value;
  const expression = () => find("input[type=text]") as HTMLInputElement;
  function accept(): Promise<Source | null> {
    find("button.jp-mod-accept").click();
    return answer;
  }

  afterEach(() => {
    Dialog.flush();
  });

  it("brings a text and its tokenizer", async () => {
    await open({ tokenizers: [bpe, words], inputs: [ids] });
    expect(chosen()).toBe("text");
    (find("select") as HTMLSelectElement).value = "words";
    const area = find("textarea") as HTMLTextAreaElement;
    expect(area.value).toBe("Once.");
    area.value = "Twice.";
    expect(await accept()).toEqual({ tokenizer: "words", text: "Twice." });
  });

  it("brings no text where that was emptied", async () => {
    await open({ tokenizers: [bpe, words] });
    (find("textarea") as HTMLTextAreaElement).value = "";
    expect(await accept()).toEqual({ tokenizer: "tok", text: null });
  });

  it("brings a variable, first of all for a model that reads no tokens", async () => {
    await open({ tokenizers: [bpe], inputs: [ids, batch] }, { language: false });
    expect(chosen()).toBe("inputs");
    const options = [...document.querySelectorAll(".jp-Dialog option")].map((one) => one.textContent?.trim());
    expect(options).toEqual(["tok  BPE", "ids  int64 (1, 64)", "batch  dict"]);
    expect(await accept()).toEqual({ inputs: "ids" });
  });

  it("brings an expression, first of all where there is nothing else", async () => {
    await open({});
    expect(chosen()).toBe("expression");
    expect(radio("text").disabled).toBe(true);
    expect(radio("inputs").disabled).toBe(true);
    expect((find("textarea") as HTMLTextAreaElement).disabled).toBe(true);
    expression().value = " torch.ones(1, 8) ";
    expect(await accept()).toEqual({ expression: "torch.ones(1, 8)" });
  });

  it("brings nothing where no expression was written", async () => {
    await open({});
    expression().value = "  ";
    expect(await accept()).toBeNull();
  });

  it("takes the way whose field is entered", async () => {
    await open({ tokenizers: [bpe] });
    expression().focus();
    expect(chosen()).toBe("expression");
    expression().value = "x";
    expect(await accept()).toEqual({ expression: "x" });
  });

  it("takes the way that is chosen", async () => {
    await open({ tokenizers: [bpe], inputs: [ids] });
    radio("inputs").click();
    expect(await accept()).toEqual({ inputs: "ids" });
  });

  it("brings nothing where the user cancels", async () => {
    await open({ tokenizers: [bpe] });
    find("button.jp-mod-reject").click();
    expect(await answer).toBeNull();
  });

  it("shows names of any kind as text", async () => {
    const name = "<img src=x onerror=alert(1)>";
    await open({ tokenizers: [{ name, kind: name }], inputs: [{ ...ids, name, dtype: name }] }, { name });
    expect(document.querySelector(".jp-Dialog img")).toBeNull();
    expect(find(".jp-Dialog-header").textContent).toContain(name);
    expect(await accept()).toEqual({ tokenizer: name, text: "Once." });
  });
});
