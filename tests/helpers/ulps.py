"""How many representable values lie between two numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from relucheck.numerics.bits import ordinals


def ulp_distance(a: Tensor, b: Tensor) -> Tensor:
    """The number of representable values from ``a`` to ``b``, int64, for one dtype.

    The result means nothing for NaN. Two float64 values of opposite sign can be further apart than int64 can count. Their
    distance is int64's largest value.
    """
    first, second = ordinals(a), ordinals(b)
    distance = (first - second).abs()
    overflow = ((first < 0) != (second < 0)) & (first.abs() > torch.iinfo(torch.int64).max - second.abs())
    return torch.where(overflow, torch.iinfo(torch.int64).max, distance)
