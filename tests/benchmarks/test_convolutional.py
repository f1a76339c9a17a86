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
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from relucheck import data
from relucheck.networks.mobilenet import MOBILENET_V3_SMALL
from relucheck.networks.network import Network
from relucheck.networks.resnets import RESNET_20
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.determinism import deterministic
from relucheck.training.engine import _without_fill
from relucheck.training.forking import DataSplit, ForkingExecutor
from relucheck.training.settings import Settings, members_of

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

    def sweep() -> None:
        for start in range(0, STEPS * BATCH, BATCH):
            optimiser.zero_grad()
            x, y = split.images[start : start + BATCH], split.labels[start : start + BATCH]
            F.cross_entropy(model(x), y).backward()
            optimiser.step()

    return sweep


def _engine(settings: Settings, split: DataSplit) -> Callable[[], None]:
    run = ForkingExecutor(settings, 0, split, split, torch.device("cpu"), apart=True)
    number = 0

    def sweep() -> None:
        nonlocal number
        run.begin(0)
        for step in range(STEPS):
            number += 1
            run.step(step * BATCH, (step + 1) * BATCH, number)

    return sweep


@pytest.mark.parametrize("case", CASES)
def test_engine_against_plain_steps(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    network, name, bound = CASES[case]
    arithmetic = Arithmetic.parse(name)
    dataset = data.load("digits")
    images = dataset.scaled(arithmetic.dtype)[: STEPS * BATCH].view(-1, *network.input_shape)
    split = DataSplit(images, dataset.labels[: STEPS * BATCH])
    settings = Settings("digits", network, members_of((0,), (1.0,)), arithmetic=arithmetic, every=4)
    plain, engine = _plain(network, arithmetic, split), _engine(settings, split)
    ratios, best = [], [float("inf")] * 2
    with deterministic(), _without_fill():
        for _ in range(ROUNDS):
            taken = []
            for sweep in (plain, engine):
                begun = time.perf_counter()
                sweep()
                taken.append(time.perf_counter() - begun)
            best = [min(pair) for pair in zip(best, taken, strict=True)]
            ratios.append(taken[1] / (len(settings.members) * taken[0]))
    ratio = statistics.median(ratios)
    with capsys.disabled():
        print(
            f"\n{case}: plain {1000 * best[0] / STEPS:.0f} ms a step, engine {1000 * best[1] / STEPS / 4:.0f} ms a step "
            f"and member, median ratio {ratio:.2f} (bound {bound})"
        )
    assert ratio <= bound
