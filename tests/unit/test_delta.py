"""The delta-rule family against plain loops with full transition matrices, and against known profiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ess_widgets.metrics import reference
from ess_widgets.operators import (
    DiagonalPlusLowRank,
    Recurrence,
    delta_product,
    delta_rule,
    gated_delta_product,
    gated_delta_rule,
    generalised_delta_rule,
    kda,
    preconditioned_delta_rule,
    preconditioned_gated_delta_rule,
    preconditioned_kda,
    rwkv7,
)
from tests.unit import delta_oracles as plain

F64 = torch.float64
L, D = 13, 4


class Draw:
    """Random arguments of one head, or of several with ``lead``."""

    def __init__(self, seed: int, length: int = L, d: int = D, lead: tuple[int, ...] = ()) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.L, self.d, self.lead = length, d, lead

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*self.lead, *shape, dtype=F64, generator=self.generator)

    def features(self, rows: int | None = None) -> Tensor:
        return self.normal(rows or self.L, self.d)

    def keys(self, rows: int | None = None) -> Tensor:
        return F.normalize(self.features(rows), dim=-1)

    def beta(self, rows: int | None = None) -> Tensor:
        return 2 * torch.rand(*self.lead, rows or self.L, dtype=F64, generator=self.generator)

    def log_decay(self, *inner: int) -> Tensor:
        """Decays from 1e-12 to 1 and some exact zeros and ones."""
        shape = (*self.lead, self.L, *inner)
        u = torch.rand(shape, dtype=F64, generator=self.generator)
        g = -27.6 * u**4
        g[u > 0.95] = -torch.inf
        g[u < 0.1] = 0.0
        return g


class Family(NamedTuple):
    """A constructor, arguments for it, its plain loop, and its inputs per position."""

    make: Callable[..., Recurrence]
    draw: Callable[[Draw], dict[str, Tensor]]
    loop: Callable[..., Iterator[Any]]
    block: int = 1


def arguments(x: Draw, **more: Tensor) -> dict[str, Tensor]:
    return {"q": x.features(), "k": x.keys()} | more


def product_arguments(x: Draw, m: int, **more: Tensor) -> dict[str, Tensor]:
    return {"q": x.features(), "k": x.keys(m * x.L), "beta": x.beta(m * x.L)} | more


def plain_preconditioned(**arg: Tensor) -> Iterator[Any]:
    g = arg.pop("g", torch.zeros(len(arg["q"]), dtype=F64))
    return plain.preconditioned(g=g if g.ndim == 2 else g[:, None], **arg)


FAMILIES = {
    "delta rule": Family(delta_rule, lambda x: arguments(x, beta=x.beta()), plain.delta_rule),
    "gated delta rule": Family(
        gated_delta_rule, lambda x: arguments(x, g=x.log_decay(), beta=x.beta()), plain.gated_delta_rule
    ),
    "KDA": Family(kda, lambda x: arguments(x, g=x.log_decay(x.d), beta=x.beta()), plain.kda),
    "generalised delta rule": Family(
        generalised_delta_rule,
        lambda x: arguments(x, a=-x.keys(), b=0.5 * x.keys(), g=x.log_decay(x.d)),
        plain.generalised,
    ),
    "generalised, no decay": Family(
        generalised_delta_rule, lambda x: arguments(x, a=x.keys(), b=0.5 * x.keys()), plain.generalised
    ),
    "RWKV-7": Family(
        lambda q, **rest: rwkv7(q, scale=rest.pop("scale", 1.0), **rest),
        lambda x: arguments(x, w=x.log_decay(x.d), kk=x.keys(), a=torch.sigmoid(x.features())),
        lambda q, **rest: plain.rwkv7(q, **rest),
    ),
    "DeltaProduct, 1": Family(delta_product, lambda x: product_arguments(x, 1), plain.delta_product),
    "DeltaProduct, 3": Family(delta_product, lambda x: product_arguments(x, 3), plain.delta_product, 3),
    "gated DeltaProduct, 2": Family(
        gated_delta_product, lambda x: product_arguments(x, 2, g=x.log_decay()), plain.delta_product, 2
    ),
    "preconditioned delta rule": Family(
        preconditioned_delta_rule,
        lambda x: arguments(x, beta=x.beta(), beta_atk=x.beta(), g_atk=x.log_decay()),
        plain_preconditioned,
    ),
    "preconditioned gated delta rule": Family(
        preconditioned_gated_delta_rule,
        lambda x: arguments(x, g=x.log_decay(), beta=x.beta(), beta_atk=x.beta(), g_atk=x.log_decay()),
        plain_preconditioned,
    ),
    "preconditioned KDA": Family(
        preconditioned_kda,
        lambda x: arguments(x, g=x.log_decay(x.d), beta=x.beta(), beta_atk=x.beta(), g_atk=x.log_decay()),
        plain_preconditioned,
    ),
}
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())


def assert_close(actual: Tensor, expected: Tensor, tol: float = 1e-12) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tol * expected.abs().max().clamp(min=1.0)


@each_family
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**31), length=st.integers(1, 20), d=st.integers(1, 6))
def test_plain_loop(family: Family, seed: int, length: int, d: int) -> None:
    x = Draw(seed, length, d)
    arg = family.draw(x)
    v = x.normal(family.block * length, 3)
    op = family.make(**arg, scale=1.0)
    assert isinstance(op, Recurrence)
    assert isinstance(op.A, DiagonalPlusLowRank)
    assert_close(op.matrix() @ v, plain.run(family.loop(**arg), v))


@each_family
def test_batches_and_heads(family: Family) -> None:
    arg = family.draw(Draw(1, lead=(2, 3)))
    op = family.make(**arg)
    assert op.shape == (2, 3, family.block * L, family.block * L)
    assert (op.block, op.length, op.order) == (family.block, L, D)
    alone = family.make(**{name: value[1, 2] for name, value in arg.items()})
    assert_close(op.matrix()[1, 2], alone.matrix())
    assert_close(op[1, 2].matrix(), alone.matrix())


@each_family
def test_scale(family: Family) -> None:
    arg = family.draw(Draw(2))
    usual = 1.0 if family is FAMILIES["RWKV-7"] else D**-0.5
    assert_close(family.make(**arg).matrix(), usual * family.make(**arg, scale=1.0).matrix())
    assert_close(family.make(**arg, scale=-3.0).matrix(), -3.0 * family.make(**arg, scale=1.0).matrix())


@each_family
def test_state_size(family: Family) -> None:
    op = family.make(**family.draw(Draw(3)))
    assert torch.equal(op.state_size, (family.block * torch.arange(L)).clamp(max=D))


@each_family
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_is_cast_up_first(family: Family, dtype: torch.dtype) -> None:
    arg = {name: value.to(dtype) for name, value in family.draw(Draw(4)).items()}
    op = family.make(**arg)
    assert op.dtype == F64
    assert torch.equal(
        op.matrix(), family.make(**{name: value.to(F64) for name, value in arg.items()}).matrix()
    )


@each_family
def test_arrays(family: Family) -> None:
    arg = family.draw(Draw(5))
    arrays = {name: value.numpy() for name, value in arg.items()}
    assert torch.equal(family.make(**arrays).matrix(), family.make(**arg).matrix())


@each_family
def test_padding_has_no_say(family: Family) -> None:
    """Left, middle and right padding, holding NaN: the rest behaves as if it stood alone."""
    arg = family.draw(Draw(6))
    valid = torch.ones(L, dtype=torch.bool)
    valid[[0, 1, 6, L - 1]] = False
    alone, padded = {}, {}
    for name, value in arg.items():
        rows = valid.repeat_interleave(len(value) // L)
        alone[name] = value[rows]
        padded[name] = value.clone()
        padded[name][~rows] = torch.nan
    rows = valid.repeat_interleave(family.block)
    T = family.make(**padded, valid=valid).matrix()
    assert_close(T[rows][:, rows], family.make(**alone).matrix())
    assert T[~rows].count_nonzero() == T[:, ~rows].count_nonzero() == 0


def test_padding_per_sample_and_shared_keys() -> None:
    x = Draw(7)
    q, k, beta = x.features(), x.keys(), x.beta()
    valid = torch.ones(3, L, dtype=torch.bool)
    valid[1, :4] = valid[2, 9:] = False
    T = delta_rule(q, k, beta, valid=valid).matrix()
    assert T.shape == (3, L, L)
    for sample, own in zip(T, valid, strict=True):
        assert_close(sample[own][:, own], delta_rule(q[own], k[own], beta[own]).matrix())


def test_grouped_heads() -> None:
    """More heads of gates than of keys: each key head serves neighbouring ones, as in grouped values."""
    x, gates = Draw(8, lead=(2, 2)), Draw(9, lead=(2, 6))
    q, k, g, beta = x.features(), x.keys(), gates.log_decay(D), gates.beta()
    T = kda(q, k, g, beta).matrix()
    q, k = (y.repeat_interleave(3, dim=1) for y in (q, k))
    assert torch.equal(T, kda(q, k, g, beta).matrix())


@pytest.mark.parametrize(
    "name", ["delta rule", "gated delta rule", "KDA", "DeltaProduct, 3", "preconditioned KDA"]
)
def test_normalise(name: str) -> None:
    family = FAMILIES[name]
    arg = family.draw(Draw(10))
    arg["k"] = 3.0 * arg["k"]
    arg["k"][2] = 0.0
    ready = arg | {
        key: arg[key] / (arg[key].square().sum(-1, keepdim=True) + 1e-6).sqrt() for key in ("q", "k")
    }
    assert_close(family.make(**arg, normalise=True).matrix(), family.make(**ready).matrix())
    exact = arg | {key: F.normalize(arg[key], dim=-1) for key in ("q", "k")}
    assert_close(family.make(**arg, normalise=True, norm_eps=0.0).matrix(), family.make(**exact).matrix())


def test_normalise_rwkv7() -> None:
    arg = FAMILIES["RWKV-7"].draw(Draw(11))
    r, k, w, a = arg["q"], arg["k"], arg["w"], arg["a"]
    T = rwkv7(r, w, k, 5.0 * arg["kk"], a, normalise=True, norm_eps=0.0).matrix()
    assert_close(T, rwkv7(r, w, k, arg["kk"], a).matrix())


def rank(op: Recurrence) -> Tensor:
    if op.block == 1:
        return reference.ess(op, kind="tolerance", tol=1e-10, relative=True)
    T, d = op.matrix(), op.block
    past = [torch.linalg.svdvals(T[d * i :, : d * i]) for i in range(1, op.length)]
    return torch.tensor([0.0, *(float((sigma > 1e-10 * sigma.max()).sum()) for sigma in past)], dtype=F64)


def limits(n: int, length: int) -> Tensor:
    i = torch.arange(length)
    return torch.minimum(i, length - i).clamp(max=n).to(F64)


@pytest.mark.parametrize("d", [2, 3, 5])
def test_profile_of_the_delta_rule(d: int) -> None:
    x = Draw(12, 20, d)
    q, k = x.features(), x.keys()
    assert torch.equal(rank(delta_rule(q, k, torch.ones(20))), limits(d - 1, 20))
    assert torch.equal(rank(delta_rule(q, k, 0.1 + 0.4 * x.beta())), limits(d, 20))


def test_a_reflection_forgets_nothing() -> None:
    """At β = 2 every transition is orthogonal: all singular values of the carried state stay as they are."""
    x = Draw(13, 40, 3)
    k = x.keys()
    op = delta_rule(x.features(), k, torch.full((40,), 2.0))
    A = torch.eye(3, dtype=F64) - 2 * k.unsqueeze(-1) * k.unsqueeze(-2)
    assert_close(torch.linalg.matrix_norm(A, 2), torch.ones(40, dtype=F64))
    assert torch.equal(rank(op), limits(3, 40))
    early = op.matrix()[20:, :3]
    assert torch.linalg.svdvals(early)[-1] > 1e-2


def test_a_repeated_key_overwrites() -> None:
    """With β = 1 and one key for all, only the latest input is ever read: nothing is remembered."""
    x = Draw(14)
    k = x.keys()[:1].expand(L, D)
    T = delta_rule(x.features(), k, torch.ones(L)).matrix()
    assert T.tril(-1).abs().max() < 1e-15
    assert torch.equal(rank(delta_rule(x.features(), k, torch.full((L,), 0.5))), limits(1, L))


@pytest.mark.parametrize("m", [1, 2, 3])
def test_profile_of_delta_product(m: int) -> None:
    """``m`` inputs per token fill the state ``m`` times as fast. At β = 1 orthogonal keys erase ``m`` directions."""
    d, length = 7, 12
    x = Draw(15, length, d)
    q, k = x.features(), x.keys(m * length)
    i = torch.arange(length)
    room = torch.minimum(m * i, length - i)
    assert torch.equal(rank(delta_product(q, k, 0.1 + 0.4 * x.beta(m * length))), room.clamp(max=d).to(F64))
    ones = torch.ones(m * length)
    assert torch.equal(rank(delta_product(q, k, ones)), room.clamp(max=d - 1).to(F64))
    k = torch.linalg.qr(k.view(length, m, d).mT).Q.mT.reshape(m * length, d)
    assert torch.equal(rank(delta_product(q, k, ones)), room.clamp(max=d - m).to(F64))


def test_a_reset_forgets_at_its_own_position() -> None:
    x = Draw(16, 20)
    g = torch.full((20,), -0.1, dtype=F64)
    g[8] = -torch.inf
    for op in (
        gated_delta_rule(x.features(), x.keys(), g, 0.5 * x.beta()),
        kda(x.features(), x.keys(), g[:, None].expand(20, D), 0.5 * x.beta()),
        gated_delta_product(x.features(), x.keys(40), g, 0.5 * x.beta(40)),
    ):
        d = op.block
        assert op.matrix()[8 * d :, : 8 * d].count_nonzero() == 0
        assert rank(op)[8] == 0


def test_strong_decays_keep_their_digits() -> None:
    """Each entry to a relative 1e-12, over products that reach 1e-300: nothing is divided by a decay."""
    q = k = torch.tensor([[0.6, 0.8]], dtype=F64).expand(30, 2)
    g = torch.tensor([1e-12, 1.0, 0.5], dtype=F64).log().repeat(10)
    T = gated_delta_rule(q, k, g, torch.full((30,), 0.25), scale=1.0).matrix()
    total = torch.zeros(30, 30, dtype=F64)
    for j in range(30):
        value = torch.tensor(0.25, dtype=F64)
        for i in range(j, 30):
            value = value * g[i].exp() * 0.75 if i > j else value
            total[i, j] = value
    assert total[total > 0].min() < 1e-110
    torch.testing.assert_close(T, total, rtol=1e-12, atol=0)


FAULTS: dict[str, tuple[str, Callable[[dict[str, Tensor]], Iterator[Any]]]] = {
    "no erase": (
        "delta rule",
        lambda a: ((torch.eye(D, dtype=F64), a["beta"][t] * a["k"][t], a["q"][t]) for t in range(L)),
    ),
    "keys before normalisation": (
        "delta rule",
        lambda a: plain.delta_rule(a["q"], 1.3 * a["k"], a["beta"]),
    ),
    "β left out of the input": (
        "delta rule",
        lambda a: ((A, a["k"][t], q) for t, (A, _, q) in enumerate(plain.delta_rule(**a))),
    ),
    "β left out of the erase": (
        "delta rule",
        lambda a: (
            (plain.erase(a["k"][t], a["k"][t]), a["beta"][t] * a["k"][t], a["q"][t]) for t in range(L)
        ),
    ),
    "decay after the input": (
        "gated delta rule",
        lambda a: ((A, a["g"][t].exp() * b, q) for t, (A, b, q) in enumerate(plain.gated_delta_rule(**a))),
    ),
    "erase before decay": (
        "KDA",
        lambda a: (
            (a["g"][t].exp().diag() @ plain.erase(b, a["k"][t]), b, q)
            for t, (_, b, q) in enumerate(plain.kda(**a))
        ),
    ),
    "decay before erase": (
        "RWKV-7",
        lambda a: (
            (plain.erase(a["a"][t] * a["kk"][t], a["kk"][t]) @ a["w"][t].exp().diag(), b, q)
            for t, (_, b, q) in enumerate(plain.rwkv7(a["q"], a["w"], a["k"], a["kk"], a["a"]))
        ),
    ),
    "transposed erase": (
        "RWKV-7",
        lambda a: ((A.T, b, q) for A, b, q in plain.rwkv7(a["q"], a["w"], a["k"], a["kk"], a["a"])),
    ),
    "removal key as input key": (
        "RWKV-7",
        lambda a: plain.rwkv7(a["q"], a["w"], a["kk"], a["kk"], a["a"]),
    ),
    "micro-steps in reverse": (
        "gated DeltaProduct, 2",
        lambda a: plain.delta_product(
            a["q"],
            a["k"].view(L, 2, D).flip(1).reshape(-1, D),
            a["beta"].view(L, 2).flip(1).flatten(),
            a["g"],
        ),
    ),
    "decay at every micro-step": (
        "gated DeltaProduct, 2",
        lambda a: (
            (A if row % 2 == 0 else a["g"][row // 2].exp() * A, b, q)
            for row, (A, b, q) in enumerate(plain.delta_product(**a))
        ),
    ),
    "preconditioned key erased as well": (
        "preconditioned KDA",
        lambda a: (
            (plain.erase(b, b / a["beta"][t]) @ a["g"][t].exp().diag(), b, q)
            for t, (_, b, q) in enumerate(plain.preconditioned(**a))
        ),
    ),
    "preconditioner of the keys before this one": (
        "preconditioned KDA",
        lambda a: plain.preconditioned(**a | {"beta_atk": a["beta_atk"].roll(1)}),
    ),
}


@pytest.mark.parametrize(("name", "faulty"), FAULTS.values(), ids=FAULTS.keys())
def test_a_faulty_recurrence_would_be_seen(name: str, faulty: Callable[..., Iterator[Any]]) -> None:
    family = FAMILIES[name]
    x = Draw(17)
    arg = family.draw(x)
    arg |= {key: arg[key].clamp(min=-1.0) for key in ("g", "w") if key in arg}
    v = x.normal(family.block * L, 8)
    y = family.make(**arg, scale=1.0).matrix() @ v
    assert_close(y, plain.run(family.loop(**arg), v))
    wrong = plain.run(faulty(arg), v)
    assert (y - wrong).norm() > 1e-2 * y.norm()


def test_equivalences() -> None:
    x = Draw(18)
    q, k, beta, g = x.features(), x.keys(), x.beta(), x.log_decay()
    wide = g[:, None].expand(L, D)
    expected = gated_delta_rule(q, k, g, beta).matrix()
    assert_close(kda(q, k, wide, beta).matrix(), expected)
    assert_close(gated_delta_product(q, k, g, beta).matrix(), expected)
    written = beta[:, None] * k
    assert_close(generalised_delta_rule(q, written, -g[:, None].exp() * k, written, wide).matrix(), expected)
    assert_close(gated_delta_rule(q, k, torch.zeros(L), beta).matrix(), delta_rule(q, k, beta).matrix())
    same = preconditioned_gated_delta_rule(q, k, g, beta, beta_atk=beta, squash_x=1.0)
    assert_close(same.matrix(), expected)


def test_preconditioner_centre_per_head() -> None:
    arg = FAMILIES["preconditioned KDA"].draw(Draw(19, lead=(2, 3)))
    centre = torch.tensor([-1.0, 0.0, 2.0], dtype=F64)
    T = preconditioned_kda(**arg, log_atk_scale=centre).matrix()
    for head in range(3):
        one = {name: value[:, head] for name, value in arg.items()}
        assert_close(T[:, head], preconditioned_kda(**one, log_atk_scale=float(centre[head])).matrix())


def test_gradients_reach_the_arguments() -> None:
    arg = {
        name: value.requires_grad_() for name, value in FAMILIES["delta rule"].draw(Draw(20, 5, 3)).items()
    }
    delta_rule(**arg, normalise=True).matrix().square().sum().backward()
    assert all(value.grad is not None and value.grad.norm() > 0 for value in arg.values())


Q, K, G, BETA = torch.ones(2, L, D), torch.ones(2, L, D), -torch.ones(2, L), torch.ones(2, L)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: delta_rule(Q[0, 0], K, BETA), r"q and k must be \(\.\.\., L, d_k\), but q has shape \(4,\)"),
        (lambda: delta_rule(Q[:, :0], K, BETA), "must not be empty"),
        (lambda: delta_rule(Q, K[:, :-1], BETA), r"k must have the shape \(\.\.\., 13, 4\) to fit q"),
        (lambda: delta_rule(Q, K[..., :-1], BETA), r"k must have the shape \(\.\.\., 13, 4\) to fit q"),
        (lambda: delta_rule(Q, K, BETA[..., None]), r"beta must have the shape \(\.\.\., 13\) to fit q"),
        (lambda: delta_rule(Q, K, torch.tensor(1.0)), r"beta must have the shape \(\.\.\., 13\)"),
        (lambda: delta_rule(Q, K, torch.ones(3, L)), r"leading dimensions \(3,\) of beta do not broadcast"),
        (lambda: delta_rule(Q, K, BETA / 0), "beta is not finite"),
        (lambda: delta_rule(Q, K * torch.nan, BETA), "k is not finite.*valid="),
        (lambda: delta_rule(Q, K, BETA, scale=torch.nan), "scale must be finite"),
        (lambda: delta_rule(Q, K, BETA, normalise=True, norm_eps=-1.0), "norm_eps must not be negative"),
        (lambda: delta_rule(Q, K, BETA, valid=torch.ones(L - 1, dtype=torch.bool)), "valid of shape"),
        (lambda: delta_rule(Q, K, BETA, valid=torch.ones(5, L, dtype=torch.bool)), "do not broadcast"),
        (lambda: gated_delta_rule(Q, K, G.exp(), BETA), r"g\[0, 0\] = 0\.36.*pass decay\.log\(\)"),
        (lambda: gated_delta_rule(Q, K, BETA, G), "mind the order"),
        (lambda: gated_delta_rule(Q, K, G * torch.nan, BETA), "g.*is outside"),
        (lambda: kda(Q, K, G, BETA), r"g must have the shape \(\.\.\., 13, 4\)"),
        (lambda: rwkv7(Q[:, :5], G, K, K, K), r"k must have the shape \(\.\.\., 5, 4\) to fit r"),
        (lambda: rwkv7(Q, Q, K, K, K), "it is the logarithm of a decay"),
        (lambda: generalised_delta_rule(Q, K, K, BETA), r"b must have the shape \(\.\.\., 13, 4\)"),
        (lambda: delta_product(Q, K[:, :-1], BETA), r"m keys for each token.*k \(2, 12, 4\)"),
        (lambda: delta_product(Q, K.repeat(1, 2, 1), BETA), r"beta must have the shape \(\.\.\., 26\)"),
        (lambda: preconditioned_delta_rule(Q, K, BETA, beta_atk=-BETA), r"beta_atk\[0, 0, 0\] = -1 is outside"),
        (lambda: preconditioned_delta_rule(Q, K, BETA, beta_atk=BETA, squash_x=0.5), "squash_x must be at least 1"),
        (lambda: preconditioned_delta_rule(Q, K, BETA, beta_atk=BETA, squash_eps=0.0), "squash_eps must be positive"),
    ],
)  # fmt: skip
def test_refusals(call: Callable[[], Recurrence], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: delta_rule(Q.long(), K, BETA), "q must hold real floating-point numbers"),
        (lambda: delta_rule(Q, K, BETA.to(torch.complex64)), "beta must hold real floating-point numbers"),
        (lambda: delta_rule(Q.tolist(), K, BETA), "q must be a torch tensor or a numpy array, but is a list"),
        (lambda: delta_rule(Q, K, 0.5), "beta must be a torch tensor or a numpy array, but is a float"),
        (lambda: delta_rule(Q, K, BETA, scale="big"), "scale must be one number"),
        (lambda: delta_rule(Q, K, BETA, valid=np.ones(L)), "valid must be boolean"),
    ],
)
def test_wrong_types(call: Callable[[], Recurrence], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize("name", [name for name in FAMILIES if "," not in name])
def test_repr_says_what_it_is(name: str) -> None:
    family = FAMILIES[name]
    assert name in repr(family.make(**family.draw(Draw(21))))
