"""Writes what fails in a run into pyproject.toml, as expected failures.

A library with old faults adopts the gate so: the faults stay listed, and a new one fails the run.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from relucheck.gate.config import ConfigError, ExpectedFailure, read
from relucheck.gate.report.tables import Row
from relucheck.results.files import write_atomically
from relucheck.results.tables import counted

#: The reason of an entry that nobody has explained yet.
UNEXPLAINED: Final = "to be filled in"
_HEADER: Final = re.compile(r"\s*\[\[\s*tool\s*\.\s*relucheck\s*\.\s*[\"']?expected-failures[\"']?\s*\]\]")
_ANY_HEADER: Final = re.compile(r"\s*\[")


def update(root: Path, results: Sequence[Row]) -> str:
    """Make the expected failures in pyproject.toml those of a run.

    An entry that still describes failures of the run stays as it is. One that does not is removed, or replaced by entries
    with its reason. An entry about items that the run did not check stays, too.

    Args:
        root: the folder of pyproject.toml, which is written if it does not exist.
        results: verdicts as dictionaries, of a run with ``GateConfig.update``.

    Returns:
        One sentence about what was written.

    Raises:
        ConfigError: for a pyproject.toml that cannot be read, or whose list of expected failures is written in a form that
            cannot be changed line by line.
    """
    path = root / "pyproject.toml"
    config = read(root)
    old = config.expected
    kept, new = _entries(old, results, config.dtypes)
    text = path.read_bytes().decode("utf-8") if path.is_file() else ""  # with the ends of lines as they are
    changed = _written(text, [entry in kept for entry in old], new)
    wanted = [dataclasses.asdict(entry) for entry in (*kept, *new)]
    if _entries_of(changed) != wanted:
        raise ConfigError(
            f"{path}: the expected failures are not written as [[tool.relucheck.expected-failures]] tables, so they cannot "
            "be updated; write each as such a table, and run again"
        )
    if changed != text:
        write_atomically(path, changed)
    parts = [f"{counted(len(new), 'new entry').replace('entrys', 'entries')}"]
    parts += [f"{number} {word}" for number, word in ((len(kept), "kept"), (len(old) - len(kept), "removed")) if number]
    fill = f"; replace the reason {UNEXPLAINED!r} of each" if any(entry.reason == UNEXPLAINED for entry in new) else ""
    return f"expected failures in {path.name}: {', '.join(parts)}{fill}"


def _entries(
    old: Sequence[ExpectedFailure], results: Sequence[Row], dtypes: Sequence[str]
) -> tuple[list[ExpectedFailure], list[ExpectedFailure]]:
    """Return which entries stay, and the new ones.

    An entry for all dtypes is new only if the run has checked all that the configuration names.
    """
    judged = [row for row in results if row["outcome"] != "skipped" and row["dtype"] != "-"]
    ids = {id(row): _id(row) for row in judged}
    kept = [entry for entry in old if all(_describes(entry, row) for row in judged if entry.matches(ids[id(row)]))]
    new: list[ExpectedFailure] = []
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in judged:
        groups.setdefault((row["activation"], row["law"]), []).append(row)
    for (activation, law), rows in groups.items():
        failed = [row for row in rows if row["outcome"] == "expected"]
        missing = [row for row in failed if not any(entry.matches(ids[id(row)]) for entry in kept)]
        if not missing:
            continue
        patterns = {_pattern(row) for row in missing}
        checked = {row["dtype"] for row in results if (row["activation"], row["law"]) == (activation, law)}
        if len(missing) == len(rows) > 1 and len(patterns) == 1 and checked >= set(dtypes):
            names = [f"{activation}/{law}/*"]
        else:
            names = [ids[id(row)] for row in missing]
        for name, row in zip(names, missing, strict=False):
            before = next((entry for entry in old if entry.matches(ids[id(row)]) and _describes(entry, row)), None)
            if before is not None:
                new.append(dataclasses.replace(before, id=name))
            else:
                new.append(ExpectedFailure(name, UNEXPLAINED, _pattern(row)))
    return kept, new


def _id(row: Row) -> str:
    return f"{row['activation']}/{row['law']}/{row['dtype']}" + ("" if row["device"] == "cpu" else f"@{row['device']}")


def _describes(entry: ExpectedFailure, row: Row) -> bool:
    return row["outcome"] == "expected" and entry.covers(row["message"])


def _pattern(row: Row) -> str:
    """Return a regular expression for a failure's message without its numbers, which change."""
    sentence = row["message"].partition("\n")[0].partition(": ")[2]
    return re.escape(re.split(r"[\d;:(]", sentence)[0].strip(" ,")).replace(r"\ ", " ")


def _written(text: str, stays: Iterable[bool], new: Sequence[ExpectedFailure]) -> str:
    """Return the file without the entries that do not stay, and with the new ones at its end."""
    remaining, drop = iter(stays), False
    lines: list[str] = []
    after: list[str] = []  # comments and blank lines that may belong to what follows a dropped entry
    for line in text.splitlines(keepends=True):
        if _HEADER.match(line):
            drop = not next(remaining, True)
        elif _ANY_HEADER.match(line):
            drop = False
        elif drop:
            after = [*after, line] if not line.strip() or line.lstrip().startswith("#") else []
        if not drop:
            lines += [*_without_second_gap(lines, after), line]
            after = []
    lines += _without_second_gap(lines, after)
    if not new:
        return "".join(lines)
    end = "\r\n" if "\r\n" in text else "\n"
    blocks = ["".join(lines).rstrip("\r\n")] if "".join(lines).strip() else []
    for entry in new:
        fields = {key: value for key, value in dataclasses.asdict(entry).items() if value}
        pairs = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()]
        blocks.append(end.join(["[[tool.relucheck.expected-failures]]", *pairs]))
    return (end + end).join(blocks) + end


def _without_second_gap(before: Sequence[str], lines: Sequence[str]) -> Sequence[str]:
    """Return lines without the blank ones at their start, if the line before is blank."""
    gap = bool(before) and not before[-1].strip()
    return list(itertools.dropwhile(lambda line: not line.strip(), lines)) if gap else lines


def _entries_of(text: str) -> list[dict[str, str]] | None:
    """Return the entries of a pyproject.toml with all their fields; None if it is no TOML."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None
    entries = table.get("tool", {}).get("relucheck", {}).get("expected-failures", [])
    return [dataclasses.asdict(ExpectedFailure(**entry)) for entry in entries]
