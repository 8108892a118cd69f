"""Trained weights in the package: half-precision safetensors that carry the record of their training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ess_widgets.demo.miniatures import Miniature

__all__ = ["WEIGHTS", "load_miniature", "names", "record", "save"]

WEIGHTS = Path(__file__).parent


def names() -> list[str]:
    """The miniatures in the package."""
    return sorted(path.stem for path in WEIGHTS.glob("*-*.safetensors"))


def record(name: str) -> dict[str, Any]:
    """What the training wrote beside the weights: command, sizes, losses.

    Examples
    --------
    >>> record("bytes-GLA")["config"]["mixers"]
    ['GLA', 'GLA', 'GLA', 'GLA']
    """
    from safetensors import safe_open

    with safe_open(_path(name), framework="pt") as file:
        return {key: json.loads(value) for key, value in file.metadata().items()}


def load_miniature(name: str) -> Miniature:
    """A trained miniature, in evaluation mode, in float32 on the CPU."""
    from safetensors.torch import load_file

    config = dict(record(name)["config"])
    model = Miniature(config.pop("mixers"), **config)
    model.load_state_dict({key: value.float() for key, value in load_file(_path(name)).items()})
    return model.eval()


def save(model: Miniature, facts: dict[str, Any], path: Path) -> None:
    """Write the weights as float16, with the record of the training."""
    from safetensors.torch import save_file

    weights = {key: value.detach().half().contiguous() for key, value in model.state_dict().items()}
    save_file(weights, path, metadata={key: json.dumps(value) for key, value in facts.items()})
    print(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB): {facts}")


def _path(name: str) -> Path:
    path = WEIGHTS / f"{name}.safetensors"
    if not path.exists():
        raise ValueError(f"no miniature is called {name!r}; there are {', '.join(names())}")
    return path
