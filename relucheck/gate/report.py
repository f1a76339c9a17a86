"""Reports of the gate: terminal tables, JSON and Markdown.

This module handles only plain data (verdicts as dictionaries), so the controller of a distributed pytest run needs neither
torch nor the target.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from relucheck.errors import UNWRITABLE, RelucheckError, printable
from relucheck.numerics.environment import software
from relucheck.results.files import check_writable, write_atomically
from relucheck.results.tables import Table

#: Name and version of the JSON layout; a reader refuses every other version.
SCHEMA: Final = "relucheck-gate"
SCHEMA_VERSION: Final = 2
_MARKS: Final = {"failed": "FAIL", "notice": "note", "expected": "xfail", "passed": "pass", "skipped": "skip"}
_STYLES: Final = {"failed": "bold red", "notice": "yellow", "expected": "cyan", "passed": "green", "skipped": "dim"}
_SIGNS: Final = {"passed": ".", "failed": "F", "expected": "x", "notice": "n", "skipped": "s"}
_WORDS: Final = {
    "passed": "pass",
    "failed": "fail",
    "expected": "expected failure",
    "notice": "notice",
    "skipped": "skipped in every dtype",
}
_ORDER: Final = ("failed", "notice", "expected", "passed", "skipped")
Row = Mapping[str, Any]


class ReportError(RelucheckError, ValueError):
    """A report that cannot be read, written or compared with a run."""


class UnwritableReport(ReportError):
    """A report that cannot be written."""

    exit_code = UNWRITABLE


def counts(results: Iterable[Row]) -> dict[str, int]:
    """Count the results by outcome, worst outcome first."""
    numbers = dict.fromkeys(_ORDER, 0)
    for result in results:
        numbers[result["outcome"]] += 1
    return numbers


def kink_table(results: Iterable[Row]) -> list[dict[str, Any]]:
    """Collect the kink table of a run: one row per activation, device and kink.

    Args:
        results: verdicts as dictionaries.

    Returns:
        The rows, with the keys ``activation``, ``device``, ``at``, ``left``, ``right``, ``jump``, ``singular``, ``rounded``
        (position by dtype, where the dtype does not represent the kink) and ``subgradient`` (by dtype, then by mode).
    """
    rows: dict[tuple[str, str, float], dict[str, Any]] = {}
    for result in results:
        for kink in result["kinks"] or ():
            # rounding a parameter to a dtype moves the kink, so positions that agree to 3 digits are one kink
            key = (result["activation"], result["device"], float(f"{kink['at']:.3g}"))
            row = rows.setdefault(
                key,
                {
                    "activation": result["activation"],
                    "device": result["device"],
                    **{name: kink[name] for name in ("at", "left", "right", "jump", "singular")},
                    "rounded": {},
                    "subgradient": {},
                },
            )
            row["subgradient"][result["dtype"]] = kink["subgradient"]
            if kink["rounded"] is not None:
                row["rounded"][result["dtype"]] = kink["rounded"]
    return [rows[key] for key in sorted(rows)]


def as_json(results: Sequence[Row], targets: Sequence[str], **more: Any) -> str:
    """Format a report as JSON.

    Args:
        results: verdicts as dictionaries.
        targets: the targets of the run.
        more: further keys of the report.

    Returns:
        JSON text with the keys ``schema``, ``schema_version``, ``versions``, ``targets``, ``counts``, ``results``,
        ``searched`` (by activation, the dtypes in which the run searched for kinks, also where it found none) and
        ``kinks``.
    """
    body = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "versions": software().to_json(),
        "targets": list(map(printable, targets)),
        "counts": counts(results),
        **more,
        "results": [{key: value for key, value in result.items() if key not in ("kinks", "seconds")} for result in results],
        "searched": searched(results),
        "kinks": kink_table(results),
    }
    return json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """Read a report that ``as_json`` wrote.

    Raises:
        ReportError: for a file that is missing, is not a report, or has another schema version.
    """
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ReportError(f"{path}: no such file; write one with 'relucheck kinks TARGET --json {path}'") from None
    except (OSError, ValueError) as error:
        raise ReportError(f"{path}: {error}") from None
    if not isinstance(body, dict) or body.get("schema") != SCHEMA or not isinstance(body.get("kinks"), list):
        raise ReportError(f"{path}: not a {SCHEMA} report; write one with 'relucheck kinks TARGET --json {path}'")
    version = body.get("schema_version", 0)
    if version != SCHEMA_VERSION:
        fix = "update relucheck" if version > SCHEMA_VERSION else "write the table again"
        raise ReportError(f"{path}: schema version {version}, but this relucheck reads {SCHEMA_VERSION}; {fix}")
    return body


def searched(results: Iterable[Row]) -> dict[str, list[str]]:
    """Return, by activation, the dtypes in which a run searched for kinks.

    Dtypes in which it found none are included.
    """
    dtypes: dict[str, list[str]] = {}
    for result in results:
        if result["kinks"] is not None and result["dtype"] not in dtypes.setdefault(result["activation"], []):
            dtypes[result["activation"]].append(result["dtype"])
    return dtypes


# -- text ---------------------------------------------------------------------------------------------------------------


def worst(outcomes: Iterable[str]) -> str:
    """Return the worst of several outcomes, which a cell of the matrix shows.

    Passed takes precedence over skipped.
    """
    present = set(outcomes)
    return next((outcome for outcome in _ORDER if outcome in present), "")


def matrix(results: Sequence[Row]) -> tuple[list[str], list[str], dict[tuple[str, str], str]]:
    """Return activations, laws, and the worst outcome of each pair over dtypes and devices."""
    real = [result for result in results if result["dtype"] != "-"]
    activations = list(dict.fromkeys(result["activation"] for result in real))
    laws = list(dict.fromkeys(result["law"] for result in real))
    cells: dict[tuple[str, str], list[str]] = {}
    for result in real:
        cells.setdefault((result["activation"], result["law"]), []).append(result["outcome"])
    return activations, laws, {key: worst(outcomes) for key, outcomes in cells.items()}


def modes(subgradient: Mapping[str, Any]) -> str:
    """Format the subgradients of all modes; one number where they agree."""
    values = {mode: value for mode, value in subgradient.items() if value is not None}
    reverse = _number(subgradient.get("reverse"))
    others = [f"{mode} {_number(value)}" for mode, value in values.items() if _number(value) != reverse]
    return f"{reverse} ({', '.join(others)})" if others else reverse


def _number(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value + 0.0:.4g}"


def _kinks(rows: Sequence[Row]) -> Table:
    """Build the kink table, with one column per dtype."""
    dtypes = list(dict.fromkeys(dtype for row in rows for dtype in row["subgradient"]))
    header = ["activation", "at", "left", "right", *dtypes]
    body = []
    for row in rows:
        where = (
            _number(row["at"])
            + (f" (jump {_number(row['jump'])})" if row["jump"] else "")
            + (" singular" if row["singular"] else "")
        )
        cells = []
        for dtype in dtypes:
            text = modes(row["subgradient"].get(dtype, {})) if dtype in row["subgradient"] else "-"
            cells.append(text + (f" at {_number(row['rounded'][dtype])}" if dtype in row["rounded"] else ""))
        body.append([row["activation"], where, _number(row["left"]), _number(row["right"]), *cells])
    title = "kinks: one-sided derivatives, and the subgradient by dtype (and by mode, where modes differ)"
    return Table(header, body, title, right=header[2:])


def render_matrix(results: Sequence[Row], width: int = 120, color: bool = False) -> str:
    """Format the matrix of activations and laws for a terminal.

    Each cell is one character. Columns are numbered, with a legend below.

    Args:
        results: verdicts as dictionaries.
        width: width of the terminal in characters.
        color: whether to use ANSI colours.
    """
    from rich.table import Table as RichTable
    from rich.text import Text

    activations, laws, cells = matrix(results)
    spaced = width >= 26 + 2 * len(laws)
    gap = " " if spaced else ""
    numbers = [f"{number:>2}" for number in range(1, len(laws) + 1)]
    rows = [gap.join(number[row] for number in numbers) for row in (0, 1)]
    header = Text("\n".join(rows))
    table = RichTable(title="activation x law, worst over dtypes", title_justify="left", box=None, pad_edge=False)
    table.add_column("activation", no_wrap=True, max_width=max(8, width - 10 - len(rows[0])))
    table.add_column("passed", justify="right", no_wrap=True)
    table.add_column(header, no_wrap=True)
    for name in activations:
        ran = [result["outcome"] for result in results if result["activation"] == name and result["outcome"] != "skipped"]
        marks = Text()
        for number, law in enumerate(laws):
            outcome = cells.get((name, law), "")
            marks.append(_SIGNS.get(outcome, " "), style=_STYLES.get(outcome, ""))
            marks.append(gap if number + 1 < len(laws) else "")
        table.add_row(Text(name), f"{ran.count('passed')}/{len(ran)}" if ran else "skipped", marks)
    legend = Text(", ".join(f"{number} {law}" for number, law in enumerate(laws, start=1)), style="dim")
    signs = Text(", ".join(f"{sign} {_WORDS[outcome]}" for outcome, sign in _SIGNS.items()), style="dim")
    return _rendered([table, legend, signs], width, color)


def _rendered(parts: Iterable[Any], width: int, color: bool) -> str:
    from rich.console import Console

    stream = io.StringIO()
    console = Console(
        file=stream, width=width, force_terminal=color, color_system="standard" if color else None, highlight=False
    )
    for part in parts:
        console.print(part)
    return stream.getvalue()


def render_kinks(rows: Sequence[Row], width: int = 120, color: bool = False) -> str:
    """Format the kink table for a terminal of ``width`` characters."""
    return _rendered([_kinks(rows).rich(frame=False)], width, color) if rows else "no kinks in the scanned range\n"


def as_markdown(results: Sequence[Row], targets: Sequence[str], changes: Sequence[str] = ()) -> str:
    """Format a report as Markdown: counts, failures, matrix, notices and kink table.

    Args:
        results: verdicts as dictionaries.
        targets: the targets of the run.
        changes: differences from the baseline, one line each.
    """
    lines = [
        f"# relucheck: {printable(', '.join(targets)) or 'activations'}",
        "",
        f"{', '.join(f'{number} {outcome}' for outcome, number in counts(results).items() if number)}. {software()}.",
        "",
    ]
    failed = [result for result in results if result["outcome"] == "failed"]
    if failed:
        lines += ["## Failures", ""]
        for result in failed:
            # longer than any fence in the message, which may quote a target
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", result["message"])), default=0))
            lines += [fence, result["message"], fence, ""]
    if changes:
        lines += ["## Kinks that differ from the baseline", "", *(f"- {line}" for line in changes), ""]
    activations, laws, cells = matrix(results)
    if activations:
        lines += [
            "## Activation x law",
            "",
            "Each cell shows the worst outcome over dtypes. A cell is empty where the law does not apply.",
            "",
        ]
        body = [[name, *(_MARKS.get(cells.get((name, law), ""), "") for law in laws)] for name in activations]
        lines += [*Table(["activation", *laws], body).markdown(), ""]
    for outcome, title in (("expected", "Expected failures"), ("notice", "Notices")):
        chosen = [result for result in results if result["outcome"] == outcome]
        if chosen:
            lines += [f"## {title}", ""]
            for result in chosen:
                text = result["message"].split("\n")
                detail = text[0] if outcome == "notice" else f"{text[0]}: {text[1] if len(text) > 1 else ''}"
                lines.append(f"- {detail}")
            lines.append("")
    rows = kink_table(results)
    if rows:
        lines += ["## Kinks", "", *_kinks(rows).markdown(), ""]
    return "\n".join(lines)


def check_file(path: Path, option: str = "", suffixes: Sequence[str] = (".json", ".md")) -> None:
    """Refuse a report file whose suffix does not fit, and one that cannot be written.

    Args:
        path: file of the report.
        option: the option that named it, for the message.
        suffixes: those that are allowed.

    Raises:
        ReportError: for any other suffix.
        UnwritableReport: for a file that cannot be written.
    """
    name = f"{option} {path}".strip()
    if path.suffix not in suffixes:
        raise ReportError(f"{name}: the name of the file must end in {' or '.join(suffixes)}; choose such a name")
    try:
        check_writable(path)
    except OSError as error:
        raise UnwritableReport(f"{name}: the file cannot be written: {error}; choose another path") from None


def write_report(path: Path, results: Sequence[Row], targets: Sequence[str], changes: Sequence[str] = ()) -> None:
    """Write a report as JSON or Markdown, depending on the suffix ``.json`` or ``.md``.

    Args:
        path: file of the report.
        results: verdicts as dictionaries.
        targets: the targets of the run.
        changes: differences from the baseline, one line each.

    Raises:
        UnwritableReport: if the file cannot be written. The verdicts are still worth showing then.
    """
    if path.suffix == ".json":
        text = as_json(results, targets, **({"drift": list(changes)} if changes else {}))
    else:
        text = as_markdown(results, targets, changes)
    try:
        write_atomically(path, text)
    except OSError as error:
        raise UnwritableReport(f"report {path} cannot be written: {error.strerror or error}") from None


def append_summary(path: Path, results: Sequence[Row], targets: Sequence[str], changes: Sequence[str] = ()) -> None:
    """Append a report as Markdown to the summary of a job of GitHub Actions.

    The arguments are those of ``write_report``.

    Raises:
        UnwritableReport: if the file cannot be written.
    """
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(as_markdown(results, targets, changes))
    except OSError as error:
        raise UnwritableReport(
            f"the summary in $GITHUB_STEP_SUMMARY, {path}, cannot be written: {error.strerror or error}"
        ) from None
