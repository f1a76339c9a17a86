"""Helpers of the laws: cotangents without rounding, and the first true entry of a mask."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

#: Cotangents with few significant bits, so that sums and products of them are exact in every dtype.
_DYADIC: Final = (1.0, -1.5, 0.75, 2.0, -0.5, 1.25)


def dyadic(like: Tensor) -> Tensor:
    """Return cotangents that differ between neighbours and have few significant bits.

    They have the shape, dtype and device of ``like``.
    """
    pattern = torch.tensor(_DYADIC, dtype=like.dtype, device=like.device)
    return pattern.repeat(like.numel() // len(_DYADIC) + 1)[: like.numel()].reshape(like.shape)


def first(mask: Tensor) -> int:
    """Return the index of the first true entry.

    Among probe points this is a kink if one is true, because kinks come first.
    """
    return int(mask.nonzero()[0])
