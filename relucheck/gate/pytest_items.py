"""The gate as pytest items: ``pytest --relucheck mylib.activations``.

Imported only in runs that use the gate.

Items are collected beside the other tests. They have the marker ``relucheck``, so ``-m relucheck`` selects the gate alone,
and ids ``Activation/law/dtype``, which ``-k`` matches. Each verdict is attached to its pytest report, so workers of
pytest-xdist need no shared state.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest
from _pytest._code.code import TerminalRepr
from _pytest._io import TerminalWriter

from relucheck.errors import UNWRITABLE, RelucheckError
from relucheck.gate import config as gate_config
from relucheck.gate.config import DTYPE_NAMES, ConfigError, GateConfig
from relucheck.gate.report import adoption, documents, drift, tables
from relucheck.gate.report.annotations import annotated, on_github
from relucheck.gate.report.diagnoses import Diagnosis, by_activation, diagnose
from relucheck.numerics.environment import software

if TYPE_CHECKING:
    from relucheck.gate.run import Gate
    from relucheck.gate.verdicts import Item
    from relucheck.gate.workers import Workers

_RESULTS: Final = pytest.StashKey[list[dict[str, Any]]]()
_CONFIG: Final = pytest.StashKey[GateConfig]()
_UNWRITTEN: Final = pytest.StashKey[list[str]]()
_UPDATED: Final = pytest.StashKey[str]()


def configuration(config: pytest.Config) -> GateConfig:
    """Return the configuration from pyproject.toml and the command line, which takes precedence.

    Raises:
        pytest.UsageError: for a setting whose value is not allowed.
    """
    if _CONFIG in config.stash:
        return config.stash[_CONFIG]
    try:
        options = {name: config.getoption(f"relucheck_{name}") for name in gate_config.OPTIONS}
        settings = gate_config.merged(config.rootpath, options, config.invocation_params.dir)
        if settings.laws and not settings.isolate:  # workers check them, without torch in this process
            from relucheck.gate.run import check_laws

            check_laws(settings.laws)
        for name in config.getoption("relucheck_report"):
            documents.check_file(_report_path(config, name), "--relucheck-report")
        if settings.baseline:
            documents.read_json(Path(config.rootpath) / settings.baseline)
    except (ConfigError, documents.ReportError) as error:
        raise pytest.UsageError(f"relucheck: {error}") from None
    config.stash[_CONFIG] = settings
    return settings


def _report_path(config: pytest.Config, name: str) -> Path:
    return Path(config.invocation_params.dir) / name


class GateItem(pytest.Item):
    """One activation under one law in one dtype."""

    def __init__(self, *, gate: Gate | Workers, item: Item, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gate, self.item = gate, item
        self.add_marker("relucheck")

    def runtest(self) -> None:
        result = self.gate.run(self.item)
        self.relucheck_result = result.as_dict()
        if result.outcome == "failed":
            raise GateVerdict(result.message)
        if result.outcome == "skipped":
            pytest.skip(result.message)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, GateVerdict):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, f"relucheck {self.item.id}"


class GateVerdict(AssertionError):
    """The failure of an item; its text is the message of the verdict."""


class GateCollector(pytest.Collector):
    """The parent of all items of the gate in pytest's tree."""

    def collect(self) -> Iterator[GateItem]:
        try:
            gate = _gate(self.config)
        except ConfigError as error:
            raise pytest.UsageError(f"relucheck: {error}") from None
        except RelucheckError as error:
            raise self.CollectError(f"relucheck: {error}") from error  # which pytest shows without a traceback
        for item in gate.items():
            yield GateItem.from_parent(self, name=item.id, gate=gate, item=item)


def _gate(config: pytest.Config) -> Gate | Workers:
    """Return the gate of this process, or one in another process where the run is isolated."""
    settings = configuration(config)
    if settings.isolate:
        from relucheck.gate.workers import Workers

        workers = Workers(settings)
        config.add_cleanup(workers.close)
        return workers
    import torch

    from relucheck.gate.run import Gate

    if os.environ.get("PYTEST_XDIST_WORKER"):
        # workers already use all cores, so threads inside them would compete
        torch.set_num_threads(1)
    return Gate(settings)


def is_wanted(config: pytest.Config) -> bool:
    """Whether the configuration names targets."""
    return bool(configuration(config).targets)


def collect(session: pytest.Session, config: pytest.Config, items: list[pytest.Item], chosen: Sequence[str] = ()) -> None:
    """Insert the gate's items before the collected tests, or only the chosen ones.

    Raises:
        pytest.UsageError: for an id that no item has.
    """
    if not is_wanted(config):
        return
    collector: GateCollector = GateCollector.from_parent(session, name="relucheck", nodeid="relucheck")
    own = [item for item in session.genitems(collector) if isinstance(item, GateItem)]
    ids = [item.nodeid for item in own]
    broken = [item for item in own if item.item.problem]  # a target that does not import has no other items
    for name in chosen:
        if name not in ids and not broken:
            hint = gate_config.suggestion(name, ids)
            raise pytest.UsageError(f"relucheck: {name}: no item of this run has this id{hint}")
    items[:0] = [item for item in own if not chosen or item.nodeid in chosen or item in broken]


def run_protocol(item: pytest.Item) -> bool | None:
    """Run a gate item in a single phase; return None for every other item.

    A gate item has no fixtures, and its output is captured already. So it needs no set-up, no teardown and no log
    capturing, which would visit torch's 57 non-propagating loggers three times per item. Without them, thousands of items
    take half the time.
    """
    if not isinstance(item, GateItem):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    stop = (KeyboardInterrupt, pytest.exit.Exception)
    call: pytest.CallInfo[None] = pytest.CallInfo.from_call(item.runtest, when="call", reraise=stop)
    report = item.ihook.pytest_runtest_makereport(item=item, call=call)
    item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def attach(item: pytest.Item, report: pytest.TestReport) -> None:
    """Attach a verdict to its item's report, as plain data that xdist can send."""
    result = getattr(item, "relucheck_result", None)
    if report.when == "call" and isinstance(item, GateItem) and result is not None:
        report.relucheck = result  # type: ignore[attr-defined]  # reports carry extra attributes over xdist


def receive(config: pytest.Config, report: pytest.TestReport) -> None:
    """Store the verdict that a report carries.

    This runs in the controller of a distributed run, or in the only process.
    """
    result = getattr(report, "relucheck", None)
    if result is not None:
        config.stash.setdefault(_RESULTS, []).append(result)


def status(report: pytest.TestReport) -> tuple[str, str, str | tuple[str, dict[str, bool]]] | None:
    """Return how the terminal shows a notice or an expected failure.

    None leaves the report to pytest.
    """
    result = getattr(report, "relucheck", None)
    if result is None or report.when != "call":
        return None
    if result["outcome"] == "notice":
        return "notice", "n", ("NOTICE", {"yellow": True})
    if result["outcome"] == "expected":
        return "xfailed", "x", ("XFAIL", {"yellow": True})
    return None


def results(config: pytest.Config) -> list[dict[str, Any]]:
    """Return all verdicts of the run as dictionaries, in a fixed order."""
    received: list[dict[str, Any]] = config.stash.get(_RESULTS, [])
    return in_order(received)


def in_order(received: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort verdicts as a run without xdist gives them: by activation, law and dtype."""
    from relucheck.gate.laws import LAWS

    laws = list(LAWS)

    def order(result: dict[str, Any]) -> tuple[Any, ...]:
        law, dtype = result["law"], result["dtype"]
        return (
            result["activation"],
            laws.index(law) if law in laws else -1,
            law,
            DTYPE_NAMES.index(dtype) if dtype in DTYPE_NAMES else -1,
            result["device"],
        )

    return sorted(received, key=order)


def baseline_drift(config: pytest.Config) -> list[str]:
    """Return the differences of the kink table from the baseline, one line each.

    If the two cannot be compared, the only line says why.
    """
    settings = configuration(config)
    if not settings.baseline:
        return []
    try:
        old = documents.read_json(Path(config.rootpath) / settings.baseline)
        return drift.differences(old, results(config), settings.baseline)
    except documents.ReportError as error:
        return [str(error)]


def finish(session: pytest.Session, exitstatus: int) -> None:
    """Write the reports; fail a run that cannot, or whose kink table differs from the baseline."""
    config = session.config
    if hasattr(config, "workerinput") or not config.stash.get(_RESULTS, []):
        return
    verdicts, targets = results(config), configuration(config).targets
    changes = baseline_drift(config)
    unwritten = config.stash.setdefault(_UNWRITTEN, [])
    if configuration(config).update:
        try:
            config.stash[_UPDATED] = adoption.update(Path(config.rootpath), verdicts)
        except (ConfigError, OSError) as error:
            unwritten.append(str(error))
    for name in config.getoption("relucheck_report"):
        try:
            documents.write_report(_report_path(config, name), verdicts, targets, changes)
        except documents.UnwritableReport as error:
            unwritten.append(str(error))
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        try:
            documents.append_summary(Path(summary), verdicts, targets, changes)
        except documents.UnwritableReport as error:
            unwritten.append(str(error))
    if unwritten and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        session.exitstatus = UNWRITABLE
    elif changes and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def summarise(terminal: pytest.TerminalReporter) -> None:
    """Print the matrix and the kink table at the end of the run."""
    config = terminal.config
    verdicts = results(config)
    if not verdicts:
        return
    settings = configuration(config)
    width, color = max(80, terminal._tw.fullwidth), terminal._tw.hasmarkup
    terminal.section("relucheck")
    terminal.write_line(f"targets: {', '.join(settings.targets)}; convention: {settings.convention}; {software()}")
    terminal.write(tables.render_matrix(verdicts, width, color))
    rows = tables.kink_table(verdicts)
    if rows:
        terminal.write(tables.render_kinks(rows, width, color))
    if on_github():
        terminal.write(annotated(diagnose(verdicts)))
    changes = baseline_drift(config)
    for line in changes:
        terminal.write_line(f"differs from the baseline {settings.baseline}: {line}", red=True)
    if _UPDATED in config.stash:
        terminal.write_line(config.stash[_UPDATED])
    for line in config.stash.get(_UNWRITTEN, []):
        terminal.write_line(line, red=True)
    for name in config.getoption("relucheck_report"):
        if _report_path(config, name).is_file():
            terminal.write_line(f"report: {name}")


class _Sentence(NamedTuple):
    """What pytest shows of a failure on one line: the message after its id, or both with ``--tb=line``."""

    id: str
    message: str

    def __str__(self) -> str:
        return f"{self.id}: {self.message}"


class _Shown(TerminalRepr):
    """How pytest shows the failures of one fault: as text, and in one sentence in the short summary."""

    def __init__(self, diagnosis: Diagnosis, text: str) -> None:
        self._text = text
        self.reprcrash = _Sentence(diagnosis.id, diagnosis.sentence)

    def toterminal(self, terminal: TerminalWriter) -> None:
        if self._text:
            terminal.line(self._text)


def folded(terminal: pytest.TerminalReporter) -> list[pytest.TestReport]:
    """Replace the reports of failed items by one for each fault, and return the reports.

    ``pytest_terminal_summary`` shows what ``terminal.stats`` holds. So all of pytest's options for it keep their meaning.
    With ``-vv`` nothing is folded.
    """
    failed: list[Any] = terminal.stats.get("failed", [])
    items = {report.nodeid: report for report in failed if getattr(report, "relucheck", None) is not None}
    if not items or terminal.config.get_verbosity() > 1:
        return failed
    by_id = {id(report.relucheck): report for report in items.values()}
    width, whole = max(80, terminal._tw.fullwidth), terminal.config.get_verbosity() > 0
    line = terminal.config.option.tbstyle == "line"  # pytest itself writes the sentence then
    shown = []
    for full, short in by_activation(diagnose(in_order(report.relucheck for report in items.values())), whole=whole):
        for diagnosis in (*full, *short):
            report = copy.copy(by_id[id(diagnosis.main)])
            text = diagnosis.text(width) if diagnosis in full else diagnosis.short(width)
            report.longrepr = _Shown(diagnosis, "" if line else text)
            shown.append(report)
    terminal.stats["failed"] = [*shown, *(report for report in failed if report.nodeid not in items)]
    return failed


class GateHooks:
    """pytest hooks, registered only in a run that has targets.

    Args:
        chosen: ids of the items to run, as the command line names them; all items if empty.
    """

    def __init__(self, chosen: Sequence[str] = ()) -> None:
        self._chosen = chosen

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(
        self, session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        collect(session, config, items, self._chosen)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        return run_protocol(item)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        report = yield
        attach(item, report)
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        receive(self._config, report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: Any, config: pytest.Config) -> Any:
        return status(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self._config = session.config

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        finish(session, exitstatus)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        summarise(terminalreporter)


class FoldingHooks:
    """pytest hooks around those of ``GateHooks`` and of pytest's terminal reporter."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> Generator[None]:
        failed = folded(terminalreporter)
        try:
            yield
        finally:
            if failed:
                terminalreporter.stats["failed"] = failed  # which pytest counts in its last line
