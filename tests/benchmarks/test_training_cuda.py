"""Compare the stacked engine on CUDA with sequential training of the same members.

The members are those of E2, for ten seeds. All times come from one run: ``pytest -m benchmark -s
tests/benchmarks/test_training_cuda.py``. The rivals are those of ``test_training.py``. Sequential members take the same
time each, so one is timed and multiplied by the number of members.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import pytest
import torch

from relucheck import data
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.determinism import deterministic
from relucheck.training.engine import without_fill
from relucheck.training.forking import DataSplit
from relucheck.training.stacked.executor import StackedExecutor
from tests.benchmarks import sweeps
from tests.benchmarks.rivals import BATCH, MEMBERS, STEPS, published, settings_of, tuned

ARITHMETICS = ("float32", "float32 TF32", "bfloat16", "bfloat16 emulated (product)")


def _stacked(arithmetic: Arithmetic, seeds: int, dataset: data.DataSet, every: int, device: str) -> Callable[[], object]:
    settings = settings_of(arithmetic, range(seeds), fused=False, every=every)
    split = DataSplit(dataset.scaled(arithmetic.dtype, device=device), dataset.labels.to(device))
    run = StackedExecutor(settings, tuple(range(seeds)), split, split, torch.device(device))
    return sweeps.of_executor(run, STEPS, BATCH)


def ratios(arithmetic: Arithmetic, seeds: int, device: str, rounds: int = 5) -> dict[str, float]:
    """Time of all members in each way, divided by the engine's."""
    dataset = data.load("digits")
    members = seeds * MEMBERS
    ways = {
        "tuned": (tuned(arithmetic, 0, False, dataset, device), members),
        "published": (published(arithmetic, dataset, device), members),
        "engine": (_stacked(arithmetic, seeds, dataset, STEPS, device), 1),
        "engine, every step": (_stacked(arithmetic, seeds, dataset, 1, device), 1),
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, (sweep, factor) in ways.items():
            with contextlib.ExitStack() as stack:
                stack.enter_context(arithmetic.active())
                if name.startswith("engine"):
                    stack.enter_context(deterministic())
                    stack.enter_context(without_fill())
                begun = time.perf_counter()
                sweep()
                if device == "cuda":
                    torch.cuda.synchronize()
                best[name] = min(best[name], (time.perf_counter() - begun) * factor)
    return {name: seconds / best["engine"] for name, seconds in best.items()}


@pytest.mark.benchmark
@pytest.mark.skipif(not torch.cuda.is_available(), reason="times the engine on a CUDA device, and torch finds none")
@pytest.mark.parametrize("name", ARITHMETICS)
def test_stacked_engine_against_sequential_trainings(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    measured = ratios(Arithmetic.parse(name), 10, "cuda")
    with capsys.disabled():
        print(f"\n{name}, 60 members: " + ", ".join(f"{way} {ratio:.2f}x" for way, ratio in measured.items()))
    assert measured["tuned"] > 1, "stacking members must pay"


@pytest.mark.benchmark
@pytest.mark.parametrize("name", ARITHMETICS)
def test_the_same_on_a_cpu_so_that_it_runs_at_all(name: str) -> None:
    assert set(ratios(Arithmetic.parse(name), 1, "cpu", rounds=1)) == {"tuned", "published", "engine", "engine, every step"}
