"""What laws of every kind probe with: cotangents that round nowhere, and where a mask is first true."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

#: Cotangents with few significant bits, so that sums and products of them are exact in every dtype.
_DYADIC: Final = (1.0, -1.5, 0.75, 2.0, -0.5, 1.25)


def dyadic(like: Tensor) -> Tensor:
    """Cotangents of the shape of ``like`` that differ from element to element and round nowhere."""
    pattern = torch.tensor(_DYADIC, dtype=like.dtype, device=like.device)
    return pattern.repeat(like.numel() // len(_DYADIC) + 1)[: like.numel()].reshape(like.shape)


def first(mask: Tensor) -> int:
    """Index of the first true entry (probe points begin with the kinks)."""
    return int(mask.nonzero()[0])
