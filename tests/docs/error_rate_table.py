"""The table of simulated error rates in docs/statistics.md: a row per case.

``python -m tests.docs.error_rate_table`` writes it anew after a change of rules or simulations.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.results.statistics.simulations import CASES, DRAWS, INVERSES, SEEDS, Case, wrong_verdicts

PAGE: Final = Path(__file__).parents[2] / "docs" / "statistics.md"
_ROW: Final = "| `"
_HEADER: Final = "| rule | truth |"


def row(case: Case) -> str:
    """What the table must hold for a case."""
    return f"| `{case.rule}` | {case.truth} | {case.verdict} | {' | '.join(_rates(case, kind) for kind in INVERSES)} |"


def _rates(case: Case, kind: str) -> str:
    rates = ", ".join(f"{100 * wrong_verdicts(case, kind, seeds) / DRAWS:.1f}" for seeds in SEEDS)
    return rates if kind in case.kinds else f"*{rates}*"


def shown() -> list[str]:
    """The rows of the page."""
    return [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(_ROW)]


def _write() -> None:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if not line.startswith(_ROW)]
    first = next(number for number, line in enumerate(lines) if line.startswith(_HEADER)) + 2
    PAGE.write_text("\n".join([*lines[:first], *map(row, CASES), *lines[first:]]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _write()
