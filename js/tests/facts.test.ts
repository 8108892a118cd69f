import { expect, test } from "vitest";
import {
  doubt,
  groupName,
  otherGroups,
  rowLabels,
  shortNames,
  spanFacts,
  strongest,
  worstLayer,
} from "../src/facts";
import type { Layer } from "../src/state";
import { counted, quoted, ratio, shorten } from "../src/wording";
import { layers, smallState } from "./data";

function named(...names: string[]): Layer[] {
  return names.map((name) => ({ ...layers[0]!, name }));
}

test("layers are called by what tells them apart", () => {
  expect(shortNames(named("model.layers.0.attn", "model.layers.11.attn"))).toEqual(["0", "11"]);
  expect(shortNames(named("h.0.mixer", "h.0.mixer.conv1d", "h.1.mixer"))).toEqual([
    "0.mixer",
    "0.mixer.conv1d",
    "1.mixer",
  ]);
  expect(shortNames(named("encoder", "decoder"))).toEqual(["encoder", "decoder"]);
  expect(shortNames(named("a.b#0", "a.b#1"))).toEqual(["b#0", "b#1"]);
  expect(shortNames(named("transformer.h.3.attn"))).toEqual(["3"]);
  expect(shortNames(named("self_attn"))).toEqual(["self_attn"]);
  expect(shortNames([])).toEqual([]);
});

test("row labels are numbers where these are enough", () => {
  expect(rowLabels(named("l.0.mamba", "l.1.attn", "l.2.mamba"))).toEqual(["0", "1", "2"]);
  expect(rowLabels(named("l.0.mamba", "l.0.conv"))).toEqual(["mamba", "conv"]);
  expect(rowLabels(named("l.0.mamba", "l.0.conv", "l.1.mamba"))).toEqual(["0 mamba", "0 conv", "1 mamba"]);
  expect(rowLabels(named("h.0.mixer", "h.0.mixer.conv1d", "h.1.mixer"))).toEqual([
    "0 mixer",
    "0 conv1d",
    "1 mixer",
  ]);
  const twins = named("h.0.a.q", "h.0.b.q", "h.1.a.p");
  expect(rowLabels(twins)).toEqual(["0.a.q", "0.b.q", "1.a.p"]);
});

test("groups are called by what they are, and by their number among all", () => {
  const [layer] = layers as [Layer, Layer];
  expect(groupName(undefined, 3)).toBe("head 3");
  expect(groupName(layer, 1)).toBe("head 1");
  const channels = { ...layer, group: "channel", groups: [0, 48, 96], of: 1536 };
  expect(groupName(channels, 1)).toBe("channel 48");
  expect(groupName({ ...layer, group: "layer" }, 0)).toBe("all channels");
  expect(otherGroups(channels, 3)).toBe("2 others of 1,536 channels");
  expect(otherGroups(undefined, 2)).toBe("the other head");
  expect(otherGroups({ ...layer, group: "channel" }, 5)).toBe("the other 4 channels");
});

test("the worst layer is the one furthest above what its dtype explains", () => {
  const [exact, wrong] = layers as [Layer, Layer];
  const half = { ...exact, name: "half", residual: 5e-3, limit: 1e-2 };
  expect(worstLayer([exact, half, wrong])).toBe(wrong);
  expect(worstLayer([exact, half])).toBe(half);
  expect(worstLayer([{ ...exact, residual: null }])).toBeNull();
  expect(doubt({ ...exact, residual: NaN })).toBe(Infinity);
  expect(worstLayer([wrong, { ...exact, name: "nan", residual: NaN }])?.name).toBe("nan");
});

test("utilisation of a span is a ratio of sums", () => {
  const profile = smallState().profile_data!;
  const facts = spanFacts(profile, 0, [1, 4], "state_size");
  expect(facts.count).toBe(3);
  expect(facts.mean).toBeCloseTo(4 / 3, 12);
  expect(facts.deviation).toBeCloseTo(Math.sqrt(2) / 3, 12);
  expect(facts.utilisation).toBeCloseTo(4 / 6, 12);
  expect(spanFacts(profile, 0, [1, 4], "ceiling").utilisation).toBeCloseTo(1, 12);
  expect(spanFacts(profile, 1, [2, 99], "ceiling").mean).toBeCloseTo(1, 12);
});

test("positions without a value do not count", () => {
  const profile = { ...smallState().profile_data!, ess: Float32Array.of(0, NaN, 2, 1, NaN, NaN, NaN, NaN) };
  expect(spanFacts(profile, 0, [0, 4], "ceiling")).toMatchObject({ count: 3, mean: 1, utilisation: 1 });
  expect(spanFacts(profile, 1, [0, 4], "ceiling").mean).toBeNaN();
});

test("the strongest weights, with their sign", () => {
  const found = strongest(Float32Array.of(0.25, -0.75, 0.5), 10, 2);
  expect(found).toEqual([
    { position: 11, weight: -0.75 },
    { position: 12, weight: 0.5 },
  ]);
});

test("words", () => {
  expect(shorten("😀😀😀", 2)).toBe("😀…");
  expect(shorten("ab", 2)).toBe("ab");
  expect(quoted(" the")).toBe("“the”");
  expect(quoted("  ")).toBe("“··”");
  expect(counted(1, "token")).toBe("1 token");
  expect(counted(2048, "token")).toBe("2,048 tokens");
  expect(ratio(NaN)).toBe("–");
});
