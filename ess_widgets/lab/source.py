"""What a model is to read: a text through a tokenizer, inputs of the namespace, or an expression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ess_widgets.widgets.explorer import SAMPLE_TEXT
from ess_widgets.widgets.source import FixedInputs, Text

from .errors import LabError
from .listing import find

__all__ = ["Read", "arguments", "resolve"]


@dataclass(frozen=True)
class Read:
    """A tokenizer and a text, or inputs, and the Python that gives the tokenizer or the inputs."""

    expression: str
    tokenizer: Any = None
    text: str | None = None
    inputs: Any = None


def resolve(source: Mapping[str, Any], namespace: dict[Any, Any]) -> Read:
    """Look up what a source names.

    Raises
    ------
    LabError
        Where it is gone, or an expression fails.
    """
    match source:
        case {"tokenizer": str(name), **rest}:
            entry, text = find(namespace, name, "tokenizer"), rest.get("text")
            if text is not None and not (isinstance(text, str) and text.strip()):
                raise LabError("The text is empty: type something for the model to read.")
            return Read(entry.expression, tokenizer=entry.value, text=text)
        case {"inputs": str(name)}:
            entry = find(namespace, name, "inputs")
            return Read(entry.expression, inputs=entry.value)
        case {"expression": str(typed)}:
            return Read(typed.strip(), inputs=_evaluated(typed.strip(), namespace))
    raise LabError("Say what the model reads: a tokenizer and a text, a variable, or an expression.")


def arguments(
    model: nn.Module, source: Mapping[str, Any], namespace: dict[Any, Any], max_tokens: int = 2048
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments that ``model`` is called with.

    Parameters
    ----------
    model : torch.nn.Module
    source : mapping
        ``{"tokenizer": name, "text": str or None}``, ``{"inputs": name}`` or ``{"expression": str}``; names as listed.
    namespace : dict
        Read, never written.
    max_tokens : int
        Longer texts are refused.

    Raises
    ------
    LabError
        Where a name is gone, or an expression fails.
    ValueError
        If the text is too long for the model or for ``max_tokens``.
    """
    read = resolve(source, namespace)
    if read.tokenizer is None:
        call = FixedInputs(read.inputs, None).call(model, None)
    else:
        call = Text(read.tokenizer, max_tokens).call(model, SAMPLE_TEXT if read.text is None else read.text)
    return call.args, call.kwargs


def _evaluated(typed: str, namespace: dict[Any, Any]) -> Any:
    if not typed:
        raise LabError("The expression is empty: type what the model is called with.")
    try:
        value = eval(compile(typed, "<ess_widgets.lab>", "eval"), dict(namespace))  # a copy: `:=` writes
    except Exception as error:
        raise LabError(f"`{typed}` gives no inputs: {type(error).__name__}: {error}") from error
    if value is None:
        raise LabError(f"`{typed}` is None: the model needs a tensor, a dict or a tuple of arguments.")
    return value
