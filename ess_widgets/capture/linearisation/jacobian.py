"""Operators of anything causal, by its derivative at the current input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ess_widgets.capture.core import LayerCapture
from ess_widgets.capture.errors import CaptureError, NotCausalError
from ess_widgets.capture.interception import padding
from ess_widgets.capture.interception.arguments import Arguments
from ess_widgets.capture.interception.guard import Guard, LeakedWeight, WrittenWeight
from ess_widgets.capture.interception.quiet import quietly
from ess_widgets.capture.interception.replica import Replica, Uncopyable, replicate, unwrap
from ess_widgets.capture.interception.tape import Leaves
from ess_widgets.capture.linearisation.linearise import Options, linearise
from ess_widgets.capture.linearisation.linearised import Linearised
from ess_widgets.capture.linearisation.precise import Rerun

__all__ = ["jacobian"]


def jacobian(
    module: nn.Module,
    *args: Any,
    inputs: int | str | None = None,
    outputs: Any = None,
    channels: Any = None,
    project: str = "random",
    layout: str | None = None,
    state_size: Any = None,
    chunk: int | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> LayerCapture:
    """The derivative ``∂y/∂u`` of anything causal at one input, as an operator: a linearisation.

    ``T_ij = ∂y_i/∂u_j`` says what outputs would make of a small change of the inputs, with everything else held as it
    is: masks, positions, initial states, and how a nonlinear layer has set its gates. It is computed when it is
    asked for, by :mod:`torch.func` in pieces, in float64 where a copy of the module runs in it. The module itself is
    left as it is; its copy runs in eval mode, without dropout.

    Unlike elsewhere, ``T u`` is not ``y``. What proves the operator is a second, independent derivative: ``inputs`` is
    a fixed random direction ``δ`` and ``outputs`` the module's own central finite difference along it,
    ``(y(u + hδ) - y(u - hδ)) / 2h``, so that ``residual`` is ``‖T δ - outputs‖ / ‖outputs‖``.

    Parameters
    ----------
    module : nn.Module
        ``nn.LSTM``, ``nn.GRU``, ``nn.RNN``, a decoder block, a whole model, or any module whose outputs read the past
        alone.
    *args, **kwargs
        What it is called with.
    inputs : int or str, optional
        Which argument is ``u``, by position or name; by default the first floating tensor ``(batch, L, d)``, else the
        first token ids ``(batch, L)``. ``u`` is then what their embedding returns.
    outputs : int, str or callable, optional
        Which of several returned values is ``y``; by default the first with a vector for each position.
    channels : optional
        What of the ``d`` channels to look at. By default all of them while ``d * L`` is at most 2,048, and 16 random
        directions beyond that; ``"all"`` for all of them. A number ``k``: ``k`` orthonormal directions, on which inputs
        and outputs are projected; a matrix ``(d, k)``, or a pair of them for inputs and outputs: these directions.
        ``T`` then has blocks of ``k x k``. A list of indices: each channel by itself, one group for each, ``L x L``.
    project : {"random", "even"}
        Directions of ``channels=k``: random ones, or evenly spaced channels.
    layout : {"bld", "lbd", "bdl"}, optional
        Order of batch, position and channel in what the module takes and returns; told by ``batch_first`` where there
        is one.
    state_size : int or integer Tensor, optional
        TSS. By default what torch's recurrent layers store (an LSTM two numbers for each hidden unit); for other
        modules all inputs read so far, ``d * i``.
    chunk : int, optional
        Directions that are differentiated at a time; by default as many as fit into 256 MiB.
    seed : int
        Of random directions.

    Returns
    -------
    LayerCapture
        Family "jacobian". Its operator is ``Dense``, leading dimensions ``(batch, 1)``, block ``d``; where inputs and
        outputs differ in width, the blocks are filled up with zeros, which changes no rank. ``note`` says what was
        looked at, ``linearity`` how far from linear the module is.

    Raises
    ------
    NotCausalError
        Where an output reads a later input: here where that shows at once, else when the operator is asked for.
    CaptureError
        Where the module cannot be run on a copy, gives no vector for each position, or mixes samples.

    Examples
    --------
    >>> import torch
    >>> layer = jacobian(torch.nn.GRU(3, 4, batch_first=True), torch.randn(2, 6, 3))
    >>> layer.operator
    Dense(shape=(2, 1, 24, 24), block=4, dtype=float64, device=cpu)
    >>> layer.state_size
    tensor([0, 3, 4, 4, 4, 4])
    >>> bool(layer.residual.max() < 1e-8)
    True
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, but is {type(module).__name__}.")
    options = Options(inputs, outputs, channels, project, layout, state_size, chunk, seed)
    module = unwrap(module)
    name = type(module).__name__
    arguments = Arguments(module, args, kwargs)
    mixer = quietly(lambda _: _at(module, arguments, options, name))
    return LayerCapture(name, mixer, mixer.own_tokens)


def _at(module: nn.Module, arguments: Arguments, options: Options, name: str) -> Linearised:
    try:
        replica = replicate(module)
    except (Uncopyable, RecursionError) as error:
        raise CaptureError(f"{name!r} cannot be run on a copy: {error}") from None
    args, kwargs = arguments.own()
    known: dict[int, Tensor] = {}
    args, kwargs = _cloned(args, known), _cloned(kwargs, known)
    # (On copies: the module may write to what it is given.)
    result = _run(replica, _cloned(args, {}), _cloned(kwargs, {}), name)
    stated = padding.stated(arguments.by_name(), arguments.accepts)
    mixer = linearise(replica.model, args, kwargs, result, options, name, stated)
    if mixer.future(mixer.own_tokens) is not None:
        raise NotCausalError(f"{name!r} is bidirectional: its outputs read later inputs.")
    finite = torch.isfinite(mixer.computed()[:, 0]).all(-1)
    if not bool((finite if mixer.own_tokens is None else finite | ~mixer.own_tokens).all()):
        raise CaptureError(f"{name!r} computes NaN or infinity. Check its weights and inputs.")
    ahead = mixer.reads_ahead()
    if ahead is not None:
        raise NotCausalError(
            f"{name!r} is not causal: output {ahead[1]} of sample {ahead[0]} changes with later inputs. Effective "
            "state-size needs outputs that read the past alone."
        )
    return mixer


def _run(replica: Replica, args: Any, kwargs: Any, name: str) -> Any:
    weights = dict(replica.storages())
    try:
        with Rerun(False, Guard(weights, Leaves(weights), replica.is_original)):
            return replicate(replica.model).model(*args, **kwargs)
    except LeakedWeight:
        raise CaptureError(
            f"{name!r} reaches its own weights through a patched method or a closure, so that it cannot be run on a copy."
        ) from None
    except WrittenWeight as written:
        raise CaptureError(f"{name!r} writes to its weight {str(written)!r} when it is run.") from None


def _cloned(tree: Any, known: dict[int, Tensor]) -> Any:
    """Copies that nobody else writes to; what was one tensor stays one."""
    if isinstance(tree, Tensor):
        return known.setdefault(id(tree), tree.detach().clone())
    if type(tree) is dict:
        return {key: _cloned(item, known) for key, item in tree.items()}
    if type(tree) in (tuple, list):
        return type(tree)(_cloned(item, known) for item in tree)
    return tree
