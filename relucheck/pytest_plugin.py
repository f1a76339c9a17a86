"""The pytest plugin: options, markers, the gate's items, a summary of property tests.

pytest loads this module in every run of every user who has relucheck installed. Importing it must be cheap, so torch,
Hypothesis and rich are imported where they are first used.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any, Final

import pytest

from relucheck.results.tally import Tally

_RUN: Final = pytest.StashKey[Tally]()
_TEST: Final = pytest.StashKey[Tally]()
#: What the ids of the gate's items begin with; pytest would look for a file of that name.
_GATE: Final = "relucheck::"

_MARKERS: Final = (
    "relucheck: checks of the gate, one per activation, law and dtype",
    "bifurcation: property tests of backprop with a chosen subgradient, on generated networks and digits, per dtype",
    "gpu_training: full-scale training comparisons; they need a CUDA device",
    "benchmark: run-time measurements; they run only with -m benchmark",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of this plugin."""
    group = parser.getgroup(
        "relucheck", "relucheck: gradients at the kinks of activations (defaults: [tool.relucheck] in pyproject.toml)"
    )
    group.addoption(
        "--relucheck-data",
        metavar="ROOT",
        help="data folder, which holds MNIST/ and FashionMNIST/ in torchvision's layout (default: $RELUCHECK_DATA, else "
        "the user's cache)",
    )
    group.addoption(
        "--relucheck",
        action="append",
        default=[],
        dest="relucheck_targets",
        metavar="TARGET",
        help="check the activations in TARGET: a module, module:attribute or a .py file (repeatable)",
    )
    group.addoption(
        "--relucheck-dtypes",
        dest="relucheck_dtypes",
        metavar="NAMES",
        help="dtypes to check, separated by commas (default: float32, float64, bfloat16 and float16)",
    )
    group.addoption(
        "--relucheck-laws",
        dest="relucheck_laws",
        metavar="NAMES",
        help="laws to check, separated by commas (default: all laws)",
    )
    group.addoption(
        "--relucheck-devices",
        dest="relucheck_devices",
        metavar="NAMES",
        help="devices to check on, separated by commas (default: cpu)",
    )
    group.addoption(
        "--relucheck-convention",
        dest="relucheck_convention",
        metavar="NAME",
        help="which subgradients are allowed at a kink: clarke (the Clarke interval; default), minimum-norm (its element "
        "nearest zero), declared (the declared ones) or reference (those of a declared reference)",
    )
    group.addoption(
        "--relucheck-fail-on",
        dest="relucheck_fail_on",
        metavar="LEVEL",
        help="lowest level that fails the run: error (default) or notice",
    )
    group.addoption(
        "--relucheck-compile",
        action="store_true",
        dest="relucheck_compile",
        help="check every activation under torch.compile as well (slow)",
    )
    group.addoption(
        "--relucheck-isolate",
        action="store_true",
        dest="relucheck_isolate",
        help="import and run the targets in another process, which is replaced when native code ends or blocks it",
    )
    group.addoption(
        "--relucheck-update",
        action="store_true",
        dest="relucheck_update",
        help="write everything that fails now into pyproject.toml as expected failures, with reasons to be filled in",
    )
    group.addoption(
        "--relucheck-baseline",
        dest="relucheck_baseline",
        metavar="FILE",
        help="kink table written by 'relucheck kinks --json'; the run fails where its kinks differ",
    )
    group.addoption(
        "--relucheck-time-limit",
        dest="relucheck_time_limit",
        type=float,
        metavar="SECONDS",
        help="time limit of one check (default: 60)",
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
    """Whether the command line or pyproject.toml names targets.

    Imports the gate only if pyproject.toml mentions relucheck.
    """
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
    """Register the markers, the tally and, if targets are given, the gate.

    ``--strict-markers`` requires that markers are registered.
    """
    for marker in _MARKERS:
        config.addinivalue_line("markers", marker)
    root = config.getoption("--relucheck-data")
    if root is not None:
        if os.path.exists(root) and not os.path.isdir(root):
            raise pytest.UsageError(
                f"--relucheck-data={root}: is a file, not a data root; pass the folder that holds (or is to hold) MNIST/"
            )
        os.environ["RELUCHECK_DATA"] = root  # relucheck.data reads it; xdist hands the option to its workers as well
    config.stash[_RUN] = Tally()
    if not hasattr(config, "workerinput"):  # workers of xdist report to the controller, which adds the tallies up
        config.pluginmanager.register(_Collector(config.stash[_RUN]), "relucheck-collector")
    chosen = [argument for argument in config.args if argument.startswith(_GATE)]
    config.args = [argument for argument in config.args if argument not in chosen]
    if _uses_gate(config):
        from relucheck.gate import pytest_items

        pytest_items.configuration(config)  # an invalid setting stops the run here, before collection
        config.pluginmanager.register(pytest_items.GateHooks(chosen), "relucheck-gate")
        config.pluginmanager.register(pytest_items.FoldingHooks(), "relucheck-folding")
    elif chosen:
        raise pytest.UsageError(f"relucheck: {chosen[0]}: no target was given; pass --relucheck MODULE as well")


@pytest.fixture
def relucheck_tally(request: pytest.FixtureRequest) -> Tally:
    """Count what a test compares.

    The summary of the run shows the sum over all tests and xdist workers.
    """
    return request.node.stash.setdefault(_TEST, Tally())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach a test's tally to its report, which xdist sends to the controller."""
    report = yield
    if report.when == "call" and _TEST in item.stash:
        report.relucheck_tally = item.stash[_TEST].to_json()  # type: ignore[attr-defined]
    return report


class _Collector:
    """Adds up the tallies of tests in the process that receives their reports."""

    def __init__(self, run: Tally) -> None:
        self._run = run

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        plain: dict[str, Any] | None = getattr(report, "relucheck_tally", None)
        if plain is not None:
            self._run.add(Tally.from_json(plain))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the tally where a test counted something."""
    run = config.stash[_RUN]
    if not run:
        return
    from relucheck.results.tables import render, tally_tables

    terminalreporter.section("relucheck")
    width = max(60, terminalreporter._tw.fullwidth)
    terminalreporter.write(render(*tally_tables(run), width=width, color=terminalreporter._tw.hasmarkup))
