"""Penalties on memory: their values, their gradients, and that a training step stays what it is."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import ess_widgets as ew
from ess_widgets.capture import CaptureError, UnknownLayerError
from ess_widgets.demo import Miniature
from ess_widgets.learn import Regulariser
from ess_widgets.learn.regularisation import distance_from_identity
from ess_widgets.operators import DenseTransition, Diagonal, DiagonalPlusLowRank


def chunk_gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: float) -> Tensor:
    """The recurrence, step by step: ``(batch, L, heads, features)``."""
    state, outputs = q.new_zeros(*q.shape[:1], *q.shape[2:], v.shape[-1]), []
    for t in range(q.shape[1]):
        state = state * g[:, t].exp().unsqueeze(-1) + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
        outputs.append(scale * (q[:, t].unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(outputs, 1)


class Layer(nn.Module):
    """A GLA written here, which can return its gates and its operator as well."""

    def __init__(self, width: int = 8, heads: int = 2, features: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.qkg = nn.Linear(width, 3 * heads * features)
        self.v, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, g = self.qkg(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        return q, k, F.logsigmoid(g) / 4

    def forward(self, x: Tensor) -> Tensor:
        q, k, g = self.parts(x)
        y = chunk_gla(q, k, self.v(x).unflatten(-1, (self.heads, -1)), g, scale=0.5)
        return x + self.dropout(self.out(y.flatten(-2)))

    def operator(self, x: Tensor) -> Tensor:
        q, k, g = (t.transpose(1, 2) for t in self.parts(x))
        total = g.cumsum(-2)
        between = total.unsqueeze(-2) - total.unsqueeze(-3)
        return 0.5 * torch.einsum("bhid, bhjd, bhijd -> bhij", q, k, between.clamp(max=0).exp()).tril()


class Model(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.layers = nn.ModuleList([Layer(dropout=dropout), Layer(dropout=dropout)])

    def before(self, ids: Tensor, layer: int) -> Tensor:
        x = self.embed(ids)
        for block in self.layers[:layer]:
            x = block(x)
        return x

    def forward(self, ids: Tensor) -> Tensor:
        return self.before(ids, len(self.layers))


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, 10, (2, 9), generator=torch.Generator().manual_seed(1))


def model(dtype: torch.dtype = torch.float64, dropout: float = 0.0) -> Model:
    torch.manual_seed(0)
    return Model(dropout).to(dtype)


def gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True)
    return {
        n: torch.zeros_like(p) if g is None else g
        for (n, p), g in zip(module.named_parameters(), found, strict=True)
    }


def penalty_of(memory: Regulariser, module: nn.Module, ids: Tensor, form: str) -> Tensor:
    if form == "call":
        return memory(ids)
    with memory:
        module(ids)
    return memory.penalty


def identity_by_hand(module: Model, ids: Tensor, layer: int) -> Tensor:
    gates = module.layers[layer].parts(module.before(ids, layer))[2].exp()
    return (gates - 1).square().sum(-1).sqrt().mean()


def ess_by_hand(module: Model, ids: Tensor, layer: int, positions: list[int]) -> Tensor:
    T = module.layers[layer].operator(module.before(ids, layer))
    values = []
    for i in positions:
        p = torch.linalg.svdvals(T[..., i:, :i])[..., :3]  # a state of 3 features
        p = p / p.sum(-1, keepdim=True)
        values.append(torch.special.entr(p).sum(-1).exp())
    return torch.stack(values).mean()


# Values and gradients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["with", "call"])
def test_identity_is_what_is_computed_by_hand(ids, form):
    module = model()
    memory = Regulariser(module, "layers.1", weight=0.3)
    found, expected = penalty_of(memory, module, ids, form), 0.3 * identity_by_hand(module, ids, 1)
    torch.testing.assert_close(found, expected)
    assert found.shape == () and memory.measured["layers.1"] == pytest.approx(expected.item() / 0.3)
    ours, theirs = gradients(module, found), gradients(module, expected)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name])
    assert ours["embed.weight"].abs().max() > 0 and ours["layers.1.v.weight"].abs().max() == 0


@pytest.mark.parametrize("form", ["with", "call"])
@pytest.mark.parametrize("target", [None, 2.0])
def test_ess_is_what_is_computed_by_hand(ids, form, target):
    module, at = model(), [3, 5]
    memory = Regulariser(module, "layers.1", term="ess", positions=at, target=target, weight=0.3)
    ess = ess_by_hand(module, ids, 1, at)
    expected = -0.3 * ess if target is None else 0.3 * (ess / target - 1) ** 2
    found = penalty_of(memory, module, ids, form)
    torch.testing.assert_close(found, expected)
    ours, theirs = gradients(module, found), gradients(module, expected)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"term": "ess", "positions": [4]},
        {"term": "ess", "kind": "tolerance", "tol": 0.05, "positions": [2, 5], "target": 1.5},
    ],
)
def test_gradients_are_finite_differences(ids, options):
    module = model()
    memory = Regulariser(module, "layers.*", **options)
    generator = torch.Generator().manual_seed(2)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in module.parameters()]

    def moved(step: float) -> float:
        with torch.no_grad():
            for p, d in zip(module.parameters(), direction, strict=True):
                p.add_(d, alpha=step)
            value = memory(ids).item()
            for p, d in zip(module.parameters(), direction, strict=True):
                p.sub_(d, alpha=step)
        return value

    with memory:
        module(ids)
    slope = sum(
        (g * d).sum() for g, d in zip(gradients(module, memory.penalty).values(), direction, strict=True)
    )
    assert float(slope) == pytest.approx((moved(1e-5) - moved(-1e-5)) / 2e-5, rel=1e-4)


@pytest.mark.parametrize("mixer", ["GLA", "WLA", "GLA-S6", "S6", "GDN"])
def test_every_recurrence_from_its_transitions_written_out(mixer):
    torch.manual_seed(0)
    module, ids = Miniature((mixer,), vocab=8, width=8, heads=2, state=4), torch.randint(0, 8, (2, 7))
    found = Regulariser(module)(ids)
    op = ew.capture(module, ids)[0].operator
    A = op.A.after(None, op.order) if isinstance(op.A, DiagonalPlusLowRank) else op.A
    full = (
        A.parts[0]
        if isinstance(A, DenseTransition)
        else torch.diag_embed(A.parts[0].expand(*A.parts[0].shape[:-1], op.order))
    )
    expected = torch.linalg.matrix_norm(full - torch.eye(op.order, dtype=full.dtype)).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    found.backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in module.layers[0].mixer.parameters())


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.booleans(), st.integers(0, 99))
def test_distance_of_low_rank_transitions(n, rank, is_complex, seed):
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.complex128 if is_complex else torch.float64
    d = torch.randn(2, 3, n, generator=generator, dtype=dtype)
    U, V = torch.randn(2, 2, 3, n, rank, generator=generator, dtype=dtype).unbind(0)
    full = torch.diag_embed(d) + U @ V.mT
    expected = torch.linalg.matrix_norm(full - torch.eye(n))
    torch.testing.assert_close(distance_from_identity(DiagonalPlusLowRank(d, U, V)), expected)
    torch.testing.assert_close(distance_from_identity(DenseTransition(full)), expected)
    torch.testing.assert_close(
        distance_from_identity(Diagonal(d)), torch.linalg.matrix_norm(torch.diag_embed(d) - torch.eye(n))
    )
    torch.testing.assert_close(
        distance_from_identity(Diagonal(d[..., :1]), n), abs(d[..., 0] - 1) * math.sqrt(n)
    )


def test_no_nan_where_nothing_is_forgotten():
    d = torch.ones(3, 2, requires_grad=True)
    k = torch.zeros(3, 2, 1, requires_grad=True)
    for A in (Diagonal(d), DiagonalPlusLowRank(d, k, k), DenseTransition(torch.diag_embed(d))):
        distance = distance_from_identity(A).sum()
        assert distance.item() == 0
        assert all(
            torch.isfinite(g).all()
            for g in torch.autograd.grad(distance, [d, k], allow_unused=True)
            if g is not None
        )


def test_padding_is_no_part_of_the_mean(ids):
    """Own tokens alone: as if the padding were not there."""

    class Padded(Model):
        def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:  # type: ignore[override]
            x = self.embed(ids) * attention_mask.unsqueeze(-1)
            return self.layers[0](x)

    torch.manual_seed(0)
    module = Padded().double()
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    memory = Regulariser(module, "layers.0")
    with memory:
        module(ids, attention_mask=mask)
    gates = module.layers[0].parts(module.embed(ids))[2].exp()
    own = (gates - 1).norm(dim=-1)[mask.bool()]
    torch.testing.assert_close(memory.penalty, own.mean())


# A training step stays what it is ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["with", "call"])
def test_training_with_dropout_is_the_same_to_the_last_bit(ids, form):
    def train(watched: bool) -> dict[str, Tensor]:
        module = model(torch.float32, dropout=0.3).train()
        memory = Regulariser(module, "layers.1", weight=0.0)
        torch.manual_seed(4)
        optimiser = torch.optim.SGD(module.parameters(), 0.1)
        for _ in range(4):
            if not watched:
                loss = module(ids).square().mean()
            elif form == "with":
                with memory:
                    y = module(ids)
                loss = y.square().mean() + memory.penalty
            else:
                loss = module(ids).square().mean() + memory(ids)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return module.state_dict()

    plain, ours = train(False), train(True)
    assert all(torch.equal(plain[name], ours[name]) for name in plain)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(ids, fails):
    module = model(torch.float32, dropout=0.1).train()
    calls = []
    module.layers[0].register_forward_hook(lambda *_: calls.append(1))

    def state() -> list[object]:
        return [
            (m.training, list(m._forward_hooks), list(m._forward_pre_hooks), list(vars(m)))
            for m in module.modules()
        ]

    before, memory = state(), Regulariser(module, "layers.1")
    random = torch.random.get_rng_state()
    try:
        with memory:
            if fails:
                module(ids.float())
    except RuntimeError:
        assert fails
    memory(ids)
    assert state() == before
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(p.grad is None for p in module.parameters())
    assert torch._C._len_torch_function_stack() == 0
    with memory:
        module(ids)
    assert memory.penalty.requires_grad and calls == [1]  # the user's hook ran in the user's own pass alone


def test_an_interrupt_inside_the_forward_leaves_nothing_behind(ids):
    module = model(torch.float32)
    memory = Regulariser(module, "layers.1")
    handle = module.layers[1].qkg.register_forward_hook(_interrupt)
    with pytest.raises(KeyboardInterrupt), memory:
        module(ids)
    handle.remove()
    assert torch._C._len_torch_function_stack() == 0
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    with memory:
        module(ids)
    assert memory.penalty > 0


def test_an_error_inside_the_forward_reaches_the_user_as_it_is():
    torch.manual_seed(0)
    module = Miniature(("GLA", "SA"), vocab=8, width=8, heads=2, state=4)
    memory = Regulariser(module)
    with memory:
        with pytest.raises(IndexError):  # of the embedding; torch goes through the hooks once more then
            module(torch.tensor([[99]]))
        assert torch._C._len_torch_function_stack() == 0
        module(torch.arange(6)[None])
    assert memory.penalty > 0
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_two_watchers_of_one_pass_are_told_what_to_do(ids):
    module = model()
    gates, ess = Regulariser(module, "layers.0", weight=0.1), Regulariser(module, "layers.1", term="ess")
    with pytest.raises(CaptureError, match="watched already"), gates, ess:
        module(ids)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    with gates:
        logits = module(ids)
    (logits.sum() + gates.penalty + ess(ids)).backward()
    with ess:
        module(ids)
    assert torch.isfinite(ess.penalty)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_dropout_takes_place_and_the_operator_knows_nothing_of_it():
    """Attention by hand, with dropout on its weights: the same draw as without anybody watching."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(6, 18)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            weights = (q @ k.mT).masked_fill(future, -math.inf).softmax(-1)
            return F.dropout(weights, 0.5, self.training) @ v

    torch.manual_seed(0)
    module, x = Attention().train(), torch.randn(2, 8, 6)
    memory = Regulariser(module, term="ess", positions=[4])
    torch.manual_seed(7)
    plain = module(x)
    torch.manual_seed(7)
    with memory:
        watched = module(x)
    assert torch.equal(plain, watched)
    expected = ew.ess(ew.capture(module, x)[0].operator, positions=[4]).mean()
    assert memory.measured["Attention"].item() == pytest.approx(expected.item(), rel=1e-5)
    memory.penalty.backward()
    assert module.qkv.weight.grad.abs().max() > 0


def test_several_passes_count_alike(ids):
    module = model()
    memory = Regulariser(module, "layers.1")
    with memory:
        module(ids)
        module(ids.flip(0)[:1])
    both = memory.penalty
    one, other = memory(ids), memory(ids.flip(0)[:1])
    torch.testing.assert_close(both, (one + other) / 2)


def test_it_pulls_the_gates_to_one(ids):
    module = model(torch.float32)
    memory = Regulariser(module, "layers.1", weight=1.0)
    optimiser = torch.optim.SGD(module.parameters(), 0.5)
    values = []
    for _ in range(20):
        with memory:
            module(ids)
        optimiser.zero_grad()
        memory.penalty.backward()
        optimiser.step()
        values.append(memory.penalty.item())
    assert all(b < a for a, b in itertools.pairwise(values))


def test_it_drives_ess_to_a_target(ids):
    module = model(torch.float32)
    memory = Regulariser(module, "layers.1", term="ess", target=2.5, positions=[3, 4, 5, 6])
    optimiser = torch.optim.Adam(module.parameters(), 0.02)
    for _ in range(60):
        with memory:
            module(ids)
        optimiser.zero_grad()
        memory.penalty.backward()
        optimiser.step()
    reached = ew.ess(ew.capture(module, ids)["layers.1"].operator, positions=[3, 4, 5, 6]).mean()
    assert float(reached) == pytest.approx(2.5, abs=0.05)


def test_positions_are_drawn_from_a_stream_of_their_own():
    torch.manual_seed(0)
    module, ids = Miniature(("GLA",), vocab=8, width=8, heads=2, state=4), torch.randint(0, 8, (1, 32))
    random = torch.random.get_rng_state()
    first, again, other = (Regulariser(module, term="ess", positions=2, seed=seed) for seed in (0, 0, 1))
    draws = [[memory(ids).item() for _ in range(3)] for memory in (first, again, other)]
    assert draws[0] == draws[1] != draws[2] and len(set(draws[0])) == 3
    assert torch.equal(torch.random.get_rng_state(), random)


def test_half_precision_and_autocast():
    torch.manual_seed(0)
    ids = torch.randint(0, 8, (2, 16))
    module = Miniature(("GLA", "GLA"), vocab=8, width=16, heads=2, state=4)
    exact = Regulariser(module, "layers.1.mixer")(ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        memory = Regulariser(module, "layers.1.mixer")
        with memory:
            module(ids)
        total = memory.penalty + memory(ids)
    assert total.dtype is torch.float32
    assert memory.penalty.item() == pytest.approx(exact.item(), rel=0.02)
    total.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in module.parameters())
    half = copy.deepcopy(module).bfloat16()
    assert Regulariser(half, "layers.1.mixer")(ids).item() == pytest.approx(exact.item(), rel=0.02)


def test_a_number_without_gradients_where_none_are_recorded(ids):
    module = model()
    memory = Regulariser(module, "layers.1")
    with torch.no_grad(), memory:
        module(ids)
    with torch.no_grad():
        assert not memory.penalty.requires_grad and memory.penalty == memory(ids)


def test_a_hybrid_without_names_takes_its_recurrences():
    torch.manual_seed(0)
    module, ids = Miniature(("SA", "GLA"), vocab=8, width=8, heads=2, state=4), torch.randint(0, 8, (1, 8))
    memory = Regulariser(module)
    memory(ids)
    assert list(memory.measured) == ["layers.1.mixer"]


def test_the_first_sequences():
    torch.manual_seed(0)
    module, ids = Miniature(("GLA",), vocab=8, width=8, heads=2, state=4), torch.randint(0, 8, (5, 8))
    assert Regulariser(module, sequences=2)(ids).item() == pytest.approx(Regulariser(module)(ids[:2]).item())


# What is wrong is said --------------------------------------------------------------------------------------------


def test_layers_that_have_no_state():
    torch.manual_seed(0)
    module, ids = Miniature(("SA", "SA"), vocab=8, width=8, heads=2, state=4), torch.randint(0, 8, (1, 8))
    with pytest.raises(ValueError, match=r"layers\.0\.mixer.*softmax attention.*no state.*term='ess'"):
        Regulariser(module, "layers.0.mixer")(ids)
    with pytest.raises(ValueError, match="no layer of this model is a linear recurrence"):
        Regulariser(module)(ids)
    with pytest.raises(UnknownLayerError, match=r"layers\.0\.mixer"):
        Regulariser(module, "layers.7")(ids)
    with pytest.raises(CaptureError):
        Regulariser(nn.Linear(3, 3))(torch.randn(1, 4, 3))


def test_nothing_to_train():
    torch.manual_seed(0)
    ids = torch.randint(0, 8, (1, 8))
    linear = Miniature(("LA",), vocab=8, width=8, heads=2, state=4)
    with pytest.raises(ValueError, match="A is a constant in linear attention"):
        Regulariser(linear)(ids)
    frozen = Miniature(("GLA",), vocab=8, width=8, heads=2, state=4).requires_grad_(False)
    memory = Regulariser(frozen, term="ess", positions=[4])
    with pytest.raises(ValueError, match="no parameter that requires gradients"):
        memory(ids)
    with pytest.raises(ValueError, match="no parameter that requires gradients"), memory:
        frozen(ids)


def test_a_block_without_a_run_and_blocks_in_blocks(ids):
    module = model()
    memory = Regulariser(module, "layers.1")
    with pytest.raises(RuntimeError, match="call the model inside"):
        _ = memory.penalty
    with memory:
        pass
    with pytest.raises(RuntimeError, match="call the model inside"):
        _ = memory.penalty
    with memory, pytest.raises(RuntimeError, match="nested"), memory:
        pass


def test_compiled_models_are_run_once_more():
    torch.manual_seed(0)
    module, ids = Miniature(("GLA",), vocab=8, width=8, heads=2, state=4), torch.randint(0, 8, (1, 8))
    expected = Regulariser(module)(ids)
    memory = Regulariser(torch.compile(module))
    torch.testing.assert_close(memory(ids), expected)
    with pytest.raises(CaptureError, match="compiled"), memory:
        pass
    module.layers[0].compile()
    with pytest.raises(CaptureError, match="compiled"), Regulariser(module):
        pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"term": "rank"}, "term must be"),
        ({"kind": "rank"}, "kind must be"),
        ({"target": 3}, "belongs to term='ess'"),
        ({"term": "ess", "target": 0}, "target must be a finite number above 0"),
        ({"weight": math.nan}, "weight must be a finite number"),
        ({"weight": True}, "weight must be a finite number"),
        ({"positions": 0}, "positions must be a positive integer"),
        ({"positions": []}, "positions is empty"),
        ({"sequences": 1.5}, "sequences must be a positive integer"),
    ],
)
def test_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        Regulariser(model(), **options)
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module"):
        Regulariser(lambda x: x)
