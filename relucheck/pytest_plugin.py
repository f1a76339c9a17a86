"""relucheck's pytest plugin: options and markers here, everything else imported where it is used.

pytest loads this file in every run of an environment that has relucheck installed, so it imports neither torch nor anything
that does.
"""

from __future__ import annotations

import os
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("relucheck", "what autodiff does at the kinks of activations")
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
    from relucheck import gate_pytest

    return gate_pytest.is_wanted(config)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "relucheck: items of relucheck's gate")
    if _uses_gate(config):
        from relucheck import gate_pytest

        gate_pytest.configuration(config)  # a setting that cannot be used stops the run here
        config.pluginmanager.register(_Gate(), "relucheck-gate")


class _Gate:
    """The hooks of a run that has gate targets."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(
        self, session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        from relucheck import gate_pytest

        gate_pytest.collect(session, config, items)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        from relucheck import gate_pytest

        return gate_pytest.run_protocol(item)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        from relucheck import gate_pytest

        report = yield
        gate_pytest.attach(item, report)
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        from relucheck import gate_pytest

        gate_pytest.receive(self._config, report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: Any, config: pytest.Config) -> Any:
        from relucheck import gate_pytest

        return gate_pytest.status(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self._config = session.config

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        from relucheck import gate_pytest

        gate_pytest.finish(session, exitstatus)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        from relucheck import gate_pytest

        gate_pytest.summarise(terminalreporter)
