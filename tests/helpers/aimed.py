"""A small model whose hidden unit is dead in one row, with its mini-batch."""

from __future__ import annotations

import torch
from torch import nn

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


Y = torch.tensor([0, 1, 2])


def aimed(function: nn.Module | None = None) -> nn.Sequential:
    """4 - 4 - 3: unit 1 of the hidden layer is dead, and so at its kink for every sample."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), function or nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        model[0].weight[1] = 0
        model[0].bias[1] = 0
    return model
