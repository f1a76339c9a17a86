"""What has changed between the kink tables of two reports of the gate.

This module handles only plain data, as ``relucheck.gate.report.tables`` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from relucheck.gate.report.documents import ReportError
from relucheck.gate.report.tables import Row, kink_table, searched


def differences(old: Mapping[str, Any], results: Sequence[Row], name: str) -> list[str]:
    """Compare the kink table of an older report with that of a run.

    Args:
        old: the older report, as ``read_json`` returns it.
        results: verdicts of the run, as dictionaries.
        name: file name of the older report, for the error message.

    Returns:
        One line per difference. Activations of the older table that are not in the run share the last line.

    Raises:
        ReportError: where the two have no activation or no dtype in common.
    """
    before: Mapping[str, Sequence[str]] = old["searched"]
    now = searched(results)
    shared = before.keys() & now.keys()
    if not shared:
        raise ReportError(
            f"nothing to compare: {name} has kinks of the activations {_names(before)}, this run has kinks of "
            f"{_names(now)}; compare with a table of the same target"
        )
    if not any(set(before[activation]) & set(now[activation]) for activation in shared):
        theirs, ours = (_names(dtype for key in shared for dtype in table[key]) for table in (before, now))
        raise ReportError(
            f"nothing to compare: {name} has the dtypes {theirs}, this run has {ours}; "
            f"run with one of the dtypes of {name} (--dtypes), or write it again"
        )
    gone = {row["activation"] for row in old["kinks"]} - now.keys()
    lines = drift([row for row in old["kinks"] if row["activation"] not in gone], kink_table(results))
    return [*lines, f"this run did not search for kinks of {_names(gone)}"] if gone else lines


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names))) or "(none)"


def drift(old: Sequence[Row], new: Sequence[Row]) -> list[str]:
    """Compare two kink tables.

    A dtype or device that only one table covers is not a difference. A mode that works in only one table is.

    Args:
        old: rows of the older table, as ``kink_table`` returns them.
        new: rows of the newer table.

    Returns:
        One line per difference; empty where the tables agree.
    """
    lines: list[str] = []
    olds, news = (
        {(row["activation"], row["device"], float(f"{row['at']:.3g}")): row for row in rows} for rows in (old, new)
    )
    devices = {row["device"] for row in old} & {row["device"] for row in new} or {row["device"] for row in (*old, *new)}
    for key in sorted({*olds, *news}):
        if key[1] not in devices:
            continue
        label = f"{key[0]} at {(olds.get(key) or news[key])['at']:g}" + ("" if key[1] == "cpu" else f" on {key[1]}")
        if key not in news:
            lines.append(f"{label}: the kink no longer exists")
            continue
        if key not in olds:
            lines.append(f"{label}: a new kink, left {news[key]['left']}, right {news[key]['right']}")
            continue
        before, after = olds[key], news[key]
        for name in ("left", "right", "jump"):
            if not _close(before[name], after[name], 1e-6):
                lines.append(f"{label}: {name} {before[name]} became {after[name]}")
        for dtype in sorted({*before["subgradient"]} & {*after["subgradient"]}):
            was, now = before["subgradient"][dtype], after["subgradient"][dtype]
            lines += [
                f"{label}: {dtype} {mode}: {was.get(mode)} became {now.get(mode)}"
                for mode in sorted({*was, *now})
                if not _close(was.get(mode), now.get(mode), 1e-2 if "16" in dtype else 1e-6)
            ]
    return lines


def _close(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(a, int | float) and isinstance(b, int | float):
        return abs(a - b) <= tolerance * (1 + abs(a))
    return bool(a == b)
