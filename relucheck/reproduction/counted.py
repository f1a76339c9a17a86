"""The scenario E9, whose report compares counts of hits with the published ones."""

from __future__ import annotations

import dataclasses

from relucheck.reproduction.trained import TrainingScenario


@dataclasses.dataclass(frozen=True)
class CountsScenario(TrainingScenario):
    """A training scenario that is reported by its counts of hits."""
