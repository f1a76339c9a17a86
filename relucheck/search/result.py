"""The results of a search: trials with their epochs and outcomes, and which of them is best."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from relucheck.errors import SettingsError, missing_field
from relucheck.search.search import Search
from relucheck.search.space import Draw
from relucheck.training.results.result import FINISHED

#: What ASHA takes for the metric of a trial that has diverged, or whose loss is not finite. It is finite, because ASHA
#: computes percentiles.
WORST: Final[Mapping[str, float]] = {"accuracy": 0.0, "loss": 1e300}


@dataclasses.dataclass(frozen=True)
class TrialEpoch:
    """One epoch of a trial; a loss that is not finite is None.

    Attributes:
        number: the epoch, from 1 on.
        train_loss: mean over the samples of the epoch of the training loss, computed before each step.
        loss: mean cross-entropy over the images held out, after the epoch.
        accuracy: share of the images held out that is classified correctly, from 0 to 1.
        hits: number of training pre-activations that equal each kink, summed over layers.
        activations: number of all training pre-activations.
    """

    number: int
    train_loss: float | None
    loss: float | None
    accuracy: float
    hits: tuple[int, ...]
    activations: int

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TrialEpoch:
        """Read the JSON object of its attributes."""
        return cls(**{**content, "hits": tuple(content["hits"])})


@dataclasses.dataclass(frozen=True)
class TrialResult:
    """The result of a trial that has ended.

    Attributes:
        draw: what it trained with.
        epochs: one entry for each epoch; those that were not finished are missing.
        outcome: "finished", "stopped by ASHA at epoch n", or "diverged: non-finite at step n".
        wall_s: computing time in seconds, over all runs if it was resumed.
        origin: where it was computed: device, executor, processor and versions.
    """

    draw: Draw
    epochs: tuple[TrialEpoch, ...]
    outcome: str
    wall_s: float
    origin: Mapping[str, str]

    @property
    def diverged(self) -> bool:
        """Whether a parameter became infinite or NaN."""
        return self.outcome.startswith("diverged")

    @property
    def stopped(self) -> bool:
        """Whether ASHA stopped it before its last epoch."""
        return not self.diverged and self.outcome != FINISHED

    @property
    def last(self) -> TrialEpoch | None:
        """Its last epoch, by which it is judged; None if it diverged."""
        return None if self.diverged else self.epochs[-1]

    def score(self, metric: str) -> float:
        """Its accuracy or loss after the last epoch, or the worst value for a trial that has none."""
        return score(metric, self.last)

    def to_json(self) -> dict[str, Any]:
        """The result as a JSON object, which ``from_json`` reads."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TrialResult:
        """Read what ``to_json`` wrote.

        Raises:
            SettingsError: a field is unknown or missing.
        """
        try:
            epochs = tuple(TrialEpoch.from_json(epoch) for epoch in content["epochs"])
            return cls(**{**content, "draw": Draw(**content["draw"]), "epochs": epochs})
        except (KeyError, TypeError) as error:
            raise SettingsError(
                f"result of a trial: {missing_field(error)}; pass what TrialResult.to_json wrote"
            ) from error


def score(metric: str, epoch: TrialEpoch | None) -> float:
    """The accuracy or loss of an epoch, or the worst value if there is none."""
    value: float | None = None if epoch is None else getattr(epoch, metric)
    return WORST[metric] if value is None else value


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """The trials of a search that have ended.

    Attributes:
        search: what was run.
        trials: results in the order of their numbers.
    """

    search: Search
    trials: tuple[TrialResult, ...]

    @property
    def complete(self) -> bool:
        """Whether all trials have ended."""
        return len(self.trials) == self.search.trials

    @property
    def ranked(self) -> tuple[TrialResult, ...]:
        """The trials from the best to the worst, by the metric after the last epoch of each.

        Diverged trials come last. Of two equal trials, the one with the lower number comes first.
        """
        sign = -1 if self.search.mode == "max" else 1
        return tuple(sorted(self.trials, key=lambda trial: (trial.diverged, sign * trial.score(self.search.metric))))

    @property
    def best(self) -> TrialResult | None:
        """The best trial; None if all have diverged, or none has ended."""
        return next((trial for trial in self.ranked if not trial.diverged), None)

    @property
    def wall_s(self) -> float:
        """Computing time in seconds, over all trials."""
        return sum(trial.wall_s for trial in self.trials)

    def to_json(self) -> dict[str, Any]:
        """The result as a JSON object, which ``from_json`` reads."""
        best = self.best
        return {
            "search": self.search.to_json(),
            "best": None if best is None else best.draw.number,
            "trials": [trial.to_json() for trial in self.trials],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> SearchResult:
        """Read what ``to_json`` wrote.

        Raises:
            SettingsError: a field is unknown or missing.
        """
        try:
            search, trials = content["search"], content["trials"]
        except (KeyError, TypeError) as error:
            raise SettingsError(f"result of a search: {error}; pass what SearchResult.to_json wrote") from error
        return cls(Search.from_json(search), tuple(TrialResult.from_json(trial) for trial in trials))
