"""Each statistic on trainings gives each verdict; a lost seed or a missing nudge never passes in silence."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Final

import pytest

from relucheck.reproduction.claims import Claim
from relucheck.reproduction.report.deciding.cases import Trained
from relucheck.reproduction.report.deciding.registry import STATISTICS
from relucheck.training.members import Member
from tests.reproduction.report.deciding.constructed import (
    Epochs,
    Steps,
    claim,
    decisions,
    flat,
    jitter,
    settings,
    trained,
    verdict,
)

_Make = Callable[[], tuple[Trained, ...]]


def _accuracy(cost: Callable[[Member], float], noise: float = 1e-4) -> Epochs:
    """Runs that lose accuracy; the training loss rises with it."""
    return lambda member, epoch: (0.9 - cost(member) + jitter(member, noise), 0.1 + cost(member), 5)


def _linear(member: Member) -> float:
    return 0.1 * member.subgradient


def _wild(member: Member) -> float:
    return 0.1 * (-1) ** member.seed * (member.subgradient > 0)


def _hits(falling: Callable[[Member], bool]) -> Epochs:
    return lambda member, epoch: (0.9, 0.1, 100 - 20 * epoch if falling(member) else 100 + 20 * epoch)


def _waves(amplitude: Callable[[Member], float]) -> Epochs:
    return lambda member, epoch: (0.9 + amplitude(member) * (-1) ** epoch + jitter(member, 1e-5), 0.1, 5)


def _shaped(shape: Callable[[float], float]) -> Steps:
    return lambda member, step: shape(step) * (1 + member.seed) + jitter(member, 1e-6)


def _one(**options: Any) -> _Make:
    return lambda: (trained(**options),)


def _two(larger: float, smaller: float, mixed: bool = False) -> _Make:
    """Distances in the two arms; ``mixed`` seeds disagree."""

    def steps(scale: float, low: bool) -> Steps:
        return lambda member, step: step * (1 if member.nudge else scale * (0.1 if low and member.seed % 2 else 1))

    return lambda: (
        trained(steps=steps(larger, mixed)),
        trained(settings("float32"), steps=steps(smaller, False), name="float32"),
    )


def _counted(bfloat16: int, float32: int, mixed: bool = False) -> _Make:
    def epochs(count: int, other: int) -> Epochs:
        return lambda member, epoch: (0.9, 0.1, other if mixed and member.seed % 2 else count)

    return lambda: (
        trained(epochs=epochs(bfloat16, float32)),
        trained(settings("float32"), epochs=epochs(float32, bfloat16), name="float32"),
    )


def _departing(hits: Callable[[int], int], departs: Callable[[int], bool]) -> _Make:
    """Runs in which s = 0 has hits, and other members depart, in some seeds."""

    def make() -> tuple[Trained, ...]:
        run = trained(epochs=lambda member, epoch: (0.9, 0.1, hits(member.seed)))
        for one in run.result.members:
            apart = departs(one.member.seed) and not (one.member.is_reference or one.member.control)
            one.first_difference = 3 if apart else None
        return (run,)

    return make


def _late(injected: int, chain: int, seed: int = 6) -> _Make:
    """Every run departs at step 49, but in one seed the two rules depart at other steps."""

    def make() -> tuple[Trained, ...]:
        run = _departing(lambda seed: 1, lambda seed: True)()[0]
        for one in run.result.members:
            if one.first_difference is not None:
                same = one.member.seed != seed
                one.first_difference = 49 if same else chain if one.member.rule == "chain" else injected
        return (run,)

    return make


def _controls(differ: int, **options: Any) -> _Make:
    def make() -> tuple[Trained, ...]:
        run = trained(**options)
        for seed in range(differ):
            run.result.find(seed, 0.0, control=True).first_difference = 7
        return (run,)

    return make


_ZERO: Final = {"controls": ("0-0",)}
_NO_RULE: Final = {**_ZERO, "rules": ()}
_BEYOND: Final = claim("differs_beyond_nudges", options={"endpoint": "accuracy", "direction": "smaller", "margin": 0.2})
_GROWS: Final = claim("grows_with_s", options={"endpoint": "error", "margin": 0.2}, subgradients=(0.5, 0.8, 1.0))
_SPREADS: Final = dataclasses.replace(_GROWS, options={"endpoint": "spread of accuracy", "margin": 0.1})
_BEST: Final = claim("reference_is_best", options={"endpoint": "accuracy", "margin": 0.2})
_EQUIVALENT: Final = claim("equivalent_to_reference", options={"endpoint": "accuracy", "margin": 0.2}, **_ZERO)
_FOLLOWS: Final = claim("loss_follows_error", options={"margin": 0.5})
_EFFECT: Final = claim("effect_compares", options={"endpoint": "distance", "direction": "larger"}, against="float32")
_COUNTS: Final = claim(
    "reference_compares", options={"endpoint": "hits an epoch", "direction": "larger"}, against="float32", **_NO_RULE
)
_TREND: Final = claim(
    "reference_exceeds",
    options={"endpoint": "trend of hits", "direction": "larger", "level": 0.0, "margin": 0.01},
    **_NO_RULE,
)
_LOGARITHM: Final = claim("distance_is_logarithmic", **_ZERO)
_CONTROL: Final = claim("control_is_identical", **_NO_RULE)
_DEPARTS: Final = claim("departs_at_a_hit", **_ZERO)
_IDENTICAL: Final = claim("members_are_identical", options={"most": 0.5}, **_ZERO)
_FEASIBLE: Final = claim("cannot_be_trained", **_NO_RULE)
_TRENDS: Final = claim(
    "differs_beyond_nudges", options={"endpoint": "trend of hits", "direction": "smaller", "margin": 0.01}
)
_WAVES: Final = claim("differs_beyond_nudges", options={"endpoint": "fluctuation", "direction": "larger", "margin": 0.05})
_FAR: Final = claim("differs_beyond_nudges", options={"endpoint": "log distance", "direction": "larger", "margin": 0.25})
_RISE: Final = dataclasses.replace(_GROWS, options={"endpoint": "rise of the error", "margin": 0.01})
_CHANGE: Final = claim(
    "differs_beyond_nudges", options={"endpoint": "change of accuracy", "direction": "larger", "margin": 0.2}
)


def _spread(size: Callable[[Member], float]) -> Epochs:
    return lambda member, epoch: (0.9 + size(member) * (member.seed - 3.5) / 3.5, 0.1, 5)


def _correlated(sign: Callable[[Member], int]) -> Epochs:
    return lambda member, epoch: (0.9 - _linear(member), 0.1 + sign(member) * _linear(member), 5)


def _rising(rate: Callable[[Member], float]) -> Epochs:
    return lambda member, epoch: (0.9 - rate(member) * epoch + 1e-6 * member.seed * epoch, 0.1, 5)


#: (claim, results, verdict): each statistic with each verdict that it can give.
_CASES: Final[tuple[tuple[Claim, _Make, str], ...]] = (
    (_CONTROL, _controls(0), "confirmed"),
    (_CONTROL, _controls(1), "refuted"),
    (_CONTROL, _controls(0, of=settings(seeds=4)), "undecided"),
    (_CONTROL, _controls(0, void="control differed at step 3"), "refuted"),
    (_DEPARTS, _departing(lambda seed: 1, lambda seed: True), "confirmed"),
    (_DEPARTS, _departing(lambda seed: seed, lambda seed: seed > 0), "confirmed"),
    (_DEPARTS, _departing(lambda seed: seed, lambda seed: True), "refuted"),
    (_DEPARTS, _departing(lambda seed: 1, lambda seed: seed > 0), "refuted"),
    (_DEPARTS, _late(injected=858, chain=49), "refuted"),
    (_DEPARTS, _late(injected=49, chain=858), "confirmed"),
    (_DEPARTS, _departing(lambda seed: 0, lambda seed: False), "undecided"),
    (_IDENTICAL, _one(identical=True), "confirmed"),
    (_IDENTICAL, _one(), "refuted"),
    (_IDENTICAL, _one(of=settings(seeds=4), identical=True), "undecided"),
    (_FEASIBLE, _one(lost=lambda member: True), "confirmed"),
    (_FEASIBLE, _one(), "refuted"),
    (_FEASIBLE, _one(of=settings(seeds=4), lost=lambda member: True), "undecided"),
    (_EQUIVALENT, _one(), "confirmed"),
    (_EQUIVALENT, _one(epochs=_accuracy(_linear)), "refuted"),
    (_EQUIVALENT, _one(epochs=_accuracy(lambda member: 0.02 * (member.subgradient == 1))), "refuted"),
    (_EQUIVALENT, _one(epochs=_accuracy(_wild)), "undecided"),
    (_BEYOND, _one(epochs=_accuracy(_linear)), "confirmed"),
    (_BEYOND, _one(epochs=_accuracy(lambda member: -_linear(member))), "refuted"),
    (_BEYOND, _one(epochs=_accuracy(lambda member: 0.02 * (member.subgradient == 1))), "refuted"),
    (
        _BEYOND,
        _one(epochs=_accuracy(lambda member: 0.05 * (member.subgradient > 0 or member.nudge is not None))),
        "refuted",
    ),
    (_BEYOND, _one(epochs=_accuracy(_wild)), "undecided"),
    (_TRENDS, _one(epochs=_hits(lambda member: member.subgradient > 0)), "confirmed"),
    (_TRENDS, _one(epochs=_hits(lambda member: True)), "refuted"),
    (_WAVES, _one(epochs=_waves(lambda member: 0.01 * (member.subgradient > 0))), "confirmed"),
    (_WAVES, _one(epochs=_waves(lambda member: 0.01)), "refuted"),
    (_FAR, _one(steps=lambda member, step: step * (9 if member.subgradient else 1) + jitter(member)), "confirmed"),
    (_FAR, _one(steps=lambda member, step: step + jitter(member)), "refuted"),
    (_CHANGE, _one(epochs=_accuracy(_wild)), "confirmed"),
    (_CHANGE, _one(), "refuted"),
    (_BEST, _one(epochs=_accuracy(_linear)), "confirmed"),
    (_BEST, _one(epochs=_accuracy(lambda member: -0.05 * (member.subgradient == 0.8))), "refuted"),
    (_BEST, _one(), "undecided"),
    (_GROWS, _one(epochs=_accuracy(_linear)), "confirmed"),
    (_GROWS, _one(epochs=_accuracy(lambda member: 0.05 * (member.subgradient > 0))), "undecided"),
    (_GROWS, _one(epochs=_accuracy(lambda member: 0.1 * (1 - member.subgradient))), "refuted"),
    (_GROWS, _one(), "refuted"),
    (_RISE, _one(epochs=_rising(lambda member: 0.01 * member.subgradient)), "confirmed"),
    (_RISE, _one(epochs=_rising(lambda member: 0.01)), "refuted"),
    (_SPREADS, _one(epochs=_spread(lambda member: 0.001 + 0.02 * member.subgradient)), "confirmed"),
    (_SPREADS, _one(epochs=_spread(lambda member: 0.02)), "refuted"),
    (_SPREADS, _one(of=settings(seeds=2), epochs=_spread(lambda member: jitter(member, 0.02))), "undecided"),
    (_FOLLOWS, _one(epochs=_correlated(lambda member: 1)), "confirmed"),
    (_FOLLOWS, _one(epochs=_correlated(lambda member: -1)), "refuted"),
    (_FOLLOWS, _one(epochs=_correlated(lambda member: (-1) ** member.seed)), "undecided"),
    (_EFFECT, _two(9.0, 3.0), "confirmed"),
    (_EFFECT, _two(3.0, 9.0), "refuted"),
    (_EFFECT, _two(9.0, 3.0, mixed=True), "undecided"),
    (_COUNTS, _counted(9, 3), "confirmed"),
    (_COUNTS, _counted(3, 9), "refuted"),
    (_COUNTS, _counted(9, 3, mixed=True), "undecided"),
    (_TREND, _one(epochs=_hits(lambda member: False)), "confirmed"),
    (_TREND, _one(epochs=_hits(lambda member: True)), "refuted"),
    (_TREND, _one(epochs=_hits(lambda member: member.seed % 2 == 0)), "undecided"),
    (_LOGARITHM, _one(steps=_shaped(math.log)), "confirmed"),
    (_LOGARITHM, _one(steps=_shaped(float)), "refuted"),
    (_LOGARITHM, _one(of=settings(seeds=3), steps=_shaped(math.log)), "undecided"),
)


@pytest.mark.parametrize(("of", "make", "says"), _CASES, ids=[f"{c[0].statistic} {c[2]} {i}" for i, c in enumerate(_CASES)])
def test_each_statistic_gives_each_verdict(of: Claim, make: _Make, says: str) -> None:
    found = decisions(of, *make())
    assert [one.verdict for one in found if one.case == "bfloat16"] == [says], found[0].measured


def test_the_cases_are_complete() -> None:
    of_trainings = {name for name, one in STATISTICS.items() if one.about == "training"}
    for name in of_trainings:
        assert {says for one, _, says in _CASES if one.statistic == name} == {"confirmed", "refuted", "undecided"}, name


_CONFIRMED: Final = {one.statistic: (one, make) for one, make, says in reversed(_CASES) if says == "confirmed"}


@pytest.mark.parametrize("name", sorted(set(_CONFIRMED) - {"cannot_be_trained"}))
def test_a_diverged_seed_is_never_dropped_in_silence(name: str) -> None:
    """What seven seeds confirm, an eighth that diverged makes undecided: the seeds that are left are a biased selection."""
    of, make = _CONFIRMED[name]
    run, *others = make()
    for result in (run.result, run.nudges):
        assert result is not None
        for member in result.members:
            if member.member.seed == 5 and member.member.nudge is None:
                member.outcome, member.epochs, member.first_difference = "diverged: non-finite at step 9", [], None
    (decision,) = decisions(of, run, *others)
    assert decision.verdict == "undecided", decision.measured
    assert "diverged" in decision.measured


@pytest.mark.parametrize("name", sorted(name for name, (one, _) in _CONFIRMED.items() if "nudges" in one.controls))
def test_without_nudges_an_effect_of_s_is_not_run(name: str) -> None:
    of, make = _CONFIRMED[name]
    run, *others = make()
    assert verdict(of, dataclasses.replace(run, nudges=None), *others) == "not run: nudges"
    void = dataclasses.replace(run, nudges=dataclasses.replace(run.nudges, void="other reference"))  # type: ignore[type-var]
    assert verdict(of, void, *others) == "not run: nudges"
    if others:
        assert verdict(of, run, dataclasses.replace(others[0], nudges=None)) == "not run: nudges"


@pytest.mark.parametrize("name", sorted(name for name, (one, _) in _CONFIRMED.items() if "nudges" in one.controls))
def test_a_nudge_that_does_what_s_does_takes_the_effect_away(name: str) -> None:
    """A seeded fault: without the control, chaos would be taken for an effect of s."""
    of, make = _CONFIRMED[name]
    run, *others = make()
    assert run.nudges is not None
    s = run.result.settings.members[-1].subgradient
    for result, nudges in [(one.result, one.nudges) for one in (run, *others)]:
        assert nudges is not None
        for member in nudges.members:
            if member.member.nudge is not None:
                like = result.find(member.member.seed, s, "injected")
                member.epochs, member.steps, member.hits = like.epochs, like.steps, like.hits
    if name != "loss_follows_error":  # compares members with each other
        assert decisions(of, run, *others)[0].verdict != "confirmed"


def test_a_run_that_departs_after_another_one_of_its_seed_is_counted() -> None:
    """bfloat16 on an H200, seed 6: the injected rule departs at step 49; the chain rule is s = 0 until step 858."""
    (decision,) = decisions(_DEPARTS, *_late(injected=858, chain=49)())
    assert "in 0 only one of the two happens; in 1 a run departs later than another run of its seed" in decision.measured
    (decision,) = decisions(_DEPARTS, *_late(injected=49, chain=858)())
    assert "in 0 a run departs later" in decision.measured


def test_a_void_comparison_is_not_run() -> None:
    (decision,) = decisions(_BEYOND, trained(epochs=_accuracy(_linear), void="control differed at step 3"))
    assert decision.said == "not run: 0-0"
    assert "control differed at step 3" in decision.measured


def test_seeds_without_a_live_hit_are_counted_and_left_out() -> None:
    def effect(member: Member) -> float:
        return 0.0 if member.seed in (0, 1) else 0.1 * member.subgradient

    (decision,) = decisions(_BEYOND, trained(epochs=_accuracy(effect), quiet=(0, 1)))
    assert decision.verdict == "confirmed"
    assert "(6 seeds); 2 more without a live hit have no nudges" in decision.measured
    (nothing,) = decisions(_BEYOND, trained(quiet=tuple(range(8))))
    assert nothing.verdict == "undecided"


def test_an_effect_without_nudges_to_compare_with_is_unknown() -> None:
    """The injected rule acts at hits that are not live, too; in a seed that departs so, the effect is not 0."""
    runs = _two(9.0, 3.0)()
    quiet = [dataclasses.replace(one, nudges=trained(quiet=(0, 1)).nudges) for one in runs]
    assert verdict(_EFFECT, *quiet) == "undecided"
    for one in quiet:
        for seed in (0, 1):
            one.result.find(seed, 1.0, "injected").first_difference = None
            one.result.find(seed, 0.8, "injected").first_difference = None
            one.result.find(seed, 0.5, "injected").first_difference = None
    (decision,) = decisions(_EFFECT, *quiet)
    assert "(8 seeds)" in decision.measured


def test_a_nudge_that_rounding_undoes_does_not_outweigh_the_others() -> None:
    """Four of five nudges go as far as s does; the logarithm of the fifth one's distance of 0 would be -744."""

    def steps(member: Member, step: int) -> float:
        return 0.0 if member.nudge == 1 else step + jitter(member)

    assert verdict(_FAR, trained(steps=steps)) == "refuted"


def test_the_spread_of_s_0_is_that_of_single_nudges_and_not_of_their_means() -> None:
    """The mean of five nudges spreads less than one run; with it, chaos alone would grow with s."""

    def chaotic(member: Member, epoch: int) -> tuple[float, float, int]:
        return 0.9 + jitter(member, 0.02), 0.1, 5

    assert verdict(_SPREADS, trained(settings(seeds=40), epochs=chaotic)) != "confirmed"


def test_an_endpoint_without_effect_stays_so_for_every_seed_count() -> None:
    assert verdict(_GROWS, trained(settings(seeds=30), epochs=flat)) == "refuted"
