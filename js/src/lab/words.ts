/** How models, mixers and states of the kernel are put in words. */
import type { TranslationBundle } from "@jupyterlab/translation";
import type { KernelLink, Loss } from "./kernel";
import type { Memory } from "./model";
import type { Mixer, Model, Progress, ScannedLayer, ViewState } from "./protocol";
import type { Place } from "./tracker";

const units: [number, string][] = [
  [1e9, "B"],
  [1e6, "M"],
  [1e3, "k"],
];

/** 135 M, 4.2 k, 96. */
export function short(count: number): string {
  for (const [size, unit] of units) {
    if (count >= size * 0.9995) {
      const value = count / size;
      return `${value >= 100 ? value.toFixed(0) : Number(value.toPrecision(3))} ${unit}`;
    }
  }
  return String(count);
}

export function modelFacts(model: Model, trans: TranslationBundle): string {
  const count = `${model.complete ? "" : "≥ "}${short(model.parameters)}`;
  return [
    trans.__("%1 parameters", count),
    model.device,
    model.dtype,
    model.training ? trans.__("training") : trans.__("eval"),
  ]
    .filter((part) => part !== "")
    .join(" · ");
}

export function mixerFacts(mixer: Mixer | ScannedLayer, trans: TranslationBundle): string {
  const groups =
    mixer.count === null || mixer.group === "layer"
      ? ""
      : mixer.group === "channel"
        ? trans._n("%1 channel", "%1 channels", mixer.count)
        : trans._n("%1 head", "%1 heads", mixer.count);
  const state = mixer.grows
    ? trans.__("state ∞")
    : mixer.state === null
      ? ""
      : trans.__("state %1", mixer.state);
  return [groups, state].filter((part) => part !== "").join(", ");
}

export function progressWords(progress: Progress | null, trans: TranslationBundle): string {
  return progress === null
    ? trans.__("Running the model…")
    : trans.__("%1 of %2 layers", progress.done, progress.of);
}

/** What a view is told of that shows something else than its name means now. */
export function stateWords(
  state: Exclude<ViewState, "current">,
  name: string,
  trans: TranslationBundle,
): string {
  switch (state) {
    case "changed":
      return trans.__("The weights of %1 have changed since.", name);
    case "another":
      return trans.__("%1 is another object now; this view still shows the old one.", name);
    case "gone":
      return trans.__("%1 is no longer in the namespace; this view keeps it alive.", name);
  }
}

/** Why a view shows nothing any more. */
export function lossWords(
  loss: Loss,
  spec: { name: string; path: string },
  trans: TranslationBundle,
): string {
  const { name, path } = spec;
  switch (loss) {
    case "restarted":
      return trans.__(
        "The kernel was restarted, and what this view showed is gone. When %1 is there again, try again.",
        name,
      );
    case "elsewhere":
      return trans.__(
        "The kernel was restarted by another page. Reload this one, and when %1 is there again, open it again.",
        name,
      );
    case "dead":
      return trans.__(
        "The kernel died, and what this view showed is gone. Restart it, and when %1 is there again, try again.",
        name,
      );
    case "disconnected":
      return trans.__(
        "%1 was closed, or no longer has the kernel that held this view. When it is open and %2 is there, try again.",
        path,
        name,
      );
  }
}

/** Why there is nothing to list; null where there is a list. `install` is a line to run in a cell. */
export function notice(
  place: Place | null,
  link: KernelLink | null,
  memory: Memory | null,
  trans: TranslationBundle,
): { text: string; install?: string; reload?: boolean } | null {
  if (!place)
    return { text: trans.__("Open a notebook or a console: models in its kernel are listed here.") };
  if (!link || !memory) {
    return { text: trans.__("%1 has no kernel. Start one, and its models are listed here.", place.name) };
  }
  if (link.stranded) {
    const text = trans.__(
      "The kernel was restarted by another page. Reload this one, and models are listed again.",
    );
    return { text, reload: true };
  }
  const install = "%pip install ess-widgets";
  switch (link.readiness) {
    case "dead":
      return { text: trans.__("The kernel is dead. Restart it, and models are listed again.") };
    case "not python":
      return { text: trans.__("This kernel does not run Python: there are no PyTorch models to look at.") };
    case "no package":
      return { text: trans.__("This kernel lacks ess_widgets. Run in a cell, then refresh:"), install };
    case "no torch":
      return {
        text: trans.__("This kernel lacks PyTorch. Run in a cell, then refresh:"),
        install: "%pip install torch",
      };
    case "broken":
      return {
        text: trans.__(
          "ess_widgets in this kernel cannot be used (%1). Run in a cell, then restart:",
          link.problem,
        ),
        install: "%pip install --upgrade ess-widgets",
      };
    case "not loaded":
      return { text: trans.__("No model yet: torch has not been imported in this kernel.") };
  }
  if (memory.error) return { text: memory.error };
  if (!memory.listing) {
    return {
      text: link.busy
        ? trans.__("A cell is running. Models are listed when it has ended.")
        : memory.slow
          ? trans.__("The kernel has not answered yet: a cell may be running in it, or it may be dead.")
          : trans.__("Looking for models…"),
    };
  }
  if (memory.listing.models.length === 0) {
    return { text: trans.__("No torch.nn.Module has a name in this kernel yet.") };
  }
  return null;
}
