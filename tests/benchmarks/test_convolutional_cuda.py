"""Time steps of convolutional members on a CUDA device, where all members have parted.

Run with ``pytest -p no:randomly -m benchmark -s tests/benchmarks/test_convolutional_cuda.py``. Printed is the time of a
step of one member, and what the published length takes at that rate: an extrapolation from the steps that were measured,
without evaluations. The subject is the executor as it runs; there is no rival, because eager steps of a small network wait
for the host.
"""

from __future__ import annotations

import time

import pytest
import torch

from relucheck import data
from relucheck.networks.mobilenet import MOBILENET_V3_SMALL
from relucheck.networks.network import Network
from relucheck.networks.resnets import RESNET_20
from relucheck.numerics.determinism import deterministic
from relucheck.reproduction.published import SUBGRADIENTS
from relucheck.training.engine import without_fill
from relucheck.training.forking import DataSplit, ForkingExecutor
from relucheck.training.members import members_of
from relucheck.training.settings import Settings

pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="measures a CUDA device, and torch finds none"),
]

BATCH, STEPS, PREPARED, EPOCH = 128, 200, 6, 469
_RESIDUAL = Network("resnet-convolved-skips", RESNET_20, batch_norm=True)
_SMALL = Network("mobilenet-v3-small", MOBILENET_V3_SMALL, "relu6", batch_norm=True, dropout=0.2)
#: (network, subgradients, arithmetic, epochs of the published run, bound on its extrapolated time in seconds or None)
CASES = {
    "E5, bfloat16": (_RESIDUAL, SUBGRADIENTS, "bfloat16", 20, 300),
    "E5, float32": (_RESIDUAL, SUBGRADIENTS, "float32", 20, None),
    "E5, bfloat16 rounded": (_RESIDUAL, SUBGRADIENTS, "bfloat16 emulated (rounded)", 20, None),
    "E6, bfloat16": (_SMALL, (1.0,), "bfloat16", 2, 60),
}


@pytest.mark.parametrize("case", CASES)
def test_steps_of_parted_members(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    network, subgradients, name, epochs, bound = CASES[case]
    settings = Settings("digits", network, members_of((0,), subgradients), arithmetic=name, every=67)
    digits, device = data.load("digits"), torch.device("cuda")
    with settings.arithmetic.active(), deterministic(), without_fill():
        count = len(digits.labels) // BATCH
        images = digits.scaled(settings.arithmetic.dtype, device="cuda")[: count * BATCH].view(-1, *network.input_shape)
        split = DataSplit(images, digits.labels[: count * BATCH].to(device))
        run = ForkingExecutor(settings, 0, split, split, device)
        run.begin(0)

        def steps(first: int, number: int) -> None:
            for step in range(first, first + number):
                start = step % count * BATCH
                run.step(start, start + BATCH, step + 1)
            torch.cuda.synchronize()

        steps(0, PREPARED)
        begun = time.perf_counter()
        steps(PREPARED, STEPS)
        each = (time.perf_counter() - begun) / STEPS
        run.end()
    assert run.void is None
    members, whole = len(run.branches), each * EPOCH * epochs
    assert members > 2 or "float32" in name, "members have not parted, so little was measured"
    with capsys.disabled():
        print(
            f"\n{case}: {members} branches, {1000 * each / members:.2f} ms a step of one; {epochs} epochs of {EPOCH} steps "
            f"take {whole:.0f} s (extrapolated from {STEPS} steps)"
        )
    assert bound is None or whole <= bound
