"""Sums taken one term at a time, for what predicts how often sums meet a value."""

from __future__ import annotations

import torch
from torch import Tensor

from relucheck.hits.widths import FORMATS, Accumulation
from relucheck.numerics.determinism import generator

BF16, F16, F32 = FORMATS["bfloat16"], FORMATS["float16"], FORMATS["float32"]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def summed(x: Tensor, weight: Tensor, bias: Tensor, how: Accumulation) -> Tensor:
    """The layer's sums in an accumulation, rounded step by step: [n, units]. The reference for all predictions here."""
    products = x.unsqueeze(1) * weight  # exact in float64
    terms = []
    for block in products.split(how.blocks, -1):
        total = torch.zeros(products.shape[:2], dtype=torch.float64)
        for product in block.unbind(-1):
            total = how.accumulator.round(total + product)
        terms.append(how.partial.round(total))
    offset = bias.expand_as(terms[0])
    terms = [offset, *terms] if how.bias == "first" else terms
    total = terms[0]
    for term in terms[1:]:
        total = how.join.round(total + term)
    if how.bias == "last":
        total = total if how.before_bias is None else how.before_bias.round(total)
        total = how.join.round(total + offset)
    return how.output.round(total)
