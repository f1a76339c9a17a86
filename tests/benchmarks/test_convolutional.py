"""Compare the forking executor with plain eager steps on the 20-layer residual network and MobileNetV3-small.

Run with ``OMP_NUM_THREADS=1 pytest -p no:randomly -m benchmark -s tests/benchmarks/test_convolutional.py``. All times of a
ratio come from one run, in neighbouring sweeps. The rival is a loop over one model with torch's activations and the same
layers, arithmetic and Adam, multiplied by the number of members. In the reference arithmetic of 16 bits all members of the
residual network part at step 1, so nothing is shared, and the ratio shows what the engine adds: hits, backwards with a
subgradient, the control, distances.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from relucheck import data
from relucheck.networks.mobilenet import MOBILENET_V3_SMALL
from relucheck.networks.network import Network
from relucheck.networks.resnets import RESNET_18, RESNET_20
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.determinism import deterministic
from relucheck.training.engine import without_fill
from relucheck.training.forking import DataSplit, ForkingExecutor
from relucheck.training.members import members_of
from relucheck.training.model import Clock, Counted, Switch, build, counters
from relucheck.training.settings import Settings
from tests.benchmarks import sweeps

pytestmark = pytest.mark.benchmark

STEPS, BATCH, ROUNDS = 4, 128, 4
#: (network, arithmetic, bound on the engine's time over that of plain steps of as many members)
CASES = {
    "20 layers, float32": (Network("resnet-convolved-skips", RESNET_20, batch_norm=True), "float32", 1.15),
    "20 layers, bfloat16 rounded": (
        Network("resnet-convolved-skips", RESNET_20, batch_norm=True),
        "bfloat16 emulated (rounded)",
        1.15,
    ),
    "MobileNetV3-small, float32": (
        Network("mobilenet-v3-small", MOBILENET_V3_SMALL, "relu6", batch_norm=True, dropout=0.2),
        "float32",
        1.15,
    ),
}


def _plain(network: Network, arithmetic: Arithmetic, split: DataSplit) -> Callable[[], None]:
    model = network.draw(0, arithmetic, activation=network.torch_activation, drawn=torch.float32)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    return sweeps.of_model(model, optimiser, sweeps.sliced(split.images, split.labels, STEPS, BATCH))


def _engine(settings: Settings, split: DataSplit, model: Any = None) -> Callable[[], None]:
    run = ForkingExecutor(settings, 0, split, split, torch.device("cpu"), apart=True, model=model)
    return sweeps.of_executor(run, STEPS, BATCH)


def _first_images(settings: Settings) -> DataSplit:
    dataset = data.load("digits")
    images = dataset.scaled(settings.arithmetic.dtype)[: STEPS * BATCH].view(-1, *settings.network.input_shape)
    return DataSplit(images, dataset.labels[: STEPS * BATCH])


def _timed(ways: Sequence[Callable[[], None]]) -> list[list[float]]:
    """The seconds of each way [rounds][ways], in neighbouring sweeps."""
    rounds = []
    with deterministic(), without_fill():
        for _ in range(ROUNDS):
            taken = []
            for sweep in ways:
                begun = time.perf_counter()
                sweep()
                taken.append(time.perf_counter() - begun)
            rounds.append(taken)
    return rounds


@pytest.mark.parametrize("case", CASES)
def test_engine_against_plain_steps(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    network, name, bound = CASES[case]
    arithmetic = Arithmetic.parse(name)
    settings = Settings("digits", network, members_of((0,), (1.0,)), arithmetic=arithmetic, every=4)
    split = _first_images(settings)
    rounds = _timed((_plain(network, arithmetic, split), _engine(settings, split)))
    best = [min(each) for each in zip(*rounds, strict=True)]
    ratio = statistics.median(engine / (len(settings.members) * plain) for plain, engine in rounds)
    with capsys.disabled():
        print(
            f"\n{case}: plain {1000 * best[0] / STEPS:.0f} ms a step, engine {1000 * best[1] / STEPS / 4:.0f} ms a step "
            f"and member, median ratio {ratio:.2f} (bound {bound})"
        )
    assert ratio <= bound


#: (network, arithmetic) of networks with activations and max poolings that no subgradient reaches.
COUNTED = {
    "MobileNetV3-small, float32": (CASES["MobileNetV3-small, float32"][0], "float32"),
    "MobileNetV3-small, bfloat16 rounded": (CASES["MobileNetV3-small, float32"][0], "bfloat16 emulated (rounded)"),
    "ResNet-18, float32": (Network("resnet-18", RESNET_18, batch_norm=True), "float32"),
}
RECORDING = 1.05  # time of a step in which their hits and ties are counted, divided by the time of a step without


def _uncounted(settings: Settings, seed: int, clock: Clock, switch: Switch) -> nn.Module:
    model = build(settings, seed, clock, switch)
    for name, module in list(model.named_modules()):
        if isinstance(module, Counted):
            model.set_submodule(name, module.module)
    assert not counters(model)
    return model


@pytest.mark.parametrize("case", COUNTED)
def test_counting_hits_that_no_subgradient_reaches(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    network, name = COUNTED[case]
    settings = Settings("digits", network, members_of((0,), ()), arithmetic=name, every=4)  # type: ignore[arg-type]
    split = _first_images(settings)
    rounds = _timed((_engine(settings, split, _uncounted), _engine(settings, split)))
    ratio = statistics.median(counted / plain for plain, counted in rounds)
    with capsys.disabled():
        print(f"\n{case}: counting takes {100 * (ratio - 1):+.1f} % of a step (bound {100 * (RECORDING - 1):.0f} %)")
    assert ratio <= RECORDING
