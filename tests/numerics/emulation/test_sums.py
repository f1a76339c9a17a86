"""Emulated products against sums taken part by part in exact fractions, and against seeded faults."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from relucheck.numerics.bits import same_bits
from relucheck.numerics.emulation import Emulation, EmulationError, Override, Rounding, linear, sums
from relucheck.numerics.emulation.emulation import DIRECTIONS
from tests.helpers.emulations import KINDS, emulations, roundings
from tests.oracles import emulated


def _integers(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Values k / 32: their products and float32 sums are exact, so that nothing but the emulated rounding rounds."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(-60, 61, shape, generator=generator) / 32).to(dtype)


def _uneven(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Values of very different sizes; a sum of two of their products is mostly inexact in float32."""
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.randint(-8, 9, shape, generator=generator) if dtype == torch.bfloat16 else torch.zeros(shape)
    return (torch.randint(-255, 256, shape, generator=generator) * 2.0**exponents / 64).to(dtype)


def _broken_by(
    emulation: Emulation,
    *,
    biased: bool = True,
    sizes: tuple[int, int, int] = (24, 40, 16),
    layer: int = 1,
    seed: int = 0,
    values: Callable[..., Tensor] = _integers,
) -> list[str]:
    """The properties that a layer of an emulation breaks: of forward, and of each gradient."""
    rows, inputs, outputs = sizes
    shapes = [(rows, inputs), (outputs, inputs), (outputs,), (rows, outputs)]
    x, weight, bias, cotangent = (values(shape, emulation.dtype, seed + i) for i, shape in enumerate(shapes))
    wanted = emulated.linear(emulation, x, weight, bias if biased else None, cotangent, layer)
    for tensor in (x, weight, bias):
        tensor.requires_grad_()
    y = linear(emulation.layer(layer), x, weight, bias if biased else None)
    grads = torch.autograd.grad(y, (x, weight, bias)[: 2 + biased], cotangent)
    found = dict(zip((*DIRECTIONS, "bias gradient"), (y.detach(), *grads), strict=False))
    if biased:
        wanted["bias gradient"] = cotangent.sum(0)
    return [name for name, right in wanted.items() if not same_bits(found[name], right)]


@pytest.mark.parametrize("kind", KINDS)
def test_rounds_where_it_says_forward_and_backward(kind: str) -> None:
    assert _broken_by(KINDS[kind]) == []


@given(
    st.sampled_from([torch.bfloat16, torch.float16]).flatmap(emulations),
    st.tuples(*[st.integers(1, 12)] * 3),
    st.booleans(),
    st.integers(1, 5),
    st.integers(0, 1000),
)
@example(KINDS["split-k 4 by 3 in place bias joined"], (3, 11, 2), True, 1, 0)
def test_every_layer_length_and_direction(
    emulation: Emulation, sizes: tuple[int, int, int], biased: bool, layer: int, seed: int
) -> None:
    assert _broken_by(emulation, biased=biased, sizes=sizes, layer=layer, seed=seed) == []


@given(roundings().filter(lambda one: one.parts > 1 and not one.cut), st.booleans(), st.integers(0, 1000))
def test_where_float32_rounds_too(rounding: Rounding, biased: bool, seed: int) -> None:
    """Parts of one term, of very different sizes: each is exact, and their sums in float32 are not."""
    sizes = (rounding.parts,) * 3  # the number of terms in every direction
    assert _broken_by(Emulation(torch.bfloat16, rounding), biased=biased, sizes=sizes, seed=seed, values=_uneven) == []


def test_sums_of_nothing_are_the_bias() -> None:
    bias = torch.tensor([0.5, -2.0]).bfloat16()
    for emulation in KINDS.values():
        empty, offset = torch.ones(3, 0).to(emulation.dtype), bias.to(emulation.dtype)
        assert same_bits(linear(emulation, empty, empty[:2], offset), offset.expand(3, 2))


# ------------------------------------------------------------------------------------------------- seeded faults


def _replaced(**changes: Any) -> Callable[..., Any]:
    """Another rounding than the one that is asked for."""
    original = Emulation.sum
    return lambda self, direction, terms: dataclasses.replace(original(self, direction, terms), **changes)


def _reversed(self: Rounding, terms: int) -> list[tuple[int, int]]:
    return _RANGES(self, terms)[::-1]


_RANGES, _LAST, _SUM = Rounding.ranges, sums._last, Emulation.sum


def _part_unrounded(dtype: torch.dtype, rounding: Rounding, total: Tensor | None, part: Tensor) -> Tensor:
    """Parts join the running total unrounded."""
    return part if total is None else total + part


def _first_unrounded(dtype: torch.dtype, rounding: Rounding, total: Tensor | None, part: Tensor) -> Tensor:
    """The first part begins the running total unrounded."""
    return part if total is None else (total + part.to(dtype)).to(dtype)


def _last_rounded(
    dtype: torch.dtype, rounding: Rounding, total: Tensor | None, part: Tensor, bias: Tensor | None
) -> Tensor:
    """The last part is rounded before it joins."""
    return _LAST(dtype, rounding, total, part.to(dtype).to(part.dtype), bias)


def _last_unrounded(
    dtype: torch.dtype, rounding: Rounding, total: Tensor | None, part: Tensor, bias: Tensor | None
) -> Tensor:
    """The last part joins unrounded."""
    return _LAST(dtype, dataclasses.replace(rounding, reduction="in place"), total, part, bias)


def _swapped(self: Emulation, direction: Any, terms: int) -> Rounding:
    """The roundings of the gradients are exchanged."""
    other = {"input gradient": "weight gradient", "weight gradient": "input gradient"}
    return _SUM(self, other.get(direction, direction), terms)  # type: ignore[arg-type]


def _everywhere(self: Emulation, direction: Any, terms: int) -> Rounding:
    """What forward does, in all directions."""
    return _SUM(self, "forward", terms).without_bias if direction != "forward" else _SUM(self, direction, terms)


def _another_length(self: Emulation, direction: Any, terms: int) -> Rounding:
    """The length of the forward sum decides in all directions."""
    return _SUM(self, direction, 40)


_EVERY = {*DIRECTIONS}
#: The fault's name: the emulation, what is replaced, by what, and the properties that it must break at least.
_FAULTS: dict[str, tuple[str, Any, str, Callable[..., Any], set[str]]] = {
    "parts in another order": ("split-k 4", Rounding, "ranges", _reversed, _EVERY),
    "parts in another order, in place": ("split-k 4 in place", Rounding, "ranges", _reversed, _EVERY),
    "no cut": ("split-k 3 by 6", Emulation, "sum", _replaced(cut=0), {"forward", "weight gradient"}),
    "one part more": ("split-k 4", Emulation, "sum", _replaced(parts=5), {"forward", "weight gradient"}),
    "parts added wide": ("split-k 4", Emulation, "sum", _replaced(reduction="wide"), _EVERY),
    "parts added narrow": ("split-k 4 wide", Emulation, "sum", _replaced(reduction="narrow"), _EVERY),
    "rounded parts in place": ("split-k 4 in place", Emulation, "sum", _replaced(reduction="narrow"), _EVERY),
    "split-k as one sum": ("split-k 4", Emulation, "sum", _replaced(parts=1), _EVERY),
    "parts not rounded": ("split-k 4 wide", sums, "_joined", _part_unrounded, _EVERY),
    "a total not rounded": ("split-k 4 in place", sums, "_joined", _part_unrounded, _EVERY),
    "the first part not rounded": ("split-k 4 bias joined", sums, "_joined", _first_unrounded, _EVERY),
    "the last part rounded": ("split-k 4 in place", sums, "_last", _last_rounded, _EVERY),
    "the last part not rounded": ("split-k 4 wide", sums, "_last", _last_unrounded, _EVERY),
    "a bias before rounding": ("product", Emulation, "sum", _replaced(bias="joined"), {"forward"}),
    "a bias after rounding": ("rounded", Emulation, "sum", _replaced(bias="after"), {"forward"}),
    "a bias before the last rounding": ("split-k 4 wide", Emulation, "sum", _replaced(bias="joined"), {"forward"}),
    "a bias after the last rounding": ("split-k 4 bias joined", Emulation, "sum", _replaced(bias="after"), {"forward"}),
    "gradients exchanged": ("rounded; input gradient: split-k 3", Emulation, "sum", _swapped, set(DIRECTIONS[1:])),
    "gradients as forward": ("rounded; forward: split-k 4 wide", Emulation, "sum", _everywhere, set(DIRECTIONS[1:])),
    "another sum's length": ("product; K from 20: split-k 4", Emulation, "sum", _another_length, {"input gradient"}),
}


@pytest.mark.parametrize("fault", _FAULTS)
def test_seeded_faults_are_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, owner, name, replacement, expected = _FAULTS[fault]
    monkeypatch.setattr(owner, name, replacement)
    assert expected <= set(_broken_by(KINDS[kind]))


def test_an_override_of_another_layer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeded fault: layers are counted from 0."""
    emulation = Emulation(torch.bfloat16, Rounding(bias="joined"), (Override(Rounding(parts=4), layers=(2,)),))
    original = Emulation.layer
    assert [_broken_by(emulation, layer=layer) for layer in (1, 2, 3)] == [[], [], []]
    monkeypatch.setattr(Emulation, "layer", lambda self, number: original(self, number + 1))
    assert [set(_broken_by(emulation, layer=layer)) >= _EVERY for layer in (1, 2)] == [True, True]


def test_backward_in_the_devices_own_arithmetic_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (cotangent,) = grad_outputs
        (x, weight), wide = ctx.saved_tensors, cotangent.double()
        grads = (wide @ weight.double(), wide.T @ x.double())
        return *(one.to(cotangent.dtype) for one in grads), cotangent.sum(-2), None

    monkeypatch.setattr(sums._Linear, "backward", staticmethod(backward))
    assert _broken_by(KINDS["split-k 4"]) == ["input gradient", "weight gradient"]


# ------------------------------------------------------------------------------------------------- TF32


def test_tf32_rounds_factors_to_ten_bits_ties_to_even() -> None:
    one = 1.0
    cases = {
        one + 2**-10: one + 2**-10,  # representable
        one + 2**-11: one,  # a tie, to even: down
        one + 3 * 2**-11: one + 2 * 2**-10,  # a tie, to even: up
        one + 2**-11 + 2**-23: one + 2**-10,
        2 - 2**-23: 2.0,  # carries into the exponent
        -(one + 2**-11 + 2**-23): -(one + 2**-10),
        float("inf"): float("inf"),
        0.0: 0.0,
    }
    x = torch.tensor(list(cases)).unsqueeze(1)
    identity = torch.ones(1, 1)
    assert linear(KINDS["tf32"], x, identity).squeeze(1).tolist() == list(cases.values())
    assert bool(linear(KINDS["tf32"], torch.tensor([[float("nan")]]), identity).isnan().all())


def _eleven_bits(x: Tensor) -> Tensor:
    """The nearest number of 11 significant bits, ties to even, by float64."""
    mantissa, exponent = torch.frexp(x.double())
    return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)


def _tf32_is_right() -> list[bool]:
    """Forward, gradients of input and weight; odd factors of 12 bits, each of which is rounded, and sums that are exact."""
    random = torch.Generator().manual_seed(5)
    x, weight, cotangent = ((2 * torch.randint(1024, 2048, (4, 4), generator=random) + 1).float() for _ in range(3))
    assert not any(bool((_eleven_bits(value) == value).any()) for value in (x, weight, cotangent))
    a, b, c = map(_eleven_bits, (x, weight, cotangent))
    x.requires_grad_()
    weight.requires_grad_()
    y = linear(KINDS["tf32"], x, weight)
    found = (y.detach(), *torch.autograd.grad(y, (x, weight), cotangent))
    return [torch.equal(one.double(), other) for one, other in zip(found, (a @ b.T, c @ b, c.T @ a), strict=True)]


def test_tf32_rounds_the_factors_of_all_three_products(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _tf32_is_right() == [True, True, True]
    original = sums.multiply
    for fault, right in ((DIRECTIONS[0], [False, True, True]), (DIRECTIONS[2], [True, True, False])):
        with monkeypatch.context() as patch:  # a seeded fault: one direction takes the factors as they are

            def unrounded(emulation: Emulation, direction: Any, *rest: Tensor | None, fault: str = fault) -> Tensor:
                chosen = Emulation(torch.float32, Rounding()) if direction == fault else emulation
                return original(chosen, direction, *rest)  # type: ignore[arg-type]

            patch.setattr(sums, "multiply", unrounded)
            assert _tf32_is_right() == right
    monkeypatch.setattr(sums, "factor", lambda rounding, x: x)
    assert _tf32_is_right() == [False, False, False]


@pytest.mark.parametrize("kind", KINDS)
def test_members_stacked_round_where_they_say(kind: str) -> None:
    """Forward and gradients of members in one call, each against the stated rounding of its own."""
    chosen = KINDS[kind]
    shapes = [(3, 8, 40), (3, 6, 40), (3, 6)]
    x, weight, bias = (_integers(shape, chosen.dtype, i).requires_grad_() for i, shape in enumerate(shapes))
    cotangent = _integers((3, 8, 6), chosen.dtype, 3)
    y = linear(chosen, x, weight, bias)
    grads = torch.autograd.grad(y, (x, weight, bias), cotangent)
    for i in range(3):
        wanted = emulated.linear(chosen, x[i].detach(), weight[i].detach(), bias[i].detach(), cotangent[i])
        found = (y[i].detach(), grads[0][i], grads[1][i])
        assert all(same_bits(one, wanted[direction]) for direction, one in zip(DIRECTIONS, found, strict=True))
        assert same_bits(grads[2][i], cotangent[i].sum(0))


def test_members_stacked_are_each_one() -> None:
    chosen = KINDS["split-k 4"]
    x, weight, bias = (_integers(shape, chosen.dtype, i) for i, shape in enumerate([(2, 24, 40), (2, 16, 40), (2, 16)]))
    together = linear(chosen, x, weight, bias)
    for member in range(2):
        assert same_bits(together[member], linear(chosen, x[member], weight[member], bias[member]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("leading", [(), (24,), (4, 6), (2, 3, 4), (0, 3)])
def test_leading_dimensions_are_rows(kind: str, leading: tuple[int, ...]) -> None:
    """The gradients of weight and bias are one sum over all of them."""
    chosen = KINDS[kind]
    x, weight, bias, cotangent = (
        _integers(shape, chosen.dtype, i) for i, shape in enumerate([(*leading, 40), (16, 40), (16,), (*leading, 16)])
    )
    flat = x.reshape(x.numel() // 40, 40)
    for tensor in (x, weight, bias, flat):
        tensor.requires_grad_()
    y, rows = linear(chosen, x, weight, bias), linear(chosen, flat, weight, bias)
    assert y.shape == (*leading, 16)
    assert same_bits(y.reshape(rows.shape), rows)
    found = torch.autograd.grad(y, (x, weight, bias), cotangent)
    wanted = torch.autograd.grad(rows, (flat, weight, bias), cotangent.reshape(rows.shape))
    assert found[0].shape == x.shape
    assert all(same_bits(a.reshape(b.shape), b) for a, b in zip(found, wanted, strict=True))


def test_a_number_is_no_input() -> None:
    with pytest.raises(EmulationError, match="got a number; a linear layer takes a tensor"):
        linear(KINDS["product"], torch.tensor(1.0).bfloat16(), torch.ones(1, 1).bfloat16())


def test_emulations_make_the_hits_that_they_are_for() -> None:
    """Products rounded before the bias cancel it exactly far more often than sums that are rounded once."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=generator).to(torch.bfloat16) for s in [(512, 64), (64, 64), (64,)])
    zeros = {name: int((linear(KINDS[name], x, weight, bias) == 0).sum()) for name in ("rounded", "product", "split-k 4")}
    assert zeros["product"] > 5 * max(1, zeros["rounded"])
    assert zeros["split-k 4"] > 5 * max(1, zeros["rounded"])
