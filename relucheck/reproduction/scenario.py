"""Scenarios: published experiments at three scales, as units of work and a report.

Scale *full* is for a CUDA device, and *cpu* for a machine without one. *smoke* is for CI: the shipped digits and small
networks with the same members, rules and reports.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from relucheck import data
from relucheck.errors import RelucheckError, did_you_mean
from relucheck.reproduction.published import AGREEMENT, PUBLISHED_EPOCHS, READ_OFF, PublishedError
from relucheck.training.settings import Settings, nudged
from relucheck.work import Unit

SCALES: Final[tuple[str, ...]] = ("full", "cpu", "smoke")
#: What the title of a report says of a scale.
SCALE_NAMES: Final = {
    "full": "full scale",
    "cpu": "reduced: cpu scale",
    "smoke": "smoke test on small data, which confirms and refutes nothing",
}


#: What ``only`` calls the arithmetic that gives an experiment's published counts of hits.
FITTED: Final = "published"
#: How the names of parts end that run the nudges of a comparison.
NUDGES: Final = "-nudges"


class ScenarioError(RelucheckError, ValueError):
    """A scenario, scale or part that does not exist; the message names the nearest one."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where and how a scenario runs.

    Attributes:
        scale: one of :data:`SCALES`.
        folder: for everything that is written.
        root: data root, or None.
        device: a name of torch.
        executor: of training members, "forking" or "stacked".
        at_once: how many trials of a search run at once; None means as many as there is room for.
        gpus: GPUs of each trial of a search on CUDA; None means the search's own share of one.
        address: of the Ray that runs searches; "local" starts one on this machine, None means $RAY_ADDRESS, else "local".
    """

    scale: str
    folder: Path
    root: data.Root
    device: str
    executor: str
    at_once: int | None = None
    gpus: float | None = None
    address: str | None = "local"


@dataclasses.dataclass(frozen=True)
class Reported:
    """The report of a folder.

    Attributes:
        folder: where it is.
        report: the page to read.
        missing: names of the parts that are not finished (``--only`` left them out).
        void: names of the comparisons whose control differed.
        shown: takes a width in columns and returns what :func:`relucheck.results.tables.render` shows on a terminal.
        made: the data behind the report.
    """

    folder: Path
    report: Path
    missing: tuple[str, ...]
    void: tuple[str, ...]
    shown: Callable[[int], Sequence[Any]]
    made: Any


class Scenario(Protocol):
    """A published experiment that can be run.

    Attributes:
        name, title, source: for reports.
        version: raised when settings change, and when an arithmetic computes other numbers under its name. So old folders
            are not mixed with new runs.
        unit: what a step of its progress is called, in the plural.
        trains: whether it trains, so that an executor can be chosen.
        shares: scenarios whose finished parts are copied where their settings are equal.
    """

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def unit(self) -> str: ...
    @property
    def trains(self) -> bool: ...
    @property
    def shares(self) -> tuple[str, ...]: ...

    def parts(self, scale: str, only: Sequence[str] = ()) -> tuple[str, ...]:
        """The names of the parts of a scale that ``only`` selects.

        An entry selects by name, or else by glob pattern or arithmetic.

        () is all but the nudges of trainings.

        Raises:
            ScenarioError: for an unknown scale, and for a selection that selects nothing.
        """
        ...

    def data_sets(self, scale: str, only: Sequence[str] = ()) -> tuple[tuple[str, str], ...]:
        """The data sets and splits that the parts read."""
        ...

    def units(self, place: Place, only: Sequence[str] = ()) -> tuple[Unit, ...]:
        """The units that the folder has not finished; each writes its result to the folder."""
        ...

    def adopt(self, place: Place, other: Path, only: Sequence[str] = ()) -> tuple[str, ...]:
        """Copy finished units from the folder of a scenario in ``shares``; return their parts."""
        ...

    def report(self, place: Place, *, progress: bool = True) -> Reported:
        """Write report, tables and figures on all that the folder has finished."""
        ...


def selected(name: str, scale: str, parts: Mapping[str, str], only: Sequence[str]) -> tuple[str, ...]:
    """The parts that ``only`` selects, in their order.

    Args:
        name, scale: of the scenario, for messages.
        parts: the arithmetic of each part, by the part's name.
        only: names, or where no part has one a glob or an arithmetic; () selects all.

    Raises:
        ScenarioError: for a selection that selects nothing.
    """
    chosen: set[str] = set()
    for wanted in only:
        found = {part for part, label in parts.items() if fnmatch.fnmatchcase(part, wanted) or label == wanted}
        if wanted in parts:  # that one alone: "bfloat16" is also the arithmetic of bfloat16-15-epochs
            found = {wanted}
        if not found:
            labels = list(dict.fromkeys(parts.values()))
            raise ScenarioError(
                f"{name} at scale {scale} has no part or arithmetic {wanted!r}; {did_you_mean(wanted, [*parts, *labels])}"
                f"parts: {_some(list(parts))}; arithmetics: {', '.join(labels)}"
            )
        chosen |= found
    return tuple(part for part in parts if not only or part in chosen)


def _some(names: Sequence[str], most: int = 20) -> str:
    left = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + left


def check_scale(scale: str) -> None:
    """Refuse an unknown scale.

    Raises:
        ScenarioError: names the nearest.
    """
    if scale not in SCALES:
        raise ScenarioError(f"unknown scale {scale!r}; {did_you_mean(scale, SCALES)}known: {', '.join(SCALES)}")


# ---------------------------------------------------------------- training


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One run of the engine.

    Attributes:
        name: unique in its experiment, for files and ``--only``.
        part: names its table.
        settings: what is trained.
        nudges_of: the name of the comparison whose nudges this is; None for a comparison.
        pairs: how many comparisons of one draw each its part has in its arithmetic, if it is one of them; else 0.
    """

    name: str
    part: str
    settings: Settings
    nudges_of: str | None = None
    pairs: int = 0

    @property
    def nudges(self) -> Comparison:
        """The nudges of this comparison, as a separate part.

        It has the references, the controls and the nudges of the same seeds.
        """
        return Comparison(self.name + NUDGES, self.part, nudged(self.settings), self.name)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A published training experiment as data.

    Attributes:
        name, title, source: for reports.
        scales: comparisons per scale, in the order in which they run.
        figures: of ("distance", "loss", "error", "boxes", "hits"), for each part. Those with "hits" also tabulate hits by
            layer.
        tables: whether each comparison has a table of its own. E7 has many small ones, which its own sections put together.
        overview: whether a figure of all differences of the accuracy from s = 0 comes first.
        published: final test error in % by comparison and s, read off the published figure
            (:data:`relucheck.reproduction.published.PUBLISHED_EPOCHS` epochs, on a GPU); the code that made it used the
            injected rule. Not for scale smoke, whose digits are others.
        shares: experiments of which finished runs with equal settings are taken over.
        version: raised when settings change, and when an arithmetic computes other numbers under its name.
        fitted: names of the arithmetics that give the published counts of hits, by the beginning of the names of the
            comparisons that train the counted network; "" begins every name. ``only`` selects them as :data:`FITTED`.
        within_seeds: whether effects beyond nudges are tested for the seeds at hand alone, because there are too few to
            speak of others: :func:`relucheck.results.statistics.beyond_in_these_seeds`.
    """

    name: str
    title: str
    source: str
    scales: Mapping[str, tuple[Comparison, ...]]
    figures: tuple[str, ...]
    tables: bool = True
    overview: bool = True
    published: Mapping[str, Mapping[float, float]] = dataclasses.field(default_factory=dict)
    shares: tuple[str, ...] = ()
    version: int = 2
    fitted: Mapping[str, str] = dataclasses.field(default_factory=dict)
    within_seeds: bool = False

    @property
    def evaluated(self) -> str:
        """The images on which accuracies are measured: "test" or "validation".

        They are the latter where training images are held out.
        """
        held_out = any(one.settings.validation is not None for every in self.scales.values() for one in every)
        return "validation" if held_out else "test"

    def comparisons(self, scale: str, only: Sequence[str] = ()) -> tuple[Comparison, ...]:
        """List the comparisons of a scale that ``only`` selects, see :func:`selected`.

        Names and globs that end in "-nudges" select nudges, see :meth:`nudges`, and no comparison.

        Raises:
            ScenarioError: for an unknown scale, and for a selection that selects nothing.
        """
        check_scale(scale)
        others = [wanted for wanted in only if not wanted.endswith(NUDGES)]
        return () if only and not others else self._selected(scale, self.scales[scale], others)

    def nudges(self, scale: str, only: Sequence[str]) -> tuple[Comparison, ...]:
        """The nudges that the names and globs in ``only`` that end in "-nudges" select.

        An empty ``only`` selects none, because the nudges of a comparison take about as long as the comparison.

        Raises:
            ScenarioError: for an unknown scale, and for a selection that selects nothing.
        """
        check_scale(scale)
        wanted = [name for name in only if name.endswith(NUDGES)]
        return self._selected(scale, [comparison.nudges for comparison in self.scales[scale]], wanted) if wanted else ()

    def _selected(self, scale: str, parts: Sequence[Comparison], only: Sequence[str]) -> tuple[Comparison, ...]:
        every = {part.name: part for part in parts}
        labels = {name: part.settings.arithmetic.name for name, part in every.items()}
        wanted = [one for name in only for one in (self._with_published_counts(scale) if name == FITTED else (name,))]
        return tuple(every[name] for name in selected(self.name, scale, labels, wanted))

    def _with_published_counts(self, scale: str) -> tuple[str, ...]:
        """The comparisons in an arithmetic that gives the published counts of their network.

        Raises:
            ScenarioError: the scale has none, or the scenario has parts of this name, so that it could mean either.
        """
        arithmetics = " or ".join(dict.fromkeys(self.fitted.values()))
        parts = f"{FITTED}-*"
        if any(fnmatch.fnmatchcase(one.name, parts) for each in SCALES for one in self.scales[each]):
            other = f", or {arithmetics!r} for the arithmetic that stands for the published counts" if arithmetics else ""
            raise ScenarioError(
                f"{self.name}: {FITTED} does not say what is meant; write {parts!r} for the parts of this name{other}"
            )
        found = {
            each: tuple(
                one.name
                for one in self.scales[each]
                for beginning, arithmetic in self.fitted.items()
                if one.name.startswith(beginning) and one.settings.arithmetic.name == arithmetic
            )
            for each in SCALES
        }
        if not found[scale]:
            which = arithmetics or "an arithmetic that is not known"
            others = ", ".join(each for each in SCALES if found[each]) or "no scale"
            raise ScenarioError(
                f"{self.name}: {FITTED} (the arithmetic {which}) is no part at scale {scale}; it is at {others}"
            )
        return found[scale]

    def published_at(self, scale: str) -> Mapping[str, Mapping[float, float]]:
        """The published errors that can be compared with a scale; none for smoke."""
        return {} if scale == "smoke" else self.published

    def published_figures(self, scale: str) -> tuple[PublishedError, ...]:
        """The published errors of the comparisons of a scale that train for as many epochs."""
        epochs = {comparison.name: comparison.settings.epochs for comparison in self.comparisons(scale)}
        return tuple(
            PublishedError("[R22] Fig. 3", name, "injected" if s else "chain", s, value, READ_OFF, AGREEMENT)
            for name, errors in self.published_at(scale).items()
            for s, value in errors.items()
            if epochs.get(name) == PUBLISHED_EPOCHS
        )
