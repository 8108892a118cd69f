/** The user's settings, checked: the schema allows what a file edited by hand may still get wrong. */
import type { ISettingRegistry } from "@jupyterlab/settingregistry";
import type { Options } from "./protocol";

export const PLUGIN = "ess-widgets:plugin";

export interface Settings {
  options: Options;
  autoRefresh: boolean;
  colours: string;
}

export const defaults: Settings = {
  options: { kind: "entropy", tol: 1e-3, max_tokens: 2048, groups: 32, scale: "log" },
  autoRefresh: true,
  colours: "default",
};

export function readSettings(composite: Record<string, unknown>): Settings {
  const { options } = defaults;
  const positive = (value: unknown, fallback: number) =>
    typeof value === "number" && Number.isFinite(value) && value > 0 ? value : fallback;
  const whole = (value: unknown, fallback: number) => Math.max(1, Math.round(positive(value, fallback)));
  return {
    options: {
      kind: composite["kind"] === "tolerance" ? "tolerance" : "entropy",
      tol: positive(composite["tol"], options.tol),
      max_tokens: whole(composite["maxTokens"], options.max_tokens),
      groups: whole(composite["groups"], options.groups),
      scale: composite["scale"] === "linear" ? "linear" : "log",
    },
    autoRefresh: composite["autoRefresh"] !== false,
    colours: typeof composite["colours"] === "string" ? composite["colours"] : defaults.colours,
  };
}

/** Calls `apply` now and at every change. The colour map is a property of the page: all views of the project read it. */
export async function followSettings(
  registry: ISettingRegistry | null,
  apply: (settings: Settings) => void,
): Promise<void> {
  const take = (settings: Settings) => {
    document.body.style.setProperty("--ess-colours", settings.colours);
    apply(settings);
  };
  take(defaults);
  if (!registry) return;
  const settings = await registry.load(PLUGIN);
  const read = () => take(readSettings(settings.composite));
  settings.changed.connect(read);
  read();
}
