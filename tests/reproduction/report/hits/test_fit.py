"""Published counts beside those of comparisons: which members and epochs are compared, and what is said of the fit."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence

import pytest

from relucheck.reproduction.published import PublishedCount, counts
from relucheck.reproduction.report.hits.fit import TARGETS, Fit, Series, Target, fits, members
from relucheck.reproduction.scenario import Comparison
from relucheck.training.members import Member, members_of
from relucheck.training.results.result import Result
from tests.helpers import counted

E2, MORE, E1, DEFAULT, CUSTOM = TARGETS
ROUNDED = {target.prefix: counted.comparison(f"{target.prefix}rounded") for target in TARGETS if target is not MORE}


def _encoded(member: Member, kink: int, epoch: int) -> int:
    """Hits that say whose they are."""
    s = 0 if member.is_reference else 90 if member.control else round(10 * abs(member.subgradient))
    return 100_000 * s + 10_000 * (member.rule == "injected") + 1000 * member.seed + 100 * kink + epoch


def _series(target: Target, of: Comparison) -> tuple[Series, ...]:
    (fit,) = fits(target, [(of, counted.result(of, _encoded))])
    return fit.series


def _expected(
    s: float, seeds: Sequence[int], epochs: int, kink: int = 0, rule: str = "injected"
) -> tuple[tuple[int, ...], ...]:
    every = [Member(seed, s, rule) for seed in seeds]
    return tuple(tuple(_encoded(member, kink, epoch) for epoch in range(1, epochs + 1)) for member in every)


# ---------------------------------------------------------------- what is compared


def test_e2_compares_each_published_subgradient_with_its_member() -> None:
    of = ROUNDED["e2-"]
    series = _series(E2, of)
    assert [one.name for one in series] == ["s = 0", "s = 1", "s = 2", "s = 4", "s = 8"]
    for s, one in zip((0.0, 1.0, 2.0, 4.0, 8.0), series, strict=True):
        assert one.epochs == tuple(range(1, 11))
        assert one.low == one.high
        published = [
            count.hits
            for count in counts()
            if (count.experiment, count.dtype, count.subgradients) == ("E2", "bfloat16", (s,))
        ]
        assert list(one.low) == published
        assert one.counts == _expected(s, of.settings.seeds, 10, rule="injected" if s else "chain")
    assert [one.published_accuracy for one in series] == [97.56, 95.78, 96.17, 96.48, 96.64]


def test_the_chain_rule_is_not_what_was_published() -> None:
    """Of a comparison with both rules the injected one is compared."""
    of = ROUNDED["e2-"]
    both = dataclasses.replace(of.settings, members=members_of(of.settings.seeds, (1.0, 2.0, 4.0, 8.0)))
    of = dataclasses.replace(of, settings=both)
    series = _series(E2, of)
    assert [one.name for one in series] == ["s = 0", "s = 1", "s = 2", "s = 4", "s = 8"]
    assert series[1].counts == _expected(1.0, both.seeds, 10)
    e1 = dataclasses.replace(ROUNDED["e1-"].settings, members=members_of(both.seeds, (1.0,)))
    series = _series(E1, dataclasses.replace(ROUNDED["e1-"], settings=e1))
    assert [one.name for one in series] == ["s = 0", "s = 1"]


def test_e1_has_bounds_for_every_epoch_of_every_member() -> None:
    of = ROUNDED["e1-"]
    series = _series(E1, of)
    assert [(one.name, one.epochs, one.low, one.high) for one in series] == [
        ("s = 0", (1, 2), (1, 1), (4, 4)),
        ("s = 1", (1, 2), (1, 1), (4, 4)),
    ]
    assert series[1].counts == _expected(1.0, of.settings.seeds, 2)
    assert {one.published_accuracy for one in series} == {None}


def test_the_default_run_of_relu6_is_the_reference_at_both_kinks() -> None:
    of = ROUNDED["default-"]
    series = _series(DEFAULT, of)
    assert [one.name for one in series] == ["default at 6", "default at 0"]
    six, zero = series
    assert six.epochs == (*range(1, 8), 30)
    assert six.low == six.high == (445, 851, 1299, 1747, 1902, 2131, 2220, 2822)
    assert six.counts == _expected(0.0, of.settings.seeds, 30, kink=1, rule="chain")
    assert zero.epochs == tuple(range(1, 31))
    assert (set(zero.low), set(zero.high)) == ({0}, {3})
    assert zero.counts == _expected(0.0, of.settings.seeds, 30, kink=0, rule="chain")
    assert six.at_published[3] == [six.counts[3][epoch - 1] for epoch in six.epochs]


def test_the_custom_run_of_relu6_is_the_injected_one_as_far_as_it_goes() -> None:
    """The published epoch 30 lies beyond the ten epochs of the comparison."""
    of = ROUNDED["custom-"]
    six, zero = _series(CUSTOM, of)
    assert (six.name, six.epochs, six.low) == ("custom at 6", (1, 2, 3, 4), (31, 50, 28, 36))
    assert (zero.name, zero.epochs) == ("custom at 0", tuple(range(1, 11)))
    s = next(member.subgradient for member in of.settings.members if member.subgradient)
    assert six.counts == _expected(s, of.settings.seeds, 10, kink=1)


def test_counts_of_whole_runs_and_of_runs_that_were_broken_off_are_left_out() -> None:
    def member(count: PublishedCount, which: Member) -> bool:
        return which.is_reference

    of = ROUNDED["e2-"]
    residual = Target("", "e2-", lambda count: (count.network, count.dtype) == ("residual-20", "bfloat16"), member)
    (series,) = _series(residual, of)
    assert series.epochs == (1, 2), "the third epoch was broken off"
    run = Target("", "e2-", lambda count: (count.experiment, count.dtype) == ("E2", "float32"), member)
    (fit,) = fits(run, [(of, counted.result(of, _encoded))])
    assert (fit.series, fit.log_likelihood, fit.fits) == ((), None, False)


def test_a_target_takes_the_comparisons_of_its_prefix() -> None:
    names = ["e2-rounded", "more-layer-1-forward-split-k-4", "e1-rounded", "default-rounded", "custom-rounded"]
    every = [counted.comparison(name) for name in names]
    runs = [(one, counted.result(one, counted.like_the_published(one))) for one in every]
    assert [[fit.comparison for fit in fits(target, runs)] for target in TARGETS] == [[name] for name in names]


# ---------------------------------------------------------------- how it is judged


def _made(name: str, factor: float, spread: float = 0.1) -> tuple[Comparison, Result]:
    of = counted.comparison(name)
    return of, counted.result(of, counted.like_the_published(of, factor, spread))


@pytest.mark.parametrize("target", [E2, DEFAULT, CUSTOM], ids=lambda target: target.name)
def test_a_comparison_with_the_published_counts_fits_and_another_does_not(target: Target) -> None:
    near = _made(f"{target.prefix}rounded", 1.0)
    assert near[1].settings.seeds == tuple(range(10))
    (fit,) = fits(target, [near])
    assert fit.fits
    assert fit.surprise is not None
    assert fit.surprise > 1 / 11
    assert fit.share == 1
    for factor in (0.3, 3.0):
        (other,) = fits(target, [_made(f"{target.prefix}rounded", factor)])
        assert not other.fits
        assert other.surprise == 1 / 11
        assert other.deviation > 5


def test_bounds_exclude_what_lies_outside() -> None:
    of = ROUNDED["e1-"]
    for count, expected in ((2, True), (0, False), (5000, False)):
        made = counted.result(of, lambda member, kink, epoch, count=count: count and count + (member.seed + epoch) % 3)
        (fit,) = fits(E1, [(of, made)])
        assert fit.fits == expected, count


def test_bounds_exclude_what_lies_outside_where_other_counts_are_exact() -> None:
    """A run like the published one at 6 has hundreds of hits at 0, where 0 to 3 are published."""
    of = ROUNDED["default-"]
    near = counted.like_the_published(of)
    for many, expected in ((0, True), (300, False)):
        made = counted.result(of, lambda member, kink, epoch, many=many: near(member, kink, epoch) + many * (kink == 0))
        (fit,) = fits(DEFAULT, [(of, made)])
        assert fit.fits == expected
        assert (fit.worst is not None and fit.worst[0] == "default at 0") == (not expected)


def test_with_twenty_seeds_the_p_value_decides() -> None:
    name = "more-layer-1-forward-split-k-4"
    (near,), (far,) = (fits(MORE, [_made(name, factor)]) for factor in (1.0, 1.6))
    assert near.seeds == far.seeds == 20
    assert near.fits
    assert far.surprise == 1 / 21
    assert not far.fits
    assert not dataclasses.replace(near, surprise=1 / 21, deviation=0.0).fits
    assert dataclasses.replace(near, surprise=2 / 21, deviation=9.0).fits


def test_the_likeliest_comes_first_and_what_cannot_be_judged_last() -> None:
    names = ["e2-product", "e2-split-k-4", "e2-rounded", "e2-layer-1-forward-split-k-4", "e2-layer-1-forward-split-k-5"]
    (few, lost), *others = (
        _made(names[0], 1.0),
        *(_made(name, factor) for name, factor in zip(names[1:], (3.0, 1.0, 1.8, 1.0), strict=True)),
    )
    lost.members[3].outcome, lost.members[3].epochs = "diverged: non-finite at step 9", lost.members[3].epochs[:2]
    void = dataclasses.replace(others.pop()[1], void="control differed")
    found = fits(E2, [(few, lost), *others, (counted.comparison(names[4]), void)])
    assert [fit.comparison for fit in found] == ["e2-rounded", "e2-layer-1-forward-split-k-4", "e2-split-k-4", "e2-product"]
    *judged, unjudged = found
    assert (unjudged.log_likelihood, unjudged.deviation, unjudged.surprise, unjudged.share) == (None,) * 4
    assert not unjudged.fits
    assert sum(fit.share or 0 for fit in judged) == pytest.approx(1)
    assert judged[0].share > 0.99
    assert unjudged.series[2].accuracies[0] is None, "it diverged"


def test_two_seeds_are_too_few() -> None:
    of = ROUNDED["e2-"]
    for seeds, known in ((2, False), (3, True)):
        few = dataclasses.replace(of, settings=of.settings.of_seeds(range(seeds)))
        (fit,) = fits(E2, [(few, counted.result(few, counted.like_the_published(few)))])
        assert (fit.log_likelihood is not None) == known


# ---------------------------------------------------------------- accuracies


def _accuracies(*values: float | None, published: float | None = 97.0) -> Series:
    return Series("s = 1", (1,), (5,), (5,), tuple((5,) for _ in values), values, published)


def test_the_deviation_of_an_accuracy_is_that_of_one_more_seed() -> None:
    values = (96.0, 96.5, 95.5, 96.2)
    mean = sum(values) / 4
    sd = math.sqrt(sum((value - mean) ** 2 for value in values) / 3)
    assert _accuracies(*values).accuracy_deviation == pytest.approx((97.0 - mean) / (sd * math.sqrt(1.25)))
    assert _accuracies(*values, published=94.0).accuracy_deviation < 0
    assert _accuracies(*values, published=None).accuracy_deviation is None
    assert _accuracies(*values[:3], None).accuracy_deviation is None, "a seed diverged"
    assert _accuracies(*values[:2]).accuracy_deviation is None, "two seeds"
    assert _accuracies(96.0, 96.0, 96.0).accuracy_deviation is None, "no spread"


def test_the_accuracy_that_deviates_most_is_named() -> None:
    near, far = _accuracies(97.1, 96.8, 97.2), dataclasses.replace(_accuracies(95.0, 95.1, 94.9), name="s = 8")
    fit = Fit("name", "bfloat16", 3, (near, far, _accuracies(97.0)), -1.0)
    assert fit.accuracy == ("s = 8", far.accuracy_deviation)
    assert dataclasses.replace(fit, series=(_accuracies(97.0),)).accuracy is None


def test_accuracies_are_no_part_of_the_fit() -> None:
    of = ROUNDED["e2-"]
    hits = counted.like_the_published(of)
    (one,), (other,) = (
        fits(E2, [(of, counted.result(of, hits, accuracy))]) for accuracy in (lambda m: 0.97, lambda m: 0.5 + m.seed / 99)
    )
    assert (one.log_likelihood, one.surprise, one.deviation) == (other.log_likelihood, other.surprise, other.deviation)
    assert one.accuracy is None
    assert other.accuracy is not None


# ---------------------------------------------------------------- other things


def test_members_are_listed_by_kind_and_kink_without_the_control() -> None:
    of = ROUNDED["default-"]
    found = members(counted.result(of, _encoded))
    assert [one.name for one in found] == [
        f"{name}, at {kink}" for name in ("s = 0", "s = (0.37, 0.32) chain", "s = (0.37, 0.32) injected") for kink in (0, 6)
    ]
    assert found[1].counts == _expected(0.0, of.settings.seeds, 30, kink=1, rule="chain")
    assert [one.name for one in members(counted.result(ROUNDED["e1-"], _encoded))] == [
        "s = 0, at 0",
        "s = 1 injected, at 0",
    ]


def test_a_fit_is_json() -> None:
    (fit,) = fits(E2, [_made("e2-rounded", 1.0)])
    stored = json.loads(json.dumps(fit.as_dict(), allow_nan=False))
    assert stored["fits"] is True
    assert (stored["comparison"], stored["seeds"], stored["deviation"]) == (fit.comparison, 10, fit.deviation)
    assert stored["accuracy"] == list(fit.accuracy or ())
    assert "series" not in stored, "the result files hold the counts"
    infinite = dataclasses.replace(fit, deviation=math.inf)
    assert json.loads(json.dumps(infinite.as_dict(), allow_nan=False))["deviation"] == "infinite"
    assert not infinite.fits
