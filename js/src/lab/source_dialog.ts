/** Asks what a model shall read: a text through a tokenizer of the kernel, a variable, or an expression. */
import { Dialog, showDialog } from "@jupyterlab/apputils";
import type { TranslationBundle } from "@jupyterlab/translation";
import { Widget } from "@lumino/widgets";
import { el } from "../dom";
import type { Listing, Model, Source } from "./protocol";

type Way = "text" | "inputs" | "expression";

class SourceForm extends Widget implements Dialog.IBodyWidget<Source | null> {
  private readonly text: HTMLTextAreaElement;
  private readonly tokenizer: HTMLSelectElement;
  private readonly inputs: HTMLSelectElement;
  private readonly expression: HTMLInputElement;
  private way: Way;

  constructor(model: Model, listing: Listing, text: string, trans: TranslationBundle) {
    const { tokenizers, inputs } = listing;
    const way: Way =
      tokenizers.length > 0 && (model.language || inputs.length === 0)
        ? "text"
        : inputs.length > 0
          ? "inputs"
          : "expression";
    const area = el("textarea", "jp-mod-styled", { rows: 3, "aria-label": trans.__("Text") });
    area.value = text;
    const options = (rows: [string, string][]) =>
      rows.map(([name, about]) => el("option", "", { value: name }, `${name}  ${about}`));
    const tokenizer = el("select", "jp-mod-styled", { "aria-label": trans.__("Tokenizer") });
    tokenizer.append(...options(tokenizers.map(({ name, kind }) => [name, kind])));
    const variable = el("select", "jp-mod-styled", { "aria-label": trans.__("Variable") });
    variable.append(
      ...options(inputs.map((one) => [one.name, `${one.dtype ?? one.kind} ${shapeOf(one.shape)}`])),
    );
    const expression = el("input", "jp-mod-styled", {
      type: "text",
      placeholder: model.language ? "torch.randint(0, 256, (1, 64))" : "torch.randn(1, 64, 512)",
      "aria-label": trans.__("Python expression"),
      spellcheck: "false",
    });
    const choice = (value: Way, label: string, enabled: boolean, ...content: HTMLElement[]) => {
      const radio = el("input", "", { type: "radio", name: "ess-source", value, disabled: !enabled });
      radio.checked = value === way;
      radio.addEventListener("change", () => (this.way = value));
      for (const node of content) {
        node.addEventListener("focus", () => {
          if (!enabled) return;
          radio.checked = true;
          this.way = value;
        });
        if (!enabled) (node as HTMLInputElement).disabled = true;
      }
      return el("div", "jp-ess-choice", {}, el("label", "", {}, radio, label), ...content);
    };
    const none = trans.__("none found in the kernel");
    const node = el(
      "div",
      "jp-ess-source",
      {},
      choice(
        "text",
        trans.__("a text, through the tokenizer") + (tokenizers.length ? "" : ` (${none})`),
        tokenizers.length > 0,
        tokenizer,
        area,
      ),
      choice(
        "inputs",
        trans.__("a variable") + (inputs.length ? "" : ` (${none})`),
        inputs.length > 0,
        variable,
      ),
      choice("expression", trans.__("a Python expression, evaluated in the kernel"), true, expression),
    );
    super({ node });
    this.way = way;
    this.text = area;
    this.tokenizer = tokenizer;
    this.inputs = variable;
    this.expression = expression;
  }

  getValue(): Source | null {
    if (this.way === "text") return { tokenizer: this.tokenizer.value, text: this.text.value || null };
    if (this.way === "inputs") return { inputs: this.inputs.value };
    const expression = this.expression.value.trim();
    return expression === "" ? null : { expression };
  }
}

function shapeOf(shape: number[] | null): string {
  return shape ? `(${shape.join(", ")})` : "";
}

/** The one tokenizer there is, for a model that reads tokens: nothing to ask. */
export function obvious(model: Model, listing: Listing): Source | null {
  const [only, ...others] = listing.tokenizers;
  return model.language && only && others.length === 0 ? { tokenizer: only.name, text: null } : null;
}

/** Null where the user cancels. */
export async function askSource(
  model: Model,
  listing: Listing,
  text: string,
  trans: TranslationBundle,
): Promise<Source | null> {
  const form = new SourceForm(model, listing, text, trans);
  const result = await showDialog({
    title: trans.__("What shall %1 read?", model.name),
    body: form,
    buttons: [Dialog.cancelButton(), Dialog.okButton({ label: trans.__("Go on") })],
    focusNodeSelector: "input[type=radio]:checked",
  });
  return result.button.accept ? result.value : null;
}
