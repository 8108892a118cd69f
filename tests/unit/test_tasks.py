"""Synthetic tasks: each sample worked out again by plain loops, seeds, constraints."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ess_widgets.tasks import IGNORE, MQAR, Compression, Compressor, SelectiveCopying, Task, accuracy, loss

TASKS = [MQAR(4, 32, 20), SelectiveCopying(5, 16, 9), Compression(12, 9)]


def recalled(inputs: list[int]) -> list[int]:
    """Targets of a recall sample by a dictionary."""
    store: dict[int, int] = {}
    targets = [IGNORE] * len(inputs)
    i = 0
    while inputs[i] and inputs[i] not in store:  # pairs stand side by side until the first filler or query
        store[inputs[i]] = inputs[i + 1]
        i += 2
    for j in range(i, len(inputs)):
        if inputs[j]:
            targets[j] = store[inputs[j]]
    return targets


@given(st.data())
def test_every_key_is_asked_once_and_answered_by_its_value(data: st.DataObject) -> None:
    kv = data.draw(st.integers(1, 8))
    length = 2 * data.draw(st.integers(2 * kv, 4 * kv))
    vocab = data.draw(st.integers(2 * kv + 1, 3 * kv + 9))
    inputs, targets = MQAR(kv, length, vocab, seed=data.draw(st.integers(0, 99)))[
        data.draw(st.integers(0, 99))
    ]
    assert targets.tolist() == recalled(inputs.tolist())
    keys = inputs[: 2 * kv : 2].tolist()
    assert len(set(keys)) == kv == int((targets != IGNORE).sum())
    assert sorted(inputs[targets != IGNORE].tolist()) == sorted(keys)
    half = (vocab + 1) // 2
    assert all(0 < key < half for key in keys)
    assert all(half <= value < vocab for value in inputs[1 : 2 * kv : 2].tolist())


@given(st.data())
def test_scattered_tokens_are_asked_in_order(data: st.DataObject) -> None:
    copy = data.draw(st.integers(1, 8))
    length = data.draw(st.integers(2 * copy + 2, 3 * copy + 9))
    task = SelectiveCopying(copy, length, data.draw(st.integers(3, 12)), seed=data.draw(st.integers(0, 99)))
    inputs, targets = (x.tolist() for x in task[data.draw(st.integers(0, 99))])
    signal = inputs.index(1)
    assert signal == length - copy and inputs[signal + 1 :] == [0] * (copy - 1)
    assert targets[:signal] == [IGNORE] * signal
    assert targets[signal:] == [token for token in inputs[:signal] if token]


def test_all_tokens_are_asked_of_the_last_position() -> None:
    inputs, targets = Compression(length=9, vocab=5)[3]
    assert inputs[-1] == 0 and (inputs[:-1] > 0).all()
    assert torch.equal(targets[:-1], inputs[:-1]) and targets[-1] == IGNORE


class Echo(nn.Module):
    """One-hot features of every token so far, summed: what is needed, at the last position too."""

    def forward(self, input_ids: Tensor) -> Tensor:
        return nn.functional.one_hot(input_ids, 8).float().cumsum(1)


def test_a_compressor_sees_the_last_position_alone() -> None:
    head = Compressor(Echo(), width=8, vocab=8)
    inputs, _ = Compression(length=6, vocab=8).batch(2)
    swapped = inputs.clone()
    swapped[:, [0, 1]] = inputs[:, [1, 0]]  # the sum at the last position stays what it was
    assert head(inputs).shape == (2, 6, 8)
    assert torch.equal(head(inputs), head(swapped))
    other = inputs.clone()
    other[:, 0] = inputs[:, 0] % 7 + 1
    assert not torch.equal(head(inputs)[:, -1], head(other)[:, -1])


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_samples_depend_on_seed_and_index_alone(task: Task) -> None:
    torch.manual_seed(1)
    first = [task[3], task.batch(4, 7)]
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = type(task)(**task.parameters)
    for one, two in zip(first, [again[3], again.batch(4, 7)], strict=True):
        assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(task[3][0], task[4][0])
    assert not torch.equal(task.batch(1, 7)[0], task.batch(1, 8)[0])
    assert not torch.equal(task.batch(4, 7)[0], task.held_out().batch(4, 7)[0])
    assert torch.equal(task[-1][0], task[len(task) - 1][0])


def test_samples_are_the_same_in_another_process() -> None:
    program = "from ess_widgets.tasks import MQAR; print(MQAR(4, 32, 20, seed=5)[9][0].tolist())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(MQAR(4, 32, 20, seed=5)[9][0].tolist())


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_a_data_loader_takes_them(task: Task) -> None:
    inputs, targets = next(iter(DataLoader(task, batch_size=3)))
    assert inputs.shape == targets.shape == (3, task.length)
    assert inputs.dtype == targets.dtype == torch.int64
    assert bool(((inputs >= 0) & (inputs < task.vocab)).all())


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: MQAR(9, 32, 64), ValueError, "36 tokens, but length is 32"),
        (lambda: MQAR(4, 31, 64), ValueError, "even"),
        (lambda: MQAR(8, 32, 16), ValueError, "has 7 keys"),
        (lambda: MQAR(0, 32, 16), ValueError, "kv must be at least 1"),
        (lambda: MQAR(4, 32, 16, power=0), ValueError, "power"),
        (lambda: MQAR(4, 32, 16, power=math.inf), ValueError, "power"),
        (lambda: MQAR(4, 32, 16, power=1e4), ValueError, "power"),
        (lambda: MQAR(2.5, 32, 16), TypeError, "kv must be an integer"),
        (lambda: MQAR(True, 32, 16), TypeError, "kv must be an integer"),
        (lambda: SelectiveCopying(8, 17, 8), ValueError, "more than 17 positions"),
        (lambda: SelectiveCopying(2, 17, 2), ValueError, "at least 3"),
        (lambda: Compression(1, 8), ValueError, "at least 2"),
        (lambda: Compression(8, 2), ValueError, "at least 3"),
        (lambda: MQAR(size=4)[4], IndexError, "4 samples"),
        (lambda: MQAR()[1.5], TypeError, "index must be an integer"),
        (lambda: MQAR().batch(0), ValueError, "count"),
    ],
)
def test_what_cannot_be_laid_out_is_said(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


def test_judging() -> None:
    logits = torch.tensor([[[0.0, 1.0], [2.0, 0.0], [0.0, 3.0]]])
    targets = torch.tensor([[1, 1, IGNORE]])
    assert accuracy(logits, targets) == 0.5
    asked = logits[0, :2].log_softmax(-1)
    torch.testing.assert_close(loss(logits, targets), -(asked[0, 1] + asked[1, 1]) / 2)
    with pytest.raises(ValueError, match="do not fit"):
        accuracy(logits, targets[:, :2])
    with pytest.raises(ValueError, match="do not fit"):
        loss(logits, targets.T)
    with pytest.raises(ValueError, match="no position"):
        accuracy(logits, torch.full((1, 3), IGNORE))
