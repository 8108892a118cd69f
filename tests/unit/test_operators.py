"""Operators given by a matrix or by a function that makes one: checks, indexing, TSS."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ess_widgets as ew
from ess_widgets.operators import Deferred, Dense, Operator

LOWER = torch.arange(1.0, 17).view(4, 4).tril()


def deferred(T: Tensor, **options: Any) -> Deferred:
    return Deferred(lambda: T, shape=tuple(T.shape), dtype=T.dtype, device="cpu", **options)


# What Dense takes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float_matrices_are_shared_and_keep_their_dtype(dtype: torch.dtype) -> None:
    T = LOWER.to(dtype)
    op = Dense(T)
    assert op.matrix() is T
    assert (op.shape, op.dtype, op.device) == (T.shape, dtype, torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint8, torch.bool])
def test_integers_and_booleans_become_float32(dtype: torch.dtype) -> None:
    op = Dense(LOWER.to(dtype))
    assert op.dtype is torch.float32
    assert torch.equal(op.matrix(), LOWER.to(dtype).float())


@pytest.mark.parametrize(
    "array",
    [
        np.tril(np.ones((3, 3))),
        np.tril(np.ones((3, 3), dtype=np.float32)),
        np.tril(np.ones((3, 3), dtype=">f8")),
        np.triu(np.ones((3, 3))).T,
        np.tril(np.ones((6, 6)))[::2, ::2],
        np.triu(np.ones((3, 3)))[::-1, ::-1],
        np.tril(np.ones((3, 3), dtype=np.int32)),
    ],
    ids=["f8", "f4", "big endian", "transposed", "strided", "reversed", "int"],
)
def test_numpy_arrays(array: Any) -> None:
    assert torch.equal(Dense(array).matrix().double(), torch.ones(3, 3, dtype=torch.float64).tril())


def test_read_only_numpy_arrays_are_copied_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    array = np.tril(np.ones((3, 3)))
    array.flags.writeable = False
    op = Dense(array)
    assert not recwarn.list
    op.matrix().zero_()
    assert array.sum() == 6


def test_a_single_position() -> None:
    assert ew.ess(torch.ones(1, 1)).tolist() == [0.0]
    assert ew.spectrum(torch.ones(1, 1)).shape == (1, 0)
    assert ew.ceiling(torch.ones(1, 1)).tolist() == [0]


# What it refuses


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([[1.0]], TypeError, "must be a torch tensor or a numpy array, but is a list"),
        (None, TypeError, "but is a NoneType"),
        (3.0, TypeError, "but is a float"),
        (np.array([["a"]]), TypeError, "must hold numbers"),
        (np.array([[None]]), TypeError, "must hold numbers"),
        (np.eye(2, dtype=np.longdouble), TypeError, "at most 64 bits"),
        (torch.eye(2).to_sparse(), TypeError, "to_dense"),
        (torch.eye(2, device="meta"), ValueError, "meta device"),
        (torch.eye(2, dtype=torch.complex64), ValueError, "is complex"),
        (np.eye(2, dtype=np.complex128), ValueError, "is complex"),
        (torch.eye(2).half(), ValueError, "float16: an operator rounded to half precision"),
        (torch.eye(2).bfloat16(), ValueError, "bfloat16"),
        (torch.eye(2).to(torch.float8_e4m3fn), ValueError, "float8"),
        (np.eye(2, dtype=np.float16), ValueError, "float16"),
        (torch.ones(3), ValueError, "must be square"),
        (torch.tensor(1.0), ValueError, "must be square"),
        (torch.ones(3, 4).tril(), ValueError, r"must be square, \(..., L, L\), but its shape is \(3, 4\)"),
        (torch.ones(0, 0), ValueError, "is empty"),
        (torch.ones(0, 3, 3), ValueError, "is empty"),
    ],
)
def test_refused_values(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Dense(value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named(bad: float) -> None:
    T = torch.ones(2, 3, 3).tril()
    T[1, 2, 0] = bad
    with pytest.raises(
        ValueError, match=re.escape(f"1 of 18 entries are NaN or infinite, the first is T[1, 2, 0] = {bad}")
    ):
        Dense(T)


def test_the_worst_entry_above_the_diagonal_is_named() -> None:
    T = torch.ones(2, 4, 4).tril()
    T[0, 0, 1], T[1, 1, 3] = 0.25, -0.5
    with pytest.raises(ValueError, match=re.escape("T[1, 1, 3] = -0.5 lets output 1 read the later input 3")):
        Dense(T)


def test_worst_is_judged_by_the_matrix_it_is_in() -> None:
    """A large matrix beside it does not excuse a small one."""
    T = torch.stack([1e9 * torch.ones(3, 3).tril(), torch.ones(3, 3)])
    with pytest.raises(ValueError, match=re.escape("T[1, 0, 1]")):
        Dense(T)


@pytest.mark.parametrize("scale", [1.0, 1e20, 1e-20])
def test_rounding_above_the_diagonal_is_removed(scale: float) -> None:
    T = scale * LOWER.double()
    T[0, 3] = scale * 1e-15
    assert torch.equal(Dense(T).matrix(), scale * LOWER.double())
    assert T[0, 3] == scale * 1e-15
    T[0, 3] = scale * 1e-13
    with pytest.raises(ValueError, match="not causal"):
        Dense(T)


# TSS


def test_every_past_input_may_be_stored_by_default() -> None:
    assert Dense(LOWER).state_size.tolist() == [0, 1, 2, 3]


def test_a_recurrence_stores_at_most_its_state() -> None:
    assert Dense(LOWER, state_size=2).state_size.tolist() == [0, 1, 2, 2]
    assert Dense(LOWER, state_size=0).state_size.tolist() == [0, 0, 0, 0]


def test_a_given_state_size_is_taken_as_it_is() -> None:
    T = LOWER.expand(2, 3, 4, 4)
    assert Dense(T, state_size=torch.tensor([0, 1, 1, 3])).state_size.tolist() == [0, 1, 1, 3]
    assert Dense(T, state_size=np.array([0, 1, 1, 3])).state_size.tolist() == [0, 1, 1, 3]
    per_sample = Dense(T, state_size=torch.arange(8).view(2, 1, 4)).state_size
    assert per_sample.shape == (2, 3, 4)
    assert per_sample[1, 2].tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (-1, ValueError, "must not be negative"),
        (torch.tensor([0, -1, 0, 0]), ValueError, "must not be negative"),
        (torch.arange(5), ValueError, "fits neither"),
        (torch.zeros(3, 4).long(), ValueError, "fits neither"),
        (torch.ones(4), TypeError, "must hold integers"),
        (2.5, TypeError, "state_size must be a torch tensor"),
        (True, TypeError, "state_size must be a torch tensor"),
    ],
)
def test_refused_state_sizes(size: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Dense(LOWER, state_size=size)


# Padding


def test_padding_is_zero_and_does_not_count() -> None:
    valid = torch.tensor([[False, True, True, True], [True, True, False, False]])
    T = LOWER.repeat(2, 1, 1)
    op = Dense(T, valid=valid)
    expected = T * valid[:, :, None] * valid[:, None, :]
    assert torch.equal(op.matrix(), expected)
    assert T[0, 0, 0] == 1
    assert op.state_size.tolist() == [[0, 0, 1, 2], [0, 1, 0, 0]]
    assert ew.ceiling(op).tolist() == [[0, 0, 1, 1], [0, 1, 0, 0]]
    assert Dense(T, valid=valid, state_size=1).state_size.tolist() == [[0, 0, 1, 1], [0, 1, 0, 0]]


def test_whatever_padding_holds_is_dropped() -> None:
    T = LOWER.clone()
    T[3], T[1, 3] = torch.nan, torch.inf
    op = Dense(T, valid=torch.tensor([True, True, True, False]))
    assert torch.equal(op.matrix()[:3, :3], LOWER[:3, :3])
    assert op.matrix()[3].tolist() == [0.0] * 4


def test_nothing_but_padding() -> None:
    op = Dense(LOWER, valid=torch.zeros(4, dtype=torch.bool))
    for value in (op.state_size, ew.ceiling(op), ew.ess(op), ew.ess(op, "tolerance")):
        assert value.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("valid", "error", "message"),
    [
        (torch.ones(4), TypeError, "must be boolean"),
        ([True] * 4, TypeError, "valid must be a torch tensor"),
        (torch.ones(5, dtype=torch.bool), ValueError, r"does not broadcast to \(..., L\) = \(4,\)"),
    ],
)
def test_refused_valid(valid: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Dense(LOWER, valid=valid)


# Several rows per position


def full_blocks(L: int, d: int, *lead: int) -> Tensor:
    """Random, block by block lower triangular, with full blocks on the diagonal."""
    position = torch.arange(d * L) // d
    return torch.randn(*lead, d * L, d * L, dtype=torch.float64) * (position[:, None] >= position)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_blocks_on_the_diagonal_may_be_full(d: int) -> None:
    T = full_blocks(5, d, 2)
    op = Dense(T, block=d)
    assert op.matrix() is T
    assert (op.block, op.length, op.shape) == (d, 5, T.shape)
    i = torch.arange(5)
    assert torch.equal(op.state_size, d * i)
    assert torch.equal(ew.ceiling(op), (d * torch.minimum(i, 5 - i)).expand(2, 5))
    assert Dense(T, block=d, state_size=4).state_size.tolist() == [min(4, d * n) for n in range(5)]
    ranks = [torch.linalg.matrix_rank(T[:, d * n :, : d * n]) for n in range(1, 5)]
    assert torch.equal(torch.stack(ranks, dim=-1), ew.ceiling(op)[:, 1:])
    part = op[1]
    assert (part.block, part.length) == (d, 5)
    assert torch.equal(part.to("cpu").matrix(), T[1])


def test_padding_is_counted_in_positions() -> None:
    T = full_blocks(4, 2, 2)
    valid = torch.tensor([[True, True, False, True], [True, True, True, True]])
    op = Dense(T, block=2, valid=valid)
    assert op.valid is not None
    assert op.valid.shape == (2, 4)
    assert op.state_size.tolist() == [[0, 2, 4, 4], [0, 2, 4, 6]]
    assert ew.ceiling(op).tolist() == [[0, 2, 2, 2], [0, 2, 4, 2]]
    rows = valid.repeat_interleave(2, dim=-1)
    assert torch.equal(op.matrix(), T * rows[:, :, None] * rows[:, None, :])
    assert op[0].valid is not None and op[0].valid.tolist() == valid[0].tolist()
    assert torch.equal(Dense(T, block=2, state_size=torch.arange(4)).state_size, torch.arange(4))


def test_an_entry_above_the_blocks_is_named_by_positions() -> None:
    T = full_blocks(3, 2)
    T[1, 4] = 0.5
    with pytest.raises(
        ValueError,
        match=re.escape("T[1, 4] = 0.5 lets output 0 read the later input 2") + ".*" + re.escape("(block=2)"),
    ):
        Dense(T, block=2)
    T[1, 4] = 1e-17
    assert Dense(T, block=2).matrix()[1, 4] == 0
    with pytest.raises(ValueError, match="not causal"):
        Dense(full_blocks(3, 2))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"block": 3},
            ValueError,
            "T has 4 rows, which are no whole number of positions of block=3 rows each",
        ),
        ({"block": 0}, ValueError, "block must be a positive integer, but is 0"),
        ({"block": 2.0}, ValueError, "block must be a positive integer, but is 2.0"),
        ({"block": True}, ValueError, "block must be a positive integer, but is True"),
        ({"block": 2, "valid": torch.ones(4, dtype=torch.bool)}, ValueError, "to (..., L) = (2,)"),
        ({"block": 2, "state_size": torch.arange(4)}, ValueError, "fits neither (L,) nor (..., L) = (2,)"),
    ],
)
def test_refused_blocks(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        Dense(LOWER, **options)


# Indexing, for both classes


def take(whole: Tensor, index: Any) -> Tensor:
    """Index the first two dimensions of ``(2, 3, ...)`` by way of numbering them."""
    return whole.flatten(0, 1)[torch.arange(6).view(2, 3)[index]]


INDICES: list[Any] = [
    0,
    -1,
    slice(1, None),
    (0, 2),
    (slice(None), 1),
    (..., 1),
    (1, ...),
    ...,
    (),
    [1, 0],
    (slice(None), [2, 0]),
    (torch.tensor([0, 1]), torch.tensor([2, 0])),
    torch.tensor([False, True]),
    torch.tensor([[True, False, True], [False, False, True]]),
    (None, 0),
    (np.int64(1), np.array([0, 2])),
]


@pytest.mark.parametrize("index", INDICES, ids=str)
@pytest.mark.parametrize("make", [Dense, deferred])
@pytest.mark.parametrize(
    "state_size", [None, 2, torch.arange(24).view(2, 3, 4)], ids=["default", "int", "tensor"]
)
def test_indexing_means_the_same_for_everything(make: Any, index: Any, state_size: Any) -> None:
    T = torch.randn(2, 3, 4, 4).tril()
    valid = torch.rand(2, 3, 4) > 0.3
    whole: Operator = make(T, valid=valid, state_size=state_size)
    part = whole[index]
    assert torch.equal(part.matrix(), take(whole.matrix(), index))
    assert part.shape == part.matrix().shape
    assert part.valid is not None
    assert torch.equal(part.valid, take(valid, index))
    sizes = take(whole.state_size.expand(2, 3, 4), index)
    assert torch.equal(part.state_size.expand(sizes.shape), sizes)
    assert torch.equal(ew.ceiling(part), take(ew.ceiling(whole), index))


@pytest.mark.parametrize("make", [Dense, deferred])
def test_indexing_composes(make: Any) -> None:
    T = torch.randn(2, 3, 4, 4).tril()
    assert torch.equal(make(T)[1][0].matrix(), T[1, 0])
    assert torch.equal(make(T)[:, 1:][0, [1]].matrix(), T[:, 1:][0, [1]])


@pytest.mark.parametrize("make", [Dense, deferred])
def test_outputs_and_inputs_cannot_be_indexed(make: Any) -> None:
    op = make(LOWER.expand(2, 4, 4))
    for index in ((0, 1), (0, slice(2)), (..., 0, 0)):
        with pytest.raises(IndexError, match=r"take .matrix\(\) first"):
            op[index]
    with pytest.raises(IndexError, match="one ellipsis"):
        op[..., ...]
    with pytest.raises(IndexError):
        op[2]


@pytest.mark.parametrize("make", [Dense, deferred])
def test_iterating_visits_the_first_dimension(make: Any) -> None:
    T = torch.randn(3, 4, 4).tril()
    assert torch.equal(torch.stack([op.matrix() for op in make(T)]), T)


@pytest.mark.parametrize("make", [Dense, deferred])
def test_to_keeps_everything(make: Any) -> None:
    op = make(LOWER, valid=torch.tensor([True, True, True, False]), state_size=1)
    moved = op.to("cpu")
    assert torch.equal(moved.matrix(), op.matrix())
    assert torch.equal(moved.state_size, op.state_size)
    assert torch.equal(moved.valid, op.valid)


def test_repr_names_what_matters() -> None:
    assert repr(Dense(LOWER)) == "Dense(shape=(4, 4), dtype=float32, device=cpu)"
    padded = Dense(LOWER.double(), valid=torch.ones(4, dtype=torch.bool))
    assert repr(padded) == "Dense(shape=(4, 4), dtype=float64, device=cpu, padded)"
    assert repr(deferred(LOWER)) == "Deferred(shape=(4, 4), dtype=float32, device=cpu)"


# Deferred alone


def test_nothing_is_built_before_it_is_asked_for_nor_kept() -> None:
    calls = []

    def build() -> Tensor:
        calls.append(1)
        return LOWER.expand(2, 4, 4)

    op = Deferred(build, shape=(2, 4, 4), dtype=torch.float32, device="cpu", state_size=3)
    part = op[1].to("cpu")
    assert (part.shape, part.dtype, part.state_size.tolist()) == ((4, 4), torch.float32, [0, 1, 2, 3])
    assert not calls
    part.matrix()
    part.matrix()
    assert len(calls) == 2


def test_a_state_size_can_be_computed_later() -> None:
    op = deferred(LOWER.expand(2, 4, 4), state_size=lambda: torch.arange(8).view(2, 4))
    assert op[1].state_size.tolist() == [4, 5, 6, 7]
    assert deferred(LOWER, state_size=lambda: 1).state_size.tolist() == [0, 1, 1, 1]


def test_a_result_other_than_announced_is_refused() -> None:
    for dtype, shape in ((torch.float64, (4, 4)), (torch.float32, (1, 4, 4))):
        op = Deferred(lambda: LOWER, shape=shape, dtype=dtype, device="cpu")
        with pytest.raises(ValueError, match="was announced"):
            op.matrix()


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((3, 4), torch.float32, "shape must be"),
        ((4,), torch.float32, "shape must be"),
        ((0, 4, 4), torch.float32, "shape must be"),
        ((4, 4), torch.float16, "dtype must be"),
    ],
)
def test_refused_announcements(shape: tuple[int, ...], dtype: torch.dtype, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Deferred(lambda: LOWER, shape=shape, dtype=dtype, device="cpu")


def test_metrics_check_what_a_function_returns() -> None:
    with pytest.raises(ValueError, match="not causal"):
        ew.ess(deferred(torch.ones(3, 3)))
    with pytest.raises(ValueError, match="not finite"):
        ew.spectrum(deferred(torch.full((3, 3), torch.nan)))
    assert ew.ess(deferred(torch.ones(3, 3).tril())).tolist() == pytest.approx([0, 1, 1])
