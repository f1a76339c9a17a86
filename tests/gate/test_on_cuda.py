"""The gate on a CUDA device: no law mixes devices."""

from __future__ import annotations

import pytest
import torch

from relucheck.gate.config import GateConfig
from relucheck.gate.run import Gate


@pytest.mark.skipif(not torch.cuda.is_available(), reason="checks activations on a CUDA device, and torch finds none")
@pytest.mark.parametrize("target", ["ReLU", "PReLU", "CELU", "Hardtanh", "GELU"])
def test_no_item_raises(target: str) -> None:
    gate = Gate(GateConfig(devices=("cuda",)), [getattr(torch.nn, target)])
    verdicts = [gate.run(item) for item in gate.items()]
    assert any(verdict.outcome == "passed" for verdict in verdicts)
    assert [verdict.message for verdict in verdicts if "raised RuntimeError" in verdict.message] == []
