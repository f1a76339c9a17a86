"""The published training experiments as frozen data, each with a full, a cpu and a smoke scale.

Scale *full* is for a CUDA device, *cpu* for a machine without one (E1 complete, E2 with fewer seeds and the emulated
arithmetics that bring a GPU's exact zeros to a CPU), *smoke* for CI: the shipped digits and networks of a few units, the
same members, rules and reports.

Settings and figures of the publications are quoted from their text and released result files:
[B21] Bertoin, Bolte, Gerchinovitz, Pauwels, Numerical influence of ReLU'(0) on backpropagation, NeurIPS 2021.
[R22] Martorella, Ramirez Contreras, Cerezo Garcia, Reproducibility Challenge, EPFL CS-433, 2022.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Final

from relucheck.errors import RelucheckError, did_you_mean
from relucheck.reproduction.stated import (
    PUBLISHED_EPOCHS,
    READ_OFF,
    Stated,
)
from relucheck.training.settings import Settings

#: Version of the scenarios: raise it when a scenario's settings change, so that old folders are not mixed with new runs.
VERSION: Final = 2

SCALES: Final[tuple[str, ...]] = ("full", "cpu", "smoke")


class ScenarioError(RelucheckError, ValueError):
    """A scenario, scale or comparison that does not exist; names the nearest that does."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One run of the engine: ``name`` is unique in its scenario (files, ``--only``), ``part`` names the table it is in."""

    name: str
    part: str
    settings: Settings


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A published experiment.

    Attributes:
        name, title, source: for reports.
        scales: comparisons per scale, in the order in which they run.
        figures: of ("distance", "loss", "error", "boxes").
        published: per scale that can be compared with it: final test error in % by comparison and s, read off the published
            figure (:data:`PUBLISHED_EPOCHS` epochs, on a GPU); the code that made it used the injected rule.
        stated: figures to check, per scale.
        shares: scenarios of which finished runs with equal settings are taken over.
    """

    name: str
    title: str
    source: str
    scales: Mapping[str, tuple[Comparison, ...]]
    figures: tuple[str, ...]
    published: Mapping[str, Mapping[str, Mapping[float, float]]] = dataclasses.field(default_factory=dict)
    stated: Mapping[str, tuple[Stated, ...]] = dataclasses.field(default_factory=dict)
    shares: tuple[str, ...] = ()

    def published_figures(self, scale: str) -> tuple[Stated, ...]:
        """The published errors as figures to check, where a comparison of the scale trains for as many epochs."""
        epochs = {comparison.name: comparison.settings.epochs for comparison in self.comparisons(scale)}
        return tuple(
            Stated("[R22] Fig. 3", name, "error", "injected" if s else "chain", s, value, READ_OFF)
            for name, errors in self.published.get(scale, {}).items()
            for s, value in errors.items()
            if epochs.get(name) == PUBLISHED_EPOCHS
        )

    def comparisons(self, scale: str, only: Sequence[str] = ()) -> tuple[Comparison, ...]:
        """The comparisons of a scale, or those that ``only`` selects: by name, or where none has it by glob or arithmetic.

        Raises:
            ScenarioError: for an unknown scale, and for a selection that selects nothing.
        """
        if scale not in SCALES:
            raise ScenarioError(f"unknown scale {scale!r}; {did_you_mean(scale, SCALES)}known: {', '.join(SCALES)}")
        every = self.scales[scale]
        chosen: set[str] = set()
        names = [comparison.name for comparison in every]
        for wanted in only:
            found = {
                comparison.name
                for comparison in every
                if fnmatch.fnmatchcase(comparison.name, wanted) or comparison.settings.arithmetic.name == wanted
            }
            if wanted in names:  # that one alone: "bfloat16" is also the arithmetic of bfloat16-15-epochs
                found = {wanted}
            if not found:
                labels = list(dict.fromkeys(comparison.settings.arithmetic.name for comparison in every))
                hint = did_you_mean(wanted, [*names, *labels])
                raise ScenarioError(
                    f"{self.name} at scale {scale} has no comparison or arithmetic {wanted!r}; {hint}comparisons: "
                    f"{', '.join(names)}; arithmetics: {', '.join(labels)}"
                )
            chosen |= found
        return tuple(comparison for comparison in every if not only or comparison.name in chosen)


@dataclasses.dataclass(frozen=True)
class External:
    """A scenario that no training comparison can describe, and that runs itself.

    ``module`` has ``run(scale, folder, root, device, progress)``: scale as in :data:`SCALES`, folder a ``Path`` for
    everything it writes (it resumes what it finds there), root a data root or None, device a name, progress whether to show
    any. It returns text to print, or None, and raises this package's own errors for bad input. ``version`` is to be
    raised when its settings change, as :data:`VERSION` is.
    """

    name: str
    title: str
    module: str
    version: int = 1
