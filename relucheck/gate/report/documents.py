"""Reports of the gate as JSON and Markdown.

This module handles only plain data, as ``relucheck.gate.report.tables`` does.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from relucheck.errors import UNWRITABLE, RelucheckError, printable
from relucheck.gate.report.diagnoses import diagnose
from relucheck.gate.report.tables import MARKS, Row, counts, kink_table, kinks, matrix, searched
from relucheck.numerics.environment import software
from relucheck.results.files import check_writable, write_atomically
from relucheck.results.tables import Table

#: Name and version of the JSON layout; a reader refuses every other version.
SCHEMA: Final = "relucheck-gate"
SCHEMA_VERSION: Final = 2


class ReportError(RelucheckError, ValueError):
    """A report that cannot be read, written or compared with a run."""


class UnwritableReport(ReportError):
    """A report that cannot be written."""

    exit_code = UNWRITABLE


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
        "results": [
            {key: value for key, value in result.items() if key not in ("kinks", "curve", "seconds", "defined")}
            for result in results
        ],
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


def as_markdown(
    results: Sequence[Row], targets: Sequence[str], changes: Sequence[str] = (), figures: Sequence[str] = ()
) -> str:
    """Format a report as Markdown: counts, failures, matrix, notices and kink table.

    Args:
        results: verdicts as dictionaries.
        targets: the targets of the run.
        changes: differences from the baseline, one line each.
        figures: figures of the activations, as links from the report.
    """
    lines = [
        f"# relucheck: {printable(', '.join(targets)) or 'activations'}",
        "",
        f"{', '.join(f'{number} {outcome}' for outcome, number in counts(results).items() if number)}. {software()}.",
        "",
    ]
    faults = diagnose(results)
    if faults:
        lines += [
            "## Failures",
            "",
            "Failures that usually have one cause are shown together, with one of their inputs.",
            "",
        ]
        for fault in faults:
            text = fault.text()
            # longer than any fence in the message, which may quote a target
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
            lines += [fence, text, fence, ""]
            others = [row for row in fault.failures if row is not fault.main]
            lines += [f"- {_in_one_line(row)}" for row in others] + [""] * bool(others)
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
        body = [[name, *(MARKS.get(cells.get((name, law), ""), "") for law in laws)] for name in activations]
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
        lines += ["## Kinks", "", *kinks(rows).markdown(), ""]
    if figures:
        images = (f'<img src="{figure}" width="300" alt="{Path(figure).stem}">' for figure in figures)
        lines += ["## Kink cards", "", *images, ""]
    return "\n".join(lines)


def _in_one_line(row: Row) -> str:
    """Return a failure with its input, what was computed and what is allowed."""
    example = row["counterexample"] or {}
    labels = ("input", "x"), ("cotangent", "cotangent"), ("got", "got"), ("allowed", "allowed")
    numbers = [f"{label} {example[key]}" for label, key in labels if example.get(key)]
    return "; ".join([row["message"].partition("\n")[0], *numbers])


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


def write_report(
    path: Path,
    results: Sequence[Row],
    targets: Sequence[str],
    changes: Sequence[str] = (),
    figures: Sequence[Path] = (),
) -> None:
    """Write a report as JSON or Markdown, depending on the suffix ``.json`` or ``.md``.

    Args:
        path: file of the report.
        results: verdicts as dictionaries.
        targets: the targets of the run.
        changes: differences from the baseline, one line each.
        figures: files of figures, which a Markdown report shows.

    Raises:
        UnwritableReport: if the file cannot be written. The verdicts are still worth showing then.
    """
    if path.suffix == ".json":
        text = as_json(results, targets, **({"drift": list(changes)} if changes else {}))
    else:
        links = [Path(os.path.relpath(figure, path.parent)).as_posix() for figure in figures]
        text = as_markdown(results, targets, changes, links)
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
