"""Strided, expanded and lazily negated tensors, and in-place activations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from relucheck.activations.modules import LeakyReLU, ReLU
from relucheck.activations.rules import SubgradientError
from relucheck.numerics.bits import same_bits
from tests.helpers.activation_cases import (
    Case,
    at_each,
    cotangents,
    every_case,
    every_dtype,
    every_in_place,
    expected,
    gradient,
    inputs,
)

# -------------------------------------------------------------------------------------------------------------- layouts


def _strided(kind: str, x: Tensor) -> Tensor:
    """The values of ``x``, laid out in another way."""
    cube = x[:4032].view(-1, 3, 7, 4)
    return {
        "contiguous": lambda: cube,
        "transposed": lambda: cube.transpose(1, 3),
        "strided": lambda: cube[:, :, ::2],
        "flipped slice": lambda: cube.flip(0)[1:],
        "channels_last": lambda: cube.contiguous(memory_format=torch.channels_last),
        "channels_last slice": lambda: cube.contiguous(memory_format=torch.channels_last)[:, 1:],
        "expanded": lambda: cube[:, :1].expand(-1, 3, -1, -1),
        "zero-dimensional hit": lambda: torch.zeros((), dtype=x.dtype),
        "zero-dimensional": lambda: torch.ones((), dtype=x.dtype),
        "empty": lambda: x[:0].view(0, 3),
        "one element": lambda: x[:1],
    }[kind]()


@every_case
@every_dtype
@pytest.mark.parametrize(
    "kind",
    ["contiguous", "transposed", "strided", "flipped slice", "channels_last", "channels_last slice", "expanded",
     "zero-dimensional hit", "zero-dimensional", "empty", "one element"],
)  # fmt: skip
def test_layouts(case: Case, dtype: torch.dtype, kind: str) -> None:
    x = inputs(dtype, nan=False)
    x[::50] = 0.0  # also where all values are listed, the first few thousand need hits
    x[7::50] = 6.0
    x, s = _strided(kind, x), at_each(case, 0.7)
    g = cotangents(x)
    got, native = gradient(case.ours(s), x, g), gradient(case.native(), x, g)
    assert same_bits(got, expected(case, x, g, s))
    assert got.stride() == native.stride()
    y = case.ours(s)(x.detach().requires_grad_())
    assert same_bits(y, case.native()(x), signed_zero=True)
    assert y.stride() == case.native()(x).stride()


@every_case
def test_expanded_and_transposed_cotangents(case: Case) -> None:
    x = torch.full((64, 32), 2.5)
    x[3, 4], x[60, 1] = case.kinks[0], case.kinks[-1]
    s = at_each(case, 0.7)
    for g in (torch.tensor(0.3).expand(64, 32), torch.rand(1, 32).expand(64, 32), torch.rand(32, 64).T):
        assert same_bits(gradient(case.ours(s), x, g), expected(case, x, g, s))
    x.requires_grad_()
    case.ours(s)(x).sum().backward()
    assert same_bits(x.grad, expected(case, x.detach(), torch.ones_like(x), s))


def test_lazily_negated_input() -> None:
    z = torch.tensor([1 + 0j, 2 - 1j, 3 + 1j], requires_grad=True)
    x = z.conj().imag
    assert x.is_neg()
    ReLU(0.5)(x).sum().backward()
    assert z.grad.imag.tolist() == [-0.5, -1.0, 0.0]


# ------------------------------------------------------------------------------------------------------------- in-place


@every_in_place
@every_dtype
@pytest.mark.parametrize("s", [0.7, -0.5])
def test_in_place_equals_out_of_place(case: Case, dtype: torch.dtype, s: float) -> None:
    x = inputs(dtype, nan=case.name != "ReLU6")
    g, values = cotangents(x), at_each(case, s)
    leaf = x.clone().requires_grad_()
    z = leaf.clone()
    y = case.ours(values, inplace=True)(z)
    assert y is z
    assert same_bits(z.detach(), case.native()(x), signed_zero=True)
    assert same_bits(torch.autograd.grad(y, leaf, g)[0], expected(case, x, g, values))


@every_in_place
def test_in_place_without_a_graph(case: Case) -> None:
    x = inputs(torch.float32)
    z = x.clone()
    assert case.ours(at_each(case, 0.7), inplace=True)(z) is z
    assert same_bits(z, case.native()(x), signed_zero=True)


@every_in_place
@pytest.mark.parametrize("view", [False, True])
def test_in_place_on_a_leaf_is_refused_before_it_is_overwritten(case: Case, view: bool) -> None:
    x = torch.tensor([-1.0, 0.0, 1.0], requires_grad=True)
    message = "leaf Variable that requires grad is being used in an in-place operation"
    with pytest.raises(RuntimeError, match=message):
        case.ours(at_each(case, 0.7), inplace=True)(x.view(3, 1) if view else x)
    assert x.tolist() == [-1.0, 0.0, 1.0]


@every_in_place
def test_in_place_on_a_view_reaches_the_base(case: Case) -> None:
    leaf = torch.full((64, 4), 2.5)
    leaf[1, 0], leaf[2, 0] = case.kinks[0], case.kinks[-1]
    leaf.requires_grad_()
    base, s = leaf * 1, at_each(case, 0.7)
    case.ours(s, inplace=True)(base[:, 0])
    g = cotangents(base.detach())
    (got,) = torch.autograd.grad(base, leaf, g)
    assert same_bits(got[:, 0], expected(case, leaf.detach()[:, 0], g[:, 0], s))
    assert same_bits(got[:, 1:], g[:, 1:])


def test_in_place_leaky_with_a_negative_slope_is_refused() -> None:
    x = torch.tensor([-1.0, 0.0], requires_grad=True)
    with pytest.raises(SubgradientError, match=r"negative_slope=-0\.1, inplace=True.*use inplace=False"):
        LeakyReLU(-0.1, 0.5, inplace=True)(x * 1)
    with torch.no_grad():  # torch refuses in backward only
        assert LeakyReLU(-0.5, 0.5, inplace=True)(x * 1).tolist() == [0.5, -0.0]


@pytest.mark.parametrize("shape", [(), (1,), (512,)])
def test_input_may_be_overwritten_after_relu(shape: tuple[int, ...]) -> None:
    # torch's own ReLU keeps its result, so that residual sums may overwrite the input
    leaf = torch.zeros(shape, requires_grad=True)
    z = leaf * 1
    y = ReLU(0.5)(z)
    z.add_(1)
    y.sum().backward()
    assert same_bits(leaf.grad, torch.full(shape, 0.5))


@pytest.mark.parametrize("make", [nn.ReLU, lambda: ReLU(0.5)], ids=["torch", "ReLU"])
def test_a_result_overwritten_before_backward_is_refused_as_torch_does(make: Callable[[], nn.Module]) -> None:
    x = torch.zeros(3, requires_grad=True)
    y = make()(x)
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
