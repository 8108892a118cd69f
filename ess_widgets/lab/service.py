"""Questions of the panel, each a comm that is opened with it, answered once and closed; closing it cancels."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from . import shown, static
from .code import line
from .errors import LabError
from .listing import find
from .mixers import causal_part, guess
from .namespace import survey
from .source import arguments, resolve
from .tasks import Task

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


def answer(data: Mapping[str, Any], task: Task | None = None) -> dict[str, Any]:
    """Answer one question; whatever goes wrong is told in the answer."""
    try:
        ask = _known(data.get("ask"))
        return {"ok": True, "value": _SLOW[ask](data, task or Task()) if ask in _SLOW else _QUICK[ask](data)}
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 - an interrupt too: the panel waits for an answer
        return {"ok": False, "error": {"kind": static.kind_name(type(error)), "message": _message(error)}}


def _on_open(channel: Any, message: Mapping[str, Any]) -> None:
    data = message["content"]["data"]
    if data.get("ask") not in _SLOW:
        _reply(channel, answer(data))
        return
    task = Task(lambda progress: channel.send(data={"progress": progress}))
    channel.on_close(lambda _: task.cancel())
    name = f"ess_widgets {data['ask']}"
    threading.Thread(target=lambda: _reply(channel, answer(data, task)), name=name, daemon=True).start()


def _reply(channel: Any, reply: dict[str, Any]) -> None:
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
    options["layers"] = causal_part(guess(entry.value))
    if data.get("layer") is not None:
        options["selection"] = Selection(layer=data["layer"])
    if read.tokenizer is not None:
        options |= {"tokenizer": read.tokenizer, "text": read.text}
    else:
        options |= {"inputs": read.inputs}
    explorer = Explorer(entry.value, **{**options, **_kept(data.get("replaces"))})
    shown.close(data.get("replaces"))
    return {"model_id": shown.remember(entry.name, entry.value, explorer, explores=True)}


def _kept(model_id: str | None) -> dict[str, Any]:
    """What the user has set in the explorer that is replaced by a newer one."""
    found = shown.find(model_id)
    if found is None or not found.explores:
        return {}
    old = found.view
    kept = {name: getattr(old, name) for name in ("kind", "tol", "relative", "scale")}
    if old.text is not None:
        kept["text"] = old.text
    fields = ("layer", "head", "position", "span", "pinned")
    return {**kept, "selection": type(old.selection)(**{name: old.selection[name] for name in fields})}


def _refresh(data: Mapping[str, Any]) -> None:
    found = _still(data)
    found.view.refresh()
    found.stamp = static.stamp(found.model)


def _check(data: Mapping[str, Any]) -> dict[str, Any]:
    """How a view stands to what its name means now."""
    found = _still(data)
    try:
        model = find(_space(), found.name, "model").value
    except LabError:
        return {"state": "gone"}
    if model is not found.model:
        return {"state": "another"}
    return {"state": "changed" if found.changed else "current"}


def _still(data: Mapping[str, Any]) -> shown.Shown:
    found = shown.find(data["model_id"])
    if found is None:
        raise LabError("This view was closed in the kernel; open it again.")
    return found


def _diagnose(data: Mapping[str, Any], task: Task) -> dict[str, Any]:
    from ess_widgets.learn import diagnose
    from ess_widgets.widgets.explorer import SAMPLE_TEXT

    space = _space()
    entry, read = find(space, data["name"], "model"), resolve(data["source"], space)
    inputs = read.inputs
    if read.tokenizer is not None:
        inputs = SAMPLE_TEXT if read.text is None else read.text
        longest = _options(data, "max_tokens")
        arguments(entry.value, data["source"], space, **longest)  # refuses one that is too long
    found = diagnose(
        entry.value,
        inputs,
        read.tokenizer,
        layers=causal_part(guess(entry.value)),
        should_stop=task.cancelled,
        on_progress=task.progress,
        **_options(data, "kind", "tol", "groups"),
    )
    view = found.view()
    shown.close(data.get("replaces"))
    model_id = shown.remember(entry.name, entry.value, view, explores=False)
    if task.cancelled():  # nobody will show it
        shown.close(model_id)
    return {"model_id": model_id}


def _scan(data: Mapping[str, Any], task: Task) -> dict[str, Any]:
    from .scan import scan

    space = _space()
    model = find(space, data["name"], "model").value
    return scan(model, *arguments(model, data["source"], space, **_options(data, "max_tokens")), task)


def _close(data: Mapping[str, Any]) -> None:
    shown.close(data["model_id"])


def _code(data: Mapping[str, Any]) -> dict[str, Any]:
    space, source = _space(), dict(data["source"])
    for name, sort in (("tokenizer", "tokenizer"), ("inputs", "inputs")):
        if name in source:
            source[name] = find(space, source[name], sort).expression
    entry = find(space, data["name"], "model")
    options = {**(data.get("options") or {}), "layers": causal_part(guess(entry.value))}
    return {"code": line(data["what"], entry.expression, source, options)}


def _known(ask: Any) -> str:
    if not isinstance(ask, str) or ask not in (*_QUICK, *_SLOW):
        raise ValueError(
            f"the kernel does not know the question {ask!r}: its ess_widgets and the panel differ."
        )
    return ask


_QUICK: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "models": _models,
    "explore": _explore,
    "refresh": _refresh,
    "check": _check,
    "close": _close,
    "code": _code,
}
_SLOW: dict[str, Callable[[Mapping[str, Any], Task], Any]] = {"diagnose": _diagnose, "scan": _scan}
