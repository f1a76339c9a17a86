"""Distances between the parameters of two members, and whether two lists of gradients hold the same bits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


class Ruler:
    """L1 and L2 norm and sum of differences to one reference, accumulated in float64."""

    def __init__(self, reference: Tensor) -> None:
        self._reference = _wide(reference)

    def measure(self, values: Tensor) -> tuple[float, float, float]:
        """(L1, L2, absolute value of the summed difference). Reads the values."""
        difference = _wide(values).sub_(self._reference)
        total, l2 = difference.sum().abs(), torch.dot(difference, difference).sqrt()
        l1 = difference.abs_().sum()  # a sixth of the time of torch.linalg.vector_norm(difference, 1)
        first, second, third = torch.stack((l1, l2, total)).tolist()
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
