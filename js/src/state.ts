/** What the views show. Names and shapes are those of the Python traits (`ess_widgets/widgets/`). */

export type Kind = "tolerance" | "entropy";
export type Scale = "log" | "linear";
export type Limit = "state_size" | "ceiling";

/** How ESS is measured and drawn. */
export interface Settings {
  kind: Kind;
  tol: number;
  relative: boolean;
  /** Colour scale of the operator. */
  scale: Scale;
  /** What utilisation is taken against. */
  against: Limit;
  /** Of a training: the chosen step, null to follow the newest, and what its lines show. */
  step?: number | null;
  shown?: Shown;
}

export type Shown = "ess" | Limit;

/** What is brushed. Every view shows it; Python reads it. */
export interface Selection {
  /** Module path of the layer, as in `Explorer.layers`. */
  layer: string | null;
  head: number;
  position: number | null;
  /** Half-open range of positions. */
  span: [number, number] | null;
  /** While pinned, the position does not follow the pointer. */
  pinned: boolean;
  /** Index of the singular value that is pointed at. */
  mode: number | null;
}

export interface Tokens {
  labels: string[];
  /** Per position: 0 plain, 1 delimiter (sentence punctuation, newline), 2 special (end of text …). */
  marks: number[];
  /** True where labels are only the indices, so that there is no text to show. */
  indexed: boolean;
}

export interface Layer {
  name: string;
  family: string;
  heads: number;
  /** What has an operator of its own: "head", "channel" or "layer". */
  group?: string;
  /** Which of the layer's `of` groups its heads are, where not all are shown. */
  groups?: number[] | null;
  of?: number;
  /** Worst ‖Tu − y‖ / ‖y‖ over heads; null until it is known. */
  residual: number | null;
  /** Residual that the dtype explains; above it the operator is not to be trusted. */
  limit: number;
}

/**
 * The operator of one head as `side` × `side` cells. A cell is `block` × `block` entries, of which it holds
 * the one of largest magnitude.
 */
export interface OperatorData {
  layer: string | null;
  head: number;
  length: number;
  side: number;
  block: number;
  matrix: Float32Array;
}

/** A part of the operator, finer than `OperatorData` has it: `rows` × `columns` cells from (`top`, `left`) on. */
export interface DetailData {
  layer: string | null;
  head: number;
  top: number;
  left: number;
  rows: number;
  columns: number;
  block: number;
  matrix: Float32Array;
}

/** Singular values of H_i of one head, `length` × `rank`, descending, zero-padded. */
export interface SpectrumData {
  layer: string | null;
  head: number;
  length: number;
  rank: number;
  /** Rows of the operator that belong to a position; 1 where it is left out. */
  block?: number;
  values: Float32Array;
}

/** ESS along positions of all heads of a layer; each array is `heads` × `length`. */
export interface ProfileData {
  layer: string | null;
  heads: number;
  length: number;
  kind: Kind;
  tol: number;
  relative: boolean;
  /** NaN where it is not computed yet. */
  ess: Float32Array;
  state_size: Float32Array;
  ceiling: Float32Array;
}

/** One number per layer and head, `rows` × `columns`; NaN where it is not computed yet or there is no head. */
export interface GridData {
  rows: number;
  columns: number;
  kind: Kind;
  tol: number;
  relative: boolean;
  /** Mean ESS over positions. */
  ess: Float32Array;
  /** Σ ESS / Σ TSS and Σ ESS / Σ ceiling over positions. */
  state_size: Float32Array;
  ceiling: Float32Array;
  /** 0 where the number still belongs to an earlier input or measure, 1 where it is current. */
  fresh?: Float32Array;
}

/** ESS and metrics against the step of a training; decimated by the kernel. */
export interface TrainingData {
  kind: Kind;
  tol: number;
  relative: boolean;
  /** Layers, `names.length` × `columns`. */
  names: string[];
  columns: number;
  steps: Float32Array;
  ess: Float32Array;
  state_size: Float32Array;
  ceiling: Float32Array;
  /** `metrics.length` × `points`: mean, smallest and largest value of neighbouring steps. */
  metrics: string[];
  points: number;
  metric_steps: Float32Array;
  metric_mean: Float32Array;
  metric_low: Float32Array;
  metric_high: Float32Array;
  failed: { step: number; reason: string }[];
  last: number;
}

export interface Status {
  phase: "idle" | "running" | "computing" | "ready" | "error";
  message: string;
  /** 0 … 1, or null where it is not known. */
  progress: number | null;
}

/** Singular vectors of H_position: what each singular value carries, `count` rows each. */
export interface VectorData {
  layer: string | null;
  head: number;
  position: number;
  count: number;
  /** Right vectors, `count` × `position`: weights on the past inputs. */
  past: Float32Array;
  /** Left vectors, `count` × (`length` − `position`): weights on the present and future outputs. */
  future: Float32Array;
}

/** One parameter of a toy operator, as the kernel describes it. */
export type ToyControl = { name: string; label: string } & (
  | { type: "whole"; value: number; low: number; high: number }
  | { type: "seed"; value: number }
  | {
      type: "number";
      value: number | "inf";
      low: number;
      high: number;
      logarithmic: boolean;
      /** Values beyond the slider that its ends stand for, and what they are called. */
      ends: [number | "inf" | null, number | "inf" | null];
      words: [string, string];
    }
  | { type: "choice"; value: string; options: { value: string; label: string }[] }
  | { type: "poles"; value: WirePole[]; most: number; largest: number }
);

/** Real part, imaginary part (0 or more: a pair is written once), order. */
export type WirePole = [number, number, number];

/** A toy operator: what it can be set to, and its ESS in closed form. */
export interface ToyData {
  toy: string;
  length: number;
  /** The wish of the browser that it answers. */
  stamp: number;
  see: string;
  differs: string;
  formula: string;
  warnings: string[];
  controls: ToyControl[];
  /** A parameter that is a position on the picture, moved by `offset`. */
  handle: { parameter: string; offset: number; corner: boolean } | null;
  /** One rank per position. */
  closed_form: Float32Array;
}

/** The part of the operator that is shown, in positions; operator and profile share `x`. */
export interface Zoom {
  x: [number, number];
  y: [number, number];
}

export interface State {
  /** Null where there is no text to edit. */
  text: string | null;
  title: string;
  settings: Settings;
  selection: Selection;
  tokens: Tokens | null;
  layers: Layer[];
  operator_data: OperatorData | null;
  spectrum_data: SpectrumData | null;
  profile_data: ProfileData | null;
  grid_data: GridData | null;
  training_data: TrainingData | null;
  /** The toy operators there are, and the one that is shown. */
  menu: { name: string; title: string }[];
  toy_data: ToyData | null;
  status: Status;
  vectors: VectorData | null;
  /** What zooming into a large operator has fetched. */
  detail: DetailData | null;
  /** Null shows everything. Lives in the browser alone. */
  zoom: Zoom | null;
}

export const initialState: State = {
  text: null,
  title: "",
  settings: { kind: "entropy", tol: 1e-3, relative: false, scale: "log", against: "ceiling" },
  selection: { layer: null, head: 0, position: null, span: null, pinned: false, mode: null },
  tokens: null,
  layers: [],
  operator_data: null,
  spectrum_data: null,
  profile_data: null,
  grid_data: null,
  training_data: null,
  menu: [],
  toy_data: null,
  status: { phase: "idle", message: "", progress: null },
  vectors: null,
  detail: null,
  zoom: null,
};
