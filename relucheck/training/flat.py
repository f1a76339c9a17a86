"""All parameters of a model in one tensor, so that an optimiser's step is one pass of each operation over all of them.

An optimiser works element by element, so one tensor or many should make no difference in any bit. Kernels may treat the
body and the tail of a tensor differently, though, so :func:`relucheck.training.optimisers.same_as_apart` tries it, and
:class:`relucheck.training.forking.Branch` steps every parameter by itself where the trial fails.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

_ALIGNMENT: Final = 64  # bytes, as torch aligns what it allocates: kernels may round differently on other alignments


class Flat:
    """The parameters of a model in one tensor, of which each parameter is made a view.

    Attributes:
        values: all parameters one after another, each begun on a 64-byte boundary, with zeros between. [n]
        names: of the parameters.
        parameters: the model's own, in the same order.
        whole: ``values`` as one parameter, for an optimiser. [n]
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
        self._slots: list[Tensor] = []

    def collect(self, gradients: Sequence[Tensor]) -> None:
        """Makes the gradients of the parameters, in their order, the gradient of :attr:`whole`; zeros stay between them."""
        if self.whole.grad is None:
            self.whole.grad, self._slots = laid_out(self.parameters)
        torch._foreach_copy_(self._slots, list(gradients))

    def touched(self) -> None:
        """Tells autograd that the parameters have changed: a step over :attr:`whole` raises its version, not theirs."""
        torch.autograd.graph.increment_version(self.parameters)

    def finite(self) -> bool:
        """Whether every parameter is finite. Reads the values."""
        return bool(torch.stack(self.values.aminmax()).isfinite().all())  # aminmax is NaN where a value is

    def same_bits(self, other: Flat) -> bool:
        """Whether all parameters hold the same bits, signs of zeros and patterns of NaN included."""
        return torch.equal(self.values.view(torch.int64), other.values.view(torch.int64))

    def first_unequal(self, other: Flat) -> str | None:
        """The name of the first parameter that differs in a bit."""
        for name, a, b in zip(self.names, self.parameters, other.parameters, strict=True):
            if not torch.equal(a.detach().contiguous().view(torch.uint8), b.detach().contiguous().view(torch.uint8)):
                return name
        return None


def laid_out(parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Zeros for all parameters, and the view of them that is each one's place."""
    first = parameters[0]
    block = _ALIGNMENT // first.element_size()
    ends = list(itertools.accumulate(-(-parameter.numel() // block) * block for parameter in parameters))
    values = torch.zeros(ends[-1], dtype=first.dtype, device=first.device)
    starts = [0, *ends[:-1]]
    return values, [values[a : a + p.numel()].view(p.shape) for a, p in zip(starts, parameters, strict=True)]
