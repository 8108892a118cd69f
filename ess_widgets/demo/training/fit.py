"""A training loop for miniatures and tasks, the same for all of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ess_widgets import tasks
from ess_widgets.tasks import Task

if TYPE_CHECKING:
    from ess_widgets.learn import Regulariser

__all__ = ["evaluate", "fit"]


def fit(
    model: nn.Module,
    task: Task,
    *,
    steps: int = 1000,
    batch: int = 64,
    rate: float = 2e-3,
    weight_decay: float = 0.1,
    warmup: float = 0.05,
    memory: Regulariser | None = None,
    callback: Callable[[int, float], object] | None = None,
) -> nn.Module:
    """Train on a task with AdamW, warm-up and a linear decay of the learning rate; what the paper uses but for its size.

    Parameters
    ----------
    model : torch.nn.Module
        From ``(batch, L)`` tokens to logits; trained in place. Seed torch before it is made to get the same weights again.
    task : Task
        Batch number ``i`` of it is used at step ``i``.
    steps, batch : int
        Number of steps, samples in each.
    rate, weight_decay : float
        Of AdamW; decay applies to matrices only.
    warmup : float
        Share of the steps over which the rate rises.
    memory : Regulariser, optional
        Watches each forward pass; its penalty is added to the loss.
    callback : callable, optional
        Called with the step, from 0, and the loss after each step.

    Returns
    -------
    torch.nn.Module
        The model, in evaluation mode.
    """
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    rise = max(1, int(warmup * steps))
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / rise, max(0.02, 1 - step / steps))
    )
    model.train()
    for step in range(steps):
        inputs, targets = task.batch(batch, step)
        with memory or nullcontext():
            logits = model(inputs)
        task_loss = tasks.loss(logits, targets)
        total = task_loss if memory is None else task_loss + memory.penalty
        optimiser.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        scheduler.step()
        if callback is not None:
            callback(step, task_loss.item())
    return model.eval()


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, *, samples: int = 256) -> float:
    """Accuracy on samples that training did not see, in [0, 1]."""
    inputs, targets = task.held_out().batch(samples)
    return tasks.accuracy(model.eval()(inputs), targets)
