"""Drop-in modules ReLU, ReLU6 and LeakyReLU with chosen subgradients at their kinks.

``torch.jit.script`` leaves their forward to Python, which a program that is saved cannot do. It reads annotations, and
understands none that are strings, so this module does not postpone their evaluation.
"""

import math
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from relucheck.activations.functional import leaky_relu, relu, relu6
from relucheck.activations.rules import LEAKY_RELU, RELU, RELU6, Rule, Subgradient, as_subgradient


def _subgradient_property(name: str, at: float) -> Any:
    def get(self: "ChosenSubgradient") -> Subgradient | None:
        value = self._buffers[f"{name}_tensor"]
        assert value is not None
        if value.ndim:
            return value.detach().clone()  # a later assignment must not change the tensor that the caller holds
        number = float(value)
        return None if math.isnan(number) else number

    def set_(self: "ChosenSubgradient", value: Subgradient | None) -> None:
        self._set(name, value)

    return property(
        get, set_, doc=f"The subgradient at {at:g}: a float, a tensor with one value per member, or None for torch's."
    )


class ChosenSubgradient(nn.Module):
    """Base class of modules with chosen subgradients: validates, stores, moves and shows them.

    Each subgradient is stored in a non-persistent buffer ``<name>_tensor``, float64, 0-dimensional or with one value per
    ensemble member. ``torch.func.functional_call`` and ``stack_module_state`` can therefore swap it. The buffer follows the
    module's device but not its dtype: 0.8 stays 0.8 in a bfloat16 model. ``state_dict`` does not contain it, so checkpoints
    are interchangeable with those of torch's modules. Pickles and deep copies contain it, as they do ``negative_slope``.
    """

    rule: ClassVar[Rule]
    __jit_unused_properties__: ClassVar[list[str]] = ["subgradient", "alpha", "beta"]

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
        # through .data: graphs recorded earlier hold this tensor and must read the new value without a version error
        if new.shape == buffer.shape:
            buffer.data.copy_(new)
        else:
            buffer.data = new

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # fn may cast as well as move, and a cast would round the subgradient, so buffers follow only the device
        kept = {f"{name}_tensor": self._buffers.pop(f"{name}_tensor") for name in self.rule.names}
        try:
            super()._apply(fn, recurse)
        finally:
            self._buffers.update(kept)
        for name, buffer in kept.items():
            assert buffer is not None
            device = fn(torch.empty(0, device=buffer.device)).device
            if device != buffer.device and device.type != "meta":  # a meta tensor would lose the value
                self._buffers[name] = buffer.to(device, torch.float32 if device.type == "mps" else torch.float64)
        return self

    def extra_repr(self) -> str:
        """Show the subgradients in the module's ``repr``."""
        # vmap calls the module's repr, and while compiling no value can be read
        chosen = [] if torch.compiler.is_compiling() else [f"{name}={getattr(self, name)}" for name in self.rule.names]
        return ", ".join([*chosen, *filter(None, [super().extra_repr()])])


class ReLU(ChosenSubgradient, nn.ReLU):
    """``torch.nn.ReLU`` with ReLU'(0) = ``subgradient``.

    Input and output have the same shape and dtype. Forward values equal those of ``torch.nn.ReLU`` bit for bit. So do
    gradients for the default subgradient, 0. The attribute ``subgradient`` can be read and set at any time. Backward reads
    it when it runs, so several backwards with different values can share one forward.

    Args:
        subgradient: a finite real number; the Clarke interval is [0, 1], but values outside it are allowed. Or a tensor
            with one value per ensemble member that broadcasts to the input.
        inplace: whether to overwrite the input.

    Examples:
        >>> x = torch.zeros(3, requires_grad=True)
        >>> relucheck.ReLU(0.5)(x).sum().backward()
        >>> x.grad
        tensor([0.5000, 0.5000, 0.5000])

    Raises:
        SubgradientError: for NaN, infinities and values that are not real numbers; in ``forward``, for a tensor that does
            not broadcast to the input.
    """

    rule = RELU
    subgradient = _subgradient_property("subgradient", 0.0)
    subgradient_tensor: Tensor

    def __init__(self, subgradient: Subgradient = 0.0, inplace: bool = False) -> None:
        super().__init__(inplace)
        self._init_subgradients(subgradient=subgradient)

    @torch.jit.ignore  # type: ignore[untyped-decorator]
    def forward(self, input: Tensor) -> Tensor:
        return relu(input, self.subgradient_tensor, inplace=self.inplace)


class ReLU6(ChosenSubgradient, nn.ReLU6):
    """``torch.nn.ReLU6`` with subgradient ``alpha`` at 0 and ``beta`` at 6.

    The attributes ``alpha`` and ``beta`` behave as ``subgradient`` of ``ReLU`` does, and errors are the same.

    Args:
        alpha: subgradient at 0, a number or a tensor as for ``ReLU``; the Clarke interval is [0, 1], torch's value 0.
        beta: subgradient at 6; the Clarke interval is [0, 1], torch's value 0.
        inplace: whether to overwrite the input.
    """

    rule = RELU6
    alpha = _subgradient_property("alpha", 0.0)
    beta = _subgradient_property("beta", 6.0)
    alpha_tensor: Tensor
    beta_tensor: Tensor

    def __init__(self, alpha: Subgradient = 0.0, beta: Subgradient = 0.0, inplace: bool = False) -> None:
        super().__init__(inplace)
        self._init_subgradients(alpha=alpha, beta=beta)

    @torch.jit.ignore  # type: ignore[untyped-decorator]
    def forward(self, input: Tensor) -> Tensor:
        return relu6(input, self.alpha_tensor, self.beta_tensor, inplace=self.inplace)

    def extra_repr(self) -> str:
        chosen = "" if torch.compiler.is_compiling() else f"alpha={self.alpha}, beta={self.beta}"
        return chosen + (", inplace=True" if self.inplace else "")


class LeakyReLU(ChosenSubgradient, nn.LeakyReLU):
    """``torch.nn.LeakyReLU`` with a chosen subgradient at 0.

    The attribute ``subgradient`` behaves as that of ``ReLU`` does, and errors are the same.

    Args:
        negative_slope: slope left of 0.
        subgradient: a number or a tensor as for ``ReLU``; the Clarke interval lies between the negative slope and 1. None
            stands for torch's subgradient, the negative slope.
        inplace: whether to overwrite the input; not possible with a negative ``negative_slope``.
    """

    rule = LEAKY_RELU
    subgradient = _subgradient_property("subgradient", 0.0)
    subgradient_tensor: Tensor

    def __init__(self, negative_slope: float = 0.01, subgradient: Subgradient | None = None, inplace: bool = False) -> None:
        super().__init__(negative_slope, inplace)
        self._init_subgradients(subgradient=subgradient)

    @torch.jit.ignore  # type: ignore[untyped-decorator]
    def forward(self, input: Tensor) -> Tensor:
        return leaky_relu(input, self.subgradient_tensor, self.negative_slope, inplace=self.inplace)


#: Maps each of torch's modules to the class of this file that replaces it.
REPLACEMENTS: Final[dict[type[nn.Module], type[ChosenSubgradient]]] = {
    nn.ReLU: ReLU,
    nn.ReLU6: ReLU6,
    nn.LeakyReLU: LeakyReLU,
}
