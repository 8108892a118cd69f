"""What travels to the browser is what was computed."""

import numpy as np
import pytest
import torch

from ess_widgets.operators import Dense
from ess_widgets.widgets.grid import Grid
from ess_widgets.widgets.requests import answer
from ess_widgets.widgets.wire import operator_data, thumbnail, vector_message


def unpack(data: bytes, *shape: int) -> np.ndarray:
    return np.frombuffer(data, "<f4").reshape(shape)


def test_a_small_operator_is_sent_whole():
    T = torch.randn(5, 5).tril()
    data = operator_data(Dense(T), "layer", 2)
    assert (data["length"], data["side"], data["layer"], data["head"]) == (5, 5, "layer", 2)
    np.testing.assert_array_equal(unpack(data["matrix"], 5, 5), T.numpy())


@pytest.mark.parametrize(("length", "side"), [(7, 3), (512, 512), (513, 512), (1000, 300)])
def test_a_large_operator_keeps_the_largest_entry_of_each_block(length, side):
    T = torch.randn(length, length).tril()
    cells, block = thumbnail(T, side)
    assert block == -(-length // side)
    assert cells.shape[0] <= side
    for row, column in [(0, 0), (cells.shape[0] - 1, cells.shape[0] - 1), (cells.shape[0] - 1, 0)]:
        part = T[row * block : (row + 1) * block, column * block : (column + 1) * block]
        assert cells[row, column].abs() == part.abs().max()
        assert cells[row, column] in part


def test_vectors_rebuild_the_block():
    T = torch.randn(9, 9).tril()
    content, (past, future) = vector_message(Dense(T), "layer", 0, 4)
    H = T[4:, :4].double()
    right = torch.from_numpy(unpack(past, content["count"], 4).copy()).double()
    left = torch.from_numpy(unpack(future, content["count"], 5).copy()).double()
    rebuilt = left.T @ torch.diag(torch.linalg.svdvals(H)) @ right
    torch.testing.assert_close(rebuilt, H, atol=1e-5, rtol=1e-5)


def test_the_grid_keeps_older_numbers_but_calls_them_stale():
    grid = Grid({"a": 2, "b": 1})
    limits = np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 1.0])
    grid.fill("a", 1, "first", np.array([0.0, 1.0, 1.0]), *limits)
    data = grid.data({})
    np.testing.assert_allclose(unpack(data["ess"], 2, 2), [[np.nan, 2 / 3], [np.nan, np.nan]])
    np.testing.assert_allclose(unpack(data["state_size"], 2, 2)[0, 1], 2 / 3)
    np.testing.assert_allclose(unpack(data["ceiling"], 2, 2)[0, 1], 1)
    assert unpack(data["fresh"], 2, 2)[0, 1] == 1
    grid.expire()
    data = grid.data({})
    assert unpack(data["fresh"], 2, 2)[0, 1] == 0 and not np.isnan(unpack(data["ess"], 2, 2)[0, 1])
    assert grid.is_fresh("a", 1, "first") and not grid.is_fresh("a", 1, "second")


def test_zooming_in_gets_exact_entries():
    T = torch.randn(1300, 1300).tril()
    message = answer(Dense(T), "layer", 0, {"type": "detail", "rows": [700, 900], "columns": [-5, 120]})
    content, (cells,) = message
    assert (content["top"], content["left"], content["block"]) == (700, 0, 1)
    np.testing.assert_array_equal(
        unpack(cells, content["rows"], content["columns"]), T[700:900, :120].numpy()
    )
    content, _ = answer(Dense(T), "layer", 0, {"type": "detail", "rows": [0, 1300], "columns": [0, 1300]})
    assert content["block"] == 3 and content["rows"] <= 512


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"type": "other"},
        {"type": "vectors"},
        {"type": "vectors", "position": 9},
        {"type": "vectors", "position": "4"},
        {"type": "detail", "rows": [3, 3], "columns": [0, 2]},
        {"type": "detail", "rows": [0, 2]},
        {"type": "detail", "rows": [0, 2.5], "columns": [0, 2]},
    ],
)
def test_what_does_not_exist_is_not_answered(request_):
    assert answer(Dense(torch.eye(9)), None, 0, request_) is None


def test_a_block_operator_is_drawn_by_the_norms_of_its_blocks():
    L, d = 6, 3
    T = torch.randn(L * d, L * d, dtype=torch.float64) * torch.ones(L, L).tril().kron(torch.ones(d, d))
    op = Dense(T, block=d)
    data = operator_data(op, None, 0)
    norms = torch.stack(
        [torch.stack([T[d * i : d * i + d, d * j : d * j + d].norm() for j in range(L)]) for i in range(L)]
    )
    assert (data["length"], data["side"]) == (L, L)
    np.testing.assert_allclose(unpack(data["matrix"], L, L), norms.numpy(), rtol=1e-6)
    content, (past, future) = vector_message(op, None, 0, 2)
    assert unpack(past, content["count"], 2).shape == (6, 2)
    np.testing.assert_allclose(np.square(unpack(past, 6, 2)).sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.square(unpack(future, 6, 4)).sum(1), 1, rtol=1e-5)
    assert answer(op, None, 0, {"type": "vectors", "position": L}) is None
    answered = answer(op, None, 0, {"type": "detail", "rows": [2, 5], "columns": [0, 3]})
    assert answered is not None
    np.testing.assert_allclose(unpack(answered[1][0], 3, 3), norms[2:5, :3].numpy(), rtol=1e-6)
