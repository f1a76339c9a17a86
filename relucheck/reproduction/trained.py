"""Training experiments as scenarios: a unit of work per seed, and the report on the finished comparisons."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from relucheck import data
from relucheck.reproduction.report.claims import claims
from relucheck.reproduction.report.conclusion import conclusion, title
from relucheck.reproduction.report.document import report, summary
from relucheck.reproduction.report.summary import Reproduction, analyse, check
from relucheck.reproduction.report.tables import legend, rich_outcomes, rich_tables
from relucheck.reproduction.scenario import Comparison, Experiment, Place, Reported
from relucheck.results.store import StoreError, write_atomically
from relucheck.training import engine
from relucheck.training.result import Result
from relucheck.work import Unit


@dataclasses.dataclass(frozen=True)
class TrainingScenario(Experiment):
    """A training experiment that runs; a :class:`relucheck.reproduction.scenario.Scenario`."""

    @property
    def unit(self) -> str:
        return "steps"

    @property
    def trains(self) -> bool:
        return True

    def parts(self, scale: str, only: Sequence[str] = ()) -> tuple[str, ...]:
        """The names of the comparisons."""
        return tuple(comparison.name for comparison in self.comparisons(scale, only))

    def data_sets(self, scale: str, only: Sequence[str] = ()) -> tuple[tuple[str, str], ...]:
        """Both splits of every comparison's data."""
        names = dict.fromkeys(comparison.settings.data for comparison in self.comparisons(scale, only))
        return tuple((name, split) for name in names for split in data.SPLITS)

    def units(self, place: Place, only: Sequence[str] = ()) -> tuple[Unit, ...]:
        """A unit for each seed of each comparison, or for all of a comparison's seeds where members are stacked."""
        return tuple(
            unit
            for comparison in self.comparisons(place.scale, only)
            for unit in engine.units(
                comparison.settings,
                store_of(place.folder, comparison),
                root=place.root,
                device=place.device,
                executor=engine.executor_of(comparison.settings, place.executor),
                name=comparison.name,
            )
        )

    def adopt(self, place: Place, other: Path, only: Sequence[str] = ()) -> tuple[str, ...]:
        """Copy finished seeds with equal settings that this folder lacks; void ones are never copied."""
        taken = []
        for comparison in self.comparisons(place.scale, only):
            settings, executor = comparison.settings, engine.executor_of(comparison.settings, place.executor)
            here, there = store_of(place.folder, comparison), store_of(other, comparison)
            mine = engine.finished(settings, here, executor)
            seeds = {
                seed: part
                for seed, part in engine.finished(settings, there, executor).items()
                if seed not in mine and not part.void
            }
            if seeds:
                engine.keep(settings, here, executor, seeds)
                taken.append(comparison.name)
        return tuple(taken)

    def report(self, place: Place, *, progress: bool = True) -> Reported:
        """Write ``figures/``, ``summary.json`` and ``report.md``.

        Raises:
            relucheck.results.store.StoreError: for what cannot be written, where every file is whole or as it was before,
                and for a result that cannot be read.
        """
        every = self.comparisons(place.scale)
        found = [(comparison, read(place, comparison)) for comparison in every]
        runs = tuple((comparison, result) for comparison, result in found if result is not None)
        cells = tuple(analyse(runs))
        results = {comparison.name: result for comparison, result in runs}
        made = Reproduction(
            self,
            place.scale,
            place.folder,
            runs,
            tuple(comparison.name for comparison, result in found if result is None),
            cells,
            tuple(check(self.published_figures(place.scale), results)),
            # the digits of smoke runs can neither confirm nor refute anything
            () if place.scale == "smoke" else tuple(claims(self.name, runs, cells)),
            tuple(_figures(self, place, runs)),
        )
        page = place.folder / "report.md"
        write_atomically(place.folder / "summary.json", json.dumps(summary(made), indent=1, ensure_ascii=False) + "\n")
        write_atomically(page, report(made))
        return Reported(place.folder, page, made.missing, made.void, functools.partial(_shown, made), made)


def store_of(folder: Path, comparison: Comparison) -> Path:
    """The folder of a comparison's seeds."""
    return folder / "runs" / comparison.name


def read(place: Place, comparison: Comparison) -> Result | None:
    """The finished result of a comparison in a folder, or None.

    Raises:
        relucheck.results.store.StoreError: for a file that cannot be read, or that holds other settings.
    """
    executor = engine.executor_of(comparison.settings, place.executor)
    return engine.collect(comparison.settings, store_of(place.folder, comparison), executor)


def _shown(made: Reproduction, width: int) -> list[Any]:
    published = made.experiment.published_at(made.scale)
    head = [f"{title(made)}", "", " ".join(conclusion(made)), ""]
    tables = rich_tables(made.experiment.name, made.cells, published, width)
    outcomes = rich_outcomes(made.published, made.claims)
    left_out = ("p differs, p equivalent", *(() if published else ("published %",)))
    again = [f"void: delete {made.folder / 'runs' / name} to run {name} again" for name in made.void]
    return [*map(Text, head), *tables, *map(Text, legend(*left_out)), *outcomes, *map(Text, again)]


def _figures(experiment: Experiment, place: Place, runs: Sequence[tuple[Comparison, Result]]) -> list[Path]:
    from relucheck.reproduction.report.figures import draw

    folder = place.folder / "figures"
    try:
        return draw(experiment, place.scale, runs, folder)
    except OSError as error:
        path = Path(error.filename) if error.filename else folder
        raise StoreError(
            f"{path} cannot be written ({error.strerror or error}); see that nothing else is in its place, or name another "
            "folder; finished runs are kept"
        ) from error
