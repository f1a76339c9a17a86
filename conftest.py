"""Settings of relucheck's test suite: Hypothesis profiles, threads, and the header."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from relucheck.data import ROOT_VARIABLE
from relucheck.numerics.devices import best_device, environment
from relucheck.work import cores

# There are no deadlines, because the first call of a torch function takes a hundred times as long as later calls. The
# profile "ci" repeats the same examples in every run, so that a failure means that the code has changed. The profile
# "thorough" tries 20 times as many examples, and more where tests.helpers.per_dtype gives each dtype fewer.
_COMMON = {
    "deadline": None,
    "print_blob": True,
    "suppress_health_check": [
        *(HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much),
        HealthCheck.function_scoped_fixture,  # the tally counts over all examples of a test on purpose
    ],
}
settings.register_profile("dev", max_examples=15, **_COMMON)
settings.register_profile("ci", max_examples=25, derandomize=True, database=None, **_COMMON)
settings.register_profile("thorough", max_examples=500, **_COMMON)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_configure(config: pytest.Config) -> None:
    """Give each worker its share of the cores; more threads than cores slow every worker down."""
    # otherwise inductor starts a pool of processes, each of which imports torch first
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    # at most the number that the user has set (OMP_NUM_THREADS)
    torch.set_num_threads(max(1, min(torch.get_num_threads(), cores() // workers)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives each worker of pytest-xdist half of the tests, and one that has ended half of what another has left.

    So the tests of a module stay together, and what they share is made once. Tests that are dealt out one by one, as is the
    default of pytest-xdist, make it in each worker.
    """
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getvalue("dist") == "load" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves the tests on Ray to the front, and skips those that read MNIST or FashionMNIST where no data root is named.

    The first worker of pytest-xdist gets the first tests. So the tests on Ray share one worker, and its processes.
    """
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)
    if os.environ.get(ROOT_VARIABLE):  # the plugin sets it from --relucheck-data
        return
    skip = pytest.mark.skip(reason=f"reads MNIST and FashionMNIST; pass --relucheck-data ROOT or set ${ROOT_VARIABLE}")
    for item in items:
        if item.get_closest_marker("needs_mnist"):
            item.add_marker(skip)


@pytest.fixture
def subnormal_numbers() -> Iterator[None]:
    """Restores subnormal numbers after a test that compiles with inductor.

    torch 2.4's inductor links its kernels with -ffast-math. Loading one makes the process flush subnormal numbers to 0, in
    all that runs later (torch 2.11 does not).
    """
    yield
    torch.set_flush_denormal(False)


def pytest_report_header(config: pytest.Config) -> str:
    """Show versions and the device in the header, because results at kinks depend on both."""
    return str(environment(best_device()))
