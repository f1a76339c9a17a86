"""E4 at full scale, on a CUDA device: the published number of draws in every cell (``pytest -m gpu_training``).

Results go to ``relucheck-results/E4-full``, where a second run finds them; ``relucheck reproduce E4`` writes the same.
"""

from __future__ import annotations

import pytest
import torch

from relucheck.reproduction.experiments import volumes
from relucheck.reproduction.report.volume.summary import Report
from relucheck.reproduction.run import reproduce

pytestmark = [
    pytest.mark.gpu_training,
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="E4 at full scale needs a CUDA device, and torch finds none; rehearse on a CPU: relucheck reproduce E4 "
        "--scale cpu (13 minutes on 2 cores, needs MNIST) or --scale smoke (seconds)",
    ),
]


def test_full_scale() -> None:
    """Every cell is there with the published number of draws, none is non-finite, and float64 stays out of the zone."""
    outcome = reproduce("E4", "full", device="cuda")
    report: Report = outcome.made
    assert not outcome.missing
    assert len(report.lines) == len(volumes.entries("full"))
    for line in report.lines:
        ours = line.estimate
        assert ours.draws == (1000 if line.entry.source == "B21" else 100)
        assert ours.non_finite == 0
        if ours.cell.arithmetic.name == "float64":
            assert ours.bifurcated == 0
    assert {line.estimate.cell.arithmetic.name for line in report.lines} >= {"float16", "float16 strict", "float32 TF32"}
    assert "E4, [B21], by hidden layers" in outcome.report.read_text(encoding="utf-8")
