"""One run of a model under interception: on a copy if possible, with everything of the thread put back."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ess_widgets.capture import calls, padding
from ess_widgets.capture.copier import Copier
from ess_widgets.capture.errors import CaptureError, NotCausalError
from ess_widgets.capture.guard import LeakedWeight, WrittenWeight
from ess_widgets.capture.inplace import borrowed, python_randomness
from ess_widgets.capture.mode import CaptureMode, Found, Seen
from ess_widgets.capture.modules import ModuleWatcher
from ess_widgets.capture.names import PathTracker, Selector
from ess_widgets.capture.replica import Replica, Uncopyable, has_storage, replicate, unwrap

__all__ = ["Outcome", "check_causal", "nothing_found", "run"]


@dataclass
class Outcome:
    """What a run brought to light."""

    found: list[Found]
    seen: Seen
    output: Any

    @property
    def skipped(self) -> dict[str, str]:
        return self.seen.skipped


def run(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    selector: Selector,
    *,
    should_stop: Callable[[], bool] | None = None,
    on_layer: Callable[[str, int], None] | None = None,
) -> Outcome:
    """Run the model once, on a copy, or in place where it refuses to be copied and that is safe."""
    signature = _forward_signature(unwrap(model))
    args, kwargs = _unpack(args, kwargs, signature)
    _refuse_filled_cache(kwargs)
    args, kwargs = _own(args), _own(kwargs)
    private: set[str] = set()
    while True:
        try:
            replica = replicate(model, private)
        except (Uncopyable, RecursionError) as error:
            return _in_place(model, args, kwargs, selector, signature, should_stop, on_layer, str(error))
        try:
            return _intercept(
                replica.model, replica, args, kwargs, selector, signature, should_stop, on_layer
            )
        except WrittenWeight as written:
            name = str(written)
            if name in private:
                raise CaptureError(
                    f"the forward pass writes to the weight {name!r}; remove that to capture."
                ) from None
            private.add(name)
        except LeakedWeight as leaked:
            why = _patched(model, replica.originals.get(id(leaked.args[0]), "a weight"))
            break
    del replica
    return _in_place(model, args, kwargs, selector, signature, should_stop, on_layer, why)


def check_causal(found: Found, names: list[str]) -> None:
    """Refuse a layer that reads the future."""
    if found.future is None:
        return
    others = (
        "" if len(names) == 1 else " To look at the causal layers of this model only, name them with layers=."
    )
    raise NotCausalError(
        f"layer {found.name!r} is not causal: {found.future}. Effective state-size needs outputs that read the past "
        f"alone; an encoder has none. Pass the model its causal mask if it should have one.{others}"
    )


def nothing_found(model: nn.Module, outcome: Outcome) -> str:
    """Why there is nothing to look at."""
    calls_seen = ", ".join(f"{count} x {name}" for name, count in outcome.seen.calls.items())
    if outcome.skipped:
        reasons = "; ".join(f"{name!r}: {reason}" for name, reason in list(outcome.skipped.items())[:5])
        return (
            f"{type(model).__name__} mixes tokens, but nowhere as a square operator: {reasons}. Run the full sequence "
            "in one call, without a key-value cache; cross-attention cannot be captured."
        )
    return (
        f"{type(model).__name__} shows no softmax attention in this run. Looked for scaled_dot_product_attention, "
        "multi_head_attention_forward (nn.MultiheadAttention), and a softmax whose result is multiplied with values; "
        f"saw {calls_seen or 'none of them'}. Attention inside a fused kernel or TorchScript cannot be seen: choose "
        "the model's eager or sdpa implementation."
    )


def _intercept(
    model: nn.Module,
    replica: Replica | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    selector: Selector,
    signature: inspect.Signature | None,
    should_stop: Callable[[], bool] | None,
    on_layer: Callable[[str, int], None] | None,
) -> Outcome:
    named = _by_name(args, kwargs, signature)
    inputs = list(_tensors((args, kwargs)))
    if replica is not None:
        weights = dict(replica.storages())
        foreign: dict[int, str] = {}
    else:
        weights = {p: n for n, t in model.named_parameters() if has_storage(t) and (p := calls.storage(t))}
        foreign = {p: n for n, t in model.named_buffers() if has_storage(t) and (p := calls.storage(t))}
    foreign.update({p: "an argument" for t in inputs if (p := calls.storage(t)) is not None})
    with contextlib.ExitStack() as stack:
        tracker = PathTracker(model)
        stack.enter_context(python_randomness())
        for context in _quiet():
            stack.enter_context(context)
        mode = CaptureMode(
            tracker,
            selector,
            inputs=inputs,
            stated=padding.stated(named, {} if signature is None else signature.parameters),
            weights=weights,
            foreign=foreign,
            is_original=None if replica is None else replica.is_original,
            should_stop=should_stop,
            on_layer=on_layer,
        )
        modules = ModuleWatcher(model, mode.recogniser, mode.keep, mode.module_begins, mode.module_ends)
        stack.enter_context(modules)
        stack.enter_context(tracker)
        try:
            with mode, mode.functions:
                output = model(*args, **kwargs)
        finally:
            mode.finish()
    return Outcome(mode.found, mode.seen, output)


def _in_place(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    selector: Selector,
    signature: inspect.Signature | None,
    should_stop: Callable[[], bool] | None,
    on_layer: Callable[[str, int], None] | None,
    why: str,
) -> Outcome:
    model = unwrap(model)
    with borrowed(model, why):
        try:
            return _intercept(model, None, args, kwargs, selector, signature, should_stop, on_layer)
        except WrittenWeight as written:
            raise CaptureError(
                f"this model cannot be run on a copy ({why}), and its forward pass writes to the weight "
                f"{str(written)!r}, so it is not run in place either."
            ) from None


def _quiet() -> Iterator[contextlib.AbstractContextManager[Any]]:
    """What a run needs from its thread: no gradients, no inference mode, autocast as it is but without its cache."""
    yield torch.inference_mode(False)
    yield torch.no_grad()
    yield _private_autocast()
    # A compiled function inside the model is run as it was written: tracing it under interception would add to the
    # recompilations of the user's own calls. torch runs it plainly in a thread whose tracing context says that it is
    # inside a kernel.
    guards: Any = sys.modules.get("torch._guards")
    if "torch._dynamo" in sys.modules and guards is not None:
        yield guards.tracing(guards.TracingContext(_InsideKernel()))


class _InsideKernel:
    in_kernel_invocation = True
    shape_env = None


@contextlib.contextmanager
def _private_autocast() -> Iterator[None]:
    """Autocast's cache is common to all threads, and it is emptied when the outermost region of any thread ends."""
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.autocast_decrement_nesting()
        torch.set_autocast_cache_enabled(enabled)


def _forward_signature(model: nn.Module) -> inspect.Signature | None:
    try:
        return inspect.signature(model.forward)
    except (TypeError, ValueError):
        return None


def _unpack(
    args: tuple[Any, ...], kwargs: dict[str, Any], signature: inspect.Signature | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Turn a single mapping into keyword arguments, where the forward knows these names."""
    if len(args) != 1 or not isinstance(args[0], Mapping) or signature is None:
        return args, kwargs
    batch = {str(key): value for key, value in args[0].items()}
    known = signature.parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    taken = {key: value for key, value in batch.items() if key in known or open_ended}
    if not any(key in known for key in batch):
        return args, kwargs  # the model takes the mapping itself
    return (), {**taken, **kwargs}


def _by_name(
    args: tuple[Any, ...], kwargs: dict[str, Any], signature: inspect.Signature | None
) -> dict[str, Any]:
    if signature is None:
        return kwargs
    try:
        return {**signature.bind_partial(*args).arguments, **kwargs}
    except TypeError:
        return kwargs  # the model's own call will complain


def _own(value: Any) -> Any:
    """Arguments with copies of objects that the forward may change, a cache for example; tensors are shared."""
    if value is None or (isinstance(value, Tensor | nn.Module | Mapping) and not isinstance(value, dict)):
        return value
    if type(value) is dict:
        return {key: _own(item) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_own(item) for item in value)
    return Copier(lambda module: module, lambda parameter: parameter).value(value)


def _refuse_filled_cache(kwargs: dict[str, Any]) -> None:
    for name in ("past_key_values", "past_key_value", "layer_past"):
        cache = kwargs.get(name)
        if cache is None:
            continue
        length = getattr(cache, "get_seq_length", None)
        filled = (
            bool(length()) if callable(length) else bool(len(cache)) if hasattr(cache, "__len__") else True
        )
        if filled:
            raise CaptureError(
                f"{name} holds earlier tokens: their outputs are not computed again, so the operator would not be "
                "square. Pass the full sequence without a cache."
            )


def _patched(model: nn.Module, weight: str) -> str:
    """Which callables, set on instances, may have led to the original weights."""
    suspects = []
    for path, module in unwrap(model).named_modules():
        for name, value in vars(module).items():
            if callable(value) and not isinstance(value, type | nn.Module):
                suspects.append(f"{path or type(module).__name__}.{name}")
    told = f" (set on instances here: {', '.join(suspects[:5])})" if suspects else ""
    return f"running its copy reached the original weight {weight!r}, through a patched method or a closure{told}"


def _tensors(tree: Any, depth: int = 0) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping) and depth < 4:
        for item in tree.values():
            yield from _tensors(item, depth + 1)
    elif isinstance(tree, tuple | list) and depth < 4:
        for item in tree:
            yield from _tensors(item, depth + 1)
