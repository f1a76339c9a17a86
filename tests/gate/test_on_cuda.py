"""The gate on a CUDA device: no law mixes devices."""

from __future__ import annotations

from typing import Final

import pytest
import torch

from relucheck.gate.config import GateConfig
from relucheck.gate.run import Gate

#: What fails on every device: forward mode and double backward take 1 at 0, reverse mode the slope on the left.
_KNOWN: Final = {("PReLU", "forward_mode"), ("PReLU", "double_backward_cotangent")}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="checks activations on a CUDA device, and torch finds none")
@pytest.mark.parametrize("target", ["ReLU", "PReLU", "CELU", "Hardtanh", "GELU"])
def test_nothing_fails_but_what_is_known(target: str) -> None:
    gate = Gate(GateConfig(devices=("cuda",)), [getattr(torch.nn, target)])
    verdicts = [gate.run(item) for item in gate.items()]
    assert any(verdict.outcome == "passed" for verdict in verdicts)
    failed = [verdict for verdict in verdicts if verdict.outcome == "failed"]
    assert [verdict.message for verdict in failed if (verdict.activation, verdict.law) not in _KNOWN] == []
    assert [verdict.message for verdict in verdicts if "raised RuntimeError" in verdict.message] == []
