"""Simulated error rates of every verdict rule: how often a verdict is wrong where the truth is known.

Each case states a truth, at the edge of what the rule is about, and the verdict that is wrong there. The draws are seeded.
They come from uniform numbers by inverse distribution functions, so that they are the same with every version of numpy.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from scipy.special import ndtri, stdtrit

from relucheck.reproduction.report.deciding.statistics.trainings import reference_is_best
from relucheck.results import statistics as rules
from relucheck.results.proportions import interval
from relucheck.results.statistics import LEVEL, MARGIN, counts

SEEDS: Final = (3, 5, 10)
DRAWS: Final = 1000
#: The published error that ``near`` is asked about, as read off [R22]'s figure: value, error of reading and margin.
VALUE: Final = 4.0
READING: Final = 1.0
AGREEMENT: Final = 2.0
#: The subgradients of a claim of growth.
AT: Final = (0.0, 0.5, 0.8, 1.0)

Array = np.ndarray[Any, np.dtype[np.float64]]
#: Gives random numbers of mean 0 and standard deviation 1, in a shape.
Noise = Callable[[tuple[int, ...]], Array]
#: Whether a verdict is wrong, from the numbers of one simulated experiment.
Wrong = Callable[[Any], bool]

#: Distributions by inverse distribution functions, with mean 0 and standard deviation 1.
INVERSES: Final[dict[str, Callable[[Array], Array]]] = {
    "normal": ndtri,
    "heavy-tailed": lambda u: stdtrit(3, u) / math.sqrt(3),
    "skewed": lambda u: 1 + np.log1p(-u),
    # one seed in ten lies far below the others
    "rare": lambda u: np.where(u < 0.1, -3.0, 1 / 3) + 0.01 * ndtri(u),
}
#: What the t-tests promise their level for.
SYMMETRIC: Final = ("normal", "heavy-tailed")


def noise(kind: str, seed: int) -> Noise:
    """Seeded random numbers of a distribution."""
    uniform = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...]) -> Array:
        # the middles of 2 ** 32 equal parts of (0, 1), so that neither end occurs
        return INVERSES[kind]((uniform.integers(0, 2**32, shape) + 0.5) / 2**32)

    return draw


@dataclasses.dataclass(frozen=True)
class Case:
    """A rule in a situation in which one of its verdicts is wrong.

    Attributes:
        rule: the name of the function.
        truth: the situation, for the table.
        verdict: what is wrong there.
        draw: gives the numbers of DRAWS experiments, from a source of noise and a number of seeds.
        wrong: whether the rule gives the wrong verdict.
        faulty: the same of a rule with a fault, which is wrong more often than ``limit``.
        limit: the largest rate of wrong verdicts that the rule promises.
        kinds: the noise for which it promises it.
    """

    rule: str
    truth: str
    verdict: str
    draw: Callable[[Noise, int], Sequence[Any] | Array]
    wrong: Wrong
    faulty: Wrong
    limit: float = LEVEL
    kinds: tuple[str, ...] = SYMMETRIC

    @property
    def name(self) -> str:
        """The case in words."""
        return f"{self.rule}: {self.truth}"


@functools.cache
def wrong_verdicts(case: Case, kind: str, seeds: int, draws: int = DRAWS) -> int:
    """How many of the simulated experiments end with the wrong verdict."""
    return sum(map(case.wrong, _experiments(case, kind, seeds)[:draws]))


def faulty_verdicts(case: Case, kind: str, seeds: int, draws: int) -> int:
    """The same of the rule with a fault."""
    return sum(map(case.faulty, _experiments(case, kind, seeds)[:draws]))


def _experiments(case: Case, kind: str, seeds: int) -> Sequence[Any]:
    drawn = case.draw(noise(kind, seeds), seeds)
    return drawn.tolist() if isinstance(drawn, np.ndarray) else drawn


# ---------------------------------------------------------------- comparisons


def _differences(mean: float, deviation: float = 0.3) -> Callable[[Noise, int], Array]:
    """Paired differences over seeds; by default with a standard deviation as in E2 over 10 epochs."""
    return lambda draw, seeds: mean + deviation * draw((DRAWS, seeds))


def _verdict(values: list[float], **options: Any) -> str:
    return rules.judge({0: rules.paired(values, [0.0] * len(values), **options)})[0].verdict


def _family(draw: Noise, seeds: int) -> Array:
    """Four subgradients without effect beside one reference."""
    return 0.3 * draw((DRAWS, 5, seeds))


def _any_differs(runs: list[list[float]], corrected: bool = True) -> bool:
    reference, *members = runs
    family = {key: rules.paired(member, reference) for key, member in enumerate(members)}
    if corrected:
        return any(result.verdict == "differs" for result in rules.judge(family).values())
    return any(rules.judge({0: result})[0].verdict == "differs" for result in family.values())


def _identical(draw: Noise, seeds: int) -> Array:
    """Whether the runs of a seed differ, where they differ on just more than the share that identical runs exclude."""
    share = interval(0, seeds).high + 1e-6
    uniform = np.random.default_rng(seeds)
    return (uniform.integers(0, 2**32, (DRAWS, seeds)) < share * 2**32).astype(np.float64)


def _bounded_too_low(differ: list[float]) -> bool:
    """Whether the runs are identical, and the bound is below the true share."""
    if any(differ):
        return False
    values = [97.0] * len(differ)
    found = rules.judge({0: rules.paired(values, values, same_run=True)})[0]
    share = interval(0, len(differ)).high + 1e-6
    return found.verdict == "identical" and found.differs_at_most is not None and found.differs_at_most < share


def _one_seed_more(differ: list[float]) -> bool:
    """The fault: the bound is that of one seed more than there are."""
    return not any(differ[1:])


def _nudged(draw: Noise, seeds: int) -> Array:
    """A member and five nudges of each seed, which differ by chaos alone; seeds differ too."""
    return 97 + 0.3 * draw((DRAWS, seeds, 1)) + 0.3 * draw((DRAWS, seeds, 6))


def _beyond_chaos(groups: list[list[float]]) -> bool:
    found = rules.beyond_chaos([group[0] for group in groups], [group[1:] for group in groups])
    return rules.judge({0: found.paired})[0].verdict == "differs"


def _each_nudge_repeats(groups: list[list[float]]) -> bool:
    pairs = [(group[0], nudge) for group in groups for nudge in group[1:]]
    return rules.judge({0: rules.paired(*map(list, zip(*pairs, strict=True)))})[0].verdict == "differs"


def _misses(groups: list[list[float]], band: Callable[[Any], tuple[float, float] | None] = rules.prediction) -> bool:
    """Whether a new run in a new seed, which is the first number of the last seed, lies outside the band of the others."""
    found = band([group[1:] for group in groups[:-1]])
    assert found is not None
    return not found[0] <= groups[-1][0] <= found[1]


def _interval_of_the_mean(groups: list[list[float]]) -> tuple[float, float] | None:
    summary = rules.summarise([math.fsum(group) / len(group) for group in groups])
    return None if summary.low is None or summary.high is None else (summary.low, summary.high)


# ---------------------------------------------------------------- claims


def _errors(distance: float) -> Callable[[Noise, int], Array]:
    """Test errors over seeds, whose mean is above the published value that was read."""
    return lambda draw, seeds: VALUE + distance - draw((DRAWS, seeds))


def _near(errors: list[float], margin: float = AGREEMENT, reading: float = READING) -> str:
    return rules.decide({0: rules.near(errors, VALUE, reading, margin)})[0].verdict


def overlaps(errors: list[float]) -> bool:
    """The rule that ``near`` replaces: the published range meets the 95 % interval of the mean."""
    summary = rules.summarise(errors)
    assert summary.low is not None
    assert summary.high is not None
    return summary.low <= VALUE + READING and summary.high >= VALUE - READING


def _distances(draw: Noise, seeds: int) -> Array:
    """Two distances on each seed, which spread over orders of magnitude; neither tends to be the larger one."""
    return np.moveaxis(np.exp(2 * draw((DRAWS, seeds, 2))), -1, 1)


def _larger(pair: list[list[float]]) -> str:
    return rules.decide({0: rules.larger(*pair)})[0].verdict


def _by_means(pair: list[list[float]]) -> str:
    return "confirmed" if math.fsum(pair[0]) > math.fsum(pair[1]) else "refuted"


def _errors_at(*means: float) -> Callable[[Noise, int], Array]:
    """Errors for four subgradients, with a deviation of the seed that they share."""
    return lambda draw, seeds: (
        np.array(means)[:, None] - 0.3 * draw((DRAWS, 1, seeds)) - 0.3 * draw((DRAWS, len(means), seeds))
    )


def _grows(levels: list[list[float]]) -> str:
    return rules.decide({0: rules.grows(levels)})[0].verdict


def means_increase(levels: list[list[float]]) -> bool:
    """The rule that ``grows`` replaces: the means increase from level to level."""
    means = [math.fsum(level) for level in levels]
    return all(low < high for low, high in itertools.pairwise(means))


def _no_margin(levels: list[list[float]]) -> bool:
    """A fault: what does not grow significantly is taken for no growth."""
    return rules.grows(levels).p_for >= LEVEL  # type: ignore[operator]


def _spreading(first: float, rise: float) -> Callable[[Noise, int], Array]:
    """Accuracies for four subgradients, whose mean absolute deviation rises over them, with correlated seeds."""

    def drawn(draw: Noise, seeds: int) -> Array:
        shared, single = draw((DRAWS, 1, seeds)), draw((DRAWS, len(AT), seeds))
        mixed = math.sqrt(0.5) * shared + math.sqrt(0.5) * single
        many = math.sqrt(0.5) * draw((200_000,)) + math.sqrt(0.5) * draw((200_000,))
        unit = float(np.abs(many - np.median(many)).mean())
        return mixed * ((first + rise * np.array(AT)) / unit)[:, None]

    return drawn


def _spread(levels: list[list[float]], margin: float = MARGIN) -> str:
    return rules.decide({0: rules.spread_grows(levels, AT, margin)})[0].verdict


def spreads_increase(levels: list[list[float]]) -> bool:
    """The rule that ``spread_grows`` replaces: the standard deviations increase from level to level."""
    spreads = [rules.summarise(level).sd or 0.0 for level in levels]
    return all(low < high for low, high in itertools.pairwise(spreads))


def _exceptions(draw: Noise, seeds: int) -> Array:
    """Cases, of which every second one is an exception."""
    return (draw((DRAWS, seeds)) > draw((DRAWS, seeds))).astype(np.float64)


def _always(cases: list[float]) -> str:
    return rules.decide({0: rules.without_exception(round(math.fsum(cases)), len(cases))})[0].verdict


# ---------------------------------------------------------------- claims


class Numbers:
    """A training case by its numbers alone: those of the nudges of each seed, and those of its members by s."""

    def __init__(self, nudges: list[float], members: dict[float, list[float]]) -> None:
        self.nudges, self.members, self.subgradients = nudges, members, tuple(members)
        self.live = self.seeds = tuple(range(len(nudges)))

    def nudged(self, endpoint: str, seeds: Any) -> list[float]:
        """The numbers of the nudges, whatever the endpoint."""
        return self.nudges

    def values(self, s: float, endpoint: str, seeds: Any) -> list[float]:
        """The numbers of the members with an s, whatever the endpoint."""
        return self.members[s]


def _accuracies(*means: float) -> Callable[[Noise, int], Array]:
    """Accuracies of nudges, whose mean is 0, and of s = 0.5 and 1."""
    return lambda draw, seeds: np.array([0.0, *means])[:, None] + 0.3 * draw((DRAWS, 1 + len(means), seeds))


def _best(levels: list[list[float]]) -> str:
    case: Any = Numbers(levels[0], dict(zip((0.5, 1.0), levels[1:], strict=True)))
    return rules.decide({0: reference_is_best(case, endpoint="accuracy", margin=MARGIN).evidence})[0].verdict


def _some_mean_exceeds(levels: list[list[float]]) -> bool:
    """A fault: whether the mean of some s exceeds that of the nudges by the margin, without a test."""
    nudges, *members = (math.fsum(level) / len(level) for level in levels)
    return max(members) > nudges + MARGIN


# ---------------------------------------------------------------- counts

#: What the rule for published counts promises where seeds are few. The deviation is no exact test.
COUNTS: Final = 0.1
#: Hits of two runs in four epochs each, as in E9.
_HITS: Final = np.array([700.0, 800.0, 900.0, 950.0, 400.0, 120.0, 60.0, 40.0])
_SERIES: Final = ("s = 0",) * 4 + ("s = 1",) * 4


def _counts(draw: Noise, seeds: int) -> Array:
    """The counts of a published run, then those of the seeds: a tenth of noise of each run, and noise of each cell."""
    run, cell = draw((DRAWS, seeds + 1, 1)), draw((DRAWS, seeds + 1, len(_HITS)))
    return np.maximum(0.0, np.rint(_HITS * (1 + 0.1 * run) + np.sqrt(_HITS) * cell))


def _plausible(runs: list[list[int]]) -> bool:
    published, table = counts.Published(runs[0], runs[0], _SERIES), runs[1:]
    # so few seeds are decided by the deviation alone; a rule that looked at the p-value would exclude every candidate
    return counts.plausible(len(table), math.nan, counts.deviation(published, table))


def _plausible_with_themselves(runs: list[list[int]]) -> bool:
    """The rule with a fault: each seed's likelihood is computed with a model that knows this seed."""
    published, table = counts.Published(runs[0], runs[0], _SERIES), runs[1:]
    own = [counts.log_likelihood(counts.Published(run, run, _SERIES), table) for run in table]
    spread = float(np.std(own, ddof=1)) * math.sqrt(1 + 1 / len(own))
    below = (math.fsum(own) / len(own) - counts.log_likelihood(published, table)) / spread
    return counts.plausible(len(table), 1.0, below)


# ---------------------------------------------------------------- all


CASES: Final = (
    Case(
        "judge",
        "no difference",
        "differs",
        _differences(0.0),
        lambda values: _verdict(values) == "differs",
        lambda values: bool(abs(np.mean(values)) > 1.96 * np.std(values, ddof=1) / math.sqrt(len(values))),
    ),
    Case(
        "judge",
        "four subgradients without effect",
        "any differs",
        _family,
        _any_differs,
        lambda runs: _any_differs(runs, corrected=False),
    ),
    Case(
        "judge",
        "a loss of 0.2 points, the margin",
        "equivalent",
        _differences(-MARGIN),
        lambda values: _verdict(values) == "equivalent",
        lambda values: _verdict(values) != "differs",
    ),
    Case(
        "judge",
        "the same with a deviation of 0.6 points; if rare, every tenth seed loses 2 points and the others nothing",
        "equivalent",
        _differences(-MARGIN, 0.6),
        lambda values: _verdict(values) == "equivalent",
        lambda values: _verdict(values) != "differs",
    ),
    Case(
        "judge",
        "identical runs; more seeds differ than the bound says",
        "identical, with that bound",
        _identical,
        _bounded_too_low,
        _one_seed_more,
        limit=LEVEL / 2,
        kinds=tuple(INVERSES),
    ),
    Case("beyond_chaos", "the subgradient does what a nudge does", "differs", _nudged, _beyond_chaos, _each_nudge_repeats),
    Case(
        "prediction",
        "one more nudge in a new seed",
        "outside the band",
        lambda draw, seeds: _nudged(draw, seeds + 1),
        _misses,
        lambda groups: _misses(groups, _interval_of_the_mean),
    ),
    Case(
        "near",
        "2 points from the published value, read 1 point too close",
        "confirmed",
        _errors(AGREEMENT - READING),
        lambda errors: _near(errors) == "confirmed",
        overlaps,
    ),
    Case(
        "near",
        "2 points from the published value, read exactly",
        "confirmed",
        _errors(AGREEMENT),
        lambda errors: _near(errors) == "confirmed",
        overlaps,
    ),
    Case(
        "near",
        "2 points from the published value, read 1 point too far",
        "refuted",
        _errors(AGREEMENT + READING),
        lambda errors: _near(errors) == "refuted",
        lambda errors: _near(errors, READING + 1e-9) == "refuted",
    ),
    Case(
        "larger",
        "either is the larger one equally often",
        "confirmed",
        _distances,
        lambda pair: _larger(pair) == "confirmed",
        lambda pair: _by_means(pair) == "confirmed",
        kinds=tuple(INVERSES),
    ),
    Case(
        "larger",
        "either is the larger one equally often",
        "refuted",
        _distances,
        lambda pair: _larger(pair) == "refuted",
        lambda pair: _by_means(pair) == "refuted",
        kinds=tuple(INVERSES),
    ),
    Case(
        "grows",
        "s = 0.5, 0.8 and 1 differ from s = 0 by 4 points, and not from each other",
        "confirmed",
        _errors_at(0, 4, 4, 4),
        lambda levels: _grows(levels) == "confirmed",
        means_increase,
    ),
    Case(
        "grows",
        "the last of three steps does not rise",
        "confirmed",
        _errors_at(0, 4, 8, 8),
        lambda levels: _grows(levels) == "confirmed",
        means_increase,
    ),
    Case(
        "grows",
        "each step rises, all of them by 0.2 points, the margin",
        "refuted",
        _errors_at(0, 0.1, 0.16, MARGIN),
        lambda levels: _grows(levels) == "refuted",
        _no_margin,
    ),
    Case(
        "reference_is_best",
        "s = 0.5 is better by 0.2 points, the margin, and s = 1 is far worse",
        "confirmed",
        _accuracies(MARGIN, -5.0),
        lambda levels: _best(levels) == "confirmed",
        lambda levels: not _some_mean_exceeds(levels),
    ),
    Case(
        "reference_is_best",
        "s = 0.5 and 1 are better by 0.2 points, the margin",
        "refuted",
        _accuracies(MARGIN, MARGIN),
        lambda levels: _best(levels) == "refuted",
        _some_mean_exceeds,
    ),
    Case(
        "spread_grows",
        "the spread is the same for every s (margin 0)",
        "confirmed",
        _spreading(0.3, 0.0),
        lambda levels: _spread(levels, 0.0) == "confirmed",
        lambda levels: _spread(levels, 0.0) != "refuted",
    ),
    Case(
        "spread_grows",
        "the spread rises by 0.2 points, the margin",
        "refuted",
        _spreading(0.2, MARGIN),
        lambda levels: _spread(levels) == "refuted",
        lambda levels: not spreads_increase(levels),
    ),
    Case(
        "spread_grows",
        "the spread rises by 0.2 points, the margin",
        "confirmed",
        _spreading(0.2, MARGIN),
        lambda levels: _spread(levels) == "confirmed",
        lambda levels: _spread(levels, 0.0) != "refuted",
    ),
    Case(
        "without_exception",
        "every second case is an exception",
        "confirmed",
        _exceptions,
        lambda cases: _always(cases) == "confirmed",
        lambda cases: math.fsum(cases) < len(cases) / 2,
        kinds=tuple(INVERSES),
    ),
    Case(
        "plausible",
        "the published counts are those of one more seed",
        "excluded",
        _counts,
        lambda runs: not _plausible(runs),
        lambda runs: not _plausible_with_themselves(runs),
        limit=COUNTS,
    ),
)
