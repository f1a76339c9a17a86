"""Measure the overhead of the backends for work.

Units in two processes are compared with two plain processes that share the same seeds, and a cell on Ray with the same cell
in this process.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from relucheck.reproduction.experiments.mlp import SCENARIOS
from relucheck.training import engine
from relucheck.training.settings import Settings
from relucheck.volume import units as volume_units
from relucheck.volume.cell import Cell
from relucheck.work import Backend, Local, cores
from tests.helpers.fake_engine import SMALL
from tests.helpers.uniform import mlp

pytestmark = pytest.mark.benchmark

_PLAIN = """
import json, sys, torch
torch.set_num_threads(1)
from relucheck.training.engine import train
from relucheck.training.settings import Settings
train(Settings.from_json(json.loads(sys.stdin.read())), folder=sys.argv[1], progress=False)
"""


def _settings(seeds: range, epochs: int) -> Settings:
    """E2's network with coarse rounding on the shipped digits, where hits soon fork the members."""
    (comparison,) = SCENARIOS["E2"].comparisons("cpu", ["bfloat16-product"])
    settings = comparison.settings
    members = tuple(dataclasses.replace(member, seed=seed) for seed in seeds for member in settings.members)
    return dataclasses.replace(settings, data="digits", members=members, epochs=epochs, every=1)


def _plain(settings: Settings, folder: Path) -> float:
    halves = settings.seeds[::2], settings.seeds[1::2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    started = time.perf_counter()
    running = []
    for index, half in enumerate(halves):
        process = subprocess.Popen(
            [sys.executable, "-c", _PLAIN, str(folder / str(index))], stdin=subprocess.PIPE, env=environment, text=True
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(settings.of_seeds(half).to_json()))
        process.stdin.close()
        running.append(process)
    assert [process.wait() for process in running] == [0, 0]
    return time.perf_counter() - started


@pytest.mark.skipif(cores() < 2, reason="two processes need two cores")
def test_two_processes_against_two_plain_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = _settings(range(4), epochs=12)
    ratios = []
    for turn in range(3):
        folder = tmp_path / str(turn)
        plain = _plain(settings, folder)
        started = time.perf_counter()
        Local(2).run(engine.units(settings, folder / "units"))
        ratios.append(plain / (time.perf_counter() - started))
    with capsys.disabled():
        print(
            f"\nplain processes / units in processes: {', '.join(f'{ratio:.3f}' for ratio in sorted(ratios))} (goal 0.95)"
        )


@pytest.mark.ray
def test_a_cell_on_ray_against_one_in_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One unit after the other, on workers that have imported torch: what is left is the cost of tasks and messages."""
    pytest.importorskip("ray")
    from relucheck.work.cluster import Ray
    from relucheck.work.connection import connected

    cell = dataclasses.replace(SMALL, network=mlp(784, 64, 2), arithmetic="bfloat16 emulated (product)", draws=400)
    monkeypatch.setenv("RAY_worker_niceness", "0")  # by default 15, which costs time wherever anything else runs
    seconds = []
    with connected("local", cpus=1):
        backends: dict[str, Backend] = {"local": Local(1), "ray": Ray(folder=tmp_path)}
        for name, backend in backends.items():  # warm
            _seconds(backend, dataclasses.replace(cell, draws=2), tmp_path / f"{name}-warm")
        for turn in range(3):
            seconds.append([_seconds(backend, cell, tmp_path / f"{name}-{turn}") for name, backend in backends.items()])
    with capsys.disabled():
        for what, index in (("whole run", 0), ("computing", 1)):
            ratios = sorted(ray[index] / local[index] for local, ray in seconds)
            print(f"\ncell on Ray / in this process, {what}: {', '.join(f'{ratio:.3f}' for ratio in ratios)} (goal 1.05)")
        print(f"seconds in this process: {', '.join(f'{local[0]:.1f}' for local, _ in seconds)}")


def _seconds(backend: Backend, cell: Cell, folder: Path) -> tuple[float, float]:
    """Of the whole run, and of computing with its messages."""
    started = time.perf_counter()
    backend.run(volume_units.units([cell], folder))
    whole = time.perf_counter() - started
    return whole, volume_units.collect([cell], folder)[cell.name].wall_s
