"""Distillation of a layer into one with a smaller state: first its operator, then its outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ess_widgets.capture import capture
from ess_widgets.metrics import ess
from ess_widgets.operators import Operator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Distillation", "distil"]

OperatorOf = Callable[[nn.Module, Tensor], Any]
# Entries of the teacher's operators that are kept instead of being computed again at each step.
_KEPT = 2**26


@dataclass(frozen=True)
class Distillation:
    """What :func:`distil` came to.

    Attributes
    ----------
    operator_losses, output_losses : Tensor, ``(steps,)``
        Of the batch of each step, of both phases.
    operator_error : float
        ``‖T_s - T_t‖²_F / ‖T_t‖²_F``, mean over samples and heads (or channels), after both phases, on the inputs for validation.
    output_error : float
        ``‖y_s - y_t‖² / ‖y_t‖²`` over all of those inputs.
    operator_error_before, output_error_before : float
        The same before any step.
    operator_error_between : float
        The same when operators had been matched.
    teacher_ess : Tensor, ``(groups,)``
        The teacher's entropy-ESS at ``i = L // 2``, the least over samples.
    """

    operator_losses: Tensor
    output_losses: Tensor
    operator_error: float
    output_error: float
    operator_error_before: float
    operator_error_between: float
    output_error_before: float
    teacher_ess: Tensor = field(repr=False)

    def figure(self) -> Figure:
        """Losses of both phases, one after the other."""
        from ess_widgets.figures import Figure

        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        axes = figure.add_subplot()
        first, second = len(self.operator_losses), len(self.output_losses)
        axes.plot(range(first), self.operator_losses, color="#1f5fa8", label="operator")
        axes.plot(range(first, first + second), self.output_losses, color="#c8441b", label="output")
        axes.axvline(first - 0.5, color="#8b93a0", linewidth=0.8)
        axes.set(yscale="log", xlabel="step", ylabel="relative squared error")
        axes.set_title(
            f"in the end: operator {self.operator_error:.3g}, output {self.output_error:.3g}", fontsize=10
        )
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        return figure


def distil(
    teacher: nn.Module,
    student: nn.Module,
    inputs: Tensor,
    *,
    operator_steps: int = 800,
    output_steps: int = 3200,
    rate: float = 1e-3,
    batch: int = 8,
    seed: int = 0,
    validation: Tensor | None = None,
    layer: Any = None,
    operator_of: OperatorOf | None = None,
    callback: Callable[[str, int, float], None] | None = None,
) -> Distillation:
    """Teach ``student`` what ``teacher`` does: match operators, then outputs, as the paper does.

    First ``‖T_s - T_t‖²_F / ‖T_t‖²_F`` is brought down, mean over samples and heads, by whatever of the student its
    operator depends on; then ``‖y_s - y_t‖² / ‖y_t‖²`` by all of its parameters. Adam throughout, started afresh for the second
    phase. Both modules run in eval mode and have their mode back afterwards; the teacher is not changed.

    Parameters
    ----------
    teacher, student : nn.Module
        Layers, ``module(x)`` with ``x`` ``(batch, L, width)``, whose operators have the same heads (or channels).
    inputs : Tensor, ``(N, L, width)``
        What to train on. Each step takes ``batch`` of the ``N`` at random.
    operator_steps, output_steps : int
        800 and 3200 in the paper. Either may be 0.
    rate : float
        Of Adam.
    batch, seed : int
        The seed is that of the choice of samples alone; global random streams are not touched.
    validation : Tensor, ``(M, L, width)``, optional
        On what errors and the teacher's ESS are measured; ``inputs`` by default.
    layer : str or int, optional
        Which of several mixers in the modules, as in ``capture(...)[layer]``.
    operator_of : callable, optional
        ``operator_of(module, x)`` gives ``T``, ``(batch, groups, L, L)``, as a tensor or an operator, through which
        gradients reach the module's parameters. By default ``capture(module, x, differentiable=True)``, which takes
        some milliseconds at each step.
    callback : callable, optional
        Called with "operator" or "output", the step and its loss.

    Returns
    -------
    Distillation

    Raises
    ------
    ValueError
        If operators or outputs differ in shape, there is more than one mixer and ``layer`` is not given, the student's
        operator depends on none of its parameters, or a number is out of range.

    References
    ----------
    Parnichkun et al., Quantifying Memory Utilization with Effective State-Size, 2025 (arXiv 2504.19561).

    Examples
    --------
    >>> import torch
    >>> from ess_widgets.demo.miniatures.mixers import GLA
    >>> teacher, student = GLA(16, 2, 8), GLA(16, 2, 4)
    >>> result = distil(teacher, student, torch.randn(8, 12, 16), operator_steps=8, output_steps=0, rate=1e-2)
    >>> result.operator_error_between < result.operator_error_before
    True
    """
    for name, count in (("operator_steps", operator_steps), ("output_steps", output_steps)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ValueError(f"{name} must be an integer of at least 0, but is {count!r}.")
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ValueError(f"batch must be an integer of at least 1, but is {batch!r}.")
    if not 0 < rate < math.inf:
        raise ValueError(f"rate must be a finite number above 0, but is {rate!r}.")
    if teacher is student:
        raise ValueError(
            "teacher and student are the same module: the teacher would change as the student learns."
        )
    held_out = inputs if validation is None else validation
    for name, x in (("inputs", inputs), ("validation", held_out)):
        if not isinstance(x, Tensor) or x.ndim < 2 or len(x) == 0:
            raise ValueError(f"{name} must be a tensor (samples, L, ...) with at least one sample.")
    given = operator_of if operator_of is not None else _captured(layer)

    def operator(module: nn.Module, x: Tensor) -> Tensor:
        T = given(module, x)
        matrix: Tensor = T.matrix() if isinstance(T, Operator) else T
        return matrix

    with _eval_mode(teacher, student):
        pair = _Pair(teacher, student, operator, inputs)
        T = pair.target(held_out, slice(0, len(held_out)))
        pair.check(held_out, T)
        before, output_before = pair.operator_error(held_out), pair.output_error(held_out)
        random = torch.Generator().manual_seed(seed)
        size = min(batch, len(inputs))
        first = pair.train("operator", operator_steps, rate, size, random, callback)
        between = pair.operator_error(held_out)
        second = pair.train("output", output_steps, rate, size, random, callback)
        middle = ess(T, positions=[T.shape[-1] // 2])[..., 0]
        return Distillation(
            first,
            second,
            pair.operator_error(held_out),
            pair.output_error(held_out),
            before,
            between,
            output_before,
            middle.reshape(-1, middle.shape[-1]).amin(0).cpu(),
        )


class _Pair:
    """Teacher and student, and how far apart they are."""

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        operator: Callable[[nn.Module, Tensor], Tensor],
        inputs: Tensor,
    ) -> None:
        self.teacher, self.student, self.operator, self.inputs = teacher, student, operator, inputs
        self._kept: Tensor | None = None

    @torch.no_grad()
    def target(self, x: Tensor, rows: Any) -> Tensor:
        """The teacher's operators; those of the inputs are kept where there is room."""
        if x is not self.inputs:
            return self.operator(self.teacher, x[rows]).detach()
        if self._kept is None:
            first = self.operator(self.teacher, x[:1])
            if first.numel() * len(x) > _KEPT:
                return self.operator(self.teacher, x[rows]).detach()
            self._kept = torch.cat(
                [self.operator(self.teacher, part).detach() for part in torch.split(x, 32)]
            )
        return self._kept[rows]

    def check(self, x: Tensor, T: Tensor) -> None:
        """Whether the two can be compared at all."""
        with torch.enable_grad():
            T_s = self.operator(self.student, x[:1])
        if T_s.shape[1:] != T.shape[1:]:
            raise ValueError(
                f"the teacher's operators are {tuple(T.shape[1:])} for each sample, the student's {tuple(T_s.shape[1:])}: "
                "they must have the same heads (or channels) and length."
            )
        if not T_s.requires_grad:
            raise ValueError(
                "the student's operator depends on no parameter that requires a gradient: let some require one, or give "
                "an operator_of that keeps the graph."
            )
        with torch.no_grad():
            y_t, y_s = self.teacher(x[:1]), self.student(x[:1])
        if getattr(y_t, "shape", None) != getattr(y_s, "shape", ()):
            raise ValueError("teacher and student must each return one tensor, of the same shape.")

    def operator_loss(self, x: Tensor, rows: Any) -> Tensor:
        target = self.target(x, rows)
        squares = (self.operator(self.student, x[rows]) - target).square().sum((-2, -1))
        norms = target.square().sum((-2, -1))
        loss: Tensor = (squares / norms.where(norms > 0, 1.0)).mean()
        return loss

    def output_loss(self, x: Tensor, rows: Any) -> Tensor:
        with torch.no_grad():
            y = self.teacher(x[rows]).double()
        norm = y.square().sum()
        loss: Tensor = (self.student(x[rows]).double() - y).square().sum() / norm.where(norm > 0, 1.0)
        return loss

    @torch.no_grad()
    def operator_error(self, x: Tensor) -> float:
        return float(self.operator_loss(x, slice(0, len(x))))

    @torch.no_grad()
    def output_error(self, x: Tensor) -> float:
        return float(self.output_loss(x, slice(0, len(x))))

    def train(
        self, phase: str, steps: int, rate: float, batch: int, random: torch.Generator, callback: Any
    ) -> Tensor:
        parameters = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        optimiser = torch.optim.Adam(parameters, lr=rate)
        loss_of = self.operator_loss if phase == "operator" else self.output_loss
        losses = []
        for step in range(steps):
            rows = torch.randperm(len(self.inputs), generator=random)[:batch].to(self.inputs.device)
            with torch.enable_grad():
                loss = loss_of(self.inputs, rows)
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimiser.step()
            losses.append(float(loss.detach()))
            if callback is not None:
                callback(phase, step, losses[-1])
        optimiser.zero_grad(set_to_none=True)
        return torch.tensor(losses, dtype=torch.float64)


def _captured(layer: Any) -> OperatorOf:
    def operator_of(module: nn.Module, x: Tensor) -> Operator:
        found = capture(module, x, layers=layer, differentiable=torch.is_grad_enabled())
        if len(found) > 1:
            raise ValueError(f"there are several mixers, {list(found)}: choose one with layer=.")
        return found[0].operator

    return operator_of


@contextmanager
def _eval_mode(*modules: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, training in modes:
            part.training = training
