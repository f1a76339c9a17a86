"""pytest shows one report for each fault, and counts, stores and exports every failed item."""

from __future__ import annotations

import io
import types

import pytest
from _pytest._io import TerminalWriter

from relucheck.gate import pytest_items
from tests.gate.test_diagnoses import row


def report(relucheck=None, nodeid=""):
    made = pytest.TestReport(
        nodeid or f"relucheck::{relucheck['activation']}/{relucheck['law']}", ("", None, ""), {}, "failed", "long", "call"
    )
    if relucheck is not None:
        made.relucheck = relucheck
    return made


def terminal(reports, *, verbosity=0, style="auto"):
    config = types.SimpleNamespace(option=types.SimpleNamespace(tbstyle=style), get_verbosity=lambda: verbosity)
    return types.SimpleNamespace(stats={"failed": reports}, config=config, _tw=types.SimpleNamespace(fullwidth=100))


def printed(report):
    stream = io.StringIO()
    report.longrepr.toterminal(TerminalWriter(stream))
    return stream.getvalue()


ROWS = [row(), row("b"), row("c", x="1e30"), row("a", activation="other")]


def test_one_report_for_each_fault_and_the_users_own_tests_as_they_are():
    own = report(nodeid="test_x.py::test")
    reports = [own, *map(report, ROWS)]
    screen = terminal(list(reports))
    assert pytest_items.folded(screen) == reports
    first, further, other, users = screen.stats["failed"]
    assert users is own
    assert first.nodeid == "relucheck::act/a"
    assert "2 failures: a and b in float32" in printed(first)
    assert "reproduce:" in printed(first)
    assert "reproduce:" in printed(other)
    assert "reproduce:" not in printed(further)
    assert first.longrepr.reprcrash.message == "it is wrong"
    assert reports[1].longrepr == "long"  # what is exported to other tools


@pytest.mark.parametrize(("verbosity", "shown", "scripts"), [(0, 3, 2), (1, 3, 3), (2, 4, 0)])
def test_verbosity(verbosity, shown, scripts):
    screen = terminal(list(map(report, ROWS)), verbosity=verbosity)
    pytest_items.folded(screen)
    failed = screen.stats["failed"]
    assert len(failed) == shown
    assert sum("reproduce:" in printed(each) for each in failed if each.longrepr != "long") == scripts


def test_one_line_for_each_fault_where_pytest_is_asked_for_lines():
    screen = terminal(list(map(report, ROWS)), style="line")
    pytest_items.folded(screen)
    assert [printed(each) for each in screen.stats["failed"]] == [""] * 3
    assert str(screen.stats["failed"][0].longrepr.reprcrash) == "act/a/float32: it is wrong"


def test_the_counts_are_those_of_the_items():
    reports = list(map(report, ROWS))
    screen = terminal(list(reports))
    hook = pytest_items.FoldingHooks().pytest_terminal_summary(screen)
    next(hook)
    assert len(screen.stats["failed"]) == 3
    with pytest.raises(StopIteration):
        next(hook)
    assert screen.stats["failed"] == reports


def test_runs_without_failures_of_the_gate_are_left_alone():
    own = [report(nodeid="test_x.py::test")]
    screen = terminal(own)
    assert pytest_items.folded(screen) is own
    assert screen.stats["failed"] is own
