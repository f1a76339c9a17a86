"""The scenario E9, whose report compares counts of hits with the published ones."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any, Final

from rich.text import Text

from relucheck.reproduction.report.hits.page import (
    Counts,
    conclusion,
    counts_of,
    fit_table,
    hits_table,
    legend,
    page,
    summary,
    title,
    write_figures,
)
from relucheck.reproduction.scenario import Place, Reported
from relucheck.reproduction.trained import TrainingScenario, drawn, every_nudges, nudge_lines, read, void_nudges
from relucheck.results.store import write_atomically
from relucheck.training.results.result import Result

#: Number of arithmetics in a table on a terminal, and the columns that it leaves out.
_ROWS: Final = 10
_LEFT_OUT: Final = ("worst series", "log-likelihood", "best", "accuracy")


@dataclasses.dataclass(frozen=True)
class CountsScenario(TrainingScenario):
    """A training scenario that is reported by its counts of hits."""

    def report(self, place: Place, *, progress: bool = True) -> Reported:
        """Write ``figures/``, ``summary.json`` and ``report.md``.

        Raises:
            relucheck.results.store.StoreError: for what cannot be written, where every file is whole or as it was before,
                and for a result that cannot be read.
        """
        every = self.comparisons(place.scale)
        found = [(comparison, read(place, comparison)) for comparison in every]
        runs = [(comparison, result) for comparison, result in found if result is not None]
        missing = [comparison.name for comparison, result in found if result is None]
        made = counts_of(self, place.scale, place.folder, runs, missing)
        figures = drawn(place.folder, lambda: write_figures(made))
        path = place.folder / "report.md"
        write_atomically(place.folder / "summary.json", json.dumps(summary(made), indent=1, ensure_ascii=False) + "\n")
        nudges = every_nudges(place, every)
        text = page(made, figures)
        if nudges:  # they are for the claims, and change no count
            text += "\n".join(["", "## Nudges", "", *(f"- {line}" for line in nudge_lines(place.folder, nudges)), ""])
        write_atomically(path, text)
        void = (*made.void, *void_nudges(nudges))
        shown = functools.partial(_shown, made, nudges)
        return Reported(place.folder, path, made.missing, void, shown, made)


def _shown(made: Counts, nudges: Mapping[str, Result], width: int) -> list[Any]:
    lines: list[Any] = [Text(title(made)), Text(""), *map(Text, conclusion(made)), Text("")]
    for target, every in made.targets:
        table = fit_table(every[:_ROWS], 1).without(*_LEFT_OUT)
        rest = f"{len(every) - _ROWS} more in {made.folder / 'report.md'}" if len(every) > _ROWS else ""
        lines.append(dataclasses.replace(table, title=target.name, caption=rest).rich(first=True))
    if made.targets:
        lines += map(Text, legend(_LEFT_OUT))
    else:
        for part in dict.fromkeys(comparison.part for comparison, _ in made.runs):
            table = hits_table([run for run in made.runs if run[0].part == part])
            lines.append(dataclasses.replace(table.without("comparison", "seeds", "diverged"), title=part).rich(first=True))
    if made.slopes is not None:
        lines += [Text(""), *made.slopes.terminal()]
    again = [f"void: delete {made.folder / 'runs' / name} to run {name} again" for name in made.void]
    return [*lines, *map(Text, [*nudge_lines(made.folder, nudges), *again])]
