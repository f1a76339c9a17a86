"""The scenario E7, which has random searches beside trainings.

A search distributes its trials itself, on Ray (``relucheck.search``). Searches run only where they are named, because they
need the extra ``ray``.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from relucheck.errors import did_you_mean
from relucheck.reproduction.report.searching.figures import parallel_figure, scatter_figure
from relucheck.reproduction.report.searching.points import measured_points, published_points
from relucheck.reproduction.report.searching.tables import LEGEND, best_table, sentence, side_by_side, trial_table
from relucheck.reproduction.report.summary import Reproduction, Section
from relucheck.reproduction.scenario import NUDGES, Comparison, Place, ScenarioError, check_scale
from relucheck.reproduction.trained import TrainingScenario
from relucheck.results.figures import save
from relucheck.search import Search, SearchResult, read, unit
from relucheck.work import Unit

#: How the names of searches begin; a part of ``only`` that begins so selects searches, and nothing else does.
SEARCHES: Final = "search-"
#: Columns of the tables of searches that a terminal leaves out.
_WIDE: Final = ("loss", "ended", "finished")


@dataclasses.dataclass(frozen=True)
class Searching:
    """A random search of a scenario.

    Attributes:
        name: unique in its scenario; begins with :data:`SEARCHES`.
        model: of the published search that it stands beside, see ``published.SEARCHED``; "" for none.
        said: what is searched, for tables: "tuned, injected".
        search: which search.
    """

    name: str
    model: str
    said: str
    search: Search

    @property
    def subgradients(self) -> str:
        """Those of the published search: "tuned" or "default"."""
        return self.said.partition(",")[0]

    @property
    def title(self) -> str:
        """The search in words."""
        return f"{self.said}, {self.search.arithmetic.name}"


@dataclasses.dataclass(frozen=True)
class SearchScenario(TrainingScenario):
    """A training scenario with random searches.

    Attributes:
        searches: per scale.
    """

    searches: Mapping[str, tuple[Searching, ...]] = dataclasses.field(default_factory=dict)

    def comparisons(self, scale: str, only: Sequence[str] = ()) -> tuple[Comparison, ...]:
        """As in ``Experiment``; names and globs that begin with "search-" select no comparison."""
        check_scale(scale)
        others = [wanted for wanted in only if not wanted.startswith(SEARCHES)]
        return () if only and not others else super().comparisons(scale, others)

    def nudges(self, scale: str, only: Sequence[str]) -> tuple[Comparison, ...]:
        """None: the nudges are members of the comparisons here.

        Raises:
            ScenarioError: for a name or glob that ends in "-nudges".
        """
        check_scale(scale)
        if wanted := [name for name in only if name.endswith(NUDGES)]:
            raise ScenarioError(
                f"{self.name} has no part {wanted[0]!r}: its comparisons have their nudges as members, and no others are "
                f"run; name {wanted[0].removesuffix(NUDGES)!r}"
            )
        return ()

    def chosen(self, scale: str, only: Sequence[str]) -> tuple[Searching, ...]:
        """The searches that ``only`` selects by names and globs that begin with "search-".

        () selects none.

        Raises:
            ScenarioError: for a name or glob that selects no search.
        """
        check_scale(scale)
        every = self.searches.get(scale, ())
        found: set[str] = set()
        for wanted in (one for one in only if one.startswith(SEARCHES)):
            names = [one.name for one in every if fnmatch.fnmatchcase(one.name, wanted)]
            if not names:
                known = [one.name for one in every]
                hint = did_you_mean(wanted, known)
                raise ScenarioError(
                    f"{self.name} at scale {scale} has no search {wanted!r}; {hint}searches: {', '.join(known) or 'none'}"
                )
            found.update(names)
        return tuple(one for one in every if one.name in found)

    def parts(self, scale: str, only: Sequence[str] = ()) -> tuple[str, ...]:
        """The names of the comparisons and searches."""
        return (*super().parts(scale, only), *(one.name for one in self.chosen(scale, only)))

    def data_sets(self, scale: str, only: Sequence[str] = ()) -> tuple[tuple[str, str], ...]:
        """Both splits of every comparison's data, and the training split of the searches' data."""
        own = [(one.search.data, "train") for one in self.chosen(scale, only)]
        return tuple(dict.fromkeys((*super().data_sets(scale, only), *own)))

    def units(self, place: Place, only: Sequence[str] = ()) -> tuple[Unit, ...]:
        """A unit for each seed of each comparison, and one for each search."""
        searches = tuple(
            unit(
                one.search,
                _folder(place.folder, one),
                root=place.root,
                device=place.device,
                address=place.address,
                gpus=place.gpus,
                at_once=place.at_once,
                name=one.name,
            )
            for one in self.chosen(place.scale, only)
        )
        return (*super().units(place, only), *(one for one in searches if one.done < one.steps))

    def unfinished(self, place: Place) -> tuple[str, ...]:
        """The names of the searches of which a trial has not ended."""
        every = [(one, read(_folder(place.folder, one), one.search)) for one in self.searches.get(place.scale, ())]
        return tuple(one.name for one, result in every if result is None or not result.complete)

    def own_sections(self, made: Reproduction) -> tuple[Section, ...]:
        """The sections of the trainings, followed by those of the searches that have results."""
        return (*super().own_sections(made), *_sections(self._found(made)))

    def own_figures(self, made: Reproduction, folder: Path) -> list[Path]:
        """Write the figures of the trainings and of the searches; return their paths."""
        written = super().own_figures(made, folder)
        for network, found in _by_network(self._found(made)).items():
            panels = {one.title: measured_points(result) for one, result in found}
            model = found[0][0].model
            if model:
                panels |= {f"{kind}, published [R22]": published_points(model, kind) for kind in ("tuned", "default")}
            slug = "".join(sign if sign.isalnum() else "-" for sign in network)
            for kind, figure in (("scatter", scatter_figure), ("parallel", parallel_figure)):
                path = folder / f"search-{slug}-{kind}.png"
                save(figure(f"E7: searches on {network}", panels), path)
                written.append(path)
        return written

    def _found(self, made: Reproduction) -> list[tuple[Searching, SearchResult]]:
        """The searches of a report's scale that have results."""
        every = [(one, read(_folder(made.folder, one), one.search)) for one in self.searches.get(made.scale, ())]
        return [(one, result) for one, result in every if result is not None and result.trials]


def _folder(folder: Path, one: Searching) -> Path:
    return folder / "searches" / one.name


def _by_network(
    found: Sequence[tuple[Searching, SearchResult]],
) -> dict[str, list[tuple[Searching, SearchResult]]]:
    every: dict[str, list[tuple[Searching, SearchResult]]] = {}
    for one, result in found:
        every.setdefault(one.search.network.name, []).append((one, result))
    return every


def _sections(found: Sequence[tuple[Searching, SearchResult]]) -> list[Section]:
    """For each network the best trials, and for the report alone every trial beside the published ones."""
    shown = []
    for network, own in _by_network(found).items():
        best = best_table({one.title: result for one, result in own}, own[0][0].model or None)
        said = tuple(sentence(f"Search on {network}, {one.title}", result) for one, result in own)
        data = {one.name: result.to_json() for one, result in own}
        shown.append(
            Section(f"Searches on {network}", said, (dataclasses.replace(best, caption=""),), (LEGEND,), _WIDE, data)
        )
        tables = [
            dataclasses.replace(side_by_side(result, one.model, one.subgradients), title=one.title)
            if one.model
            else trial_table(result, one.title)
            for one, result in own
        ]
        shown.append(Section(f"Every trial on {network}", (), tuple(tables), on_terminal=False))
    return shown
