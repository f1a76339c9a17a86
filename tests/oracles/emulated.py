"""Emulated sums, one part at a time in exact numbers, from the definition of ``Rounding`` alone.

Factors are whole multiples of a unit per tensor, so that terms are whole numbers, which Python adds much faster than
fractions. Nothing here rounds but ``nearest``. The device's float32 accumulation of one part is taken to be exact, so
factors must be such that it is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from relucheck.numerics.emulation import Emulation, Override, Rounding

#: Significant bits and the exponent of the smallest normal number.
_FORMATS = {torch.bfloat16: (8, -126), torch.float16: (11, -14), torch.float32: (24, -126), torch.float64: (53, -1022)}
_TF32 = (11, -126)


def nearest(value: Fraction, form: tuple[int, int]) -> Fraction:
    """The nearest number of a format, ties to even; nothing overflows here."""
    bits, least = form
    if not value:
        return value
    size, unit = abs(value.numerator), value.denominator
    exponent = size.bit_length() - unit.bit_length()
    exponent -= size << max(0, -exponent) < unit << max(0, exponent)  # now 2**exponent <= |value| < 2**(exponent + 1)
    step = max(exponent, least) - bits + 1  # its power of two
    top, bottom = size << max(0, -step), unit << max(0, step)
    steps, rest = divmod(top, bottom)
    steps += 2 * rest > bottom or (2 * rest == bottom and steps % 2)  # ties to even
    steps *= 1 if value > 0 else -1
    return Fraction(steps << max(0, step), 1 << max(0, -step))


def _ranges(how: Rounding, terms: list[int]) -> list[list[int]]:
    """Range by range, filled until it is full: at least 1 / parts of the terms, in whole multiples of the cut."""
    multiple = how.cut or 1
    size = multiple
    while size * how.parts < len(terms):
        size += multiple
    found: list[list[int]] = [[]]
    for term in terms:
        if len(found[-1]) == size and how.parts > 1:
            found.append([])
        found[-1].append(term)
    return found


def summed(dtype: torch.dtype, how: Rounding, terms: list[int], unit: Fraction, bias: Fraction | None = None) -> Fraction:
    """A sum of products of a dtype, each a multiple of the unit, and a bias."""
    form, wide = _FORMATS[dtype], _FORMATS[torch.float32 if dtype.itemsize == 2 else dtype]
    parts = [sum(part) * unit for part in _ranges(how, terms)]
    joined = bias if bias is not None and how.bias == "joined" else None
    if how.parts == 1:
        total = nearest(parts[0] + (joined or 0), form)
    else:
        total = Fraction(0)
        for index, part in enumerate(parts):
            ends = index == len(parts) - 1
            term = part if how.reduction == "in place" else nearest(part, form)
            total = nearest(total + term, wide)
            if ends and joined is not None:
                total = nearest(total + joined, wide)
            if ends or how.reduction != "wide":
                total = nearest(total, form)
    return total if bias is None or joined is not None else nearest(total + bias, form)


def chosen(rounding: Rounding, overrides: Sequence[Override], layer: int, direction: str, terms: int) -> Rounding:
    """The rounding of a sum: that of the last override that selects it."""
    found = rounding
    for one in overrides:
        if direction in one.directions and (not one.layers or layer in one.layers) and terms >= one.terms:
            found = one.rounding
    return found


def exact(x: Tensor) -> Any:
    """The values of a tensor as fractions, in nested lists."""
    return [exact(row) for row in x] if x.ndim else Fraction(x.item())


def whole(values: Any) -> tuple[Any, Fraction]:
    """Fractions in nested lists as whole multiples of a unit, which is the largest that they have."""
    flat: list[Any] = [values]
    while isinstance(flat[0], list):
        flat = list(itertools.chain.from_iterable(flat))
        if not flat:
            break
    parts = math.lcm(*(value.denominator for value in flat))

    def multiples(some: Any) -> Any:
        return [multiples(one) for one in some] if isinstance(some, list) else int(some * parts)

    return multiples(values), Fraction(1, parts)


def tensor(values: Any, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Fractions that are numbers of a dtype, in nested lists, as a tensor."""
    flat: list[Any] = [values]
    for _ in shape:
        flat = list(itertools.chain.from_iterable(flat))
    wide = torch.tensor([float(value) for value in flat], dtype=torch.float64).reshape(*shape)
    found = wide.to(dtype)
    assert torch.equal(found.double(), wide), "a value is no number of the dtype"
    return found


def product(
    emulation: Emulation, direction: str, a: Tensor, b: Tensor, bias: Tensor | None = None, layer: int = 1
) -> Tensor:
    """The matrix product a [n, k] by b [k, m], with a bias [m] or None."""
    how = chosen(emulation.rounding, emulation.overrides, layer, direction, a.shape[1])
    left, right = exact(a), exact(b)
    if how.tf32:
        left, right = ([[nearest(value, _TF32) for value in row] for row in rows] for rows in (left, right))
    offsets = [None] * b.shape[1] if bias is None else exact(bias)
    (left, one), (right, other) = whole(left), whole(right)
    rows = [
        [
            summed(emulation.dtype, how, [value * right[k][m] for k, value in enumerate(row)], one * other, offsets[m])
            for m in range(b.shape[1])
        ]
        for row in left
    ]
    return tensor(rows, (len(a), b.shape[1]), emulation.dtype)


def linear(
    emulation: Emulation, x: Tensor, weight: Tensor, bias: Tensor | None, cotangent: Tensor, layer: int = 1
) -> dict[str, Tensor]:
    """A linear layer: its output, and the gradients of input and weight for a cotangent."""
    return {
        "forward": product(emulation, "forward", x, weight.T, bias, layer),
        "input gradient": product(emulation, "input gradient", cotangent, weight, None, layer),
        "weight gradient": product(emulation, "weight gradient", cotangent.T, x, None, layer),
    }


class Convolution:
    """The three sums of a convolution, term by term, from the definition alone.

    Args:
        emulation: how sums are rounded.
        x: [n, channels, rows, columns].
        weight: [outputs, channels / groups, rows, columns].
        options: the rest of the geometry, as for ``F.conv2d``.
    """

    def __init__(self, emulation: Emulation, x: Tensor, weight: Tensor, options: dict[str, Any], layer: int = 1) -> None:
        pair = lambda value: (value, value) if isinstance(value, int) else value  # noqa: E731
        self.emulation, self.layer, self.groups = emulation, layer, options.get("groups", 1)
        self.stride, self.dilation = pair(options.get("stride", 1)), pair(options.get("dilation", 1))
        padding = options.get("padding", 0)
        kernel = weight.shape[2:]
        if padding == "same":
            total = [d * (k - 1) for d, k in zip(self.dilation, kernel, strict=True)]
            self.before, after = [t // 2 for t in total], [t - t // 2 for t in total]
        else:
            self.before = after = list((0, 0) if padding == "valid" else pair(padding))
        self.shape, self.kernel_shape = x.shape, weight.shape
        (self.x, self.unit_of_x), (self.weight, self.unit_of_weight) = whole(exact(x)), whole(exact(weight))
        self.inputs, self.outputs = weight.shape[1], len(weight) // self.groups
        self.kernel = list(itertools.product(range(kernel[0]), range(kernel[1])))
        self.size = [
            (n + b + a - d * (k - 1) - 1) // s + 1
            for n, b, a, d, k, s in zip(x.shape[2:], self.before, after, self.dilation, kernel, self.stride, strict=True)
        ]

    def _sum(self, direction: str, terms: list[int], unit: Fraction, bias: Fraction | None = None) -> float:
        how = chosen(self.emulation.rounding, self.emulation.overrides, self.layer, direction, len(terms))
        return float(summed(self.emulation.dtype, how, terms, unit, bias))

    def _at(self, image: list[list[int]], row: int, column: int) -> int:
        return image[row][column] if 0 <= row < len(image) and 0 <= column < len(image[0]) else 0

    def _source(self, pixel: tuple[int, int], tap: tuple[int, int]) -> tuple[int, int]:
        row, column = (
            p * s + t * d - b for p, s, t, d, b in zip(pixel, self.stride, tap, self.dilation, self.before, strict=True)
        )
        return row, column

    def forward(self, bias: Tensor | None) -> Tensor:
        result = torch.zeros(len(self.x), len(self.weight), *self.size, dtype=torch.float64)
        offsets = [None] * len(self.weight) if bias is None else exact(bias)
        for n, o, row, column in itertools.product(*map(range, result.shape)):
            first = o // self.outputs * self.inputs
            terms = [
                self.weight[o][c][tap[0]][tap[1]] * self._at(self.x[n][first + c], *self._source((row, column), tap))
                for c in range(self.inputs)
                for tap in self.kernel
            ]
            result[n, o, row, column] = self._sum("forward", terms, self.unit_of_x * self.unit_of_weight, offsets[o])
        return result.to(self.emulation.dtype)

    def of_weight(self, cotangent: Tensor) -> Tensor:
        result = torch.zeros(self.kernel_shape, dtype=torch.float64)
        given, unit = whole(exact(cotangent))
        pixels = list(itertools.product(*map(range, self.size)))
        for o, c in itertools.product(range(len(self.weight)), range(self.inputs)):
            channel = o // self.outputs * self.inputs + c
            for tap in self.kernel:
                terms = [
                    given[n][o][pixel[0]][pixel[1]] * self._at(self.x[n][channel], *self._source(pixel, tap))
                    for n in range(len(self.x))
                    for pixel in pixels
                ]
                result[o, c, *tap] = self._sum("weight gradient", terms, unit * self.unit_of_x)
        return result.to(self.emulation.dtype)

    def of_input(self, cotangent: Tensor) -> Tensor:
        """Each input pixel's terms: by output channel, then by the output pixel that looks at it, in raster order."""
        result = torch.zeros(self.shape, dtype=torch.float64)
        given, unit = whole(exact(cotangent))
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
                    value = self._at(given[n][o], *pixel) if there else 0
                    terms.append(value * self.weight[o][c][tap[0]][tap[1]])
            result[n, channel, row, column] = self._sum("input gradient", terms, unit * self.unit_of_weight)
        return result.to(self.emulation.dtype)
