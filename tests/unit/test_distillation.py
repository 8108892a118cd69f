"""Distillation into a smaller state: a student that can, learns; the teacher and everything else stays as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ess_widgets as ew
from ess_widgets.demo.miniatures.mixers import GLA
from ess_widgets.learn.distillation import distil


class Decay(nn.Module):
    """``y_t = Σ_j Σ_k c_k a_k^(t-j) x_j`` for each channel; one head."""

    def __init__(self, state: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.linspace(-0.5, 1.5, state))
        self.c = nn.Parameter(torch.ones(state))
        self.drop = nn.Dropout(0.5)

    def matrix(self, length: int) -> Tensor:
        lag = torch.arange(length)[:, None] - torch.arange(length)
        powers = self.a.sigmoid() ** lag.clamp(min=0).unsqueeze(-1)
        return ((powers * self.c).sum(-1) * (lag >= 0)).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.matrix(x.shape[-2]).to(x) @ x)


def operator_of(module: Any, x: Tensor) -> Tensor:
    T: Tensor = module.matrix(x.shape[-2])
    return T.expand(x.shape[0], 1, *T.shape)


def data(count: int = 12, length: int = 10, width: int = 3) -> Tensor:
    return torch.randn(count, length, width, generator=torch.Generator().manual_seed(1))


def test_a_student_with_enough_state_learns_the_operator() -> None:
    teacher, student = Decay(2), Decay(3)
    with torch.no_grad():
        teacher.a.copy_(torch.tensor([0.2, 2.0]))
    state = torch.get_rng_state()
    result = distil(
        teacher, student, data(), operator_steps=300, output_steps=100, rate=0.02, operator_of=operator_of
    )
    assert torch.equal(state, torch.get_rng_state())
    assert result.operator_error < 1e-4 and result.operator_error_before > 0.05
    assert result.output_error < 1e-4
    assert result.operator_losses.shape == (300,) and result.output_losses.shape == (100,)
    T, T_t = student.matrix(10).detach(), teacher.matrix(10).detach()
    by_hand = (T - T_t).square().sum() / T_t.square().sum()
    assert result.operator_error == pytest.approx(float(by_hand))
    assert result.teacher_ess.shape == (1,)
    assert float(result.teacher_ess) == pytest.approx(float(ew.ess(T_t, positions=[5])))
    assert len(result.figure().axes[0].lines) == 3


def test_a_smaller_state_loses_more() -> None:
    torch.manual_seed(0)
    teacher = Decay(3)
    errors = [
        distil(
            teacher,
            Decay(state),
            data(),
            operator_steps=200,
            output_steps=0,
            rate=0.05,
            operator_of=operator_of,
        ).operator_error
        for state in (1, 3)
    ]
    assert errors[0] > 10 * errors[1]


def test_by_capture_as_by_hand() -> None:
    torch.manual_seed(0)
    teacher, student = GLA(12, 2, 6, beta=4.0), GLA(12, 2, 3, beta=4.0)
    x, held_out = data(6, 9, 12), data(4, 9, 12)
    seen: list[tuple[str, int, float]] = []
    student.train()
    student.out.eval()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    result = distil(
        teacher,
        student,
        x,
        operator_steps=15,
        output_steps=10,
        rate=1e-2,
        batch=4,
        validation=held_out,
        callback=lambda *args: seen.append(args),
    )
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert student.training and not student.out.training and student.gate.training
    assert all(parameter.grad is None for parameter in [*student.parameters(), *teacher.parameters()])
    assert [entry[:2] for entry in seen] == [("operator", i) for i in range(15)] + [
        ("output", i) for i in range(10)
    ]
    assert result.operator_error_between < result.operator_error_before
    assert result.output_error < result.output_error_before
    T_t, T_s = (ew.capture(module, held_out)[0].operator.matrix() for module in (teacher, student))
    ratio = (T_s - T_t).square().sum((-2, -1)) / T_t.square().sum((-2, -1))
    assert result.operator_error == pytest.approx(float(ratio.mean()), rel=1e-5)
    y_t, y_s = teacher(held_out).detach(), student(held_out).detach()
    assert result.output_error == pytest.approx(
        float((y_s - y_t).square().sum() / y_t.square().sum()), rel=1e-4
    )
    middle = ew.ess(T_t, positions=[4])[..., 0].amin(0)
    torch.testing.assert_close(result.teacher_ess, middle.cpu())


def test_the_same_seed_gives_the_same_student() -> None:
    runs = []
    for seed in (3, 3, 4):
        student = Decay(2)
        distil(
            Decay(3),
            student,
            data(),
            operator_steps=5,
            output_steps=5,
            batch=2,
            seed=seed,
            operator_of=operator_of,
        )
        runs.append(student.a.detach().clone())
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_what_does_not_fit() -> None:
    x = data(2, 6, 12)
    with pytest.raises(ValueError, match="same heads"):
        distil(GLA(12, 2, 4), GLA(12, 3, 4), x)
    frozen = Decay(2).requires_grad_(False)
    with pytest.raises(ValueError, match="depends on no parameter"):
        distil(Decay(2), frozen, x, operator_of=operator_of)
    with pytest.raises(ValueError, match="several mixers"):
        distil(nn.Sequential(GLA(12, 2, 4), GLA(12, 2, 4)), GLA(12, 2, 4), x)
    with pytest.raises(ValueError, match="of the same shape"):
        distil(Decay(2), nn.Sequential(Widened(2)), x, operator_of=lambda m, x: operator_of(_inner(m), x))
    for wrong, message in (
        ({"operator_steps": -1}, "operator_steps"),
        ({"output_steps": 1.5}, "output_steps"),
        ({"rate": 0.0}, "rate"),
        ({"rate": float("inf")}, "rate"),
        ({"batch": 0}, "batch"),
        ({"validation": torch.ones(0, 6, 12)}, "validation"),
    ):
        with pytest.raises(ValueError, match=message):
            distil(Decay(2), Decay(2), x, operator_of=operator_of, **wrong)  # type: ignore[arg-type]


class Widened(Decay):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super().forward(x)] * 2, dim=-1)


def _inner(module: nn.Module) -> nn.Module:
    return module[0] if isinstance(module, nn.Sequential) else module


def test_a_teacher_cannot_be_its_own_student():
    layer = GLA(8, 2, 4)
    with pytest.raises(ValueError, match="the same module"):
        distil(layer, layer, torch.randn(2, 6, 8), operator_steps=1, output_steps=0)


def test_distillation_where_gradients_are_off():
    torch.manual_seed(0)
    teacher, student = GLA(8, 2, 4), GLA(8, 2, 2)
    with torch.no_grad():
        found = distil(teacher, student, torch.randn(2, 6, 8), operator_steps=4, output_steps=0, rate=1e-2)
    assert found.operator_error < found.operator_error_before
