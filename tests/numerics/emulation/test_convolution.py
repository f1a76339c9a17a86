"""Emulated convolutions against sums taken part by part in exact fractions, and against seeded faults."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.bits import same_bits
from relucheck.numerics.emulation import (
    EmulatedConv2d,
    Emulation,
    EmulationError,
    Rounding,
    conv2d,
    convolution,
    emulate,
)
from tests.helpers.emulations import KINDS, emulations
from tests.oracles.emulated import Convolution

#: x [n, channels, rows, columns], weight [outputs, channels / groups, rows, columns], and the rest of the geometry.
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": ((2, 3, 5, 4), (4, 3, 3, 3), {}),
    "padded": ((2, 3, 5, 4), (4, 3, 3, 3), {"padding": 1}),
    "strides that leave rows": ((2, 2, 6, 7), (3, 2, 3, 2), {"stride": (2, 3), "padding": (1, 0)}),
    "dilated": ((1, 2, 7, 6), (2, 2, 2, 3), {"dilation": (3, 2), "padding": (2, 1)}),
    "groups": ((2, 4, 5, 5), (6, 2, 3, 3), {"groups": 2, "stride": 2, "padding": 1}),
    "depthwise": ((2, 3, 4, 4), (3, 1, 3, 3), {"groups": 3, "padding": 1}),
    "one pixel": ((3, 5, 3, 3), (4, 5, 1, 1), {"stride": 2}),
    "more padding than kernel": ((1, 2, 3, 3), (2, 2, 1, 1), {"padding": 2}),
    "same": ((1, 2, 5, 4), (3, 2, 2, 3), {"padding": "same"}),
    "valid": ((1, 2, 5, 4), (3, 2, 2, 3), {"padding": "valid"}),
}


def _values(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Values k / 32: products and float32 sums are exact, so that nothing but the emulated rounding rounds."""
    return (torch.randint(-60, 61, shape, generator=torch.Generator().manual_seed(seed)) / 32).to(dtype)


def _broken_by(emulation: Emulation, shape: str, *, biased: bool = True, layer: int = 1, seed: int = 0) -> list[str]:
    """The properties that an emulated convolution breaks: of forward, and of each gradient."""
    sizes, kernel, options = SHAPES[shape]
    x, weight = _values(sizes, emulation.dtype, seed), _values(kernel, emulation.dtype, seed + 1)
    bias = _values((kernel[0],), emulation.dtype, seed + 2) if biased else None
    oracle = Convolution(emulation, x, weight, options, layer)
    wanted = [oracle.forward(bias)]
    cotangent = _values(tuple(wanted[0].shape), emulation.dtype, seed + 3)
    wanted += [oracle.of_input(cotangent), oracle.of_weight(cotangent)]
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias) if tensor is not None]
    y = conv2d(emulation.layer(layer), x, weight, bias, **options)
    found = [y.detach(), *torch.autograd.grad(y, inputs, cotangent)]
    names = ["forward", "gradient of x", "gradient of the weight"]
    if biased:
        wanted.append(cotangent.double().sum((0, 2, 3)).to(emulation.dtype))
        names.append("gradient of the bias")
    return [name for name, a, b in zip(names, found, wanted, strict=True) if not same_bits(a, b)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "tf32"])
def test_rounds_where_it_says_forward_and_backward(kind: str, shape: str) -> None:
    assert _broken_by(KINDS[kind], shape) == []


@pytest.mark.parametrize("kind", ["rounded", "product", "split-k 4", "split-k 4 wide bias joined"])
def test_without_a_bias(kind: str) -> None:
    assert _broken_by(KINDS[kind], "groups", biased=False) == []


@given(
    st.sampled_from([torch.bfloat16, torch.float16]).flatmap(emulations),
    st.sampled_from(["one pixel", "depthwise", "dilated", "strides that leave rows"]),
    st.booleans(),
    st.integers(1, 5),
    st.integers(0, 1000),
)
def test_every_layer_length_and_direction(emulation: Emulation, shape: str, biased: bool, layer: int, seed: int) -> None:
    assert _broken_by(emulation, shape, biased=biased, layer=layer, seed=seed) == []


_COLUMNS = convolution._columns
_INPUT = convolution._split_input


def _other_order(x: Tensor, weight: Tensor, geometry: Any) -> Tensor:
    """Terms in another order: kernel positions first, channels last."""
    found = _COLUMNS(x, weight, geometry)
    taps = weight.shape[2] * weight.shape[3]
    return found.unflatten(2, (-1, taps)).transpose(2, 3).flatten(2, 3)


def _unturned(emulation: Emulation, cotangent: Tensor, x: Tensor, weight: Tensor, geometry: Any) -> Tensor:
    """The kernel as forward takes it."""
    return _INPUT(emulation, cotangent, x, weight.flip(2, 3), geometry)


def _rounded_columns(rounding: Any, cotangent: Tensor, x: Tensor, weight: Tensor, geometry: Any, wanted: Any) -> Any:
    """Kernel positions are rounded one by one, then added in the dtype, as folding of rounded columns does."""
    g = geometry
    grad_x = torch.zeros_like(x).bfloat16()
    for row, column in itertools.product(range(weight.shape[2]), range(weight.shape[3])):
        one = torch.zeros_like(weight)
        one[..., row, column] = weight[..., row, column]
        part = torch.nn.grad.conv2d_input(x.shape, one, cotangent, g.stride, g.padding, g.dilation, g.groups)
        grad_x += part.bfloat16()
    return grad_x, torch.nn.grad.conv2d_weight(x, weight.shape, cotangent, g.stride, g.padding, g.dilation, g.groups)


def _unsplit(self: Emulation, direction: Any, terms: int) -> Rounding:
    """One rounding of the whole sum, where partial sums are to be rounded."""
    return Rounding()


_SUM = Emulation.sum


def _swapped(self: Emulation, direction: Any, terms: int) -> Rounding:
    """The roundings of the gradients are exchanged."""
    other: Any = {"input gradient": "weight gradient", "weight gradient": "input gradient"}
    return _SUM(self, other.get(direction, direction), terms)


def _one_term_more(self: Emulation, direction: Any, terms: int) -> Rounding:
    return _SUM(self, direction, terms + 1)


_MUTANTS: dict[str, tuple[str, Any, str, Callable[..., Any], set[str]]] = {
    "split-k as one sum": (
        "split-k 4",
        Emulation,
        "sum",
        _unsplit,
        {"forward", "gradient of x", "gradient of the weight"},
    ),
    "terms in another order": ("split-k 4", convolution, "_columns", _other_order, {"forward"}),
    "a kernel that is not turned": ("split-k 4", convolution, "_split_input", _unturned, {"gradient of x"}),
    "gradients exchanged": (
        "rounded; input gradient: split-k 3",
        Emulation,
        "sum",
        _swapped,
        {"gradient of x", "gradient of the weight"},
    ),
    "another length": ("rounded; K from 28: split-k 4", Emulation, "sum", _one_term_more, {"forward"}),
    "columns rounded one by one": ("product", convolution, "_gradients", _rounded_columns, {"gradient of x"}),
}


@pytest.mark.parametrize("mutant", _MUTANTS)
def test_seeded_mutants_are_found(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, owner, name, replacement, expected = _MUTANTS[mutant]
    assert _broken_by(KINDS[kind], "padded") == []
    monkeypatch.setattr(owner, name, replacement)
    assert expected <= set(_broken_by(KINDS[kind], "padded"))


def test_a_bias_added_before_rounding_is_found() -> None:
    """What ``rounded`` does is not what ``product`` says."""
    sizes, kernel, options = SHAPES["padded"]
    chosen = KINDS["product"]
    x, weight, bias = (_values(shape, chosen.dtype, i) for i, shape in enumerate((sizes, kernel, kernel[:1])))
    late = conv2d(KINDS["rounded"], x, weight, bias, **options)
    assert not same_bits(late, Convolution(chosen, x, weight, options).forward(bias))


def test_tf32_rounds_the_factors_of_all_three_sums() -> None:
    random = torch.Generator().manual_seed(5)
    chosen = KINDS["tf32"]

    def drawn(*shape: int) -> Tensor:
        """Odd numbers of 12 bits, each of which rounds to 11."""
        return (2 * torch.randint(1024, 2048, shape, generator=random) + 1).float()

    def eleven(x: Tensor) -> Tensor:
        mantissa, exponent = torch.frexp(x.double())
        return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)

    x, weight, cotangent = drawn(1, 1, 3, 3).requires_grad_(), drawn(1, 1, 2, 2).requires_grad_(), drawn(1, 1, 2, 2)
    a, b = eleven(x.detach()).requires_grad_(), eleven(weight.detach()).requires_grad_()
    y, wide = conv2d(chosen, x, weight), F.conv2d(a, b)
    assert torch.equal(y.double(), wide)
    ours = torch.autograd.grad(y, (x, weight), cotangent)
    theirs = torch.autograd.grad(wide, (a, b), eleven(cotangent))
    assert all(torch.equal(one.double(), other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_wide_dtype_rounded_once_is_torchs_own(dtype: torch.dtype) -> None:
    x, weight, bias = (torch.randn(s, dtype=dtype) for s in ((2, 3, 6, 6), (4, 3, 3, 3), (4,)))
    ours = conv2d(Emulation(dtype, Rounding(bias="joined")), x, weight, bias, padding=1)
    assert same_bits(ours, F.conv2d(x, weight, bias, padding=1))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
@pytest.mark.parametrize("padding", [1, "same"])
def test_modules_convolve_in_the_emulation(mode: str, padding: Any) -> None:
    """Through Arithmetic.apply: forward by torch's own padding and our sums, and members of a group of layers alike."""
    arithmetic = Arithmetic.parse("bfloat16 emulated (product)")
    chosen = arithmetic.emulated
    assert chosen is not None
    layer = nn.Conv2d(2, 4, 3, padding=padding, padding_mode=mode, groups=2)
    model = arithmetic.apply(nn.Sequential(layer, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(100, 2)))
    assert isinstance(model[0], EmulatedConv2d)
    assert "bfloat16 emulated (product)" in repr(model)
    assert Arithmetic.of(model) == arithmetic
    x = _values((3, 2, 5, 5), torch.bfloat16, 7)
    padded = F.pad(x, (1, 1, 1, 1), mode={"zeros": "constant"}.get(mode, mode))
    weight, bias = layer.weight.detach(), layer.bias.detach()
    wanted = conv2d(chosen, padded, weight, bias, groups=2)
    assert same_bits(layer(x).detach(), wanted)
    assert same_bits(layer(x[0]).detach(), wanted[0])  # without the dimension of samples
    assert same_bits(arithmetic.conv2d(padded, weight, bias, groups=2), wanted)
    model(x).float().sum().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.isfinite().all()) for parameter in model.parameters())


def test_what_does_not_fit_is_refused() -> None:
    x, weight = torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 2, 2)
    with pytest.raises(EmulationError, match="got a tensor of float32; convert"):
        conv2d(KINDS["product"], x, weight)
    with pytest.raises(EmulationError, match=r"padding='same' with stride \(2, 2\): the size stays with stride 1 only"):
        conv2d(Emulation(torch.float32, Rounding()), x, weight, stride=2, padding="same")

    with pytest.raises(EmulationError, match="conv2d: padding='reflect': must be one of same, valid"):
        conv2d(Emulation(torch.float32, Rounding()), x, weight, padding="reflect")

    class Own(nn.Conv2d):
        pass

    for layer in (Own(1, 1, 1), nn.ConvTranspose2d(1, 1, 1)):
        with pytest.raises(EmulationError, match=r"'0' is neither nn\.Linear nor nn\.Conv2d"):
            emulate(nn.Sequential(layer), Emulation(torch.float32, Rounding()))
