"""ReLU, ReLU6 and LeakyReLU with chosen subgradients at their kinks: drop-in modules around the functions."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from relucheck.activations.functional import leaky_relu, relu, relu6
from relucheck.activations.rules import LEAKY_RELU, RELU, RELU6, Rule, Subgradient, as_subgradient


def _subgradient_property(name: str, at: float) -> Any:
    def get(self: ChosenSubgradient) -> Subgradient | None:
        value = self._buffers[f"{name}_tensor"]
        assert value is not None
        if value.ndim:
            return value.detach().clone()  # a later setting must not change what was read
        number = float(value)
        return None if math.isnan(number) else number

    def set_(self: ChosenSubgradient, value: Subgradient | None) -> None:
        self._set(name, value)

    return property(get, set_, doc=f"The subgradient in force at {at:g}: a float, or a tensor with one per member.")


class ChosenSubgradient(nn.Module):
    """Base of the modules whose subgradients can be chosen: keeps, validates, moves and shows them.

    Each subgradient lives in a non-persistent buffer ``<name>_tensor`` (float64, 0-dimensional or one value per member):
    ``torch.func.functional_call`` and ``stack_module_state`` can swap it, it follows the module's device but not its dtype
    (0.8 stays 0.8 in a bfloat16 model), and ``state_dict`` does not hold it, so that checkpoints stay interchangeable with
    the plain torch module's; like ``negative_slope`` it is part of the model's code, and of its pickles and deep copies.
    """

    rule: ClassVar[Rule]

    def _init_subgradients(self, **values: Subgradient | None) -> None:
        for name, value in values.items():
            owner = f"{type(self).__name__}({name})"
            self.register_buffer(
                f"{name}_tensor", as_subgradient(value, owner=owner, optional=self.rule.leaky), persistent=False
            )

    def _set(self, name: str, value: Subgradient | None) -> None:
        buffer = self._buffers[f"{name}_tensor"]
        assert buffer is not None
        new = as_subgradient(value, owner=f"{type(self).__name__}.{name}", optional=self.rule.leaky)
        new = new.to(buffer.device, buffer.dtype)
        # through .data: graphs recorded earlier hold this very tensor and read the new value, with no version clash
        if new.shape == buffer.shape:
            buffer.data.copy_(new)
        else:
            buffer.data = new

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # fn casts as well as moves, and a cast would round the subgradient: only follow the device
        kept = {f"{name}_tensor": self._buffers.pop(f"{name}_tensor") for name in self.rule.names}
        try:
            super()._apply(fn, recurse)
        finally:
            self._buffers.update(kept)
        for name, buffer in kept.items():
            assert buffer is not None
            device = fn(torch.empty(0, device=buffer.device)).device
            if device != buffer.device and device.type != "meta":  # meta has no values to keep
                self._buffers[name] = buffer.to(device, torch.float32 if device.type == "mps" else torch.float64)
        return self

    def extra_repr(self) -> str:
        # vmap asks for the module's repr, and a compiler cannot read values
        chosen = [] if torch.compiler.is_compiling() else [f"{name}={getattr(self, name)}" for name in self.rule.names]
        return ", ".join([*chosen, *filter(None, [super().extra_repr()])])


class ReLU(ChosenSubgradient, nn.ReLU):
    """``torch.nn.ReLU`` with ReLU'(0) = ``subgradient``.

    Args:
        subgradient: any finite real number (the Clarke interval is [0, 1]; torch's own value, the default, is 0), or a
            tensor with one value per ensemble member that broadcasts to the input.
        inplace: overwrite the input.

    The value can be read and set at any time, and backward reads it when it runs: several backwards, each with its own
    value, can share one forward. Forward values never depend on it.

    Raises:
        SubgradientError: for NaN, infinities and values that are not real numbers.
    """

    rule = RELU
    subgradient = _subgradient_property("subgradient", 0.0)
    subgradient_tensor: Tensor

    def __init__(self, subgradient: Subgradient = 0.0, inplace: bool = False) -> None:
        super().__init__(inplace)
        self._init_subgradients(subgradient=subgradient)

    def forward(self, input: Tensor) -> Tensor:
        return relu(input, self.subgradient_tensor, inplace=self.inplace)


class ReLU6(ChosenSubgradient, nn.ReLU6):
    """``torch.nn.ReLU6`` with subgradient ``alpha`` at 0 and ``beta`` at 6 (torch's own are 0 and 0); see :class:`ReLU`."""

    rule = RELU6
    alpha = _subgradient_property("alpha", 0.0)
    beta = _subgradient_property("beta", 6.0)
    alpha_tensor: Tensor
    beta_tensor: Tensor

    def __init__(self, alpha: Subgradient = 0.0, beta: Subgradient = 0.0, inplace: bool = False) -> None:
        super().__init__(inplace)
        self._init_subgradients(alpha=alpha, beta=beta)

    def forward(self, input: Tensor) -> Tensor:
        return relu6(input, self.alpha_tensor, self.beta_tensor, inplace=self.inplace)

    def extra_repr(self) -> str:
        chosen = "" if torch.compiler.is_compiling() else f"alpha={self.alpha}, beta={self.beta}"
        return chosen + (", inplace=True" if self.inplace else "")


class LeakyReLU(ChosenSubgradient, nn.LeakyReLU):
    """``torch.nn.LeakyReLU`` with a chosen subgradient at 0 (None: torch's own, the negative slope); see :class:`ReLU`."""

    rule = LEAKY_RELU
    subgradient = _subgradient_property("subgradient", 0.0)
    subgradient_tensor: Tensor

    def __init__(self, negative_slope: float = 0.01, subgradient: Subgradient | None = None, inplace: bool = False) -> None:
        super().__init__(negative_slope, inplace)
        self._init_subgradients(subgradient=subgradient)

    def forward(self, input: Tensor) -> Tensor:
        return leaky_relu(input, self.subgradient_tensor, self.negative_slope, inplace=self.inplace)


#: The modules of this file by the plain torch module that each one replaces.
REPLACEMENTS: Final[dict[type[nn.Module], type[ChosenSubgradient]]] = {
    nn.ReLU: ReLU,
    nn.ReLU6: ReLU6,
    nn.LeakyReLU: LeakyReLU,
}
