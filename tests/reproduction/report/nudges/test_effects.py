"""What nudges do and what a subgradient does beyond them, against computations of their own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from relucheck.reproduction.report.nudges.effects import HALF, LAST, effects, endpoints, nudge_groups
from relucheck.reproduction.report.summary import Effect
from relucheck.reproduction.scenario import Comparison
from relucheck.training.results.result import NO_EFFECT, MemberResult, Nudge, Result
from tests.helpers import made_up

SHORT, LONG = made_up.E2.comparisons("cpu", ("bfloat16-product-3-epochs", "bfloat16-split-k-4-15-epochs"))
QUIET = (2, 4)


def _pair(comparison: Comparison = SHORT, quiet: tuple[int, ...] = QUIET) -> tuple[Any, dict[str, Result]]:
    result, nudges = made_up.with_nudges(comparison.settings, quiet=quiet)
    return [(comparison, result)], {comparison.name: nudges}


def _accuracies(result: Result, keys: list[tuple[int, float, str, int | None]]) -> np.ndarray:
    """Test accuracies in %, [keys, epochs]."""
    members = [result.find(seed, s, rule, nudge=nudge) for seed, s, rule, nudge in keys]
    return 100 * np.array([[epoch.test_accuracy for epoch in member.epochs] for member in members])


def _differences(result: Result, nudges: Result, s: float, rule: str, endpoint: str, live: list[int]) -> np.ndarray:
    """(s less s = 0) less the mean of (nudge less s = 0), by live seed; s = 0 is subtracted from both here."""
    epochs = result.settings.epochs
    chosen = slice(epochs - 1, None) if endpoint == LAST else slice(epochs // 2, None)
    rows = []
    for seed in live:
        zero = _accuracies(result, [(seed, 0.0, "chain", None)])[:, chosen].mean(1)
        own = _accuracies(result, [(seed, s, rule, None)])[:, chosen].mean(1) - zero
        beside = _accuracies(nudges, [(seed, 0.0, "chain", n) for n in range(1, 6)])[:, chosen].mean(1) - zero
        rows.append(own[0] - beside.mean())
    return np.array(rows)


def _needed(sd: float) -> int:
    """Seeds for 80 % power at 0.2 points, one after another."""
    seeds = 2
    while True:
        critical, shift = stats.t.ppf(0.975, seeds - 1), 0.2 / sd * math.sqrt(seeds)
        if stats.nct.sf(critical, seeds - 1, shift) + stats.nct.cdf(-critical, seeds - 1, shift) >= 0.8:
            return seeds
        seeds += 1


def _adjusted(p: list[float]) -> list[float]:
    """Holm's p-values: the largest product so far, in the order of the p-values."""
    order = np.argsort(p)
    products = np.maximum.accumulate([(len(p) - place) * p[index] for place, index in enumerate(order)])
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(products, 1)
    return adjusted.tolist()


def _check(found: list[Effect], runs: Any, nudges: dict[str, Result], live: dict[str, list[int]]) -> None:
    """Every number of every effect, and that no effect is missing."""
    p_values = []
    results = {comparison.name: result for comparison, result in runs}
    keys = [
        (name, s, rule, endpoint)
        for name, result in results.items()
        for rule in ("chain", "injected")
        for s in (-0.5, 0.5, 0.8, 1.0)
        for endpoint in endpoints(result.settings.epochs)
    ]
    assert sorted((e.comparison, e.subgradient, e.rule, e.endpoint) for e in found) == sorted(keys)
    for effect in found:
        name, paired = effect.comparison, effect.beyond.paired
        seeds = live[name]
        wanted = _differences(results[name], nudges[name], effect.subgradient, effect.rule, effect.endpoint, seeds)
        assert (paired.n, paired.lost) == (len(seeds), 0)
        assert effect.beyond.quiet == len(results[name].settings.seeds) - len(seeds)
        mean, sd = wanted.mean(), wanted.std(ddof=1)
        half = stats.t.ppf(0.975, len(seeds) - 1) * sd / math.sqrt(len(seeds))
        measured = paired.difference
        assert [measured.mean, measured.sd, measured.low, measured.high] == pytest.approx(
            [mean, sd, mean - half, mean + half]
        )
        p_values.append(2 * stats.t.sf(abs(mean) / (sd / math.sqrt(len(seeds))), len(seeds) - 1))
        assert effect.seeds == _needed(sd)
    for effect, p in zip(found, _adjusted(p_values), strict=True):
        assert effect.beyond.paired.family == len(found)
        assert effect.beyond.paired.adjusted_difference == pytest.approx(p)
        assert (effect.beyond.paired.verdict == "differs") == (p < 0.05)


def _two() -> tuple[Any, dict[str, Result], dict[str, list[int]]]:
    (run,), nudges = _pair()
    (other,), more = _pair(LONG, ())
    return [run, other], nudges | more, {SHORT.name: [0, 1, 3, 5, 6, 7, 8, 9], LONG.name: [0, 1, 2, 3, 4]}


def test_every_number_of_the_effects() -> None:
    runs, nudges, live = _two()
    found = effects(runs, nudges)
    _check(found, runs, nudges, live)
    verdicts = {(effect.rule, effect.beyond.paired.verdict) for effect in found if effect.comparison == SHORT.name}
    assert ("injected", "differs") in verdicts
    assert ("chain", "differs") not in verdicts


# ---------------------------------------------------------------- seeded faults

_nudges = Result.nudges


def _quiet_is_tested(self: Result, seed: int) -> list[MemberResult] | None:
    return _nudges(self, seed) or [self.find(seed, 0.0)] * 5


def _of_the_next_seed(self: Result, seed: int) -> list[MemberResult] | None:
    live = [one for one in self.settings.seeds if _nudges(self, one)]
    return _nudges(self, seed) and _nudges(self, live[live.index(seed) - 1])


def _one_is_left_out(self: Result, seed: int) -> list[MemberResult] | None:
    found = _nudges(self, seed)
    return found and found[1:]


@pytest.mark.parametrize("fault", [_quiet_is_tested, _of_the_next_seed, _one_is_left_out])
def test_a_wrong_use_of_nudges_is_noticed(fault: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    runs, nudges, live = _two()
    monkeypatch.setattr(Result, "nudges", fault)
    with pytest.raises(AssertionError):
        _check(effects(runs, nudges), runs, nudges, live)


def test_a_family_for_each_endpoint_is_noticed() -> None:
    runs, nudges, live = _two()
    found = effects(runs, nudges)
    halves = [dataclasses.replace(e.beyond.paired, family=len(found) // 2) for e in found]
    wrong = [
        dataclasses.replace(e, beyond=dataclasses.replace(e.beyond, paired=half))
        for e, half in zip(found, halves, strict=True)
    ]
    with pytest.raises(AssertionError):
        _check(wrong, runs, nudges, live)


# ---------------------------------------------------------------- what nudges do


def test_every_number_of_the_nudges() -> None:
    runs, nudges = _pair()
    (group,) = nudge_groups(runs, nudges)
    live = [0, 1, 3, 5, 6, 7, 8, 9]
    assert (group.comparison, group.live, group.quiet, group.nudges) == (SHORT.name, 8, 2, 40)
    # made up with one draw more for each number of the nudge, and another one in odd seeds
    assert group.again == sum(number + seed % 2 - 1 for seed in live for number in range(1, 6))
    assert (group.departed, group.ineffective, group.returned, group.diverged, group.void) == (0, 0, 0, 0, None)
    beside = nudges[SHORT.name]
    members = [[beside.find(seed, 0.0, nudge=number) for number in range(1, 6)] for seed in live]
    distances = np.array([[member.steps.l1[-1] for member in of_seed] for of_seed in members])
    assert group.l1 is not None
    assert [group.l1.mean, group.l1.least, group.l1.most] == pytest.approx(
        [distances.mean(), distances.min(), distances.max()]
    )
    for endpoint, chosen in ((LAST, slice(2, 3)), (HALF, slice(1, 3))):
        zero = _accuracies(beside, [(seed, 0.0, "chain", None) for seed in live])[:, chosen].mean(1)
        every = np.array([_accuracies(beside, [(seed, 0.0, "chain", n) for n in range(1, 6)]) for seed in live])
        wanted = every[:, :, chosen].mean(2) - zero[:, None]
        spread = group.accuracy[endpoint]
        assert spread is not None
        assert [spread.mean, spread.least, spread.most] == pytest.approx([wanted.mean(), wanted.min(), wanted.max()])


def test_a_seed_without_a_live_hit_need_not_be_without_an_effect_of_the_injected_rule() -> None:
    runs, nudges = _pair()
    runs[0][1].find(2, 1.0, "injected").first_difference = 7
    (group,) = nudge_groups(runs, nudges)
    assert group.departed == 1


def test_nudges_without_effect_and_diverged_ones_are_counted_and_their_seeds_lost() -> None:
    runs, nudges = _pair()
    beside = nudges[SHORT.name]
    without, diverged = beside.find(1, 0.0, nudge=2), beside.find(3, 0.0, nudge=4)
    without.__dict__.update(vars(MemberResult(without.member, NO_EFFECT, nudge=Nudge(3, 100, None, None))))
    diverged.outcome = "diverged: non-finite at step 9"
    (group,) = nudge_groups(runs, nudges)
    assert (group.nudges, group.ineffective, group.diverged) == (39, 1, 1)
    before = sum(number + seed % 2 - 1 for seed in (0, 1, 3, 5, 6, 7, 8, 9) for number in range(1, 6))
    assert group.again == before - 2 + 100
    for effect in effects(runs, nudges):
        assert (effect.beyond.paired.n, effect.beyond.paired.lost, effect.beyond.quiet) == (6, 2, 2)
        assert effect.beyond.paired.verdict == "undecided"


@pytest.mark.parametrize("void", ["comparison", "nudges"])
def test_nothing_is_tested_where_something_is_void(void: str) -> None:
    runs, nudges = _pair()
    (runs[0][1] if void == "comparison" else nudges[SHORT.name]).void = "control differed at step 1"
    assert effects(runs, nudges) == []
    assert [group.void for group in nudge_groups(runs, nudges)] == ["control differed at step 1"] * (void == "nudges")


def test_comparisons_without_nudges_have_neither() -> None:
    runs, _ = _pair()
    assert effects(runs, {}) == nudge_groups(runs, {}) == []


@pytest.mark.parametrize(("epochs", "names"), [(1, [LAST]), (2, [LAST]), (3, [LAST, HALF])])
def test_an_endpoint_is_not_listed_twice(epochs: int, names: list[str]) -> None:
    assert list(endpoints(epochs)) == names


def test_one_seed_has_no_number_of_seeds() -> None:
    settings = SHORT.settings.of_seeds((0,))
    result, nudges = made_up.with_nudges(settings)
    one = dataclasses.replace(SHORT, settings=settings)
    found = effects([(one, result)], {SHORT.name: nudges})
    assert {(effect.seeds, effect.beyond.paired.n, effect.beyond.paired.verdict) for effect in found} == {
        (None, 1, "undecided")
    }
