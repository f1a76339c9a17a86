"""Keep all parameters of a model in one tensor, so that an optimiser steps over all at once.

The buffers of the model, such as the statistics of batch norm, stay where they are.

An optimiser works element by element, so one tensor or many should give the same bits. But kernels can treat the body and
the tail of a tensor differently. So ``optimisers.same_as_apart`` tries whether the bits are the same,
and ``relucheck.training.forking.Branch`` steps every parameter by itself if they are not.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

_ALIGNMENT: Final = 64  # bytes, as in torch's allocations; kernels may round differently at other alignments


class Flat:
    """The parameters of a model in one tensor, of which each parameter becomes a view.

    Args:
        model: its parameters are changed into views, with the same values.

    Attributes:
        values: [n], all parameters one after another. Each begins at a multiple of 64 bytes, with zeros in between.
        names: names of the parameters.
        parameters: the model's parameters, in the same order.
        buffers: the model's buffers by name.
        whole: [n], ``values`` as one parameter, for an optimiser.
    """

    def __init__(self, model: nn.Module) -> None:
        named = list(model.named_parameters())
        self.names = [name for name, _ in named]
        self.parameters = [parameter for _, parameter in named]
        self.values, places = laid_out(self.parameters)
        for place, parameter in zip(places, self.parameters, strict=True):
            place.copy_(parameter.detach())
            parameter.data = place
        self.whole = nn.Parameter(self.values)
        self.buffers = dict(model.named_buffers())
        self._slots: list[Tensor] = []

    def collect(self, gradients: Sequence[Tensor]) -> None:
        """Copy the gradients of the parameters, in their order, into the gradient of ``whole``.

        Between them the gradient stays zero.
        """
        if self.whole.grad is None:
            self.whole.grad, self._slots = laid_out(self.parameters)
        torch._foreach_copy_(self._slots, list(gradients))

    def touched(self) -> None:
        """Notify autograd that the parameters have changed.

        A step over ``whole`` does not raise their version counters.
        """
        for parameter in self.parameters:  # torch 2.4 takes one tensor at a time
            torch.autograd.graph.increment_version(parameter)

    def finite(self) -> bool:
        """Return whether every parameter is finite. Waits for the device."""
        return bool(torch.stack(self.values.aminmax()).isfinite().all())  # aminmax is NaN where a value is

    def same_bits(self, other: Flat) -> bool:
        """Return whether all parameters hold the same bits.

        Signs of zeros and payloads of NaN count.
        """
        return torch.equal(self.values.view(torch.int64), other.values.view(torch.int64))

    def first_unequal(self, other: Flat) -> str | None:
        """The name of the first parameter or buffer that differs in a bit, or None."""
        if self.same_bits(other) and not self.buffers:
            return None
        parameters = zip(self.names, self.parameters, other.parameters, strict=True)
        buffers = ((name, value, other.buffers[name]) for name, value in self.buffers.items())
        for name, a, b in (*parameters, *buffers):
            if not torch.equal(bytes_of(a), bytes_of(b)):
                return name
        return None


def bytes_of(value: Tensor) -> Tensor:
    """The bytes of a tensor: uint8 [n]."""
    return value.detach().contiguous().reshape(-1).view(torch.uint8)


def laid_out(parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Lay out zeros for all parameters in one tensor.

    Returns:
        The tensor, [n]; and for each parameter its view of the tensor, in its shape.
    """
    first = parameters[0]
    block = _ALIGNMENT // first.element_size()
    ends = list(itertools.accumulate(-(-parameter.numel() // block) * block for parameter in parameters))
    values = torch.zeros(ends[-1], dtype=first.dtype, device=first.device)
    starts = [0, *ends[:-1]]
    return values, [values[a : a + p.numel()].view(p.shape) for a, p in zip(starts, parameters, strict=True)]
