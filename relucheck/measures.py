"""Distances between the parameters of two members, equality bit for bit, and whether parameters are finite."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

_ALIGNMENT = 64  # bytes, as torch aligns what it allocates: kernels may round differently on other alignments


class Flat:
    """The parameters of a model in one tensor, of which each parameter is made a view.

    Attributes:
        values: all parameters one after another, each begun on a 64-byte boundary, with zeros between. [n]
        names: of the parameters.
    """

    def __init__(self, model: nn.Module) -> None:
        named = list(model.named_parameters())
        first = named[0][1]
        block = _ALIGNMENT // first.element_size()
        ends = list(itertools.accumulate(-(-parameter.numel() // block) * block for _, parameter in named))
        self.starts = [0, *ends[:-1]]
        self.names = [name for name, _ in named]
        self.values = torch.zeros(ends[-1], dtype=first.dtype, device=first.device)
        self.parameters = [parameter for _, parameter in named]
        for start, parameter in zip(self.starts, self.parameters, strict=True):
            place = self.values[start : start + parameter.numel()].view(parameter.shape)
            place.copy_(parameter.detach())
            parameter.data = place

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


class Ruler:
    """L1 and L2 norm and sum of differences to one reference, accumulated in float64."""

    def __init__(self, reference: Tensor) -> None:
        self._reference = _wide(reference)

    def measure(self, values: Tensor) -> tuple[float, float, float]:
        """(L1, L2, absolute value of the summed difference). Reads the values."""
        difference = _wide(values).sub_(self._reference)
        l1, l2 = torch.linalg.vector_norm(difference, 1), torch.linalg.vector_norm(difference, 2)
        first, second, third = torch.stack((l1, l2, difference.sum().abs())).tolist()
        return first, second, third


def _wide(values: Tensor) -> Tensor:
    # by way of float32: torch converts 16-bit tensors to float64 one by one
    return (
        values.float().double()
        if values.element_size() == 2
        else values.double()
        if values.element_size() == 4
        else values.clone()
    )


def same_gradients(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether two lists of gradients hold the same bits, signs of zeros included: an optimiser could tell them apart."""
    return all(torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in _contiguous(a, b))


def _contiguous(a: list[Tensor], b: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    return ((x.contiguous(), y.contiguous()) for x, y in zip(a, b, strict=True))
