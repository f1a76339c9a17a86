"""The pytest plugin: options and markers, the tally of property runs and its summary, and the way into the gate.

pytest loads this module in every run of every user who has relucheck installed, so nothing heavy is imported at load:
torch, Hypothesis and rich are imported where they are first used.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any, Final

import pytest

from relucheck.results.tally import Tally

_RUN: Final = pytest.StashKey[Tally]()
_TEST: Final = pytest.StashKey[Tally]()

_MARKERS: Final = (
    "relucheck: items of the gate, one per activation, law and dtype",
    "bifurcation: properties of backprop_s on generated networks and real digits, per dtype",
    "gpu_training: full-scale training comparisons; they need a CUDA device",
    "benchmark: measurements; ratios against a peer in one run",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options of this plugin."""
    group = parser.getgroup("relucheck", "gradients at the kinks of activations")
    group.addoption(
        "--relucheck-data",
        metavar="ROOT",
        help="folder of MNIST/ and FashionMNIST/ as torchvision has them (default: $RELUCHECK_DATA, else the user's cache)",
    )
    group.addoption(
        "--relucheck",
        action="append",
        default=[],
        dest="relucheck_targets",
        metavar="TARGET",
        help="check the activations of TARGET: a module, module:attribute or a .py file (repeatable)",
    )
    group.addoption("--relucheck-dtypes", dest="relucheck_dtypes", metavar="NAMES", help="dtypes, separated by commas")
    group.addoption("--relucheck-laws", dest="relucheck_laws", metavar="NAMES", help="laws, separated by commas")
    group.addoption("--relucheck-devices", dest="relucheck_devices", metavar="NAMES", help="devices, separated by commas")
    group.addoption(
        "--relucheck-convention",
        dest="relucheck_convention",
        metavar="NAME",
        help="allowed subgradients: clarke (default), minimum-norm, declared or reference",
    )
    group.addoption(
        "--relucheck-fail-on",
        dest="relucheck_fail_on",
        metavar="LEVEL",
        help="error (default), or notice to fail on notices too",
    )
    group.addoption(
        "--relucheck-compile",
        action="store_true",
        dest="relucheck_compile",
        help="check torch.compile of every activation (slow)",
    )
    group.addoption(
        "--relucheck-baseline", dest="relucheck_baseline", metavar="FILE", help="kink table that must not change"
    )
    group.addoption(
        "--relucheck-time-limit", dest="relucheck_time_limit", type=float, metavar="SECONDS", help="time limit of an item"
    )
    group.addoption(
        "--relucheck-report",
        action="append",
        default=[],
        dest="relucheck_report",
        metavar="FILE",
        help="write the verdicts to FILE.json or FILE.md (repeatable)",
    )


def _uses_gate(config: pytest.Config) -> bool:
    """Whether targets are given, on the command line or in pyproject.toml; cheap where they are not."""
    if config.getoption("relucheck_targets", default=[]):
        return True
    path = os.path.join(config.rootpath, "pyproject.toml")
    try:
        with open(path, "rb") as file:
            if b"tool.relucheck" not in file.read():
                return False
    except OSError:
        return False
    from relucheck.gate import pytest_items

    return pytest_items.is_wanted(config)


def pytest_configure(config: pytest.Config) -> None:
    """Registers the markers, which --strict-markers asks for, and starts adding up."""
    for marker in _MARKERS:
        config.addinivalue_line("markers", marker)
    root = config.getoption("--relucheck-data")
    if root is not None:
        if os.path.exists(root) and not os.path.isdir(root):
            raise pytest.UsageError(
                f"--relucheck-data={root}: is a file, not a data root; pass the folder that holds (or is to hold) MNIST/"
            )
        os.environ["RELUCHECK_DATA"] = root  # where relucheck.data looks; workers are given the option, too
    config.stash[_RUN] = Tally()
    if not hasattr(config, "workerinput"):  # xdist's workers report to the controller, which adds up
        config.pluginmanager.register(_Collector(config.stash[_RUN]), "relucheck-collector")
    if _uses_gate(config):
        from relucheck.gate import pytest_items

        pytest_items.configuration(config)  # a setting that cannot be used stops the run here
        config.pluginmanager.register(pytest_items.GateHooks(), "relucheck-gate")


@pytest.fixture
def relucheck_tally(request: pytest.FixtureRequest) -> Tally:
    """Counts what a test compares; the run's summary adds the tallies of all tests up, also those of xdist's workers."""
    return request.node.stash.setdefault(_TEST, Tally())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Puts a test's tally on its report, which xdist carries to the controller."""
    report = yield
    if report.when == "call" and _TEST in item.stash:
        report.relucheck_tally = item.stash[_TEST].to_json()  # type: ignore[attr-defined]
    return report


class _Collector:
    """Adds up tallies where the reports arrive: in the controller, or in the only process."""

    def __init__(self, run: Tally) -> None:
        self._run = run

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        plain: dict[str, Any] | None = getattr(report, "relucheck_tally", None)
        if plain is not None:
            self._run.add(Tally.from_json(plain))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Prints the tally, if any test counted."""
    run = config.stash[_RUN]
    if not run:
        return
    from relucheck.results.tables import render, tally_tables

    terminalreporter.section("relucheck")
    width = max(60, terminalreporter._tw.fullwidth)
    terminalreporter.write(render(*tally_tables(run), width=width, color=terminalreporter._tw.hasmarkup))
