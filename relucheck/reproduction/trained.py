"""Training experiments as scenarios, with a unit of work for each seed."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from relucheck import data
from relucheck.reproduction.report import layers
from relucheck.reproduction.report.conclusion import conclusion, title
from relucheck.reproduction.report.deciding.cases import Trained
from relucheck.reproduction.report.deciding.catalogue import decided
from relucheck.reproduction.report.document import report, summary
from relucheck.reproduction.report.layers import BY_LAYER
from relucheck.reproduction.report.nudges.effects import effects, nudge_groups
from relucheck.reproduction.report.nudges.tables import terminal
from relucheck.reproduction.report.summary import Reproduction, Section, analyse, check
from relucheck.reproduction.report.tables import legend, rich_outcomes, rich_tables
from relucheck.reproduction.scenario import NUDGES, Comparison, Experiment, Place, Reported
from relucheck.results.store import StoreError, write_atomically
from relucheck.results.tables import counted
from relucheck.training import engine
from relucheck.training.results import seed_store
from relucheck.training.results.result import Result
from relucheck.work import Unit


@dataclasses.dataclass(frozen=True)
class TrainingScenario(Experiment):
    """A training experiment that runs; a :class:`relucheck.reproduction.scenario.Scenario`.

    Attributes:
        sections: what its report has beyond that of others, from all that is finished.
        draws: writes the figures of these sections into a folder, and returns their paths.
    """

    sections: Callable[[Reproduction], tuple[Section, ...]] | None = None
    draws: Callable[[Reproduction, Path], list[Path]] | None = None

    @property
    def unit(self) -> str:
        return "steps"

    @property
    def trains(self) -> bool:
        return True

    def parts(self, scale: str, only: Sequence[str] = ()) -> tuple[str, ...]:
        """The names of the comparisons and nudges."""
        return tuple(part.name for part in self._parts(scale, only))

    def _parts(self, scale: str, only: Sequence[str]) -> tuple[Comparison, ...]:
        return (*self.comparisons(scale, only), *self.nudges(scale, only))

    def data_sets(self, scale: str, only: Sequence[str] = ()) -> tuple[tuple[str, str], ...]:
        """Both splits of every comparison's data."""
        names = dict.fromkeys(part.settings.data for part in self._parts(scale, only))
        return tuple((name, split) for name in names for split in data.SPLITS)

    def units(self, place: Place, only: Sequence[str] = ()) -> tuple[Unit, ...]:
        """A unit for each seed of each part.

        Where members are stacked, one unit holds all missing seeds of a comparison.
        """
        return tuple(
            unit
            for comparison in self._parts(place.scale, only)
            for unit in engine.units(
                comparison.settings,
                store_of(place.folder, comparison),
                root=place.root,
                device=place.device,
                executor=engine.executor_of(comparison.settings, place.executor, place.device),
                name=comparison.name,
            )
        )

    def adopt(self, place: Place, other: Path, only: Sequence[str] = ()) -> tuple[str, ...]:
        """Copy finished seeds with equal settings that this folder lacks, except void ones."""
        taken = []
        for comparison in self._parts(place.scale, only or ("*", f"*{NUDGES}")):
            settings, executor = comparison.settings, engine.executor_of(comparison.settings, place.executor, place.device)
            here, there = store_of(place.folder, comparison), store_of(other, comparison)
            mine = seed_store.finished(settings, here, executor)
            seeds = {
                seed: part
                for seed, part in seed_store.finished(settings, there, executor).items()
                if seed not in mine and not part.void
            }
            if seeds:
                seed_store.keep(settings, here, executor, seeds)
                taken.append(comparison.name)
        return tuple(taken)

    def report(self, place: Place, *, progress: bool = True) -> Reported:
        """Write ``figures/``, ``summary.json`` and ``report.md``.

        Raises:
            relucheck.results.store.StoreError: for what cannot be written, where every file is whole or as it was before,
                and for a result that cannot be read.
        """
        every = self.comparisons(place.scale)
        found = {comparison.name: so_far(place, comparison) for comparison in every}
        runs = tuple(run for run in found.values() if run is not None)
        whole = {comparison.name for comparison, result in runs if comparison in every}
        cells = tuple(analyse(runs)) if self.tables else ()
        results = {comparison.name: result for comparison, result in runs}
        nudges = every_nudges(place, every)
        trained = [
            Trained(comparison, result, for_claims(comparison, nudges.get(comparison.name)))
            for comparison, result in runs
            if comparison.name in whole
        ]
        made = Reproduction(
            self,
            place.scale,
            place.folder,
            runs,
            tuple(_missing(comparison, found[comparison.name]) for comparison in every if comparison.name not in whole),
            cells,
            tuple(check(self.published_figures(place.scale), results)),
            # the digits of smoke runs can neither confirm nor refute anything
            () if place.scale == "smoke" else decided({self.name: trained}, scenario=self.name),
            (),
            tuple(nudge_groups(runs, nudges)),
            tuple(effects(runs, nudges, within_seeds=self.within_seeds)),
            partial=len(runs) - len(whole),
        )
        figures = tuple(_figures(self, made, nudges))
        made = dataclasses.replace(made, figures=figures, sections=self.own_sections(made))
        page = place.folder / "report.md"
        write_atomically(place.folder / "summary.json", json.dumps(summary(made), indent=1, ensure_ascii=False) + "\n")
        write_atomically(page, report(made))
        void = void_nudges(nudges)
        shown = functools.partial(_shown, made, nudges)
        missing = (*made.missing, *self.unfinished(place))
        return Reported(place.folder, page, missing, (*made.void, *void), shown, made)

    def unfinished(self, place: Place) -> tuple[str, ...]:
        """The names of the parts that are no comparison and have not finished."""
        return ()

    def own_sections(self, made: Reproduction) -> tuple[Section, ...]:
        """What the report has beyond that of others, from all that is finished."""
        return self.sections(made) if self.sections is not None else ()

    def own_figures(self, made: Reproduction, folder: Path) -> list[Path]:
        """Write the figures of these sections into a folder, and return their paths."""
        return self.draws(made, folder) if self.draws is not None else []


def store_of(folder: Path, comparison: Comparison) -> Path:
    """The folder of the seeds of a comparison, or of its nudges."""
    if comparison.nudges_of is not None:
        return folder / "nudges" / comparison.nudges_of
    return folder / "runs" / comparison.name


def read(place: Place, comparison: Comparison) -> Result | None:
    """The finished result of a comparison in a folder, or None.

    Raises:
        relucheck.results.store.StoreError: for a file that cannot be read, or that holds other settings.
    """
    executor = engine.executor_of(comparison.settings, place.executor, place.device)
    return seed_store.collect(comparison.settings, store_of(place.folder, comparison), executor)


def so_far(place: Place, comparison: Comparison) -> tuple[Comparison, Result] | None:
    """What a folder has of a comparison, or None if no seed is finished.

    Where seeds are missing, the comparison is restricted to the finished ones, and its part says how many of them there
    are.

    Raises:
        relucheck.results.store.StoreError: as for ``read``.
    """
    settings, folder = comparison.settings, store_of(place.folder, comparison)
    seeds = seed_store.finished(settings, folder, engine.executor_of(settings, place.executor, place.device))
    if not seeds:
        return None
    if len(seeds) < len(settings.seeds) and not any(part.void for part in seeds.values()):
        settings = settings.of_seeds(tuple(seeds))
        part = f"{comparison.part} ({len(seeds)} of {counted(len(comparison.settings.seeds), 'seed')})"
        comparison = dataclasses.replace(comparison, part=part, settings=settings)
    return comparison, Result.of(settings, seeds)


def _missing(comparison: Comparison, found: tuple[Comparison, Result] | None) -> str:
    """The name of an unfinished comparison, with the seeds that it has."""
    if found is None:
        return comparison.name
    return f"{comparison.name} ({len(found[0].settings.seeds)} of {counted(len(comparison.settings.seeds), 'seed')})"


def for_claims(comparison: Comparison, nudges: Result | None) -> Result | None:
    """The nudges of a comparison if all its seeds have them; claims wait for them."""
    return nudges if nudges is not None and set(comparison.settings.seeds) <= set(nudges.settings.seeds) else None


def read_nudges(place: Place, comparison: Comparison) -> Result | None:
    """The finished nudges of a comparison in a folder, of some or all of its seeds, or None.

    The nudges run beside a reference of their own. For each finished seed of the comparison it must equal the comparison's
    reference in every number, else the result is void.

    Raises:
        relucheck.results.store.StoreError: as for ``read``.
    """
    part = comparison.nudges
    found = so_far(place, part)
    if found is None or found[1].void:
        return found and found[1]
    result = found[1]
    executor, folder = engine.executor_of(part.settings, place.executor, place.device), store_of(place.folder, part)
    nudges = seed_store.finished(part.settings, folder, executor)
    for seed, known in seed_store.finished(comparison.settings, store_of(place.folder, comparison), executor).items():
        if seed in nudges and not seed_store.same_reference(known, nudges[seed]):
            places = [", ".join(f"{key} {value}" for key, value in one.origin.items()) for one in (known, nudges[seed])]
            why = f"the reference of seed {seed} is not that of {comparison.name} ({places[0]}; nudges: {places[1]})"
            return dataclasses.replace(result, void=why)
    return result


def every_nudges(place: Place, comparisons: Sequence[Comparison]) -> dict[str, Result]:
    """The finished nudges in a folder by the name of their comparison, see ``read_nudges``."""
    found = {comparison.name: read_nudges(place, comparison) for comparison in comparisons}
    return {name: result for name, result in found.items() if result is not None}


def void_nudges(nudges: Mapping[str, Result]) -> tuple[str, ...]:
    """The names of the parts whose nudges are void."""
    return tuple(f"{name}{NUDGES}" for name, result in nudges.items() if result.void)


def nudge_lines(folder: Path, nudges: Mapping[str, Result]) -> list[str]:
    """Say which nudges have run, and which of them are void and how they run again."""
    run = ", ".join(f"{name} ({counted(len(result.settings.seeds), 'seed')})" for name, result in nudges.items())
    lines = [f"nudges: {run or 'not run'}"]
    for name, result in nudges.items():
        if result.void:
            again = folder / "nudges" / name
            lines.append(f"void: the nudges of {name}: {result.void}; delete {again} to run them again")
    return lines


def _shown(made: Reproduction, nudges: Mapping[str, Result], width: int) -> list[Any]:
    published = made.experiment.published_at(made.scale)
    head = [f"{title(made)}", "", *(conclusion(made) if made.sections else [" ".join(conclusion(made))]), ""]
    tables = rich_tables(made.experiment.name, made.cells, published, width)
    outcomes = rich_outcomes(made.published, made.decisions)
    left_out = ("p differs, p equivalent", *(() if published else ("published %",)))
    again = [f"void: delete {made.folder / 'runs' / name} to run {name} again" for name in made.void]
    lines = [*nudge_lines(made.folder, nudges), *again]
    columns = legend(*left_out, images=made.experiment.evaluated)
    beyond = terminal(made.nudges, made.effects, made.experiment.evaluated)
    hits = layers.terminal(made.runs) if BY_LAYER in made.experiment.figures else []
    by_layer = [table.rich() for table in hits]
    own = [shown for section in made.sections for shown in section.terminal()]
    if not made.experiment.tables:
        return [*map(Text, head), *own, *outcomes, *map(Text, again)]
    return [*map(Text, head), *own, *tables, *map(Text, columns), *by_layer, *beyond, *outcomes, *map(Text, lines)]


def _figures(scenario: TrainingScenario, made: Reproduction, nudges: Mapping[str, Result]) -> list[Path]:
    from relucheck.reproduction.report.depth import by_depth
    from relucheck.reproduction.report.figures.draw import draw
    from relucheck.reproduction.report.figures.kinds import FIGURES

    kinds = {**FIGURES, BY_LAYER: by_depth}
    folder = made.folder / "figures"

    def every() -> list[Path]:
        others = draw(scenario, made.scale, made.runs, folder, nudges=nudges, figures=kinds)
        return scenario.own_figures(made, folder) + others

    return drawn(made.folder, every)


def drawn(folder: Path, draw: Callable[[], list[Path]]) -> list[Path]:
    """The figures that a function writes into a report's folder.

    Raises:
        relucheck.results.store.StoreError: a figure cannot be written.
    """
    try:
        return draw()
    except OSError as error:
        path = Path(error.filename) if error.filename else folder / "figures"
        raise StoreError(
            f"{path} cannot be written ({error.strerror or error}); see that nothing else is in its place, or name another "
            "folder; finished runs are kept"
        ) from error
