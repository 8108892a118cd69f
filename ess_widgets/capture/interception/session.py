"""One run of a model under interception: on a copy if possible, with everything of the thread put back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from types import GeneratorType
from typing import Any

from torch import nn

from ess_widgets.capture.errors import CaptureError, NotCausalError
from ess_widgets.capture.interception import calls, padding
from ess_widgets.capture.interception.arguments import Arguments
from ess_widgets.capture.interception.guard import LeakedWeight, WrittenWeight
from ess_widgets.capture.interception.inplace import ALONE, Loan
from ess_widgets.capture.interception.mode import CaptureMode
from ess_widgets.capture.interception.quiet import Quiet, quietly
from ess_widgets.capture.interception.replica import Replica, Uncopyable, has_storage, replicate, unwrap
from ess_widgets.capture.linearisation.targets import Targets, Watch
from ess_widgets.capture.names import PathTracker, Selector
from ess_widgets.capture.recognition.modules import ModuleWatcher
from ess_widgets.capture.record import Found, Seen

__all__ = ["Outcome", "Watched", "check_causal", "run"]


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
    targets: Targets | None = None,
    differentiable: bool = False,
    should_stop: Callable[[], bool] | None = None,
    on_layer: Callable[[str, int], None] | None = None,
) -> Outcome:
    """Run the model once, on a copy, or in place where it refuses to be copied and that is safe."""
    arguments = Arguments(unwrap(model), args, kwargs)
    once = _Run(model, arguments, selector, targets or Targets(), differentiable, should_stop, on_layer)
    return quietly(once.on_a_copy, gradients=differentiable)


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


@dataclass(frozen=True)
class _Run:
    model: nn.Module
    arguments: Arguments
    selector: Selector
    targets: Targets
    differentiable: bool
    should_stop: Callable[[], bool] | None
    on_layer: Callable[[str, int], None] | None

    def on_a_copy(self, quiet: Quiet) -> Outcome:
        private: set[str] = set()
        while True:
            try:
                replica = replicate(self.model, private, faithful=True, differentiable=self.differentiable)
            except (Uncopyable, RecursionError) as error:
                return self.in_place(str(error))
            try:
                return self.intercept(replica.model, replica)
            except WrittenWeight as written:
                name = str(written)
                if name in private:
                    raise CaptureError(
                        f"the forward pass writes to the weight {name!r}; remove that to capture."
                    ) from None
                private.add(name)
            except LeakedWeight as leaked:
                why = _patched(self.model, replica.originals.get(id(leaked.args[0]), "a weight"))
                break
        del replica
        return self.in_place(why)

    def in_place(self, why: str) -> Outcome:
        # One at a time: buffers are put back to what they were before, not to what another run made of them.
        with ALONE:
            return quietly(lambda quiet: self._lent(quiet, why), gradients=self.differentiable)

    def _lent(self, quiet: Quiet, why: str) -> Outcome:
        model = unwrap(self.model)
        loan = Loan(model, why)
        quiet.afterwards.append(loan.give_back)
        loan.take()
        try:
            return self.intercept(model, None)
        except WrittenWeight as written:
            raise CaptureError(
                f"this model cannot be run on a copy ({why}), and its forward pass writes to the weight "
                f"{str(written)!r}, so it is not run in place either."
            ) from None

    def intercept(self, model: nn.Module, replica: Replica | None) -> Outcome:
        modules, asked, tracker, mode = self.prepare(model, replica)
        args, kwargs = self.arguments.own()
        try:
            with modules, asked, tracker, mode, mode.recognition.functions:
                output = model(*args, **kwargs)
                if isinstance(output, GeneratorType):
                    output = list(output)  # it runs only while somebody asks for more
        finally:
            mode.finish()
        return Outcome(mode.record.found, mode.record.seen, output)

    def prepare(
        self, model: nn.Module, replica: Replica | None, *, live: bool = False
    ) -> tuple[ModuleWatcher, Watch, PathTracker, CaptureMode]:
        """All that looks at one run, in the order in which it is to be entered."""
        inputs = self.arguments.tensors()
        if replica is not None:
            weights = dict(replica.storages())
            foreign: dict[int, str] = {}
        else:
            weights = {
                p: n for n, t in model.named_parameters() if has_storage(t) and (p := calls.storage(t))
            }
            foreign = {p: n for n, t in model.named_buffers() if has_storage(t) and (p := calls.storage(t))}
        foreign.update({p: "an argument" for t in inputs if (p := calls.storage(t)) is not None})
        tracker = PathTracker(model)
        chosen = self.targets.choose(model)
        mode = CaptureMode(
            tracker,
            self.selector,
            inputs=inputs,
            stated=padding.stated(self.arguments.by_name(), self.arguments.accepts),
            weights=weights,
            foreign=foreign,
            chosen=chosen,
            differentiable=self.differentiable,
            live=live,
            is_original=None if replica is None else replica.is_original,
            should_stop=self.should_stop,
            on_layer=self.on_layer,
        )
        record, recognition = mode.record, mode.recognition
        asked = Watch(chosen, tracker, record.keep, record.linearised, record.seen.skipped.__setitem__)
        modules = ModuleWatcher(
            tracker.modules,
            recognition.recogniser,
            record.keep,
            recognition.module_begins,
            recognition.module_ends,
        )
        return modules, asked, tracker, mode


class Watched:
    """The user's own run of a model, from the moment in which its forward is called.

    Nothing about it changes: not its mode, dropout, random numbers, gradients, buffers or autocast.
    """

    def __init__(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], selector: Selector
    ) -> None:
        run = _Run(model, Arguments(model, args, kwargs), selector, Targets(), True, None, None)
        self._model = model
        self._modules, asked, tracker, self._mode = run.prepare(model, None, live=True)
        self._stack = contextlib.ExitStack()
        try:
            for part in (self._modules, asked, tracker, self._mode, self._mode.recognition.functions):
                self._stack.enter_context(part)
            tracker.begin(model, args, kwargs)
            self._modules.begin(model, args, kwargs)
        except BaseException:
            self.abandon()
            raise

    def end(self, args: tuple[Any, ...], result: Any) -> Outcome:
        """What came to light, once the forward has returned."""
        try:
            self._modules.end(self._model, args, result)
        finally:
            self.abandon()
        return Outcome(self._mode.record.found, self._mode.record.seen, None)

    def abandon(self) -> None:
        """Stop looking; may be called again."""
        self._stack.close()
        self._mode.finish()


def _patched(model: nn.Module, weight: str) -> str:
    """Which callables, set on instances, may have led to the original weights."""
    suspects = []
    for path, module in unwrap(model).named_modules():
        for name, value in vars(module).items():
            if callable(value) and not isinstance(value, type | nn.Module):
                suspects.append(f"{path or type(module).__name__}.{name}")
    told = f" (set on instances here: {', '.join(suspects[:5])})" if suspects else ""
    return f"running its copy reached the original weight {weight!r}, through a patched method or a closure{told}"
