"""State modulation: dips that are known, numbers worked out again in plain loops, and tests that keep their level."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import ess_widgets as ew
from ess_widgets.demo.miniatures.scans import chunk_gla
from ess_widgets.demo.small import ByteTokenizer
from ess_widgets.learn.modulation.delimiters import find, wanted
from ess_widgets.learn.modulation.dips import Shoulders, measure, placebos, shoulders
from ess_widgets.learn.modulation.significance import attainable, holm, over_texts, sign_flips

BYTES = ByteTokenizer()
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def words(generator: np.random.Generator, *lengths: int, between: str = "\0") -> str:
    return between.join("".join(generator.choice(list(LETTERS), length)) for length in lengths)


class Gates(nn.Module):
    """Gated linear attention that forgets everything at byte 0 (``late=0``), or at the byte after it (``late=1``)."""

    def __init__(self, late: int = 1, heads: int = 3, dim: int = 4) -> None:
        super().__init__()
        self.late, self.heads, self.dim = late, heads, dim
        self.embed = nn.Embedding(256, 2 * heads * dim)

    def forward(self, ids: Tensor) -> Tensor:
        at = torch.arange(ids.shape[1], dtype=torch.float32)[:, None] * torch.arange(
            1, 2 * self.heads * self.dim + 1
        )
        x = (self.embed(ids) + torch.sin(at)).unflatten(-1, (2, self.heads, self.dim))
        cut = (ids == 0).roll(self.late, 1)
        g = torch.zeros_like(x[:, :, 0]).masked_fill(cut[..., None, None], -300.0)
        return chunk_gla(x[:, :, 0], x[:, :, 1], torch.ones_like(g), g, scale=1.0)


class Noise(nn.Module):
    """Attention with random scores, other ones for every text and layer: no position is special."""

    def __init__(self, layers: int = 2, spread: float = 2.0, heads: int = 1) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(NoisyAttention(k, spread, heads) for k in range(layers))

    def forward(self, ids: Tensor) -> list[Tensor]:
        return [mixer(ids) for mixer in self.mixers]


class NoisyAttention(nn.Module):
    def __init__(self, number: int, spread: float, heads: int) -> None:
        super().__init__()
        self.number, self.spread, self.heads = number, spread, heads

    def forward(self, ids: Tensor) -> Tensor:
        L = ids.shape[1]
        seed = int((ids[0] * torch.arange(1, L + 1) ** 2).sum()) * 1009 + self.number
        scores = self.spread * torch.randn(1, self.heads, L, L, generator=torch.Generator().manual_seed(seed))
        scores = scores.masked_fill(torch.ones(L, L, dtype=torch.bool).triu(1), -math.inf)
        return scores.softmax(-1) @ torch.ones(1, self.heads, L, 2)


# Dips that are known


@pytest.mark.parametrize(("late", "position"), [(0, 20), (1, 21)])
def test_a_model_that_forgets_at_the_delimiter_dips_to_nothing_there(late: int, position: int) -> None:
    text = words(np.random.default_rng(0), 20, 20)
    found = ew.modulation(Gates(late), BYTES, text, 0, kind="tolerance", tol=1e-5, window=8)
    table = found.table
    assert list(table["head"]) == [0, 1, 2]
    assert (table["position"] == position).all()
    assert (table["ess"] == 0).all()
    assert (table["depth"] == 1).all() and (table["depth_raw"] == 1).all()
    # Four features: ESS is min(4, distance) beside the cut and 4 elsewhere. Shoulders lie 3 to 8 from the nearest cut.
    left = range(20 - 8, 20 - 2)
    right = range(21 + 3, 21 + 9)
    mean = [np.mean([min(4, abs(i - position)) for i in side]) for side in (left, right)]
    weight = (position - np.mean(left)) / (np.mean(right) - np.mean(left))
    np.testing.assert_allclose(table["expected"], mean[0] * (1 - weight) + mean[1] * weight, rtol=1e-12)
    assert (table["width"] == 3).all()  # 1, 0, 1 lack at least half of nearly 4; 2 does not
    # With a letter instead nothing is forgotten: the rank is 4 throughout.
    assert (table["replaced_depth"] == 0).all() and (table["paired"] == 1).all()
    assert found.layers["depth"].item() == 1 and found.layers["replaced"].item() == 0


def test_a_model_that_cannot_tell_delimiters_has_no_difference_to_the_counterfactual() -> None:
    class Blind(Noise):
        def forward(self, ids: Tensor) -> list[Tensor]:
            return super().forward(ids.masked_fill(ids == 0, ord(",")))

    generator = np.random.default_rng(1)
    texts = [words(generator, 12, 14, 12) for _ in range(7)]
    found = ew.modulation(Blind(), BYTES, texts, 0, window=6)
    assert (found.table["paired"] == 0).all()
    assert (found.layers["paired_p"] == 1).all() and (found.layers["paired_p_max"] == 1).all()
    assert (found.layers["paired_low"] == 0).all() and (found.layers["paired_effect"] == 0).all()


def test_the_ceiling_alone_is_no_dip() -> None:
    """Random scores reach the ceiling everywhere."""
    text = words(np.random.default_rng(2), 20, 19)
    found = ew.modulation(Noise(1), BYTES, text, 0, kind="tolerance", tol=1e-7, window=7)
    assert (found.table["ess"] == found.table["ceiling"]).all()
    np.testing.assert_allclose(found.table["depth"], 0, atol=1e-12)
    np.testing.assert_allclose(found.table["placebo_lost"], 0, atol=1e-12)
    assert (found.table["depth_raw"].abs() > 1e-3).any()  # above the straight line where the ceiling bends


def test_what_a_document_mask_cuts_is_the_ceilings_doing() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(256, 64)

        def forward(self, ids: Tensor) -> Tensor:
            document = (ids == 0).cumsum(-1) - (ids == 0).long()
            mask = (document[:, :, None] == document[:, None]).tril()[:, None]
            q = k = v = self.embed(ids)[:, None]
            return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    text = words(np.random.default_rng(3), 20, 20)
    run = ew.modulation(Masked(), BYTES, text, 0, kind="tolerance", tol=1e-4, window=6).readings[0].curves
    assert run.ess[0, 21] == run.ceiling[0, 21] == 0 and run.ceiling[0, 20] == 20
    dips = measure(run.ess, run.ceiling, range(21, 22), Shoulders(range(14, 19), range(24, 28)))
    assert dips.depth_raw.item() == 1 and dips.depth.item() == 0 and dips.lost.item() == 0
    assert np.isnan(dips.width).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 1.0))
def test_any_multiple_of_any_ceiling_has_depth_0(seed: int, share: float) -> None:
    generator = np.random.default_rng(seed)
    limit = generator.integers(0, 9, (4, 30)).astype(float)
    dips = measure(share * limit, limit, range(14, 17), Shoulders(range(8, 13), range(18, 20)))
    np.testing.assert_allclose(dips.lost, 0, atol=1e-12)
    np.testing.assert_allclose(np.nan_to_num(dips.depth), 0, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 100.0))
def test_depth_and_width_do_not_change_with_the_scale_and_a_reversed_sequence_dips_alike(
    seed: int, scale: float
) -> None:
    generator = np.random.default_rng(seed)
    curve, limit = generator.random((3, 31)), np.full((3, 31), 9.0)
    there = measure(curve, limit, range(15, 16), Shoulders(range(8, 13), range(18, 22)))
    scaled = measure(scale * curve, scale * limit, range(15, 16), Shoulders(range(8, 13), range(18, 22)))
    back = measure(curve[:, ::-1], limit, range(15, 16), Shoulders(range(9, 13), range(18, 23)))
    for other in (scaled, back):
        np.testing.assert_allclose(other.depth, there.depth, rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(other.width, there.width)


# The same numbers by plain loops


def by_hand(
    curve: np.ndarray, limit: np.ndarray, start: int, stop: int, taken: set[int], window: int
) -> dict[str, float]:
    gap = window // 4
    L = len(curve)
    left, right = [], []
    i = start - 1
    while i >= start - window and i not in taken:
        if start - i > gap:
            left.append(i)
        i -= 1
    i = stop + 1
    while i <= stop + window and i < L and i not in taken:
        if i - stop > gap:
            right.append(i)
        i += 1

    def straight(values: np.ndarray, at: int) -> float:
        x0, x1 = sum(left) / len(left), sum(right) / len(right)
        y0, y1 = sum(values[i] for i in left) / len(left), sum(values[i] for i in right) / len(right)
        return y0 + (y1 - y0) * min(max((at - x0) / (x1 - x0), 0.0), 1.0)

    def lack(i: int) -> float:
        free, bound = min(straight(curve, i), limit[i]), straight(curve, i) * limit[i] / straight(limit, i)
        return min(max(curve[i], min(free, bound)), max(free, bound)) - curve[i]

    at = max(range(start, stop + 1), key=lambda i: lack(i) + 1e-6 * (straight(curve, i) - curve[i]))
    low, high = at, at
    while low - 1 >= min(left) and lack(low - 1) >= lack(at) / 2:
        low -= 1
    while high + 1 <= max(right) and lack(high + 1) >= lack(at) / 2:
        high += 1
    expected = lack(at) + curve[at]
    return {
        "position": at,
        "ess": curve[at],
        "expected": expected,
        "lost": lack(at),
        "depth": lack(at) / expected,
        "depth_raw": 1 - curve[at] / straight(curve, at),
        "width": high - low + 1 if lack(at) > 0 else math.nan,
    }


def effective(T: np.ndarray, kind: str, tol: float) -> np.ndarray:
    out = np.zeros(len(T))
    for i in range(1, len(T)):
        sigma = np.linalg.svd(T[i:, :i], compute_uv=False)
        if kind == "tolerance":
            out[i] = (sigma > tol).sum()
        else:
            p = sigma[sigma > 0] / sigma.sum()
            out[i] = math.exp(-(p * np.log(p)).sum())
    return out


@pytest.mark.parametrize(("kind", "tol"), [("entropy", 1e-3), ("tolerance", 1e-2)])
def test_every_number_of_a_trained_model_worked_out_again(small_model: Any, kind: Any, tol: float) -> None:
    model, tokenizer = small_model
    texts = [
        "The king is dead. Long live the king! Who comes here tonight? Nobody.",
        "Good morrow, cousin. Is the day so young? But new struck nine.\0Ay me! sad hours seem long to me.",
        "I pray thee now. Give me the letter that came today.\0To be or not to be.",
    ]
    window = 8
    found = ew.modulation(model, tokenizer, texts, kind=kind, tol=tol, window=window, replacement=",")
    table = found.table.set_index(["text", "start", "layer", "head"])
    spots = {
        0: [(16, 17, "."), (36, 37, "!"), (60, 61, "?")],
        1: [(19, 20, "."), (40, 41, "?"), (61, 63, "<|endoftext|>"), (68, 69, "!")],
        2: [(15, 16, "."), (51, 53, "<|endoftext|>")],
    }  # without the last full stops, which end their texts
    seen = 0
    totals: dict[tuple[int, str], np.ndarray] = {}
    for k, text in enumerate(texts):
        ids = [0 if c == "\0" else ord(c) for c in text]
        every = [(s, e) for s, e, _ in spots[k]] + [(len(ids) - 1, len(ids))]
        other = list(ids)
        for s, e in every:
            other[s:e] = [ord(",")] * (e - s)
        L = len(ids)
        taken = {i for s, e in every for i in range(s, e + 1)}
        runs = [ew.capture(model, torch.tensor([x])) for x in (ids, other)]
        limit = np.minimum(np.arange(L), L - np.arange(L)).astype(float)
        for layer in runs[0]:
            for head in range(4):
                T, S = (run[layer].operator.matrix()[0, head].double().numpy() for run in runs)
                curve, swapped = effective(T, kind, tol), effective(S, kind, tol)
                for s, e, name in spots[k]:
                    if s - window < 1 or e + window > L - 1:
                        assert (k, s, layer, head) not in table.index
                        continue
                    row = table.loc[(k, s, layer, head)]
                    assert row["kind"] == name and row["stop"] == e
                    expected = by_hand(curve, limit, s, e, taken, window)
                    swap = by_hand(swapped, limit, s, e, taken, window)
                    for column, value in expected.items():
                        assert row[column] == pytest.approx(value, rel=2e-3, abs=2e-3, nan_ok=True), column
                    assert row["replaced_lost"] == pytest.approx(swap["lost"], rel=2e-3, abs=2e-3)
                    assert row["paired"] == pytest.approx(expected["depth"] - swap["depth"], abs=2e-3)
                    sham = []
                    for p in range(window + 1, L - window - (e - s)):
                        if taken & set(range(p - window // 4, p + (e - s) + window // 4 + 1)):
                            continue
                        flanks = shoulders(range(p, p + e - s + 1), taken, L, window, window // 4)
                        if not isinstance(flanks, str):
                            sham.append(by_hand(curve, limit, p, p + e - s, taken, window))
                    assert row["placebos"] == len(sham) > 0
                    lost = np.mean([one["lost"] for one in sham])
                    assert row["placebo_lost"] == pytest.approx(lost, rel=2e-3, abs=2e-3)
                    sums = totals.setdefault((k, layer), np.zeros(6))
                    whole = np.mean([one["expected"] for one in sham])
                    sums += [
                        expected["lost"],
                        expected["expected"],
                        lost,
                        whole,
                        swap["lost"],
                        swap["expected"],
                    ]
                    seen += 1
    assert seen == len(table)
    for layer, row in found.layers.iterrows():
        each = np.array([totals[k, layer][::2] / totals[k, layer][1::2] for k in range(3)])
        np.testing.assert_allclose(
            row[["depth", "placebo", "replaced"]].astype(float), each.mean(0), atol=2e-3
        )
        for what, sides in (("excess", "greater"), ("paired", "two-sided")):
            difference = each[:, 0] - (each[:, 1].clip(min=0) if what == "excess" else each[:, 2])
            assert row[what] == pytest.approx(difference.mean(), abs=3e-3)
            assert row[f"{what}_positive"] == (difference > 0).mean()
            exact = scipy.stats.permutation_test(
                (difference,), np.mean, permutation_type="samples", n_resamples=99, alternative=sides
            )
            assert row[f"{what}_p"] == pytest.approx(exact.pvalue)
    assert found.layers["residual"].max() < 1e-5
    assert set(found.table["measure"]) == set(found.layers["measure"]) == {found.measure}


# Where the delimiters are


def labels(*tokens: str) -> tuple[list[int], list[str]]:
    return list(range(len(tokens))), list(tokens)


class Parts:
    """A tokenizer with the special token 99."""

    all_special_ids = (99,)

    def decode(self, ids: list[int]) -> str:
        return "<end>" if ids == [99] else "?"


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["Hi", ".", " You"], [(1, 2, ".", ".")]),
        (["Hi", ".\n", "You"], [(1, 2, ".", ".\n")]),
        (["He said", '."', " You"], [(1, 2, ".", '."')]),
        (["w", "h", "y", "?", '"', " ", "n"], [(3, 5, "?", '?"')]),
        (["well", ".", ".", ".", " so"], [(1, 4, ".", "...")]),
        (["no", "?!", " ", "ok"], [(1, 2, "!", "?!")]),
        (["3", ".", "14", " www", ".", "x", ".", "org"], []),
        (["end", "."], [(1, 2, ".", ".")]),
        (["so", "…", "⋯", "⋯", " then"], [(1, 4, "…", "…")]),
        (["好", "。", "再"], [(1, 2, "。", "。")]),
        (["word.", " next"], []),
    ],
)
def test_ends_of_sentences(tokens: list[str], expected: list[tuple[int, int, str, str]]) -> None:
    found = find(*labels(*tokens), "⋯", wanted(Parts(), None))
    assert [(one.start, one.stop, one.kind, one.label) for one in found] == expected


def test_an_end_of_text_counts_more_than_the_full_stop_before_it() -> None:
    found = find([1, 2, 99, 3, 99], ["a", ".", "<end>", "b", "<end>"], "⋯", wanted(Parts(), None))
    assert [(one.start, one.stop, one.kind) for one in found] == [(1, 3, "<end>"), (4, 5, "<end>")]
    assert list(found[0].cuts) == [1, 2, 3]


def test_named_delimiters_may_be_several_tokens_and_have_kinds() -> None:
    ids, shown = labels("one", "\n", "\n", "two", " -", "-", " three", " four-", "-five")
    found = find(ids, shown, "⋯", wanted(Parts(), {"break": ["\n\n", "--"]}))
    assert [(one.start, one.stop, one.kind) for one in found] == [(1, 3, "break"), (4, 6, "break")]
    found = find(ids, shown, "⋯", wanted(Parts(), [np.int64(3)]))
    assert [(one.start, one.stop) for one in found] == [(3, 4)]


def test_a_delimiter_that_is_a_part_of_words_is_refused() -> None:
    class Words(ByteTokenizer):
        """A token per word."""

        words: tuple[str, ...] = ("hello ", "all ", "of ", "you ", "here", ". ")

        def encode(self, text: str) -> list[int]:
            return [self.words.index(word) for word in ("hello ", "all ", "of ", "you ", "here", ". ") * 4]

        def decode(self, ids: Any) -> str:
            return "".join(self.words[i] for i in torch.as_tensor(ids).reshape(-1).tolist())

    with pytest.raises(ValueError, match=r"'ll' .* only inside tokens that hold other letters"):
        ew.modulation(Noise(1), Words(), "any", [".", "ll"])


def test_a_delimiter_of_several_tokens_is_replaced_whole() -> None:
    text = words(np.random.default_rng(4), 20, 20, between="\n\n")
    found = ew.modulation(Noise(1), BYTES, text, "\n\n", window=5)
    reading = found.readings[0]
    assert reading.replaced_ids == [*reading.ids[:20], 44, 44, *reading.ids[22:]]
    given = ew.modulation(Noise(1), BYTES, text, "\n\n", "x.", window=5).readings[0]
    assert given.replaced_ids[20:22] == [ord("x"), ord(".")]
    assert ew.modulation(Noise(1), BYTES, text, "\n\n", 65, window=5).readings[0].replaced_ids[20:22] == [
        65,
        65,
    ]


def test_the_default_replacement_is_not_what_delimits() -> None:
    text = words(np.random.default_rng(5), 20, 20, between=",")
    assert ew.modulation(Noise(1), BYTES, text, ",", window=5).readings[0].replacement == ";"


def test_tokens_that_the_tokenizer_adds_at_the_ends_are_no_delimiters_to_measure() -> None:
    class Framed(ByteTokenizer):
        def encode(self, text: str) -> list[int]:
            return [0, *super().encode(text), 0]

    text = words(np.random.default_rng(6), 20, 20)
    found = ew.modulation(Gates(), Framed(), text, window=6, replacement=ord("a"))
    assert list(found.table["start"].unique()) == [21]
    assert [line.split(": ")[1] for line in found.skipped] == [
        "fewer than 6 positions from the start",
        "fewer than 6 positions from the end",
    ]


def test_a_real_tokenizer_and_model(smollm2: Any) -> None:
    model, tokenizer = smollm2
    joined = "<|endoftext|>".join(
        ["The cat sat on the mat and looked at the rain", "Every morning the baker opens his shop at six"] * 2
    )
    found = ew.modulation(model, tokenizer, joined, kind="tolerance", tol=1e-2, layers=[3, 16, 17])
    assert set(found.table["kind"]) == {"<|endoftext|>"} and len(found.layers) == 3
    reading = found.readings[0]
    spots = [k for k, i in enumerate(reading.ids) if i == tokenizer.convert_tokens_to_ids("<|endoftext|>")]
    assert list(found.table["start"].unique()) == spots
    assert [reading.replaced_ids[k] for k in spots] == [tokenizer.encode(",")[0]] * 3
    assert (found.layers["depth"] > found.layers["replaced"]).all()
    assert found.families.index.tolist() == ["softmax attention"] and len(found.heads) == 27


# Where dips may be measured


def test_shoulders_end_at_other_delimiters_and_need_room() -> None:
    taken = [4, 5, 20, 21, 26, 27]
    sides = shoulders(range(20, 22), taken, 60, 8, 2)
    assert sides == Shoulders(range(12, 18), range(24, 26))
    assert shoulders(range(4, 6), taken, 60, 8, 2) == "fewer than 8 positions from the start"
    assert shoulders(range(52, 54), taken, 60, 8, 2) == "fewer than 8 positions from the end"
    assert shoulders(range(24, 25), taken, 60, 8, 2) == "another delimiter is too close"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 60), max_size=5), st.integers(3, 9), st.integers(2, 4))
def test_placebos_and_their_shoulders_keep_off_delimiters_and_ends(
    taken: list[int], window: int, size: int
) -> None:
    gap = window // 4
    for cuts, sides in placebos(size, taken, 64, window, gap):
        used = {*cuts, *sides.left, *sides.right}
        assert len(cuts) == size and not used & set(taken)
        assert min(used) >= 1 and max(used) <= 63
        assert max(sides.left) == cuts[0] - gap - 1 and min(sides.right) == cuts[-1] + gap + 1
        assert all(abs(at - i) > gap for at in taken for i in cuts)


def test_texts_of_different_lengths_and_without_delimiters() -> None:
    generator = np.random.default_rng(7)
    texts = [words(generator, 20, 20), words(generator, 50), words(generator, 15, 30, 40)]
    found = ew.modulation(Noise(1), BYTES, texts, 0, window=6)
    assert [reading.index for reading in found.readings] == [0, 2]
    assert found.skipped == ["text 1: no delimiter"]
    assert found.table.groupby("text").size().to_dict() == {0: 1, 2: 2}
    assert found.layers["texts"].item() == 2


def test_the_window_is_half_the_usual_distance_between_delimiters() -> None:
    generator = np.random.default_rng(8)
    assert ew.modulation(Noise(1), BYTES, words(generator, 21, 21, 21), 0).window == 10
    assert ew.modulation(Noise(1), BYTES, words(generator, 150, 150), 0).window == 32


# Tests keep their level


@pytest.mark.parametrize("documents", [2, 3])
def test_false_positives_are_no_more_than_promised(documents: int) -> None:
    """A model in which no position differs from another: p-values of 160 heads, in 5 runs of 32."""
    generator = np.random.default_rng(documents)
    p: dict[str, list[float]] = {"excess": [], "paired": []}
    families = dict.fromkeys(p, 0)
    for _ in range(5):
        texts = [words(generator, *generator.integers(10, 14, documents)) for _ in range(7)]
        heads = ew.modulation(Noise(1, 3.0, heads=32), BYTES, texts, 0, window=5).heads
        for what, values in p.items():
            values += list(heads[f"{what}_p"])
            families[what] += int(heads[f"{what}_p_max"].min() < 0.05)
    for level in (1 / 16, 1 / 8, 1 / 4):
        # 160 independent draws; beyond these bounds with a probability of 1e-4.
        low, high = scipy.stats.binom.ppf([5e-5, 1 - 5e-5], 160, level)
        assert (np.array(p["paired"]) <= level).sum() <= high
        if documents == 3:  # of two documents the second begins where the ceiling bends: that explains most
            assert (np.array(p["paired"]) <= level).sum() >= low
        assert (np.array(p["excess"]) <= level).sum() <= high  # arched curves make it rarer
    assert max(families.values()) <= scipy.stats.binom.ppf(1 - 1e-3, 5, 0.05)


def test_a_dip_in_every_text_is_found() -> None:
    generator = np.random.default_rng(10)
    texts = [words(generator, *generator.integers(14, 20, 3)) for _ in range(8)]
    found = ew.modulation(Gates(), BYTES, texts, 0, kind="tolerance", tol=1e-5, window=6)
    layer = found.layers.iloc[0]
    assert layer["depth"] == 1 and layer["replaced"] == 0 and layer["paired_effect"] == math.inf
    assert layer["paired_p"] == layer["paired_p_holm"] == layer["paired_p_max"] == 1 / 128
    assert layer["excess_p"] == 1 / 256
    assert layer["excess_low"] > 0.9 and layer["texts"] == 8 and layer["dips"] == 8 * 2 * 3
    assert found.overall["depth"].item() == 1 and found.delimiters.index.tolist() == ["<|endoftext|>"]


@pytest.mark.parametrize("texts", [2, 5, 9])
def test_sign_flips_are_scipys(texts: int) -> None:
    values = np.random.default_rng(texts).normal(0.4, 1, (texts, 3))
    p, _ = sign_flips(values)
    for column, mine in zip(values.T, p, strict=True):
        theirs = scipy.stats.permutation_test(
            (column,), np.mean, permutation_type="samples", n_resamples=9999
        )
        assert mine == pytest.approx(theirs.pvalue)
    upper, _ = sign_flips(values, greater=True)
    for column, mine in zip(values.T, upper, strict=True):
        theirs = scipy.stats.permutation_test(
            (column,), np.mean, permutation_type="samples", n_resamples=9999, alternative="greater"
        )
        assert mine == pytest.approx(theirs.pvalue)
    assert p.min() >= attainable(texts)


def test_many_texts_are_flipped_at_random_close_to_all_flips() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, (15, 2))
    p, _ = sign_flips(values)
    signs = 1 - 2 * ((np.arange(2**15)[:, None] >> np.arange(15)) & 1)
    exact = (np.abs(signs @ values) >= np.abs(values.sum(0)) - 1e-12).mean(0)
    np.testing.assert_allclose(p, exact, atol=4 * np.sqrt(0.25 / 9999))
    np.testing.assert_array_equal(p, sign_flips(values)[0])


def test_step_down_maxima_by_the_definition() -> None:
    values = np.random.default_rng(3).normal(0.5, 1, (6, 4))
    scaled = values / np.sqrt((values**2).sum(0))
    signs = 1 - 2 * ((np.arange(64)[:, None] >> np.arange(6)) & 1)
    flipped, observed = np.abs(signs @ scaled), np.abs(scaled.sum(0))
    order = np.argsort(-observed)
    expected, so_far = np.zeros(4), 0.0
    for place, j in enumerate(order):
        p = (flipped[:, order[place:]].max(1) >= observed[j] - 1e-12).mean()
        so_far = expected[j] = max(so_far, p)
    p, p_max = sign_flips(values)
    np.testing.assert_allclose(p_max, expected)
    assert (p_max >= p).all()


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, np.nan, 0.03])), [0.03, 0.06, np.nan, 0.06])
    np.testing.assert_allclose(holm(np.array([0.6, 0.5])), [1, 1])


def test_intervals_are_scipys_and_unknown_texts_do_not_count() -> None:
    values = np.random.default_rng(4).gamma(2.0, 1.0, (12, 2))
    found = over_texts(values)
    for j in range(2):
        theirs = scipy.stats.bootstrap(
            (values[:, j],), np.mean, method="BCa", n_resamples=20000
        ).confidence_interval
        spread = theirs.high - theirs.low
        np.testing.assert_allclose([found.low[j], found.high[j]], theirs, atol=0.06 * spread)
    some = np.vstack([values, [[np.nan, np.nan]]])
    np.testing.assert_array_equal(over_texts(some).p, found.p)
    np.testing.assert_array_equal(over_texts(some).texts, [12, 12])
    alone = over_texts(np.array([[0.5, np.nan], [np.nan, np.nan]]))
    assert np.isnan(alone.p).all() and alone.mean[0] == 0.5 and alone.texts.tolist() == [1, 0]


# What is shown


def test_a_single_text_is_measured_but_not_tested() -> None:
    found = ew.modulation(Noise(2), BYTES, words(np.random.default_rng(11), 20, 20, 20), 0, window=6)
    assert not found.testable
    assert np.isfinite(found.layers["depth"]).all() and found.layers["paired_p"].isna().all()
    assert "One text: no test is possible" in str(found)
    assert "entropy" in str(found) and "p_max" not in str(found)


def test_the_words_say_what_few_texts_cannot_show() -> None:
    generator = np.random.default_rng(12)
    texts = [words(generator, 15, 15) for _ in range(7)]
    few = ew.modulation(Noise(2), BYTES, texts[:3], 0, window=5, kind="tolerance", tol=0.1)
    assert "3 of them cannot give a two-sided p below 0.25, so nothing can be significant" in str(few)
    assert "tolerance τ=0.1" in str(few)
    more = ew.modulation(Noise(4), BYTES, texts, 0, window=5)
    assert "cannot give a two-sided p below 0.016, nor below 0.062 after Holm over 4 layers" in str(more)


def test_html_is_escaped() -> None:
    class Odd(ByteTokenizer):
        def decode(self, ids: Any) -> str:
            return "".join(
                "<script>" if i == 0 else chr(i) for i in torch.as_tensor(ids).reshape(-1).tolist()
            )

    html = ew.modulation(Gates(), Odd(), words(np.random.default_rng(13), 20, 20), 0, window=6)._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;" in html and "<table" in html


def test_the_figure_draws_the_curves(tmp_path: Any) -> None:
    generator = np.random.default_rng(14)
    found = ew.modulation(Gates(), BYTES, [words(generator, 20, 20), words(generator, 25, 20)], 0, window=6)
    figure = found.figure(text=1, head=2)
    along, depths = figure.axes
    reading = found.readings[1]
    lines = [line.get_ydata() for line in along.lines if len(line.get_ydata()) == len(reading.ids)]
    np.testing.assert_array_equal(lines[0], reading.replaced.ess[2])
    np.testing.assert_array_equal(lines[1], reading.curves.ess[2])
    assert "entropy" in along.get_ylabel() and "entropy" in depths.get_ylabel()
    found.figure().savefig(tmp_path / "modulation.png")
    for wrong in ({"text": 5}, {"layer": "none"}, {"layer": 7}, {"head": 9}):
        with pytest.raises(ValueError, match="measured"):
            found.figure(**wrong)


def test_the_explorer_opens_at_the_deepest_dip(small_model: Any) -> None:
    model, tokenizer = small_model
    found = ew.modulation(
        model, tokenizer, "The king is dead. Long live the king! Who comes here tonight?", window=8
    )
    deepest = found.deepest
    assert deepest["lost"] == found.table["lost"].max()
    explorer = found.explore()
    try:
        explorer.wait()
        assert explorer.selection.layer == deepest["layer"] and explorer.selection.head == deepest["head"]
        assert explorer.selection.position == deepest["position"]
        assert explorer.profile[deepest["head"], deepest["position"]] == pytest.approx(
            deepest["ess"], rel=1e-3
        )
    finally:
        explorer.close()
    with pytest.raises(ValueError, match="not in the table"):
        found.explore(10**6)


def test_frames_are_copies_and_heads_can_be_thinned_out() -> None:
    text = words(np.random.default_rng(15), 20, 20)
    found = ew.modulation(Gates(heads=7), BYTES, text, 0, window=6, groups=3)
    assert list(found.table["head"]) == [0, 2, 4]
    copy = found.frame()
    copy["depth"] = 7.0
    assert (found.table["depth"] != 7).all()
    assert list(found.texts["layer"]) == list(found.layers.index)


# What is refused


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"text": "no delimiters here"}, ValueError, "no delimiter is in the text: looked for"),
        ({"text": ""}, ValueError, "text 0 is empty"),
        ({"text": "a"}, ValueError, "text 0 is a single token"),
        ({"text": []}, ValueError, "there is no text"),
        ({"text": 5}, TypeError, "text must be a text or several"),
        ({"text": "abc. def"}, ValueError, "no delimiter has 4 positions on both sides"),
        ({"delimiters": "#"}, ValueError, "no delimiter is in the text"),
        ({"delimiters": [".", "#"]}, ValueError, "'#' is in none of the texts"),
        ({"delimiters": [".", 7]}, ValueError, "token 7 is in none of the texts"),
        ({"delimiters": 999}, ValueError, "999 is no token"),
        ({"delimiters": []}, ValueError, "delimiters is empty"),
        ({"delimiters": ""}, ValueError, "empty text"),
        ({"delimiters": 1.5}, TypeError, "delimiters must be"),
        ({"delimiters": [None]}, TypeError, "a delimiter is a text or a token id"),
        ({"replacement": ".."}, ValueError, "is 2 tokens, but the delimiter '.' is 1"),
        ({"replacement": "."}, ValueError, "replaced by itself"),
        ({"replacement": 1.5}, TypeError, "replacement must be"),
        ({"replacement": 999}, ValueError, "999 is no token"),
        ({"kind": "rank"}, ValueError, "kind must be"),
        ({"kind": "tolerance", "tol": -1.0}, ValueError, "tol must be positive"),
        ({"window": 2}, ValueError, "window must be at least 3"),
        ({"window": 2.5}, TypeError, "window must be an integer"),
        ({"groups": 0}, ValueError, "groups must be at least 1"),
        ({"layers": "nowhere"}, ew.capture.__globals__["UnknownLayerError"], "nowhere"),
        ({"model": 5}, TypeError, "model must be"),
        ({"tokenizer": object()}, TypeError, "has no encode"),
    ],
)
def test_bad_input_is_explained(options: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {
        "model": Noise(1),
        "tokenizer": BYTES,
        "text": "hello all of you here. hello to all of you again",
    }
    with pytest.raises(error, match=message):
        ew.modulation(**{**given, **options})


def test_a_model_that_takes_fewer_tokens_says_so() -> None:
    model = Noise(1)
    model.config = type("Config", (), {"max_position_embeddings": 10})()
    with pytest.raises(ValueError, match="text 0 has 21 tokens; this model takes at most 10"):
        ew.modulation(model, BYTES, "ten letters. and more")


def test_layers_that_do_not_lie_along_the_tokens_are_left_out() -> None:
    class Halved(Noise):
        def forward(self, ids: Tensor) -> list[Tensor]:
            return [self.mixers[0](ids), self.mixers[1](ids[:, ::2])]

    text = words(np.random.default_rng(16), 20, 19)
    found = ew.modulation(Halved(), BYTES, text, 0, window=6)
    assert list(found.layers.index) == ["mixers.0"]
    assert found.skipped == ["layer mixers.1: it mixes 20 positions, but the text has 40 tokens"]


def test_the_model_stays_as_it_was(small_model: Any) -> None:
    model, tokenizer = small_model
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random, drawn = torch.get_rng_state(), np.random.get_state()[1].copy()
    ew.modulation(model, tokenizer, "The king is dead. Long live the king!", window=8, layers=0)
    assert model.training and all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random) and (np.random.get_state()[1] == drawn).all()
    model.eval()
