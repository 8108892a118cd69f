/** What the panel asks the kernel and what it is answered; `ess_widgets/lab/service.py` is the other side. */

export const TARGET = "ess_widgets.lab";

export interface Mixer {
  path: string;
  kind: string;
  family: string;
  group: string;
  /** Heads or channels. */
  count: number | null;
  /** State-size that the architecture provides; null where it grows with the input or is not known. */
  state: number | null;
  grows: boolean;
}

export interface Model {
  /** Variable, or an expression such as `models['GLA']`; any string at all. */
  name: string;
  /** Tells two objects of one name apart. */
  id: string;
  kind: string;
  module: string;
  parameters: number;
  /** False where counting was cut short. */
  complete: boolean;
  device: string;
  dtype: string;
  training: boolean;
  /** Has an embedding: it reads tokens. */
  language: boolean;
  aliases: string[];
  mixers: Mixer[] | null;
}

export interface Listing {
  models: Model[];
  tokenizers: { name: string; kind: string }[];
  inputs: { name: string; kind: string; shape: number[] | null; dtype: string | null }[];
  omitted: number;
  seconds: number;
}

/** What a model reads. */
export type Source = { tokenizer: string; text: string | null } | { inputs: string } | { expression: string };

export interface Options {
  kind: "entropy" | "tolerance";
  tol: number;
  max_tokens: number;
  groups: number;
  scale: "log" | "linear";
}

export interface ScannedLayer {
  path: string;
  family: string;
  group: string;
  count: number;
  state: number | null;
  grows: boolean;
  residual: number | null;
  limit: number;
  verified: boolean;
}

export interface Scan {
  layers: ScannedLayer[];
  skipped: Record<string, string>;
}

/** Layers of a slow question that are done. */
export interface Progress {
  done: number;
  of: number;
}

/** How a view stands to what its name means now: weights were written, the name is another object's, or nobody's. */
export type ViewState = "current" | "changed" | "another" | "gone";

export type Code = "explore" | "diagnose" | "capture";

/** Each question with what is sent and what comes back. */
export interface Questions {
  models: [{ expanded: string[] }, Listing];
  /** `replaces` is the view that goes once the new one is there; what was set in it goes on. */
  explore: [
    { name: string; source: Source; options: Options; layer: string | null; replaces: string | null },
    { model_id: string },
  ];
  refresh: [{ model_id: string }, null];
  check: [{ model_id: string }, { state: ViewState }];
  diagnose: [
    { name: string; source: Source; options: Options; replaces: string | null },
    { model_id: string },
  ];
  scan: [{ name: string; source: Source; options: Options }, Scan];
  close: [{ model_id: string }, null];
  code: [{ what: Code; name: string; source: Source; options: Options }, { code: string }];
}

export type Reply<T> =
  { progress: Progress } | { ok: true; value: T } | { ok: false; error: { kind: string; message: string } };
