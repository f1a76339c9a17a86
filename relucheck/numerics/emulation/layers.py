"""Emulated linear layers and convolutions, and the function that puts them into a model."""

from __future__ import annotations

from typing import Any, Final

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from relucheck.numerics.dtypes import dtype_name
from relucheck.numerics.emulation.convolution import conv2d
from relucheck.numerics.emulation.emulation import Emulation
from relucheck.numerics.emulation.norm import NORMS, RoundedBatchNorm
from relucheck.numerics.emulation.rounding import EmulationError
from relucheck.numerics.emulation.sums import linear


class EmulatedLinear(nn.Linear):
    """``nn.Linear`` in an emulated arithmetic. ``emulate`` makes it from an ``nn.Linear``.

    Attributes:
        emulation: of this layer.
        model_emulation: of the model that the layer is part of.
    """

    emulation: Emulation
    model_emulation: Emulation

    def forward(self, input: Tensor) -> Tensor:
        return linear(self.emulation, input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.emulation.name}"


class EmulatedConv2d(nn.Conv2d):
    """``nn.Conv2d`` in an emulated arithmetic. ``emulate`` makes it from an ``nn.Conv2d``.

    Attributes:
        emulation: of this layer.
        model_emulation: of the model that the layer is part of.
    """

    emulation: Emulation
    model_emulation: Emulation

    def forward(self, input: Tensor) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        stride: Any = self.stride
        dilation: Any = self.dilation
        return conv2d(self.emulation, input, self.weight, self.bias, stride, padding, dilation, self.groups)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.emulation.name}"


def emulate(model: nn.Module, emulation: Emulation) -> tuple[str, ...]:
    """Make every ``nn.Linear`` and ``nn.Conv2d`` of a model an emulated one, in place.

    In 16 bits every batch norm becomes one that is rounded once, unless the emulation leaves it native.

    Other layers with products, subclasses of the two included, would keep the device's arithmetic, so a model that has any
    is an error. So is another batch norm than torch's for one, two or three dimensions, where it would be replaced.

    Layers are numbered from 1 on in the order of ``model.named_modules()``. This is the order in which a model registers
    them, and for the networks of ``relucheck.networks`` it is the order of the forward. A layer that a model uses several
    times has one number.

    Args:
        model: the model to change; all parameters have the emulation's dtype.
        emulation: how sums of products are rounded.

    Returns:
        The qualified names of the emulated layers.

    Raises:
        EmulationError: if the model has no such layer, has other layers with products, has parameters of another dtype, or
            lacks a layer that the emulation names, or if it has a batch norm that cannot be rounded once.
    """
    others = [
        name for name, module in model.named_modules() if isinstance(module, _PRODUCTS) and type(module) not in _SERVED
    ]
    if others:
        raise EmulationError(
            f"emulate: {others[0]!r} is neither nn.Linear nor nn.Conv2d, and only the products of these two are emulated"
        )
    wrong = [name for name, parameter in model.named_parameters() if parameter.dtype != emulation.dtype]
    if wrong:
        raise EmulationError(
            f"emulate: parameter {wrong[0]!r} is not {dtype_name(emulation.dtype)}; convert the model first"
        )
    rounds_norms = emulation.dtype.itemsize == 2 and not emulation.native_norm
    for name, module in model.named_modules() if rounds_norms else ():
        if isinstance(module, _BatchNorm) and type(module) not in NORMS and not isinstance(module, RoundedBatchNorm):
            raise EmulationError(
                f"emulate: {name!r} is a {type(module).__name__}, and only nn.BatchNorm1d, 2d and 3d can be rounded once; "
                'use one of these, or add "; batch norm native" to the arithmetic'
            )
    layers = [(name, module) for name, module in model.named_modules() if type(module) in _SERVED]
    if not layers:
        raise EmulationError(f"emulate: {type(model).__name__} has no nn.Linear and no nn.Conv2d")
    for (_, module), own in zip(layers, emulation.layers(len(layers)), strict=True):
        module.__class__ = _SERVED[type(module)]
        module.emulation, module.model_emulation = own, emulation
    # a model may have been emulated before, in another way
    pairs = NORMS.items() if rounds_norms else ((rounded, native) for native, rounded in NORMS.items())
    norms: dict[type[nn.Module], type[nn.Module]] = dict(pairs)
    for module in model.modules():
        module.__class__ = norms.get(type(module), type(module))
    return tuple(name for name, _ in layers)


_SERVED: Final[dict[type[nn.Module], type[EmulatedLinear] | type[EmulatedConv2d]]] = {
    nn.Linear: EmulatedLinear,
    EmulatedLinear: EmulatedLinear,
    nn.Conv2d: EmulatedConv2d,
    EmulatedConv2d: EmulatedConv2d,
}
_PRODUCTS: Final = (*(nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.Bilinear),)
