"""Wrong verdicts on claims about several s or cells are as rare as the level says, in simulations.

The rules for one s have theirs in tests/results/statistics. A rate is accepted if the 99.9 % Clopper-Pearson interval of
what was counted does not exclude the level.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pytest

from relucheck.reproduction.claims import Finding
from relucheck.reproduction.report.deciding.cases import Share, VolumeCase
from relucheck.reproduction.report.deciding.evidence import every
from relucheck.reproduction.report.deciding.statistics import trainings
from relucheck.reproduction.report.deciding.statistics.shares import (
    volume_is_constant,
    volume_is_larger,
    volume_lies_between,
)
from relucheck.results.proportions import interval
from relucheck.results.statistics import LEVEL, Evidence, decide, grows
from tests.results.statistics.simulations import Numbers, noise

_DRAWS: Final = 600
_SEEDS: Final = 6
_MARGIN: Final = 0.2


def _verdict(evidence: Evidence) -> str:
    return decide({0: evidence})[0].verdict


def _too_many(wrong: int) -> bool:
    return interval(wrong, _DRAWS, 0.999).low > LEVEL


def _cases(means: dict[float, float]) -> list[Numbers]:
    """Simulated experiments; the members share their seed's nudges, so their differences depend on each other."""
    drawn = noise("normal", 1)((_DRAWS, 1 + len(means), _SEEDS))
    return [
        Numbers(
            (0.3 * one[0]).tolist(),
            {s: (mean + 0.3 * row).tolist() for (s, mean), row in zip(means.items(), one[1:], strict=True)},
        )
        for one in drawn
    ]


def _beyond(case: Any) -> Finding:
    return trainings.differs_beyond_nudges(case, endpoint="accuracy", direction="larger", margin=_MARGIN)


def _best(case: Any) -> Finding:
    return trainings.reference_is_best(case, endpoint="accuracy", margin=_MARGIN)


def _some(case: Any) -> Finding:
    """A fault: one s of several is taken for all of them, without a correction."""
    parts = [grows([case.nudges, case.members[s]], _MARGIN) for s in case.subgradients]
    n, estimate = parts[0].n, parts[0].estimate
    against = min(part.p_against for part in parts if part.p_against is not None)
    return Finding(Evidence(n, 0, estimate, min(part.p_for for part in parts if part.p_for is not None), against), "")


_MANY: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


@pytest.mark.parametrize(
    ("rule", "means", "wrong", "faulty"),
    [
        # one s has no more than the margin, the others far more
        (_beyond, {**dict.fromkeys(_MANY, 5.0), 1.0: _MARGIN}, "confirmed", _some),
        # every s has the margin at least
        (_beyond, dict.fromkeys(_MANY, _MARGIN), "refuted", _some),
        # one s is better by the margin, another one far worse
        (_best, {0.5: _MARGIN, 1.0: -5.0}, "confirmed", None),
        # none is worse by more than the margin
        (_best, dict.fromkeys(_MANY, -_MARGIN), "confirmed", None),
        # none is better by more than the margin
        (_best, dict.fromkeys(_MANY, _MARGIN), "refuted", None),
    ],
)
def test_claims_about_several_s(
    rule: Callable[[Any], Finding], means: dict[float, float], wrong: str, faulty: Callable[[Any], Finding] | None
) -> None:
    cases = _cases(means)
    assert not _too_many(sum(_verdict(rule(case).evidence) == wrong for case in cases))
    if faulty is not None:
        assert _too_many(sum(_verdict(faulty(case).evidence) == wrong for case in cases))


@pytest.mark.parametrize(
    ("rule", "volumes", "wrong"),
    [
        (lambda case: volume_is_larger(case, sweep="neurons", at=[0, 3]), (0.3, 0.3, 0.3, 0.3), "confirmed"),
        (lambda case: volume_is_larger(case, sweep="neurons", at=[0, 3]), (0.3, 0.3, 0.3, 0.3), "refuted"),
        (lambda case: volume_is_constant(case, sweep="neurons", margin=0.1), (0.3, 0.3, 0.3, 0.4), "confirmed"),
        (lambda case: volume_is_constant(case, sweep="neurons", margin=0.1), (0.3, 0.3, 0.4, 0.4), "refuted"),
        (lambda case: volume_lies_between(case, sweep="neurons", at=[], least=0.3, most=0.6), (0.3, 0.5), "confirmed"),
        (lambda case: volume_lies_between(case, sweep="neurons", at=[], least=0.3, most=0.6), (0.3,) * 4, "refuted"),
        (lambda case: volume_lies_between(case, sweep="neurons", at=[], least=0.9, most=1.0), (0.9, 1.0), "confirmed"),
    ],
    ids=[
        "equal volumes: the last is larger",
        "equal volumes: the last is smaller",
        "volumes that are the margin apart: they are constant",
        "volumes that are the margin apart: they are not constant",
        "a volume at the lower bound: all are within",
        "volumes at the lower bound: one is outside",
        "volumes at both bounds: all are within",
    ],
)
def test_claims_about_volumes(rule: Callable[[VolumeCase], Finding], volumes: tuple[float, ...], wrong: str) -> None:
    assert not _too_many(sum(_verdict(rule(case).evidence) == wrong for case in _volume_cases(volumes)))


def _volume_cases(volumes: tuple[float, ...]) -> list[VolumeCase]:
    draws = 200
    counts = np.random.default_rng(3).binomial(draws, volumes, (_DRAWS, len(volumes))).tolist()
    return [VolumeCase(tuple(Share("R22", "neurons", x, "", c, draws) for x, c in enumerate(row)), {}) for row in counts]


def _estimated(holds: Callable[[list[float]], bool]) -> Callable[[VolumeCase], str]:
    """A fault: the shares that were drawn are taken for the volumes."""
    return lambda case: "confirmed" if holds([cell.bifurcated / cell.draws for cell in case.shares]) else "refuted"


def _one_of_many(case: VolumeCase) -> str:
    """A fault: one cell of several is taken for all of them, without a correction."""
    parts = [
        volume_lies_between(VolumeCase((cell,), {}), sweep="neurons", at=[], least=0.3, most=0.6) for cell in case.shares
    ]
    return "refuted" if "refuted" in [_verdict(part.evidence) for part in parts] else "undecided"


@pytest.mark.parametrize(
    ("faulty", "volumes", "wrong"),
    [
        (_estimated(lambda found: found[-1] > found[0]), (0.3, 0.3, 0.3, 0.3), "confirmed"),
        (_estimated(lambda found: found[-1] >= found[0]), (0.3, 0.3, 0.3, 0.3), "refuted"),
        (_estimated(lambda found: max(found) - min(found) < 0.1), (0.3, 0.3, 0.3, 0.4), "confirmed"),
        (_estimated(lambda found: max(found) - min(found) <= 0.1), (0.3, 0.3, 0.4, 0.4), "refuted"),
        (_estimated(lambda found: min(found) >= 0.3 and max(found) <= 0.6), (0.3, 0.5), "confirmed"),
        (_one_of_many, (0.3,) * 4, "refuted"),
        (_estimated(lambda found: min(found) >= 0.9), (0.9, 1.0), "confirmed"),
    ],
    ids=["larger", "smaller", "constant", "not constant", "within", "one is outside", "within both bounds"],
)
def test_faulty_rules_about_volumes_are_wrong_too_often(
    faulty: Callable[[VolumeCase], str], volumes: tuple[float, ...], wrong: str
) -> None:
    """The simulation above can fail: each of its cases has a rule that does."""
    assert _too_many(sum(faulty(case) == wrong for case in _volume_cases(volumes)))


def test_a_part_that_is_not_tested_leaves_the_whole_open() -> None:
    tested, lost = grows([[0.0] * 5, [1.0, 1.1, 1.2, 1.0, 1.1]]), grows([[0.0] * 5, [1.0, None, 1.2, 1.0, 1.1]])
    assert _verdict(every({0: tested})) == "confirmed"
    whole = every({0: tested, 1: lost})
    assert (whole.lost, _verdict(whole)) == (1, "undecided")
