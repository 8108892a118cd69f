"""The models, tokenizers and inputs of a namespace, with what can be told without running anything."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

from torch import nn

from . import static
from .listing import Entry, entries
from .mixers import guess

__all__ = ["survey"]

_MOST = 100


def survey(
    namespace: dict[Any, Any],
    *,
    hidden: Collection[str] = (),
    expanded: Collection[str] = (),
    budget: float = 0.015,
) -> dict[str, Any]:
    """List what is in a namespace; nothing of the user's is called, printed, compared or written.

    Parameters
    ----------
    namespace : dict
        As ``get_ipython().user_ns``.
    hidden : collection of str, or dict
        Names to leave out; of a dict, as long as they stand for the same objects.
    expanded : collection of str
        Models whose mixers are listed too.
    budget : float
        Seconds after which parameters are no longer counted.

    Returns
    -------
    dict
        ``models``, ``tokenizers``, ``inputs``, ``omitted`` and ``seconds``, ready for JSON.

    Examples
    --------
    >>> found = survey({"net": nn.Linear(2, 3)})
    >>> found["models"][0]["name"], found["models"][0]["parameters"]
    ('net', 9)
    """
    start = time.perf_counter()
    models: dict[int, tuple[Entry, list[str]]] = {}
    tokenizers: list[dict[str, Any]] = []
    inputs: list[dict[str, Any]] = []
    names: set[str] = set()
    omitted: set[int] = set()
    for entry in entries(namespace, hidden):
        if entry.sort == "tokenizer" and len(tokenizers) < _MOST:
            tokenizers.append({"name": entry.name, "kind": static.kind_name(type(entry.value))})
        elif entry.sort == "inputs" and len(inputs) < _MOST:
            inputs.append(_inputs(entry))
        elif entry.sort == "model":
            known = models.get(id(entry.value))
            if known is not None:
                known[1].append(entry.name)
            elif len(models) >= _MOST:
                omitted.add(id(entry.value))
            elif entry.name not in names:  # a variable may be called like an item of a container
                models[id(entry.value)] = entry, []
                names.add(entry.name)
    deadline = start + budget
    listed = [_model(entry, aliases, deadline) for entry, aliases in models.values()]
    for (entry, aliases), model in zip(models.values(), listed, strict=True):
        if any(name in expanded for name in (entry.name, *aliases)):
            model["mixers"] = guess(entry.value)
    return {
        "models": listed,
        "tokenizers": tokenizers,
        "inputs": inputs,
        "omitted": len(omitted),
        "seconds": time.perf_counter() - start,
    }


def _inputs(entry: Entry) -> dict[str, Any]:
    size = static.size(entry.value) if static.tensor(entry.value) else None
    return {
        "name": entry.name,
        "kind": static.kind_name(type(entry.value)),
        "shape": None if size is None else list(size[0]),
        "dtype": None if size is None else size[1],
    }


def _model(entry: Entry, aliases: list[str], deadline: float) -> dict[str, Any]:
    kind = type(entry.value)
    return {
        "name": entry.name,
        "id": static.identity(entry.value),
        "kind": static.kind_name(kind),
        "module": static.module_name(kind),
        **_count(entry.value, deadline),
        "training": dict.get(static.instance_dict(entry.value), "training") is True,
        "aliases": aliases[:_MOST],
        "mixers": None,
    }


def _count(model: Any, deadline: float) -> dict[str, Any]:
    """Parameters, shared ones once, and what they have in common."""
    parameters, complete, language = 0, True, False
    devices: set[str] = set()
    dtypes: set[str] = set()
    buffers: set[str] = set()
    seen: set[int] = set()
    for module in static.modules(model):
        if module is not model and time.perf_counter() > deadline:
            complete = False
            break
        language = language or static.descends(type(module), nn.Embedding)
        for place, where in (("_parameters", devices), ("_buffers", buffers)):
            for _, value in static.part(module, place):
                size = None if id(value) in seen else static.size(value)
                seen.add(id(value))
                if size is None:
                    continue
                where.add(size[2])
                if place == "_parameters":
                    dtypes.add(size[1])
                    count = 1
                    for length in size[0]:
                        count *= length
                    parameters += count
    return {
        "parameters": parameters,
        "complete": complete,
        "device": _common(devices or buffers),
        "dtype": _common(dtypes),
        "language": language,
    }


def _common(values: set[str]) -> str:
    return "mixed" if len(values) > 1 else "".join(values)
