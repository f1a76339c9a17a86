"""One product of a layer, forward or backward: its shapes, and how training computes it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relucheck.errors import ModelError
from relucheck.numerics.emulation import Emulation, conv2d, linear
from relucheck.numerics.emulation.convolution import Pair
from relucheck.numerics.emulation.emulation import Direction

#: Rows and columns of the part of a linear layer's product on which many emulations are tried.
_PART: Final = 16
#: Channels of the part of a convolution.
_CHANNELS: Final = 4


@dataclasses.dataclass(frozen=True)
class Operands:
    """The tensors of a layer's call and its backward, of one dtype and on one device.

    Attributes:
        x: the input, [n, inputs] or [n, channels, rows, columns].
        weight: the weight, [outputs, inputs] or [outputs, channels / groups, kernel rows, kernel columns].
        bias: [outputs], or None.
        cotangent: the gradient of the output, of the output's shape.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    cotangent: Tensor

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Operands:
        """Convert all tensors to a dtype on a device."""
        return self.map(lambda tensor: tensor.to(device=device, dtype=dtype))

    def map(self, function: Callable[[Tensor], Tensor]) -> Operands:
        """Apply a function to all tensors."""
        bias = None if self.bias is None else function(self.bias)
        return Operands(function(self.x), function(self.weight), bias, function(self.cotangent))

    def first(self, samples: int) -> Operands:
        """The operands of the first samples of the mini-batch."""
        return dataclasses.replace(self, x=self.x[:samples], cotangent=self.cotangent[:samples])


@dataclasses.dataclass(frozen=True)
class Product:
    """The sums of products of one layer in one direction.

    Attributes:
        x: the shape of the layer's input with the mini-batch, [n, inputs] or [n, channels, rows, columns].
        weight: the shape of its weight: two sizes for a linear layer, four for a convolution.
        bias: whether the layer has a bias.
        direction: what the product is for.
        stride: of a convolution (rows, columns).
        padding: of a convolution.
        dilation: of a convolution.
        groups: of a convolution.
    """

    x: tuple[int, ...]
    weight: tuple[int, ...]
    bias: bool
    direction: Direction
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    @classmethod
    def of(cls, layer: nn.Linear | nn.Conv2d, x: tuple[int, ...], direction: Direction) -> Product:
        """Describe a layer's product.

        Args:
            layer: the layer.
            x: the shape of its input.
            direction: what the product is for.

        Raises:
            ModelError: for a linear layer whose input is no matrix, and for a padding that is a name or no zeros.
        """
        shape, bias = tuple(layer.weight.shape), layer.bias is not None
        if isinstance(layer, nn.Linear):
            if len(x) != 2:
                raise ModelError(f"kernels: an input of shape {x} of nn.Linear; only [n, inputs] is surveyed")
            return cls(x, shape, bias, direction)
        if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            raise ModelError(f"kernels: {layer}: only convolutions with padding by a number of zeros are surveyed")
        geometry: Any = layer
        return cls(x, shape, bias, direction, geometry.stride, geometry.padding, geometry.dilation, geometry.groups)

    @property
    def convolution(self) -> bool:
        """Whether the layer is a convolution."""
        return len(self.weight) == 4

    @property
    def output(self) -> tuple[int, ...]:
        """The shape of the layer's output, which is that of its cotangent."""
        if not self.convolution:
            return self.x[0], self.weight[0]
        sizes = zip(self.x[2:], self.weight[2:], self.stride, self.padding, self.dilation, strict=True)
        return self.x[0], self.weight[0], *((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in sizes)

    @property
    def terms(self) -> int:
        """K, the number of terms of each sum, zeros from padding included."""
        if self.direction == "forward":
            return math.prod(self.weight[1:])
        if self.direction == "input gradient":
            return self.weight[0] // self.groups * math.prod(self.weight[2:])
        return self.x[0] * math.prod(self.output[2:])

    @property
    def layer(self) -> str:
        """The layer in words, for example "784 → 200" or "conv 6 → 16 on 14x14 (5x5)"."""
        words = []
        name = f"{self.weight[1] * self.groups} → {self.weight[0]}"
        if self.convolution:
            name = f"conv {name} on {_sizes(self.x[2:])}"
            words = [_sizes(self.weight[2:])]
            words += [f"stride {_number(self.stride)}"] * (self.stride != (1, 1))
            words += [f"padding {_number(self.padding)}"] * (self.padding != (0, 0))
            words += [f"dilation {_number(self.dilation)}"] * (self.dilation != (1, 1))
            words += [f"{self.groups} groups"] * (self.groups != 1)
        words += ["no bias"] * (not self.bias)
        return name + f" ({', '.join(words)})" * bool(words)

    def at(self, samples: int) -> Product:
        """The same product with a mini-batch of another size."""
        return dataclasses.replace(self, x=(samples, *self.x[1:]))

    def compute(
        self,
        operands: Operands,
        emulation: Emulation | None = None,
        label: contextlib.AbstractContextManager[Any] | None = None,
    ) -> Tensor:
        """Compute the product as training does: the layer's forward, and autograd for gradients.

        Args:
            operands: the layer's tensors; the emulation's dtype if there is one.
            emulation: of the layer; None means that the device computes the product in its usual way.
            label: a context around the product itself, without the forward that a gradient needs.

        Returns:
            The output, or the gradient of the direction, detached.
        """
        forward = self.direction == "forward"
        x = operands.x.detach().requires_grad_(self.direction == "input gradient")
        weight = operands.weight.detach().requires_grad_(forward or self.direction == "weight gradient")
        label = label or contextlib.nullcontext()
        with label if forward else contextlib.nullcontext():
            output = self._forward(x, weight, operands.bias, emulation)
        if forward:
            return output.detach()
        with label:
            (gradient,) = torch.autograd.grad(output, x if x.requires_grad else weight, operands.cotangent)
        return gradient

    def _forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, emulation: Emulation | None) -> Tensor:
        if not self.convolution:
            return F.linear(x, weight, bias) if emulation is None else linear(emulation, x, weight, bias)
        geometry = self.stride, self.padding, self.dilation, self.groups
        if emulation is None:
            return F.conv2d(x, weight, bias, *geometry)
        return conv2d(emulation, x, weight, bias, *geometry)

    def part(self, operands: Operands) -> tuple[Operands, Callable[[Tensor], Tensor]]:
        """Choose some rows and columns of the result, with all terms of their sums.

        Returns:
            The operands of the part, and the function that takes the part from the whole result.
        """
        weight_gradient = self.direction == "weight gradient"
        if self.groups > 1 and weight_gradient:
            return operands, lambda result: result
        rows, columns = self._result[:2]
        # of one sample, or of one input channel, a convolution has many outputs
        most = (_PART, _PART) if not self.convolution else (_CHANNELS, 1) if weight_gradient else (1, _CHANNELS)
        first = _some(rows, most[0])
        second = slice(None) if self.groups > 1 else _some(columns, most[1])  # a part of the channels would cut groups
        x, weight, cotangent = operands.x, operands.weight, operands.cotangent
        if self.direction == "forward":
            bias = None if operands.bias is None else operands.bias[second]
            part = Operands(x[first], weight[second], bias, cotangent[first][:, second])
        elif self.direction == "input gradient":
            part = Operands(x[first][:, second], weight[:, second], None, cotangent[first])
        else:
            part = Operands(x[:, second], weight[first][:, second], None, cotangent[:, first])
        return part, lambda result: result[first][:, second]

    @property
    def _result(self) -> tuple[int, ...]:
        return {"forward": self.output, "input gradient": self.x, "weight gradient": self.weight}[self.direction]


def _sizes(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


def _number(pair: Pair) -> str:
    return str(pair[0]) if pair[0] == pair[1] else _sizes(pair)


def _some(count: int, most: int) -> Tensor:
    """At most so many of the indices below a count, evenly spread."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()
