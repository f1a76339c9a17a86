"""The table of laws in docs/laws.md: a row per law, with its summary and the mutants that it must find.

``python -m tests.docs.law_table`` writes it anew after a change of laws, their docstrings or mutants.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from relucheck.gate.laws import LAWS
from tests.faults import mutants

PAGE: Final = Path(__file__).parents[2] / "docs" / "laws.md"
_ROW: Final = "| `"


def rows() -> list[str]:
    """What the table must hold, law by law."""
    return [
        f"| `{law.name}` | {law.summary} | {', '.join(_targeting(law.name)) or '(reports only)'} |" for law in LAWS.values()
    ]


def _targeting(law: str) -> list[str]:
    return sorted({mutant.name for mutant in mutants.MUTANTS if mutant.law == law}, key=str)


def is_row(line: str) -> bool:
    """Whether a line of the page is a row of the table."""
    return line.startswith(_ROW)


def _write() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("| ---")) + 1
    kept = [line for line in lines[first:] if not is_row(line)]
    PAGE.write_text("\n".join([*lines[:first], *rows(), *kept]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _write()
