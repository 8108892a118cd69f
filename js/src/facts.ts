/** What follows from the state: lengths, names, readings. Pure functions without the DOM. */
import type { Layer, ProfileData, State } from "./state";
import { counted } from "./wording";

/** Number of positions, 0 before anything is known. */
export function lengthOf(state: State): number {
  return (
    state.profile_data?.length ??
    state.operator_data?.length ??
    state.spectrum_data?.length ??
    state.tokens?.labels.length ??
    0
  );
}

export function layerIndex(state: State): number {
  return state.layers.findIndex((layer) => layer.name === state.selection.layer);
}

export function headsOf(state: State): number {
  return state.layers[layerIndex(state)]?.heads ?? state.profile_data?.heads ?? 1;
}

/** The layer that is selected, if it is known. */
export function selectedLayer(state: State): Layer | undefined {
  return state.layers[layerIndex(state)];
}

/** What a layer's head is called: its number among all groups, and what a group is there. */
export function groupName(layer: Layer | undefined, head: number): string {
  if (layer?.group === "layer") return "all channels";
  if (layer?.group === "operator") return layer.family;
  return `${layer?.group ?? "head"} ${layer?.groups?.[head] ?? head}`;
}

/** "4 other heads", "31 others of 1,536 channels" */
export function otherGroups(layer: Layer | undefined, heads: number): string {
  const group = layer?.group ?? "head";
  const others = heads - 1;
  if (layer?.groups) return `${others} others of ${counted(layer.of ?? heads, group)}`;
  return others === 1 ? `the other ${group}` : `the other ${others} ${group}s`;
}

/** Layer names without the components that all share: the number alone where that tells them apart. */
export function shortNames(layers: readonly Layer[]): string[] {
  const paths = layers.map((layer) => layer.name.split("."));
  if (paths.length < 2) return paths.map((path) => /\d+/.exec(path.join("."))?.[0] ?? path.join("."));
  const shortest = Math.min(...paths.map((path) => path.length));
  const shared = (at: (path: string[]) => string | undefined) => {
    const first = at(paths[0]!);
    return paths.every((path) => at(path) === first);
  };
  let head = 0;
  while (head < shortest - 1 && shared((path) => path[head])) head++;
  let tail = 0;
  while (tail < shortest - head - 1 && shared((path) => path[path.length - 1 - tail])) tail++;
  return paths.map((path) => path.slice(head, path.length - tail).join("."));
}

/**
 * The shortest labels that tell layers apart: their first number where all differ in it, with the last part of the
 * name where a block has several, else `shortNames`.
 */
export function rowLabels(layers: readonly Layer[]): string[] {
  const names = shortNames(layers);
  const numbers = names.map((name) => /^\d+(?=\.|$)/.exec(name)?.[0]);
  if (numbers.includes(undefined)) return names;
  const parts = names.map((name, k) => `${numbers[k]} ${name.split(".").slice(1).pop() ?? ""}`.trim());
  const candidates = [numbers as string[], parts];
  return candidates.find((labels) => new Set(labels).size === names.length) ?? names;
}

/** The layer that reproduces its output worst, measured against what its dtype explains. */
export function worstLayer(layers: readonly Layer[]): Layer | null {
  let worst: Layer | null = null;
  for (const layer of layers) {
    if (layer.residual === null) continue;
    if (worst?.residual == null || doubt(layer) > doubt(worst)) worst = layer;
  }
  return worst;
}

/** Residual over limit: above 1 the operator is not to be trusted; not a number counts as infinite. */
export function doubt(layer: Layer): number {
  if (layer.residual === null) return 0;
  const over = layer.residual / layer.limit;
  return Number.isNaN(over) ? Infinity : over;
}

/** The profile, if it is that of the selected layer. */
export function currentProfile(state: State): ProfileData | null {
  const { profile_data: profile, selection } = state;
  if (!profile || selection.head >= profile.heads) return null;
  return profile.layer === null || selection.layer === null || profile.layer === selection.layer
    ? profile
    : null;
}

export interface SpanFacts {
  count: number;
  mean: number;
  deviation: number;
  utilisation: number;
}

/** Mean, standard deviation and utilisation (a ratio of sums) of one head over positions [from, to). */
export function spanFacts(
  profile: ProfileData,
  head: number,
  [from, to]: readonly [number, number],
  limit: "state_size" | "ceiling",
): SpanFacts {
  const start = head * profile.length;
  let n = 0;
  let sum = 0;
  let squares = 0;
  let room = 0;
  for (let i = Math.max(0, from); i < Math.min(to, profile.length); i++) {
    const value = profile.ess[start + i]!;
    if (!Number.isFinite(value)) continue;
    n++;
    sum += value;
    squares += value * value;
    room += profile[limit][start + i]!;
  }
  const mean = n > 0 ? sum / n : NaN;
  const deviation = n > 0 ? Math.sqrt(Math.max(0, squares / n - mean * mean)) : NaN;
  return { count: n, mean, deviation, utilisation: room > 0 ? sum / room : NaN };
}

export interface Weight {
  position: number;
  weight: number;
}

/** The `count` entries of largest size, largest first; `offset` is the position of the first. */
export function strongest(weights: Float32Array, offset: number, count: number): Weight[] {
  return Array.from(weights, (weight, k) => ({ position: offset + k, weight }))
    .sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight))
    .slice(0, count);
}
