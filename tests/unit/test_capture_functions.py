"""Functions are seen by name and modules by their attributes, and nothing of that stays behind."""

from __future__ import annotations

import cProfile
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ess_widgets as ew
from ess_widgets.capture import CaptureError
from ess_widgets.capture.recognition.functions import FunctionWatcher
from ess_widgets.operators import selective_ssm

Scan = Callable[..., Tensor]


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """A scan with the signature of mamba_ssm's."""
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    state, outputs = torch.zeros(*u.shape[:2], A.shape[-1], dtype=u.dtype), []
    for t in range(u.shape[-1]):
        decay = torch.exp(delta[:, :, t, None] * A)
        state = decay * state + delta[:, :, t, None] * B[:, None, :, t] * u[:, :, t, None]
        outputs.append((state * C[:, None, :, t]).sum(-1))
    y = torch.stack(outputs, -1)
    y = y if D is None else y + u * D[:, None]
    return y if z is None else y * F.silu(z)


class Selective(nn.Module):
    """The smallest selective layer that calls a scan by that name."""

    def __init__(self, scan: Scan = selective_scan_fn, width: int = 6, state: int = 3) -> None:
        super().__init__()
        self.scan = scan
        self.project = nn.Linear(width, 2 * width + 2 * state)
        self.A_log = nn.Parameter(torch.randn(width, state) * 0.3)
        self.skip = nn.Parameter(torch.full((width,), 100.0))
        self.sizes = [width, width, state, state]

    def forward(self, x: Tensor) -> Tensor:
        delta, z, B, C = (t.mT for t in self.project(x).split(self.sizes, -1))
        u = x.mT.clone()
        y = self.scan(u, delta, -self.A_log.exp(), B, C, self.skip, z=z, delta_softplus=True)
        u.zero_()  # what was kept must not change with this
        return y.mT


def test_a_function_is_captured_by_its_name() -> None:
    layer, x = Selective(), torch.randn(2, 15, 6)
    cap = ew.capture(nn.Sequential(layer, Selective()), x)
    assert list(cap) == ["0", "1"]
    first = cap["0"]
    assert first.family == "selective SSM"
    assert first.outputs.shape == first.inputs.shape == (2, 6, 15, 1)
    torch.testing.assert_close(first.inputs[..., 0], x.mT)
    # The skip is a hundred times what is mixed: subtracting it would lose two digits.
    assert first.residual.max() < 2e-6
    delta, _, B, C = layer.project(x).detach().double().split(layer.sizes, -1)
    T = selective_ssm(F.softplus(delta).mT, -layer.A_log.double().exp(), B, C).matrix()
    torch.testing.assert_close(first.operator.matrix(), T.detach())


def test_nothing_inside_such_a_function_is_captured_again() -> None:
    def selective_scan_fn(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *args: Any, **rest: Any
    ) -> Tensor:
        scores = torch.einsum("bnl,bnm->blm", C, B).softmax(-1).tril()
        return (u @ scores.mT) * 1.0

    cap = ew.capture(Selective(selective_scan_fn), torch.randn(1, 8, 6))
    assert [layer.family for layer in cap.values()] == ["selective SSM"]
    assert cap[0].residual.max() > 1e-2  # it is something else that bears the name, and it shows


@pytest.mark.parametrize("fault", ["skip", "step", "state"])
def test_a_fault_in_the_result_is_seen(fault: str) -> None:
    def wrong(*args: Any, **options: Any) -> Tensor:
        y = selective_scan_fn(*args, **options)
        if fault == "skip":
            return y + 0.01 * args[0]
        if fault == "step":
            return y.roll(1, -1)
        return y * 1.001

    def selective_scan_ref(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, **rest: Any
    ) -> Tensor:
        return wrong(u, delta, A, B, C, D, **rest)

    selective_scan_ref.__code__ = selective_scan_ref.__code__.replace(co_name="selective_scan_fn")
    layer = Selective(selective_scan_ref)
    with torch.no_grad():
        layer.skip.fill_(1.0)
    assert ew.capture(layer, torch.randn(1, 10, 6))[0].residual.max() > 1e-4


def test_a_function_that_raises_leaves_nothing_behind() -> None:
    def selective_scan_fn(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *args: Any, **rest: Any
    ) -> Tensor:
        raise RuntimeError("no such kernel")

    class Falls(Selective):
        def forward(self, x: Tensor) -> Tensor:
            try:
                return super().forward(x)
            except RuntimeError:
                return F.scaled_dot_product_attention(x, x, x, is_causal=True)

    before = sys.getprofile()
    cap = ew.capture(Falls(selective_scan_fn), torch.randn(1, 8, 6))
    assert [layer.family for layer in cap.values()] == ["softmax attention"]
    assert sys.getprofile() is before
    with pytest.raises(RuntimeError, match="no such kernel"):
        ew.capture(Selective(selective_scan_fn), torch.randn(1, 8, 6))
    assert sys.getprofile() is before


def test_a_profiler_of_the_user_goes_on_afterwards() -> None:
    seen: list[str] = []

    def profile(frame: Any, event: str, arg: Any) -> None:
        seen.append(frame.f_code.co_name)

    def marker() -> None:
        pass

    sys.setprofile(profile)
    try:
        ew.capture(Selective(), torch.randn(1, 5, 6))
        assert sys.getprofile() is profile
        marker()
    finally:
        sys.setprofile(None)
    assert "marker" in seen
    profiler = cProfile.Profile()
    profiler.enable()
    try:
        ew.capture(Selective(), torch.randn(1, 5, 6))
        marker()
    finally:
        profiler.disable()
    names = {entry.code.co_name for entry in profiler.getstats() if hasattr(entry.code, "co_name")}
    assert "marker" in names


def test_other_threads_are_not_watched() -> None:
    captured: list[int] = []
    inside, done = threading.Event(), threading.Event()

    def selective_scan_slow(*args: Any, **options: Any) -> Tensor:
        inside.set()
        assert done.wait(20)
        return selective_scan_fn(*args, **options)

    def elsewhere() -> None:
        assert inside.wait(20)
        Selective()(torch.randn(1, 5, 6))
        captured.append(1)
        done.set()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    cap = ew.capture(Selective(selective_scan_slow), torch.randn(1, 5, 6))
    thread.join()
    assert captured and len(cap) == 1


def test_arguments_and_calls_again() -> None:
    ended: list[Any] = []
    factor = 3

    def known(a: int, /, b: int, *rest: int, c: int = 4, **more: int) -> int:
        a = 0 * a  # the arguments are those at the beginning
        return factor * (b + c + sum(rest) + sum(more.values())) + a

    def begin(name: str, arguments: dict[str, Any], again: Callable[..., Any]) -> Any:
        return arguments, again

    watcher = FunctionWatcher("known".__eq__, begin, lambda token, result: ended.append((*token, result)))
    with watcher:
        value = known(1, 2, 5, c=6, d=7)
    ((arguments, again, result),) = ended
    assert result == value == 3 * 20
    assert arguments == {"a": 1, "b": 2, "rest": (5,), "c": 6, "d": 7}
    assert not watcher.inside
    assert again(**arguments) == value
    assert again(a=1, b=10, c=0) == 30
    assert again(a=1, b=10, c=0, rest=(1,), other=2) == 39


def test_a_state_from_before_is_not_a_square_operator() -> None:
    with pytest.raises(CaptureError, match="arguments u, delta, A, B and C"):

        def selective_scan_fn(x: Tensor) -> Tensor:
            return x * 1.0

        class Odd(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return selective_scan_fn(x)

        ew.capture(Odd(), torch.randn(1, 5, 6))
