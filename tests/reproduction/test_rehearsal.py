"""Every comparison of full scale takes a few steps on the executor that it is for, before hours go into it.

On the CPU with few units; with ``-m gpu_training`` at real widths and with every seed on a CUDA device, first of all.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from relucheck.reproduction.experiments.counts import E9
from relucheck.reproduction.experiments.mlp import SCENARIOS
from relucheck.reproduction.report.summary import kernel
from relucheck.training.engine import train
from relucheck.training.settings import Settings
from relucheck.training.stacked import alone_on
from tests.helpers import invariants
from tests.helpers.training_case import changed

STEPS = 3


def _short(settings: Settings) -> Settings:
    """Three steps of an experiment, on the shipped digits."""
    return dataclasses.replace(
        settings, data="digits", train_samples=STEPS * settings.batch_size, test_samples=200, epochs=1, every=1
    )


#: By digest: data sets and lengths apart, many comparisons are the same.
SHORT = {
    short.digest: pytest.param(short, id=f"{scenario.name}-{comparison.name}")
    for scenario in (E9, *reversed(SCENARIOS.values()))
    for comparison in scenario.comparisons("full")
    for short in [_short(comparison.settings)]
}


def _check(settings: Settings, device: str) -> None:
    result = train(settings, device=device, executor="stacked", progress=False)
    invariants.control_is_identical(result)
    invariants.shapes_fit(result)
    if settings.arithmetic.name != "float16" or settings.optimiser.eps >= 1e-4:  # which diverges, as stated
        assert all(member.outcome == "finished" for member in result.members)
    own = alone_on(settings.arithmetic, device)
    assert kernel(result) == ("emulated" if settings.arithmetic.emulation else "nn.Linear" if own else "baddbmm")


@pytest.mark.parametrize("settings", SHORT.values())
def test_on_a_cpu(settings: Settings) -> None:
    first = settings.seeds[0]
    few = tuple(member for member in settings.members if member.seed == first)
    _check(changed(settings, widths=tuple(16 for _ in settings.network.widths), members=few), "cpu")


@pytest.mark.gpu_training
@pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="rehearsing full scale at real widths needs a CUDA device, and torch finds none; test_on_a_cpu does it in small",
)
@pytest.mark.parametrize("settings", SHORT.values())
def test_on_cuda(settings: Settings) -> None:
    _check(settings, "cuda")
