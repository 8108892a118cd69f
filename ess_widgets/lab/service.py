"""Questions of the panel, each a comm that is opened with it, answered once and closed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from . import shown, static
from .code import line
from .listing import find
from .namespace import survey
from .source import arguments, resolve

__all__ = ["TARGET", "answer", "register"]

TARGET = "ess_widgets.lab"


def register() -> str:
    """Let the running kernel answer the panel; calling it again changes nothing.

    Returns
    -------
    str
        "ready".
    """
    import comm

    comm.get_comm_manager().register_target(TARGET, _on_open)
    return "ready"


def answer(data: Mapping[str, Any]) -> dict[str, Any]:
    """Answer one question; whatever goes wrong is told in the answer."""
    try:
        return {"ok": True, "value": _ASKS[_known(data.get("ask"))](data)}
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 - an interrupt too: the panel waits for an answer
        return {"ok": False, "error": {"kind": static.kind_name(type(error)), "message": _message(error)}}


def _on_open(channel: Any, message: Mapping[str, Any]) -> None:
    reply = answer(message["content"]["data"])
    try:
        channel.send(data=reply)
    except (TypeError, ValueError) as error:  # something that JSON cannot hold
        channel.send(data={"ok": False, "error": {"kind": type(error).__name__, "message": _message(error)}})
    channel.close()


def _message(error: BaseException) -> str:
    try:
        said = error.args[0] if isinstance(error, KeyError) and error.args else error
        return str(said)[:4000].encode("utf-8", "replace").decode()
    except Exception:  # noqa: BLE001 - the error's own __str__ raised
        return "an error that cannot be put in words"


def _shell() -> Any:
    from IPython import get_ipython

    shell = get_ipython()
    if shell is None:
        raise RuntimeError("There is no IPython kernel here.")
    return shell


def _space() -> dict[Any, Any]:
    return _shell().user_ns  # type: ignore[no-any-return]


def _options(data: Mapping[str, Any], *names: str) -> dict[str, Any]:
    given = data.get("options") or {}
    return {name: given[name] for name in names if given.get(name) is not None}


def _models(data: Mapping[str, Any]) -> dict[str, Any]:
    shell = _shell()
    return survey(shell.user_ns, hidden=shell.user_ns_hidden, expanded=set(data.get("expanded") or ()))


def _explore(data: Mapping[str, Any]) -> dict[str, Any]:
    from ess_widgets.widgets import Explorer, Selection

    space = _space()
    entry, read = find(space, data["name"], "model"), resolve(data["source"], space)
    options = _options(data, "kind", "tol", "max_tokens", "groups", "scale")
    if data.get("layer") is not None:
        options["selection"] = Selection(layer=data["layer"])
    reads = (
        {"tokenizer": read.tokenizer, "text": read.text}
        if read.tokenizer is not None
        else {"inputs": read.inputs}
    )
    explorer = Explorer(entry.value, **reads, **options)
    return {
        "model_id": shown.remember(entry.name, explorer, explores=True),
        "title": static.shown(explorer.title),
        "id": str(id(entry.value)),
    }


def _diagnose(data: Mapping[str, Any]) -> dict[str, Any]:
    from ess_widgets.learn import diagnose
    from ess_widgets.learn.diagnosis.summary import headline
    from ess_widgets.widgets.explorer import SAMPLE_TEXT

    space = _space()
    entry, read = find(space, data["name"], "model"), resolve(data["source"], space)
    inputs = read.inputs
    if read.tokenizer is not None:
        inputs = list(data.get("texts") or [SAMPLE_TEXT if read.text is None else read.text])
        longest = _options(data, "max_tokens")
        for text in inputs:  # refuses those that are too long
            arguments(entry.value, {**data["source"], "text": text}, space, **longest)
    found = diagnose(entry.value, inputs, read.tokenizer, **_options(data, "kind", "tol", "groups"))
    view = found.view()
    return {"model_id": shown.remember(entry.name, view, explores=False), "headline": headline(found)}


def _scan(data: Mapping[str, Any]) -> dict[str, Any]:
    from .scan import scan

    space = _space()
    model = find(space, data["name"], "model").value
    return scan(model, *arguments(model, data["source"], space, **_options(data, "max_tokens")))


def _close(data: Mapping[str, Any]) -> None:
    shown.close(data["model_id"])


def _code(data: Mapping[str, Any]) -> dict[str, Any]:
    space, source = _space(), dict(data["source"])
    for name, sort in (("tokenizer", "tokenizer"), ("inputs", "inputs")):
        if name in source:
            source[name] = find(space, source[name], sort).expression
    model = find(space, data["name"], "model").expression
    return {"code": line(data["what"], model, source, data.get("options") or {})}


def _known(ask: Any) -> str:
    if not isinstance(ask, str) or ask not in _ASKS:
        raise ValueError(
            f"the kernel does not know the question {ask!r}: its ess_widgets and the panel differ."
        )
    return ask


_ASKS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "models": _models,
    "explore": _explore,
    "diagnose": _diagnose,
    "scan": _scan,
    "close": _close,
    "code": _code,
}
