"""ASHA of Ray Tune, which remembers what trials reported to earlier drivers.

Ray Tune's own restore brings back trials, but not what its scheduler knows of them: the metrics of the trials that have
passed each rung. So decisions after a restore would rest on few trials. Here they are replayed from the records.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from relucheck.extras import require
from relucheck.search.result import TrialEpoch, score
from relucheck.search.search import Search

require("a search", "ray")
from ray.tune.schedulers import ASHAScheduler, TrialScheduler  # noqa: E402

#: The names under which trials report to Ray Tune: the number of epochs done, and the report itself.
EPOCHS: Final = "epochs"
REPORT: Final = "report"


@dataclasses.dataclass(frozen=True)
class _Named:
    """What ASHA knows of a trial. Ray Tune gives a trial another name in every run; the name of its draw stays."""

    trial_id: str


class Asha(ASHAScheduler):
    """ASHA over the trials of a search.

    Args:
        search: which search.
        known: the epochs that each trial has reported before, in order, by the number of the trial.
        decided: is called after each decision and before it takes effect, with the number of the trial, its report and
            whether ASHA stops the trial before its last epoch. It returns whether the trial ends.
        left: is called with the number of a trial that has ended.
    """

    def __init__(
        self,
        search: Search,
        known: Mapping[int, Sequence[TrialEpoch]],
        decided: Callable[[int, Any, bool], bool],
        left: Callable[[int], None],
    ) -> None:
        super().__init__(
            time_attr=EPOCHS,
            metric=search.metric,
            mode=search.mode,
            max_t=search.epochs,
            grace_period=min(search.grace, search.epochs),  # ASHA refuses a longer one, which stops nothing
            reduction_factor=search.reduction,
        )
        self._search, self._decided, self._left = search, decided, left
        self._names: dict[int, Any] = {draw.number: _Named(draw.name) for draw in search.draws}
        nobody: Any = None  # ASHA does not use the controller
        for number, epochs in known.items():
            super().on_trial_add(nobody, self._names[number])
            for epoch in epochs:
                super().on_trial_result(nobody, self._names[number], measured(search, epoch, epoch.number))

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Called by Ray Tune for a new trial."""
        super().on_trial_add(tune_controller, self._named(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Called by Ray Tune when a trial has reported; decides whether it goes on."""
        report = result.get(REPORT)
        if report is None:  # the trial has ended without a report
            return TrialScheduler.CONTINUE
        decision = super().on_trial_result(tune_controller, self._named(trial), result)
        stops = decision == TrialScheduler.STOP and result[EPOCHS] < self._search.epochs
        ends = self._decided(trial.config["number"], report, stops)
        return TrialScheduler.STOP if ends else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Called by Ray Tune when a trial has ended, after its last report."""
        self._left(trial.config["number"])

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Called by Ray Tune when a trial is removed before it runs."""

    def _named(self, trial: Any) -> Any:
        return self._names[trial.config["number"]]


def measured(search: Search, epoch: TrialEpoch | None, number: int) -> dict[str, Any]:
    """What a trial reports to Ray Tune: the number of an epoch, and the metric.

    The metric is the worst there is for a trial that has diverged in the epoch.
    """
    return {EPOCHS: number, search.metric: score(search.metric, epoch)}
