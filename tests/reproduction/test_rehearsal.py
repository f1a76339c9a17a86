"""Every comparison of full scale takes a few steps on the executor that it is for, before hours go into it.

On the CPU with few units; with ``-m gpu_training`` at real widths and with every seed on a CUDA device, first of all.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from relucheck.networks.network import Network
from relucheck.reproduction.experiments import convolutional
from relucheck.reproduction.experiments.counts import E9
from relucheck.reproduction.experiments.mlp import SCENARIOS
from relucheck.reproduction.experiments.searches.further import E8
from relucheck.reproduction.experiments.searches.pairs import E7
from relucheck.reproduction.report.summary import kernel
from relucheck.training.engine import executor_of, train
from relucheck.training.settings import Settings
from relucheck.training.stacked.executor import alone_on
from tests.helpers import invariants
from tests.helpers.training_case import changed

STEPS = 3


def _short(settings: Settings, batch_size: int = 0, tested: int = 200) -> Settings:
    """Three steps of an experiment, on the shipped digits; a fifth of the images is held out where some are."""
    size = batch_size or settings.batch_size
    images: dict[str, int | None] = {"train_samples": STEPS * size, "test_samples": tested}
    if settings.validation is not None:
        images = {"train_samples": round(STEPS * size / (1 - settings.validation)), "test_samples": None}
    return changed(settings, data="digits", batch_size=size, epochs=1, every=1, **images)


#: By digest: data sets and lengths apart, many comparisons are the same.
#: Of E7's draws, which differ in numbers alone, the first ones.
SHORT = {
    short.digest: pytest.param(short, id=f"{scenario.name}-{comparison.name}")
    for scenario in (E9, *reversed(SCENARIOS.values()), *convolutional.SCENARIOS.values(), E8, E7)
    for comparison in scenario.comparisons("full")
    if "-pair-" not in comparison.name or "-pair-01-" in comparison.name
    for short in [_short(comparison.settings)]
}


def _small(network: Network) -> Network:
    """A network of the same blocks with few units."""
    if network.kind == "mobilenet-v3-small":
        return dataclasses.replace(network, kind="inverted-residual", widths=(2,))
    if network.kind.startswith("resnet"):
        kind = "resnet" if network.kind == "resnet-18" else network.kind
        return dataclasses.replace(network, kind=kind, widths=(2, 3))
    return dataclasses.replace(network, widths=tuple(16 for _ in network.widths))


def _check(settings: Settings, device: str) -> None:
    executor = executor_of(settings, "stacked", device)
    result = train(settings, device=device, executor=executor, progress=False)
    invariants.control_is_identical(result)
    invariants.shapes_fit(result)
    if settings.arithmetic.name != "float16" or settings.optimiser.eps >= 1e-4:  # which diverges, as stated
        assert all(member.outcome == "finished" for member in result.members if member.member.nudge is None)
        assert not any(member.diverged for member in result.members)
    own = executor == "forking" or alone_on(settings.arithmetic, device)
    assert kernel(result) == ("emulated" if settings.arithmetic.emulation else "nn.Linear" if own else "baddbmm")


@pytest.mark.parametrize("settings", SHORT.values())
def test_on_a_cpu(settings: Settings) -> None:
    first = settings.seeds[0]
    # one value of s besides 0
    few = tuple(
        member
        for member in settings.members
        if member.seed == first and (member.s in (0.0, 1.0) or settings.validation is not None)
    )
    small = dataclasses.replace(settings, network=_small(settings.network))
    if executor_of(settings, "stacked", "cpu") == "forking":
        small = _short(small, 16, 32)
    else:
        few = tuple(member for member in settings.members if member.seed == first)
    _check(dataclasses.replace(small, members=few), "cpu")


@pytest.mark.gpu_training
@pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="rehearsing full scale at real widths needs a CUDA device, and torch finds none; test_on_a_cpu does it in small",
)
@pytest.mark.parametrize("settings", SHORT.values())
def test_on_cuda(settings: Settings) -> None:
    _check(settings, "cuda")
