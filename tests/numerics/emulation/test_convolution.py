"""Emulated convolutions against sums that are taken product by product, in Python, and against seeded mutants of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.bits import same_bits
from relucheck.numerics.emulation import Emulation, EmulationError, convolution
from relucheck.numerics.emulation.convolution import conv2d
from relucheck.numerics.emulation.layers import EmulatedConv2d, emulate

KINDS = {
    "rounded": Emulation(torch.bfloat16, "rounded"),
    "product": Emulation(torch.bfloat16, "product"),
    "product float16": Emulation(torch.float16, "product"),
    "split-k 4": Emulation(torch.bfloat16, "split-k", 4),
    "split-k 3": Emulation(torch.float16, "split-k", 3),
    "split-k 1000": Emulation(torch.bfloat16, "split-k", 1000),
}
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


_BITS = {torch.bfloat16: 8, torch.float16: 11}


def _rounded(value: float, dtype: torch.dtype) -> float:
    """To the dtype's significant bits, ties to even; no value here is subnormal or overflows."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(math.ldexp(mantissa, _BITS[dtype])), exponent - _BITS[dtype])


def _sum(chosen: Emulation, terms: Sequence[float]) -> float:
    """A sum of exact products, rounded range by range and added in the dtype from first to last."""
    size = max(1, -(-len(terms) // chosen.parts))
    total = None
    for start in range(0, len(terms), size):
        part = _rounded(math.fsum(terms[start : start + size]), chosen.dtype)
        total = part if total is None else _rounded(total + part, chosen.dtype)
    assert total is not None
    return total


class Oracle:
    """The three sums of a convolution, term by term in float64, from the definition alone."""

    def __init__(self, chosen: Emulation, x: Tensor, weight: Tensor, options: dict[str, Any]) -> None:
        pair = lambda value: (value, value) if isinstance(value, int) else value  # noqa: E731
        self.chosen, self.groups = chosen, options.get("groups", 1)
        self.stride, self.dilation = pair(options.get("stride", 1)), pair(options.get("dilation", 1))
        padding = options.get("padding", 0)
        kernel = weight.shape[2:]
        if padding == "same":
            total = [d * (k - 1) for d, k in zip(self.dilation, kernel, strict=True)]
            self.before, after = [t // 2 for t in total], [t - t // 2 for t in total]
        else:
            self.before = after = list((0, 0) if padding == "valid" else pair(padding))
        self.shape, self.kernel_shape = x.shape, weight.shape
        self.x, self.weight = x.tolist(), weight.tolist()  # indexing a tensor is slow
        self.inputs, self.outputs = weight.shape[1], len(weight) // self.groups
        self.kernel = list(itertools.product(range(kernel[0]), range(kernel[1])))
        self.size = [
            (n + b + a - d * (k - 1) - 1) // s + 1
            for n, b, a, d, k, s in zip(x.shape[2:], self.before, after, self.dilation, kernel, self.stride, strict=True)
        ]

    def _at(self, image: list[list[float]], row: int, column: int) -> float:
        return image[row][column] if 0 <= row < len(image) and 0 <= column < len(image[0]) else 0.0

    def _source(self, pixel: tuple[int, int], tap: tuple[int, int]) -> tuple[int, int]:
        row, column = (
            p * s + t * d - b for p, s, t, d, b in zip(pixel, self.stride, tap, self.dilation, self.before, strict=True)
        )
        return row, column

    def forward(self, bias: Tensor | None) -> Tensor:
        result = torch.zeros(len(self.x), len(self.weight), *self.size, dtype=torch.float64)
        for n, o, row, column in itertools.product(*map(range, result.shape)):
            first = o // self.outputs * self.inputs
            terms = [
                self.weight[o][c][tap[0]][tap[1]] * self._at(self.x[n][first + c], *self._source((row, column), tap))
                for c in range(self.inputs)
                for tap in self.kernel
            ]
            if bias is not None and self.chosen.kind == "rounded":
                terms.append(float(bias[o]))
            value = _sum(self.chosen, terms)
            if bias is not None and self.chosen.kind != "rounded":
                value = _rounded(value + float(bias[o]), self.chosen.dtype)
            result[n, o, row, column] = value
        return result.to(self.chosen.dtype)

    def of_weight(self, cotangent: Tensor) -> Tensor:
        result = torch.zeros(self.kernel_shape, dtype=torch.float64)
        given = cotangent.tolist()
        pixels = list(itertools.product(*map(range, self.size)))
        for o, c in itertools.product(range(len(self.weight)), range(self.inputs)):
            channel = o // self.outputs * self.inputs + c
            for tap in self.kernel:
                terms = [
                    given[n][o][pixel[0]][pixel[1]] * self._at(self.x[n][channel], *self._source(pixel, tap))
                    for n in range(len(self.x))
                    for pixel in pixels
                ]
                result[o, c, *tap] = _sum(self.chosen, terms)
        return result.to(self.chosen.dtype)

    def of_input(self, cotangent: Tensor) -> Tensor:
        """Each input pixel's terms: by output channel, then by the output pixel that looks at it, in raster order."""
        result = torch.zeros(self.shape, dtype=torch.float64)
        given = cotangent.tolist()
        for n, channel, row, column in itertools.product(*map(range, result.shape)):
            group, c = divmod(channel, self.inputs)
            terms = []
            for o in range(group * self.outputs, (group + 1) * self.outputs):
                for tap in reversed(self.kernel):  # the last tap belongs to the first output pixel
                    up = [
                        at + b - t * d for at, b, t, d in zip((row, column), self.before, tap, self.dilation, strict=True)
                    ]
                    there = all(u % s == 0 for u, s in zip(up, self.stride, strict=True))
                    pixel = [u // s for u, s in zip(up, self.stride, strict=True)]
                    value = self._at(given[n][o], *pixel) if there else 0.0
                    terms.append(value * self.weight[o][c][tap[0]][tap[1]])
            result[n, channel, row, column] = _sum(self.chosen, terms)
        return result.to(self.chosen.dtype)


def _broken_by(chosen: Emulation, shape: str, *, biased: bool = True) -> list[str]:
    """The properties that an emulated convolution breaks: of forward, and of each gradient."""
    sizes, kernel, options = SHAPES[shape]
    x, weight = _values(sizes, chosen.dtype, 0), _values(kernel, chosen.dtype, 1)
    bias = _values((kernel[0],), chosen.dtype, 2) if biased else None
    oracle = Oracle(chosen, x, weight, options)
    wanted = [oracle.forward(bias)]
    cotangent = _values(tuple(wanted[0].shape), chosen.dtype, 3)
    wanted += [oracle.of_input(cotangent), oracle.of_weight(cotangent)]
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias) if tensor is not None]
    y = conv2d(chosen, x, weight, bias, **options)
    found = [y.detach(), *torch.autograd.grad(y, inputs, cotangent)]
    names = ["forward", "gradient of x", "gradient of the weight"]
    if biased:
        wanted.append(cotangent.double().sum((0, 2, 3)).to(chosen.dtype))
        names.append("gradient of the bias")
    return [name for name, a, b in zip(names, found, wanted, strict=True) if not same_bits(a, b)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_rounds_where_it_says_forward_and_backward(kind: str, shape: str) -> None:
    assert _broken_by(KINDS[kind], shape) == []


@pytest.mark.parametrize("kind", ["rounded", "product", "split-k 4"])
def test_without_a_bias(kind: str) -> None:
    assert _broken_by(KINDS[kind], "groups", biased=False) == []


def _unsplit(self: Emulation, a: Tensor, b: Tensor) -> Tensor:
    """One rounding of the whole sum, where partial sums are to be rounded."""
    return torch.matmul(a.double(), b.double()).to(self.dtype)


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


def _rounded_columns(cotangent: Tensor, x: Tensor, weight: Tensor, geometry: Any, wanted: Any) -> Any:
    """Kernel positions are rounded one by one, then added in the dtype, as folding of rounded columns does."""
    g = geometry
    grad_x = torch.zeros_like(x).bfloat16()
    for row, column in itertools.product(range(weight.shape[2]), range(weight.shape[3])):
        one = torch.zeros_like(weight)
        one[..., row, column] = weight[..., row, column]
        part = torch.nn.grad.conv2d_input(x.shape, one, cotangent, g.stride, g.padding, g.dilation, g.groups)
        grad_x += part.bfloat16()
    return grad_x, torch.nn.grad.conv2d_weight(x, weight.shape, cotangent, g.stride, g.padding, g.dilation, g.groups)


_MUTANTS: dict[str, tuple[str, Any, str, Callable[..., Any], set[str]]] = {
    "split-k as one sum": (
        "split-k 4",
        Emulation,
        "_multiply",
        _unsplit,
        {"forward", "gradient of x", "gradient of the weight"},
    ),
    "terms in another order": ("split-k 4", convolution, "_columns", _other_order, {"forward"}),
    "a kernel that is not turned": ("split-k 4", convolution, "_split_input", _unturned, {"gradient of x"}),
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
    assert not same_bits(late, Oracle(chosen, x, weight, options).forward(bias))


def test_tf32_rounds_the_factors_of_all_three_sums() -> None:
    random = torch.Generator().manual_seed(5)
    chosen = Emulation(torch.float32, "tf32")

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
    ours = conv2d(Emulation(dtype, "rounded"), x, weight, bias, padding=1)
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
        conv2d(Emulation(torch.float32, "product"), x, weight, stride=2, padding="same")

    with pytest.raises(EmulationError, match="conv2d: padding='reflect': must be one of same, valid"):
        conv2d(Emulation(torch.float32, "product"), x, weight, padding="reflect")

    class Own(nn.Conv2d):
        pass

    for layer in (Own(1, 1, 1), nn.ConvTranspose2d(1, 1, 1)):
        with pytest.raises(EmulationError, match=r"'0' is no nn\.Linear and no nn\.Conv2d"):
            emulate(nn.Sequential(layer), Emulation(torch.float32, "product"))
