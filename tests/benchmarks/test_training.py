"""Compare the engine with sequential training of the same members, by ratios of times.

Run with ``pytest -m benchmark -s tests/benchmarks/test_training.py``. All times of a ratio come from one run. There are
two rivals. One is a tuned eager loop: data on the device, mini-batches as slices, the engine's kind of Adam, the public
activations. The other is a loop like that of the published code: a DataLoader that converts every sample, a ReLU by
``where``, torch's default Adam. Sequential members take the same time each, so one is timed and multiplied by the number
of members.

Each case is measured with torch's default Adam and with the fused one. *Hits rare* is the engine's best case: all members
but the control are one run. In the other two cases every member is a run by itself from the first steps on. The engine
then does all the work of its tuned rival, which keeps one model in the cache. Nothing but the kind of Adam can be faster
there, so the bound only checks that little is lost.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable

import pytest
import torch

from relucheck import data
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.determinism import deterministic
from relucheck.training.engine import without_fill
from relucheck.training.forking import DataSplit, ForkingExecutor
from relucheck.training.model import build
from tests.benchmarks import sweeps
from tests.benchmarks.rivals import BATCH, MEMBERS, STEPS, published, settings_of, tuned, with_dead

pytestmark = pytest.mark.benchmark

ROUNDS = 5
#: (arithmetic, units that are dead from the start, bound against the tuned loop, bound against the published-style loop)
CASES = {
    "hits rare, float32": (Arithmetic.parse("float32"), 0, 2.0, 4.0),
    "forked from the start, float32": (Arithmetic.parse("float32"), 2, 0.9, None),
    "hits frequent, bfloat16 product": (Arithmetic.parse("bfloat16 emulated (product)"), 0, 0.9, None),
}
RECORDING = 1.1  # time of a step with recorded distances, divided by the time of a step without


def _engine(arithmetic: Arithmetic, dead: int, fused: bool, dataset: data.DataSet, every: int) -> Callable[[], object]:
    settings = settings_of(arithmetic, [0], fused=fused, every=every)
    split = DataSplit(dataset.scaled(arithmetic.dtype), dataset.labels)
    run = ForkingExecutor(settings, 0, split, split, torch.device("cpu"), model=lambda *rest: with_dead(build(*rest), dead))
    return sweeps.of_executor(run, STEPS, BATCH)


@pytest.mark.parametrize("fused", [False, True], ids=["default Adam", "fused Adam"])
@pytest.mark.parametrize("case", CASES)
def test_engine_against_sequential_trainings(case: str, fused: bool, capsys: pytest.CaptureFixture[str]) -> None:
    arithmetic, dead, against_tuned, against_published = CASES[case]
    dataset = data.load("digits")
    rivals: dict[str, tuple[Callable[[], object], int]] = {
        "tuned": (tuned(arithmetic, dead, fused, dataset), MEMBERS),
        "published": (published(arithmetic, dataset), MEMBERS),
        "engine": (_engine(arithmetic, dead, fused, dataset, every=STEPS), 1),
        "engine, every step": (_engine(arithmetic, dead, fused, dataset, every=1), 1),
    }
    best = dict.fromkeys(rivals, float("inf"))
    pairs: list[float] = []  # ratios of neighbouring sweeps, as other work on the machine then slows both
    for _ in range(ROUNDS):
        taken = {}
        for name, (sweep, factor) in rivals.items():
            # the engine runs in deterministic mode, as it does in use; the rivals run as their users run them
            with contextlib.ExitStack() as stack:
                if name.startswith("engine"):
                    stack.enter_context(deterministic())
                    stack.enter_context(without_fill())
                begun = time.perf_counter()
                sweep()
                taken[name] = (time.perf_counter() - begun) * factor
                best[name] = min(best[name], taken[name])
        pairs.append(taken["engine, every step"] / taken["engine"])
    ratios = {name: seconds / best["engine"] for name, seconds in best.items()}
    recording = statistics.median(pairs)
    times = ", ".join(f"{name} {1e3 * s / STEPS:.1f} ms ({ratios[name]:.2f}x)" for name, s in best.items())
    with capsys.disabled():
        print(f"\n{case}, {'fused' if fused else 'default'} Adam: {times}; recording distances {recording:.3f}x")
    assert recording < RECORDING + 0.1
    assert ratios["tuned"] > against_tuned * 0.8  # other work on the machine may cost a fifth
    assert against_published is None or ratios["published"] > against_published * 0.8
