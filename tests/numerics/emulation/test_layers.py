"""Models whose linear layers are emulated, and what cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from relucheck.numerics.bits import same_bits
from relucheck.numerics.emulation import Emulation, EmulationError
from relucheck.numerics.emulation.layers import emulate
from tests.helpers.emulations import KINDS


def test_emulate_turns_linear_layers_and_refuses_the_rest() -> None:
    chosen = KINDS["product"]
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).bfloat16()
    assert emulate(model, chosen) == ("0", "2")
    assert "product" in repr(model)
    x = torch.ones(1, 3, dtype=torch.bfloat16)
    hidden = torch.relu(chosen.linear(x, model[0].weight, model[0].bias))
    assert same_bits(model(x).detach(), chosen.linear(hidden, model[2].weight, model[2].bias).detach())
    with pytest.raises(EmulationError, match=r"'0' is neither nn\.Linear nor nn\.Conv2d"):
        emulate(nn.Sequential(nn.Conv1d(1, 1, 3)).bfloat16(), chosen)
    with pytest.raises(EmulationError, match=r"'0.weight' is not bfloat16; convert the model"):
        emulate(nn.Sequential(nn.Linear(1, 1)), chosen)
    with pytest.raises(EmulationError, match=r"has no nn\.Linear"):
        emulate(nn.Sequential(nn.ReLU()), chosen)
    with pytest.raises(EmulationError, match="got a tensor of float32; convert"):
        chosen.linear(torch.ones(1, 3), model[0].weight)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.bfloat16, "exact"), "kind 'exact': must be one of"),
        ((torch.bfloat16, "tf32"), "use float32"),
        ((torch.bfloat16, "split-k", 1), "at least 2 parts"),
        ((torch.bfloat16, "product", 2), "the other kinds take 1"),
        ((torch.bfloat16, "split-k", True), "at least 2 parts"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_emulations_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(EmulationError) as caught:
        Emulation(*arguments)
    assert message in str(caught.value)
