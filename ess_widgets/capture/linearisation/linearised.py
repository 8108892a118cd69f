"""The derivative of a module's output by its input as an operator, and the proof that it is the module's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ess_widgets.capture.errors import CaptureError, NotCausalError
from ess_widgets.capture.interception import calls
from ess_widgets.capture.interception.copier import Copier
from ess_widgets.capture.interception.guard import Guard, LeakedWeight, WrittenWeight
from ess_widgets.capture.interception.quiet import quietly
from ess_widgets.capture.interception.replica import Uncopyable, replicate
from ess_widgets.capture.interception.tape import Leaf, Leaves, map_tree
from ess_widgets.capture.linearisation.differentiate import directional, jacobian_rows
from ess_widgets.capture.linearisation.directions import Directions
from ess_widgets.capture.linearisation.precise import Rerun, cast, widen
from ess_widgets.capture.linearisation.program import Program
from ess_widgets.capture.mixer import Future, Mixer
from ess_widgets.operators import Dense, Operator

__all__ = ["Linearised"]

Result = TypeVar("Result")

# What rounding may leave above the diagonal and between samples, relative to the largest entry.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}
# Computed again, the output may differ from the model's by what half precision explains, and not by more.
_DRIFT = 0.05


class Linearised(Mixer):
    """``T = ∂y/∂u`` of a module at the input that it was given.

    Parameters
    ----------
    module : nn.Module
        Of a structural copy; it is copied again before it is run.
    program : Program
        Its call as a function of ``u``.
    u, y : Tensor, ``(batch, L, d_in)`` and ``(batch, L, d_out)``
        Where to take the derivative, and what the module computed there.
    directions : Directions
        Which channels are looked at.
    state_size : int or Tensor, optional
        TSS; every input that was read, by default.
    chunk : int, optional
        Directions that are differentiated at a time.
    name : str
        For errors.
    own_tokens : bool Tensor ``(batch, L)``, optional
        Where the call itself tells padding.
    ahead : Future, optional
        Where it is known beforehand that the module is not causal.
    """

    family = "jacobian"

    def __init__(
        self,
        module: nn.Module,
        program: Program,
        u: Tensor,
        y: Tensor,
        *,
        directions: Directions,
        state_size: Any = None,
        chunk: int | None = None,
        name: str = "",
        own_tokens: Tensor | None = None,
        ahead: Future | None = None,
    ) -> None:
        self._module, self._program, self._directions = module, program, directions
        self._u: Any = u
        self._y: Any = y
        self._state_size, self._chunk, self.name = state_size, chunk, name
        self._d_in, self._d_out = u.shape[-1], y.shape[-1]
        self._shape = (u.shape[0], _groups(directions), u.shape[1])
        self.group = "channel" if directions.single else "layer"
        self._versions = [calls.version(p) for p in module.parameters()]
        self._own_tokens, self._ahead = own_tokens, ahead
        self.note = f"linearised at this input; {directions.note}"
        self._valid: Tensor | None = None
        self._outputs: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._shape

    @property
    def own_tokens(self) -> Tensor | None:
        return self._own_tokens

    def hold(self, leaves: Leaves) -> None:
        """Keep what was given as it is now, whatever is written to its memory later."""

        def kept(tree: Any) -> Any:
            return map_tree(
                tree, lambda item: leaves.keep(item.detach()) if isinstance(item, Tensor) else item
            )

        self._u, self._y = kept(self._u), kept(self._y)
        self._program.args, self._program.kwargs = kept(self._program.args), kept(self._program.kwargs)

    def settle(self) -> None:
        pass

    def allowed(self) -> Tensor | None:
        return None

    def future(self, valid: Tensor | None) -> Future | None:
        """What is known beforehand: causality is checked when the derivative is computed."""
        self._valid = valid
        return self._ahead

    def computed(self) -> Tensor:
        return _plain(self._y).unsqueeze(1)  # type: ignore[no-any-return]

    def dtype(self) -> torch.dtype:
        return torch.float64 if _plain(self._u).dtype is torch.float64 else torch.float32

    def inputs(self) -> Tensor:
        """The direction ``δ`` in which the module is tried: Gaussian, of a fixed seed, of the size of ``u``."""
        u = _plain(self._u)
        batch, groups, L = self._shape
        wide = _wide(u.device)
        generator = torch.Generator().manual_seed(1)
        width = self._d_in if self._directions.write is None else self._directions.write.shape[1] // groups
        delta = torch.randn(batch, groups, L, width, generator=generator, dtype=torch.float64).to(
            u.device, wide
        )
        size = u.to(wide).square().mean((1, 2)).sqrt()
        delta = delta * torch.where(size > 0, size, torch.ones_like(size))[:, None, None, None]
        if self._valid is not None:
            delta = delta * self._valid[:, None, :, None]
        return _flat(delta, self._block)

    def outputs(self) -> Tensor:
        """The module's own finite difference along ``δ``."""
        if self._outputs is None:
            self._outputs = self._run(self._differences)
        return self._outputs

    def operator(self, valid: Tensor | None) -> Operator:
        self._valid = valid
        T = self._run(self._checked_matrix)
        size = self._state_size
        if size is None or isinstance(size, int):
            size = self._available(valid).clamp(max=size) if size is not None else self._available(valid)
        own = None if valid is None else valid.unsqueeze(1)
        return Dense(T, block=self._block, state_size=size, valid=own)

    def reads_ahead(self) -> tuple[int, int] | None:
        """A sample and an output of the first half that changes with the second half of the inputs."""
        half = self._shape[2] // 2
        return self._run(lambda f: self._moved(f, half)) if half else None

    def linearity(self) -> Tensor:
        """``‖y(u) - y(0) - T u‖ / ‖y(u) - y(0)‖``, ``(batch,)``: 0 where the module is affine."""
        return self._run(self._linearity)

    @property
    def _block(self) -> int:
        if self._directions.single:
            return 1
        read = self._directions.read
        return max(self._d_in, self._d_out) if read is None else read.shape[1]

    def _available(self, valid: Tensor | None) -> Tensor:
        """TSS where every past input may be stored."""
        L, device = self._shape[2], _plain(self._u).device
        write = self._directions.write
        width = 1 if self._directions.single else self._d_in if write is None else write.shape[1]
        if valid is None:
            return width * torch.arange(L, device=device)
        before = valid.long().cumsum(-1) - valid.long()
        needed = valid.long().flip(-1).cumsum(-1).flip(-1) > 0
        return (width * before * needed).unsqueeze(1)

    # Running the module again -----------------------------------------------------------------------------------

    def _run(self, use: Callable[[_Function], Result]) -> Result:
        """Use the module as a function, in float64 if it can be run so."""
        if [calls.version(p) for p in self._module.parameters()] != self._versions:
            raise CaptureError(
                f"the weights of {self.name!r} have changed since it was captured, and its derivative is computed from "
                "them: capture it again."
            )

        def run(_: Any) -> Result:
            with torch.autocast(_plain(self._u).device.type, enabled=False):
                return use(self._function())

        return quietly(run)

    def _function(self) -> _Function:
        u, y = _plain(self._u), _plain(self._y)
        device = u.device
        narrow = [u.dtype] if u.dtype in (torch.float32, torch.float64) else []
        problem: Exception | None = None
        for dtype in dict.fromkeys((_wide(device), *narrow)):
            try:
                f = _Function(self._module, self._program, u, dtype)
                again = f(f.u)
            except LeakedWeight:
                raise CaptureError(
                    f"{self.name!r} reaches its own original through a patched method or a closure, so that it cannot be "
                    "run again on a copy. Remove the patch."
                ) from None
            except WrittenWeight as written:
                raise CaptureError(
                    f"{self.name!r} writes to its weight {str(written)!r} when it is run."
                ) from None
            except Uncopyable as error:
                raise CaptureError(f"{self.name!r} cannot be run again on a copy: {error}.") from error
            except Exception as error:  # noqa: BLE001 - whatever a module raises in another float type
                problem = error
                continue
            if self._agree(again, y.to(again)):
                return f
            problem = CaptureError(
                f"{self.name!r} computes something else when it is run again with what it was given: it draws random "
                "numbers, or depends on a state of its own."
            )
        assert problem is not None
        if isinstance(problem, CaptureError):
            raise problem
        hint = "" if narrow else f" (It was run in {u.dtype}; try model.float().)"
        raise CaptureError(f"{self.name!r} cannot be run again by itself: {problem}{hint}") from problem

    def _agree(self, again: Tensor, y: Tensor) -> bool:
        """Whether a module that was run again computed the same, in all finite entries of own tokens."""
        own = torch.isfinite(y) if self._valid is None else torch.isfinite(y) & self._valid.unsqueeze(-1)
        difference = torch.linalg.vector_norm((again - y)[own])
        return bool(difference <= _DRIFT * torch.linalg.vector_norm(y[own]))

    # Derivatives ------------------------------------------------------------------------------------------------

    def _checked_matrix(self, f: _Function) -> Tensor:
        self._check_samples(f)
        T = self._matrix(f)
        if self._outputs is None:
            self._outputs = self._differences(f)
        return T

    def _matrix(self, f: _Function) -> Tensor:
        batch, groups, L = self._shape
        read, write = (
            None if m is None else m.to(f.u) for m in (self._directions.read, self._directions.write)
        )

        def rows(a: Tensor | None, b: Tensor | None) -> Tensor:
            try:
                return jacobian_rows(f, f.u, a, b, self._d_out, chunk=self._chunk, largest=f.largest)
            except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
                raise CaptureError(f"{self.name!r} cannot be differentiated: {error}") from error

        if not self._directions.single:
            T = rows(read, write)
            d = self._block
            if T.shape[2] != d or T.shape[4] != d:
                T = torch.nn.functional.pad(T, (0, d - T.shape[4], 0, 0, 0, d - T.shape[2]))
            return self._causal(T).reshape(batch, 1, d * L, d * L)
        assert read is not None and write is not None
        parts = [
            self._causal(rows(read[:, g : g + 1], write[:, g : g + 1])).reshape(batch, L, L)
            for g in range(groups)
        ]
        return torch.stack(parts, 1)

    def _causal(self, T: Tensor) -> Tensor:
        """Check ``(batch, L, d, L, d)``, and zero what rounding has left above the diagonal."""
        size = T.abs().amax((2, 4))  # (batch, L, L)
        own = torch.ones_like(size, dtype=torch.bool)
        if self._valid is not None:
            own = self._valid.unsqueeze(-1) & self._valid.unsqueeze(-2)
            T = T.masked_fill(~own[:, :, None, :, None], 0.0)
        bad = ~torch.isfinite(size) & own
        if bool(bad.any()):
            b, i, j = (int(n) for n in bad.nonzero()[0])
            raise CaptureError(
                f"the derivative of {self.name!r} is NaN or infinite: sample {b}, output {i} by input {j}. The module has "
                "none at this input, a square root of 0 for example."
            )
        limit = _ROUNDING[T.dtype] * size.masked_fill(~own, 0.0).amax((1, 2), keepdim=True)
        ahead = (size > limit) & own & torch.ones_like(own).triu(1)
        if bool(ahead.any()):
            b, i, j = (int(n) for n in ahead.nonzero()[0])
            raise NotCausalError(
                f"{self.name!r} is not causal: in sample {b}, output {i} reads the later input {j}, with a derivative of "
                f"{float(size[b, i, j]):.3g} where the largest is {float(size[b].max()):.3g}. Effective state-size needs "
                "outputs that read the past alone."
            )
        future = torch.ones_like(own[0]).triu(1)
        return T.masked_fill(future[None, :, None, :, None], 0.0)

    def _check_samples(self, f: _Function) -> None:
        """Refuse samples that influence each other: their derivatives would be sums."""
        batch = self._shape[0]
        if batch == 1:
            return
        base = f(f.u)
        moved = _shifted(f.u)
        scale = base.abs().nan_to_num().amax()
        index = torch.arange(batch, device=f.u.device)
        for bit in range((batch - 1).bit_length()):
            for side in (0, 1):
                changed = (index >> bit) & 1 == side
                y = f(torch.where(changed[:, None, None], moved, f.u))
                error = (y - base)[~changed].abs().nan_to_num()
                if bool((error > 10 * _ROUNDING[f.u.dtype] * scale).any()):
                    raise CaptureError(
                        f"the samples that {self.name!r} was given influence each other, so that they have no operators "
                        "of their own: pass one sample at a time."
                    )

    def _moved(self, f: _Function, half: int) -> tuple[int, int] | None:
        late = torch.arange(self._shape[2], device=f.u.device) >= half
        base, y = f(f.u), f(torch.where(late[:, None], _shifted(f.u), f.u))
        error = (y - base).abs().nan_to_num().amax(-1)[:, :half]
        if self._valid is not None:
            error = error * self._valid[:, :half]
        bad = error > 10 * _ROUNDING[f.u.dtype] * base.abs().nan_to_num().amax()
        return tuple(int(n) for n in bad.nonzero()[0]) if bool(bad.any()) else None  # type: ignore[return-value]

    def _differences(self, f: _Function) -> Tensor:
        batch, groups, L = self._shape
        delta = self.inputs().to(f.u).reshape(batch, groups, L, self._block)
        read, write = (
            None if m is None else m.to(f.u) for m in (self._directions.read, self._directions.write)
        )
        parts = []
        for g in range(groups):
            move = delta[:, g, :, : self._d_in] if write is None else delta[:, g]
            if write is not None:
                move = move @ (write[:, g : g + 1] if self._directions.single else write).mT
            change = directional(f, f.u, move)
            if read is not None:
                change = change @ (read[:, g : g + 1] if self._directions.single else read)
            parts.append(change)
        result = torch.stack(parts, 1)
        if self._valid is not None:
            result = result.where(self._valid[:, None, :, None], torch.zeros_like(result))
        return _flat(result, self._block)

    def _linearity(self, f: _Function) -> Tensor:
        start, end = f(torch.zeros_like(f.u)), f(f.u)
        remainder = end - start - directional(f, f.u, f.u)
        change = end - start
        if self._valid is not None:
            remainder, change = (t * self._valid[..., None] for t in (remainder, change))
        rest = torch.linalg.vector_norm(remainder, dim=(1, 2))
        return torch.where(rest == 0, rest, rest / torch.linalg.vector_norm(change, dim=(1, 2)))


class _Function:
    """``y = f(u)`` in one float type; each call runs on a copy of its own."""

    def __init__(self, module: nn.Module, program: Program, u: Tensor, dtype: torch.dtype) -> None:
        self._replica = replicate(module)
        self._is_wide = dtype is torch.float64
        if self._is_wide:
            widen(self._replica)
        self._program = program
        self._weights = dict(self._replica.storages())
        self.u = u.to(dtype)
        self.largest = 0

    def __call__(self, u: Tensor) -> Tensor:
        fresh = replicate(self._replica.model).model
        rerun = Rerun(self._is_wide, Guard(self._weights, Leaves(self._weights), self._replica.is_original))
        with rerun:
            y = self._program(fresh, u, self._prepared)
        self.largest = max(self.largest, rerun.largest)
        return y

    def _prepared(self, tree: Any) -> Any:
        """Arguments other than ``u``, for one run."""
        tree = map_tree(_plain(tree), _copied)
        return cast(tree) if self._is_wide else tree


def _copied(value: Any) -> Any:
    """For one run, which may write to what it is given, a tensor or a cache."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    return Copier(lambda module: module, lambda parameter: parameter).value(value)


def _groups(directions: Directions) -> int:
    return directions.write.shape[1] if directions.single and directions.write is not None else 1


def _plain(tree: Any) -> Any:
    return map_tree(tree, lambda item: item.tensor if isinstance(item, Leaf) else item)


def _shifted(u: Tensor) -> Tensor:
    """Another input of the same size."""
    noise = torch.randn(u.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return u + noise.to(u) * u.square().mean().sqrt().clamp(min=1e-3)


def _flat(value: Tensor, block: int) -> Tensor:
    """``(batch, groups, L, width)`` to ``(batch, groups, block * L, 1)``, channels padded with zeros to a block."""
    batch, groups, L, width = value.shape
    return torch.nn.functional.pad(value, (0, block - width)).reshape(batch, groups, L * block, 1)


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
