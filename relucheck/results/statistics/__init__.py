"""Tests over seeds, and the verdicts that follow from them.

The unit of repetition is the seed. Runs with one seed share the initialisation, the order of mini-batches and the dropout
masks, so the tests are paired by seed. Mini-batches or epochs of one run are not independent repetitions, so nothing here
pools them.
"""

from relucheck.results.statistics.comparisons import Paired, Verdict, judge, paired
from relucheck.results.statistics.evidence import (
    Evidence,
    Outcome,
    decide,
    grows,
    larger,
    near,
    spread_grows,
    without_exception,
)
from relucheck.results.statistics.means import LEVEL, MARGIN, Summary, summarise
from relucheck.results.statistics.nudges import BeyondChaos, beyond_chaos, beyond_in_these_seeds, mean_of_all, prediction
from relucheck.results.statistics.power import difference_for_power, second_half, seeds_for_power
from relucheck.results.statistics.shares import Matched, Trend, log_chance, matched, same_share, share_difference, trend
from relucheck.results.statistics.slopes import rate_slope

__all__ = [
    "LEVEL",
    "MARGIN",
    "BeyondChaos",
    "Evidence",
    "Matched",
    "Outcome",
    "Paired",
    "Summary",
    "Trend",
    "Verdict",
    "beyond_chaos",
    "beyond_in_these_seeds",
    "decide",
    "difference_for_power",
    "grows",
    "judge",
    "larger",
    "log_chance",
    "matched",
    "mean_of_all",
    "near",
    "paired",
    "prediction",
    "rate_slope",
    "same_share",
    "second_half",
    "seeds_for_power",
    "share_difference",
    "spread_grows",
    "summarise",
    "trend",
    "without_exception",
]
