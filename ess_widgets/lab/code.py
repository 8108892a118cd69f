"""The Python that does what the panel does."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from ess_widgets.widgets.explorer import SAMPLE_TEXT

__all__ = ["line"]

_DEFAULTS: dict[str, Any] = {
    "kind": "entropy",
    "tol": 1e-3,
    "max_tokens": 2048,
    "groups": 32,
    "scale": "log",
    "layers": None,
}
_TAKES = {
    "explore": ("kind", "tol", "layers", "max_tokens", "groups", "scale"),
    "diagnose": ("kind", "tol", "layers", "groups"),
    "capture": ("layers",),
}


def line(what: str, reference: str, source: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """Python for a cell.

    Parameters
    ----------
    what : {"explore", "diagnose", "capture"}
    reference : str
        Python that gives the model.
    source : mapping
        What it reads, as in :func:`ess_widgets.lab.source.arguments`, with Python in place of names.
    options : mapping
        Those of the panel, and ``layers``; what is as it is by default is left out.

    Examples
    --------
    >>> print(line("explore", "model", {"tokenizer": "tokenizer", "text": "To be"}, {"tol": 0.01}))
    import ess_widgets as ew
    <BLANKLINE>
    explorer = ew.explore(model, tokenizer, "To be", tol=0.01)
    explorer
    """
    if what not in _TAKES:
        raise ValueError(f"what must be one of {', '.join(_TAKES)}, but is {what!r}.")
    given = [
        f"{name}={_literal(options[name])}"
        for name in _TAKES[what]
        if name in options and options[name] != _DEFAULTS[name]
    ]
    return {"explore": _explore, "diagnose": _diagnose, "capture": _capture}[what](reference, source, given)


def _explore(model: str, source: Mapping[str, Any], given: list[str]) -> str:
    if "tokenizer" in source:
        text = source.get("text")
        reads = [source["tokenizer"], *([] if text is None else [_literal(text)])]
    else:
        reads = [f"inputs={_inputs(source)}"]
    return (
        f"import ess_widgets as ew\n\nexplorer = ew.explore({', '.join([model, *reads, *given])})\nexplorer"
    )


def _diagnose(model: str, source: Mapping[str, Any], given: list[str]) -> str:
    reads = [_text(source), source["tokenizer"]] if "tokenizer" in source else [_inputs(source)]
    call = f"ew.diagnose({', '.join([model, *reads, *given])})"
    return f"import ess_widgets as ew\n\ndiagnosis = {call}\ndiagnosis.view()"


def _capture(model: str, source: Mapping[str, Any], given: list[str]) -> str:
    if "tokenizer" not in source:
        inputs = _inputs(source)
        star = "*" if _is_tuple(inputs) else ""
        return f"import ess_widgets as ew\n\ncaptured = ew.capture({', '.join([model, star + inputs, *given])})\ncaptured"
    ids = f"torch.tensor([{source['tokenizer']}.encode({_text(source)})], device=next({model}.parameters()).device)"
    call = f"ew.capture({', '.join([model, ids, *given])})"
    return f"import ess_widgets as ew\nimport torch\n\ncaptured = {call}\ncaptured"


def _text(source: Mapping[str, Any]) -> str:
    return _literal(SAMPLE_TEXT if source.get("text") is None else source["text"])


def _inputs(source: Mapping[str, Any]) -> str:
    inputs = str(source.get("inputs", source.get("expression", ""))).strip()
    return f"({inputs})" if _is_tuple(inputs) and not inputs.startswith("(") else inputs


def _is_tuple(expression: str) -> bool:
    try:
        return isinstance(ast.parse(expression, mode="eval").body, ast.Tuple)
    except (SyntaxError, ValueError):
        return False


def _literal(value: Any) -> str:
    """As ``repr``, in double quotes where these need no escapes."""
    text = repr(value)
    if text.startswith("'") and '"' not in text and "\\'" not in text:
        return f'"{text[1:-1]}"'
    return text
