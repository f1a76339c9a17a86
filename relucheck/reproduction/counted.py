"""The scenario E9, whose report compares counts of hits with the published ones."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

from rich.text import Text

from relucheck.reproduction.report.counts import (
    Counts,
    conclusion,
    counts_of,
    fit_table,
    hits_table,
    page,
    summary,
    title,
    write_figures,
)
from relucheck.reproduction.scenario import Place, Reported
from relucheck.reproduction.trained import TrainingScenario, drawn, read
from relucheck.results.store import write_atomically


@dataclasses.dataclass(frozen=True)
class CountsScenario(TrainingScenario):
    """A training scenario that is reported by its counts of hits."""

    def report(self, place: Place, *, progress: bool = True) -> Reported:
        """Write ``figures/``, ``summary.json`` and ``report.md``.

        Raises:
            relucheck.results.store.StoreError: for what cannot be written, where every file is whole or as it was before,
                and for a result that cannot be read.
        """
        found = [(comparison, read(place, comparison)) for comparison in self.comparisons(place.scale)]
        runs = [(comparison, result) for comparison, result in found if result is not None]
        missing = [comparison.name for comparison, result in found if result is None]
        made = counts_of(self, place.scale, place.folder, runs, missing)
        figures = drawn(place.folder, lambda: write_figures(made))
        path = place.folder / "report.md"
        write_atomically(place.folder / "summary.json", json.dumps(summary(made), indent=1, ensure_ascii=False) + "\n")
        write_atomically(path, page(made, figures))
        return Reported(place.folder, path, made.missing, made.void, functools.partial(_shown, made), made)


def _shown(made: Counts, width: int) -> list[Any]:
    lines: list[Any] = [Text(title(made)), Text(""), Text(conclusion(made)), Text("")]
    for target, every in made.targets:
        lines.append(dataclasses.replace(fit_table(every[:10]), title=target.name).rich(first=True))
    if not made.targets:
        lines.append(hits_table(made.runs).rich(first=True))
    return lines
