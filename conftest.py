"""Settings of relucheck's own test suite: Hypothesis profiles, threads, and what the header shows."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

from relucheck.data import ROOT_VARIABLE
from relucheck.numerics.devices import best_device, environment
from relucheck.work import cores

# No deadlines: the first torch call of a kind takes a hundred times what the next ones take. The thorough profile tries 20
# times the examples of ci, which repeats the same examples in every run, so that a red run means a change.
_COMMON = {
    "deadline": None,
    "print_blob": True,
    "suppress_health_check": [
        *(HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much),
        HealthCheck.function_scoped_fixture,  # the tally is meant to outlive an example
    ],
}
settings.register_profile("dev", max_examples=15, **_COMMON)
settings.register_profile("ci", max_examples=25, derandomize=True, database=None, **_COMMON)
settings.register_profile("thorough", max_examples=500, **_COMMON)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_configure(config: pytest.Config) -> None:
    """Gives each worker its share of the cores: more threads than cores make every worker slower."""
    # inductor would start a pool of compiling processes, each of which imports torch first
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    # never more than the user allows (OMP_NUM_THREADS)
    torch.set_num_threads(max(1, min(torch.get_num_threads(), cores() // workers)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what reads MNIST and FashionMNIST where no data root is named; the shipped digits serve all other tests."""
    if os.environ.get(ROOT_VARIABLE):  # the plugin sets it from --relucheck-data
        return
    skip = pytest.mark.skip(reason=f"reads MNIST and FashionMNIST; pass --relucheck-data ROOT or set ${ROOT_VARIABLE}")
    for item in items:
        if item.get_closest_marker("needs_mnist"):
            item.add_marker(skip)


def pytest_report_header(config: pytest.Config) -> str:
    """Versions and device: results at kinks depend on both."""
    return str(environment(best_device()))
