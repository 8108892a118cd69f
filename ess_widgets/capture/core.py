"""Run a model once and keep, for each layer that mixes tokens, its operator and what it computed."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ess_widgets.capture.errors import CaptureError, UnknownLayerError
from ess_widgets.capture.explain import nothing_found
from ess_widgets.capture.interception import session
from ess_widgets.capture.interception.quiet import quietly
from ess_widgets.capture.linearisation.targets import Targets
from ess_widgets.capture.mixer import Mixer
from ess_widgets.capture.names import Selector, closest
from ess_widgets.capture.record import Found
from ess_widgets.capture.residual import residual
from ess_widgets.operators import Operator

__all__ = ["Capture", "LayerCapture", "capture", "gather", "run"]


class LayerCapture:
    """One layer that mixes tokens, ``y = T u``, as the model computed it.

    References to queries, keys, values, masks and outputs are kept; everything else is computed when asked for.

    Attributes
    ----------
    name : str
        The module's path; ``#1``, ``#2``, ... where a module mixes more than once.
    family : str
        What kind of mixer it is: "softmax attention", "selective SSM", "delta rule", "convolution", ...
    group : str
        What has an operator of its own: "head", "channel", or "layer" where all channels are mixed together.
    valid : bool Tensor ``(batch, L)`` or None
        A sample's own tokens; None where all are.
    rounded : bool
        True where the weights could not be computed again from queries and keys and come from half precision:
        small singular values are then rounding.
    note : str
        What there is to know about the operator; of a linearisation, which channels it is looked at through.
    """

    def __init__(
        self, name: str, mixer: Mixer, valid: Tensor | None, *, differentiable: bool = False
    ) -> None:
        self.name, self._differentiable = name, differentiable
        self.family, self.group = mixer.family, mixer.group
        self.valid = valid
        self.rounded, self.note = mixer.rounded, mixer.note
        self._mixer = mixer
        self._operator: Operator | None = None
        self._residual: Tensor | None = None

    @property
    def operator(self) -> Operator:
        """``T``, leading dimensions ``(batch, groups)``; its matrix is float32, or float64 where the model is."""
        if self._operator is None:
            with torch.set_grad_enabled(self._differentiable):
                self._operator = self._built()
        return self._operator

    def _built(self) -> Operator:
        try:
            return self._mixer.operator(self.valid)
        except CaptureError:
            raise
        except (TypeError, ValueError, IndexError, KeyError) as error:
            raise CaptureError(
                f"the operator of layer {self.name!r} ({self.family}) cannot be built from what the model's code was given "
                f"there: {type(error).__name__}: {error} If that code does something else than its name says, "
                "ess_widgets.register tells how to read it."
            ) from error

    @property
    def dtype(self) -> torch.dtype:
        """The float type in which the model computed the outputs."""
        return self._mixer.dtype()

    @property
    def inputs(self) -> Tensor:
        """``u``, ``(batch, groups, L, width)``: what is mixed; values that heads share are repeated."""
        return self._mixer.inputs()

    @property
    def outputs(self) -> Tensor:
        """``y``, ``(batch, groups, L, width)``: what the model computed there."""
        return self._mixer.outputs()

    @property
    def state_size(self) -> Tensor:
        """TSS, the state-size that the layer provides: ``(L,)``, or ``(batch, groups, L)`` where they differ."""
        return self.operator.state_size

    @property
    def residual(self) -> Tensor:
        """``‖T u - y‖ / ‖y‖``, ``(batch, groups)``, over own tokens: about 1e-6 for an exact operator in float32."""
        if self._residual is None:
            self._residual = residual(self.operator, self.inputs, self.outputs, self.valid)
        return self._residual

    @property
    def linearity(self) -> Tensor | None:
        """Of a linearisation, ``‖y(u) - y(0) - T u‖ / ‖y(u) - y(0)‖``, ``(batch,)``: 0 where the module is affine.

        None where the operator is the layer's own.
        """
        return self._mixer.linearity()

    def __repr__(self) -> str:
        batch, groups, length = self._mixer.shape
        return f"LayerCapture({self.name!r}, {self.family}, batch={batch}, groups={groups}, L={length})"


class Capture(Mapping[str, LayerCapture]):
    """The layers of one run, by name, in the order in which the model ran them; ``cap[3]`` takes the fourth.

    Attributes
    ----------
    output
        What the model returned.
    skipped : dict
        Mixings that were left out, by name, with the reason: cross-attention for example.
    """

    def __init__(self, layers: dict[str, LayerCapture], output: Any, skipped: dict[str, str]) -> None:
        self._layers = layers
        self.output = output
        self.skipped = skipped

    def __getitem__(self, key: str | int) -> LayerCapture:
        if isinstance(key, str):
            if key in self._layers:
                return self._layers[key]
            raise UnknownLayerError(
                f"no layer is called {key!r} here; closest first: {closest(key, list(self))}."
            )
        if not hasattr(key, "__index__"):
            raise TypeError(f"a layer is found by its name or index, not by {key!r}.")
        index = operator.index(key)
        if not -len(self) <= index < len(self):
            raise UnknownLayerError(f"layer index {index} is out of range: {len(self)} layers are captured.")
        return list(self._layers.values())[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        lines = [f"Capture of {len(self)} layer{'s' if len(self) != 1 else ''}"]
        lines += [f"  {layer!r}" for layer in self._layers.values()]
        lines += [f"  left out: {name!r}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)


def capture(
    model: nn.Module,
    *args: Any,
    layers: Any = None,
    jacobian: Any = None,
    differentiable: bool = False,
    **kwargs: Any,
) -> Capture:
    """Run ``model(*args, **kwargs)`` once and capture every layer that mixes tokens, with its true operator.

    Layers are found by what the model does, not by a list of classes: attention by its calls, ready-made or written
    by hand; convolutions along the sequence; selective state-space models, linear recurrences and delta rules by the
    names of the functions that compute them (``mamba_selective_scan``, ``chunk_gated_delta_rule``, ``chunk_gla``, ...),
    by the attributes of modules where they are written inline or fused; ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` by
    their Jacobian. :func:`ess_widgets.register` teaches others, ``jacobian=`` takes anything causal. Skips, gates,
    norms and projections around the mixing are no part of ``T``; ``residual`` tells, for each layer, how far ``T u``
    is from what the model itself computed.

    The model is run on a structural copy that shares its weights, in eval mode, without gradients: the model itself,
    its hooks, training flags, buffers, gradients and the random streams stay as they are, even while another thread
    trains it.

    Parameters
    ----------
    model : nn.Module
        On any device, in any float type, compiled or not.
    *args, **kwargs
        What the model is called with. A single mapping (a tokenizer's output, a batch) is unpacked. Padding is
        recognised from ``attention_mask``, ``key_padding_mask`` or ``src_key_padding_mask``, else from the masks
        that attention is given.
    layers : str, int, callable, or an iterable of those, optional
        Which layers to keep: names, patterns (``"model.layers.*"``), indices in the order of the run, or a
        function of the name. All by default. Nothing is kept of the others.
    jacobian : str, type, callable, an iterable of those, or a dict, optional
        Modules that are captured by their Jacobian at the input they are given in this run, beside the layers that
        are found: paths (``"model.layers.3"``), patterns (``"blocks.*"``, where ``*`` stands for one part of a path),
        classes, or functions of the path or of path and module. A dictionary gives each the options of
        :func:`ess_widgets.jacobian`, ``{"blocks.*": {"channels": 8}}``.
    differentiable : bool
        Whether operators, inputs, outputs and what the model returned keep their graph, so that gradients of whatever
        is made of them reach the model's own parameters: for regularisers and for distillation. In eval mode as well,
        thus without dropout. Not for Jacobians, whose derivative would be a second one. A graph lives as long as the
        capture, and ends where an optimiser changes the weights.

    Returns
    -------
    Capture
        An ordered mapping from names to :class:`LayerCapture`.

    Raises
    ------
    CaptureError
        Where nothing in the model could be captured, with what was looked at; or the model computes NaN there.
    NotCausalError
        Where a requested layer reads the future, with the entry.
    UnknownLayerError
        Where ``layers`` names something that does not exist.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> x = torch.randn(1, 5, 8)
    >>> mask = torch.nn.Transformer.generate_square_subsequent_mask(5)
    >>> cap = capture(layer, x, src_mask=mask, is_causal=True)
    >>> cap
    Capture of 1 layer
      LayerCapture('self_attn', softmax attention, batch=1, groups=2, L=5)
    >>> cap["self_attn"].operator.matrix().shape
    torch.Size([1, 2, 5, 5])
    >>> bool(cap["self_attn"].residual.max() < 1e-5)
    True
    """
    return run(model, args, kwargs, layers=layers, jacobian=jacobian, differentiable=differentiable)


def run(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    layers: Any = None,
    jacobian: Any = None,
    differentiable: bool = False,
    should_stop: Callable[[], bool] | None = None,
    on_layer: Callable[[str, int], None] | None = None,
    keep_output: bool = True,
) -> Capture:
    """:func:`capture` for a scheduler.

    Parameters
    ----------
    model, args, kwargs, layers, jacobian, differentiable
        As in :func:`capture`.
    should_stop : callable, optional
        Asked before each torch call of the model; once it returns true, :class:`Cancelled` is raised from there.
    on_layer : callable, optional
        Called with the name and index of each layer that has been run.
    keep_output : bool
        Whether ``Capture.output`` keeps what the model returned.
    """
    called: Any = model
    while isinstance(called, functools.partial):
        args, kwargs, called = (*called.args, *args), {**called.keywords, **kwargs}, called.func
    model = called
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but is {type(model).__name__}.")
    if differentiable and jacobian is not None:
        raise ValueError(
            "jacobian= and differentiable=True do not go together: a Jacobian is a derivative already. Leave one out, and "
            "name the layers that are found by themselves with layers=."
        )
    selector = Selector(layers)
    outcome = session.run(
        model,
        args,
        dict(kwargs),
        selector,
        targets=Targets(jacobian),
        differentiable=differentiable,
        should_stop=should_stop,
        on_layer=on_layer,
    )
    # Looking at results calls torch too: here as well an interrupt must leave the thread as it was.
    kept, skipped = quietly(lambda quiet: gather(model, outcome, selector, differentiable))
    return Capture(kept, outcome.output if keep_output else None, skipped)


def gather(
    model: nn.Module, outcome: session.Outcome, selector: Selector, differentiable: bool
) -> tuple[dict[str, LayerCapture], dict[str, str]]:
    """The layers that were asked for, checked, and why others are left out."""
    names = [found.name for found in outcome.found]
    if not names:
        raise CaptureError(nothing_found(model, outcome.seen))
    chosen = {found.name for found in outcome.found if found.asked}
    chosen.update(selector.select(names))
    skipped = dict(outcome.skipped)
    kept: dict[str, LayerCapture] = {}
    for found in outcome.found:
        if found.name not in chosen or found.mixer is None:
            continue
        if found.future is not None and found.crosses:
            skipped[found.name] = "queries read another sequence (cross-attention)"
            continue
        _check(found, names)
        kept[found.name] = LayerCapture(found.name, found.mixer, found.valid, differentiable=differentiable)
    if not kept:
        reasons = "; ".join(f"{name!r}: {reason}" for name, reason in skipped.items())
        raise CaptureError(f"none of the requested layers can be captured: {reasons}.")
    return kept, skipped


def _check(found: Found, names: list[str]) -> None:
    session.check_causal(found, names)
    mixer = found.mixer
    if mixer is None:
        return
    if 0 in mixer.shape:
        raise CaptureError(
            f"layer {found.name!r} was given no tokens: its batch, heads and length are {mixer.shape}."
        )
    outputs = mixer.computed()
    bad = ~torch.isfinite(outputs).all(-1)
    rows = bad.shape[-1] // mixer.shape[-1]  # several for each token, in operators of blocks
    if found.valid is not None:
        bad &= found.valid.repeat_interleave(rows, dim=-1).unsqueeze(1)
    if bool(bad.any()):
        sample, group, position = (int(i) for i in bad.nonzero()[0])
        where = f", {mixer.group} {group}" if bad.shape[1] > 1 else ""
        raise CaptureError(
            f"the model computed NaN or infinity in layer {found.name!r}: sample {sample}{where}, position "
            f"{position // rows}. Check its weights and inputs, and its mask: a token that may read nothing gives NaN. "
            "If these positions are padding, pass attention_mask."
        )
