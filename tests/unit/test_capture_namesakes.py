"""Functions that bear the name of a known one and are something else: nothing breaks, nothing inside them is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ess_widgets as ew
from ess_widgets.capture import CaptureError
from ess_widgets.capture.families import FUNCTIONS, PREFIXES, selective_ssm
from ess_widgets.capture.recognition import names

NAMES = (
    *FUNCTIONS,
    *(f"{prefix}of_mine" for prefix in PREFIXES),
    "naive_foo",
    "chunk_bar",
    "fused_mlp",
    "retention",
)


class Calls(nn.Module):
    """Attention inside a function of any name and arguments."""

    def __init__(
        self, function: Callable[..., Any], name: str, hand_over: Callable[..., tuple[Any, ...]]
    ) -> None:
        super().__init__()
        function.__code__ = function.__code__.replace(co_name=name)
        self.project, self.function, self.hand_over = nn.Linear(8, 24), function, hand_over

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.project(x).chunk(3, -1))
        return self.function(*self.hand_over(q, k, v)).transpose(1, 2).flatten(2)


def _one(x: Any) -> Tensor:
    return F.scaled_dot_product_attention(*x, is_causal=True)


def _queries(q: Tensor, k: Tensor, v: Tensor, beta: float = 0.5, scale: float | None = None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)


def _states(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(A, B, C, is_causal=True)


def _gates(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, w: Tensor, x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _copied(function: Callable[..., Any]) -> Callable[..., Any]:
    def plain() -> None: ...

    kind = type(plain)
    return kind(function.__code__, function.__globals__, "f", function.__defaults__)  # type: ignore[return-value]


@pytest.mark.parametrize("name", sorted(NAMES))
def test_attention_inside_a_namesake_is_found(name: str) -> None:
    ways: list[tuple[Callable[..., Any], Callable[..., tuple[Any, ...]]]] = [
        (_one, lambda q, k, v: ((q, k, v),)),
        (_queries, lambda q, k, v: (q, k, v)),
        (_states, lambda q, k, v: (q, q, q, k, v)),
        (_gates, lambda q, k, v: (q, k, v, q, q[..., 0], q, q)),
    ]
    for function, hand_over in ways:
        cap = ew.capture(Calls(_copied(function), name, hand_over), torch.randn(2, 7, 8))
        assert [(k, layer.family) for k, layer in cap.items()] == [("Calls", "softmax attention")], function
        assert cap[0].residual.max() < 1e-5
        assert not cap.skipped


def test_a_namesake_that_shows_nothing_is_told() -> None:
    def chunk_gla(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.stack([v[:, : i + 1].sum(1) for i in range(v.shape[1])], 1)

    class Sums(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return chunk_gla(x, x, x)

    with pytest.raises(
        CaptureError, match=r"chunk_gla: it was not called with the arguments q, k and v .* ew\.register"
    ):
        ew.capture(Sums(), torch.randn(1, 5, 4))


def test_what_a_recogniser_cannot_cope_with_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def falls(call: Any) -> str:
        raise IndexError("no such dimension")

    monkeypatch.setitem(names.FUNCTIONS, "selective_scan", falls)

    def selective_scan(x: Tensor) -> Tensor:
        return x.cumsum(1)

    class Both(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(selective_scan(x), x, x, is_causal=True)

    cap = ew.capture(Both(), torch.randn(1, 5, 4))
    assert [layer.family for layer in cap.values()] == ["softmax attention"]
    (reason,) = cap.skipped.values()
    assert "selective_scan" in reason and "IndexError: no such dimension" in reason and "register" in reason


def test_an_operator_that_cannot_be_built_is_told_with_its_layer() -> None:
    def selective_scan_fn(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return u * delta[..., :1]

    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return selective_scan_fn(x, x, x[0], x[:, :3], x[:, :2])

    cap = ew.capture(Odd(), torch.randn(1, 5, 4))
    assert selective_ssm.FUNCTIONS["selective_scan_fn"]
    with pytest.raises(
        CaptureError, match=r"layer 'Odd' \(selective SSM\) cannot be built .* ess_widgets\.register"
    ):
        _ = cap[0].operator


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, is_causal=True)


class Objects(Attention):
    """Asking it for what it does not have is an error of its own."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            return super().__getattr__(name)
        raise RuntimeError(f"no {name} here")


class Agrees(Attention):
    """It has everything that it is asked for."""

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if name.startswith("_") else 7


@pytest.mark.parametrize("kind", [Objects, Agrees])
def test_modules_that_answer_in_their_own_way_are_captured(kind: type[nn.Module]) -> None:
    cap = ew.capture(kind(), torch.randn(1, 5, 4))
    assert [layer.family for layer in cap.values()] == ["softmax attention"] and not cap.skipped


def test_a_predicate_that_raises_is_told() -> None:
    with (
        ew.register(lambda module: module.missing, lambda module, call: None),
        pytest.raises(CaptureError, match=r"which modules are meant raised AttributeError for a Attention"),
    ):
        ew.capture(Attention(), torch.randn(1, 5, 4))


def test_advice_is_given_where_it_helps() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(x)
            return y

    with pytest.raises(CaptureError, match="reads 1 step of the future") as told:
        ew.capture(Looks(), torch.randn(1, 4, 9))
    assert "cache" not in str(told.value) and "ess_widgets.jacobian" in str(told.value)

    class Crosses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x[:, -1:], x, x)

    with pytest.raises(CaptureError, match=r"1 queries read 5 keys.* without a key-value cache"):
        ew.capture(Crosses(), torch.randn(1, 5, 4))
