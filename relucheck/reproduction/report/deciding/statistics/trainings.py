"""Statistics on training comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from relucheck.reproduction.claims import Finding
from relucheck.reproduction.report.deciding.cases import TrainingCase, kernels
from relucheck.reproduction.report.deciding.departures import departure
from relucheck.reproduction.report.deciding.endpoints import ENDPOINTS
from relucheck.reproduction.report.deciding.evidence import every, said
from relucheck.reproduction.report.deciding.registry import statistic
from relucheck.results.statistics import Evidence, grows, larger, near, spread_grows, without_exception
from relucheck.training.results.result import Distances, MemberResult
from relucheck.training.results.thinning import drawn_steps

_ENDPOINTS: Final = tuple(ENDPOINTS)
_DIRECTIONS: Final = ("larger", "smaller")
_SPREAD: Final = "spread of accuracy"


# ---------------------------------------------------------------- runs that are identical, or depart


@statistic("training")
def control_is_identical(case: TrainingCase) -> Finding:
    """Whether the control of s = 0 is the reference at every step, in every seed.

    A result is void because a control is not.
    """
    result = case.run.result
    controls = {seed: result.find(seed, 0.0, control=True) for seed in case.seeds}
    lost = sum(control.diverged for control in controls.values())
    differ = sum(control.first_difference is not None or any(control.steps.l1) for control in controls.values())
    differ = max(differ, int(result.void is not None))
    steps = sum(len(control.steps.step) for control in controls.values())
    return Finding(
        _counted(differ, len(controls), lost),
        f"the control differs in {differ} of {len(controls)} seeds ({steps:,} recorded steps{_diverged(lost)})",
    )


@statistic("training")
def departs_at_a_hit(case: TrainingCase) -> Finding:
    """Whether runs depart from s = 0 where s = 0 meets an exact zero, at once, and only there.

    A run is late if another run of its seed, with any s under any rule, departs at an earlier step: s = 0 had met an exact
    zero by then. At least one seed has to meet one.
    """
    found = [
        departure(case.reference(seed), [case.member(seed, s) for s in case.subgradients], case.others(seed))
        for seed in case.seeds
    ]
    lost = sum(one is None for one in found)
    known = [one for one in found if one is not None]
    met, departed = sum(one.met for one in known), sum(one.departed for one in known)
    wrong = sum(one.met != one.departed or one.late for one in known)
    evidence = _counted(wrong, len(found), lost)
    if not (met or wrong):
        evidence = _counted(0, 0, 0)
    only, late = sum(one.met != one.departed for one in known), sum(one.late for one in known)
    return Finding(
        evidence,
        f"s = 0 meets an exact zero in {met} of {len(known)} seeds; runs depart in {departed}; in {only} only one of the "
        f"two happens; in {late} a run departs later than another run of its seed"
        + (", so after s = 0 met an exact zero" if late else "")
        + _diverged(lost),
    )


@statistic("training", most=float)
def members_are_identical(case: TrainingCase, most: float) -> Finding:
    """Whether no run departs from s = 0.

    ``most`` is the share of seeds with a departure that has to be excluded.
    """
    runs = {seed: [case.reference(seed), *(case.member(seed, s) for s in case.subgradients)] for seed in case.seeds}
    differ = sum(any(run.first_difference is not None for run in members) for members in runs.values())
    lost = sum(any(run.diverged for run in members) for members in runs.values())
    return Finding(
        _counted(differ, len(runs), lost, most), f"runs depart in {differ} of {len(runs)} seeds{_diverged(lost)}"
    )


@statistic("training")
def cannot_be_trained(case: TrainingCase) -> Finding:
    """Whether s = 0 diverges in every seed."""
    trained = sum(not case.reference(seed).diverged for seed in case.seeds)
    return Finding(
        without_exception(trained, len(case.seeds)),
        f"the training ends with finite weights in {trained} of {len(case.seeds)} seeds",
    )


def _counted(exceptions: int, cases: int, lost: int, most: float = 0.5) -> Evidence:
    """As ``without_exception``; seeds that diverged decide nothing, unless there is an exception without them."""
    found = without_exception(exceptions, cases, most)
    return found if exceptions or not lost else Evidence(cases - lost, lost, found.estimate, None, None)


def _diverged(lost: int) -> str:
    return f"; {lost} diverged" if lost else ""


# ---------------------------------------------------------------- effects of s


@statistic("training", endpoint=_ENDPOINTS, margin=float)
def equivalent_to_reference(case: TrainingCase, endpoint: str, margin: float) -> Finding:
    """Whether the mean difference from s = 0 is within the margin, for every s."""
    zero = case.values(0.0, endpoint, case.seeds)
    parts = {}
    for s in case.subgradients:
        pairs = zip(case.values(s, endpoint, case.seeds), zero, strict=True)
        parts[f"s = {s:g}"] = near([None if a is None or b is None else a - b for a, b in pairs], 0.0, 0.0, margin)
    return Finding(every(parts), f"{endpoint} minus that of s = 0: {said(parts)}")


@statistic("training", endpoint=_ENDPOINTS, direction=_DIRECTIONS, margin=float)
def differs_beyond_nudges(case: TrainingCase, endpoint: str, direction: str, margin: float) -> Finding:
    """Whether the mean difference from the nudges is at least the margin, for every s."""
    parts = {f"s = {s:g}": _beyond(case, s, endpoint, direction, margin) for s in case.subgradients}
    return _over_live_seeds(case, every(parts), f"{endpoint}, {direction} than that of the nudges by: {said(parts)}")


@statistic("training", endpoint=_ENDPOINTS, margin=float)
def reference_is_best(case: TrainingCase, endpoint: str, margin: float) -> Finding:
    """Whether no s exceeds the nudges by the margin, and some s falls short of them by it."""
    better = {f"s = {s:g}": _beyond(case, s, endpoint, "larger", margin) for s in case.subgradients}
    worse = [_beyond(case, s, endpoint, "smaller", margin) for s in case.subgradients]
    some, none_better = every(better), [one.p_against for one in better.values()]
    p_worse = [one.p_for for one in worse if one.p_for is not None]
    known = [p for p in none_better if p is not None]
    evidence = Evidence(some.n, some.lost, some.estimate, None, None)
    if len(known) == len(better) == len(p_worse):
        p_better = [one.p_for for one in better.values() if one.p_for is not None]
        evidence = Evidence(
            some.n,
            some.lost,
            some.estimate,
            max(*known, min(1.0, len(p_worse) * min(p_worse))),
            min(1.0, len(p_better) * min(p_better)),
        )
    return _over_live_seeds(case, evidence, f"{endpoint} above that of the nudges by: {said(better)}")


def _beyond(case: TrainingCase, s: float, endpoint: str, direction: str, margin: float) -> Evidence:
    levels = [case.nudged(endpoint, case.live), case.values(s, endpoint, case.live)]
    return grows(levels if direction == "larger" else levels[::-1], margin)


def _over_live_seeds(case: TrainingCase, evidence: Evidence, measured: str) -> Finding:
    quiet = len(case.seeds) - len(case.live)
    return Finding(evidence, measured + (f"; {quiet} more without a live hit have no nudges" if quiet else ""))


@statistic("training", endpoint=(*_ENDPOINTS, _SPREAD), margin=float)
def grows_with_s(case: TrainingCase, endpoint: str, margin: float) -> Finding:
    """Whether the endpoint grows from s to s, and over all of them by the margin.

    The nudges stand for s = 0.

    The spread of the accuracy needs a trend alone, see ``relucheck.results.statistics.spread_grows``.
    """
    at = (0.0, *case.subgradients)
    if endpoint == _SPREAD:
        levels = [case.values(s, "accuracy", case.live) for s in case.subgradients]
        evidence = spread_grows([case.one_nudge("accuracy", case.live), *levels], at, margin)
    else:
        levels = [case.values(s, endpoint, case.live) for s in case.subgradients]
        evidence = grows([case.nudged(endpoint, case.live), *levels], margin)
    return _over_live_seeds(case, evidence, f"rise of {endpoint} from s = 0 (nudges) to {at[-1]:g}: {said({'': evidence})}")


@statistic("training", margin=float)
def loss_follows_error(case: TrainingCase, margin: float) -> Finding:
    """Whether training loss and test error put the s in the same order.

    Their mean rank correlation over the seeds is at least the margin.
    """
    correlations = [_rank_correlation(case, seed) for seed in case.live]
    evidence = grows([[0.0] * len(correlations), correlations], margin)
    return _over_live_seeds(
        case, evidence, f"rank correlation of training loss and test error over s: {said({'': evidence})}"
    )


def _rank_correlation(case: TrainingCase, seed: int) -> float | None:
    pairs = [
        (case.value(seed, s, "training loss"), case.value(seed, s, "error")) for s in sorted((0.0, *case.subgradients))
    ]
    if any(loss is None or error is None for loss, error in pairs):
        return None
    losses, errors = (_ranks([pair[index] or 0.0 for pair in pairs]) for index in (0, 1))
    products = [_covariance(a, b) for a, b in ((losses, errors), (losses, losses), (errors, errors))]
    return products[0] / math.sqrt(products[1] * products[2]) if products[1] and products[2] else 0.0


def _ranks(values: list[float]) -> list[float]:
    """Ranks from 1 on; equal values share the mean of theirs."""
    return [sum(v < value for v in values) + (1 + sum(v == value for v in values)) / 2 for value in values]


def _covariance(one: list[float], other: list[float]) -> float:
    middle = (len(one) + 1) / 2
    return math.fsum((a - middle) * (b - middle) for a, b in zip(one, other, strict=True))


# ---------------------------------------------------------------- two arms


@statistic("training", compares=True, endpoint=_ENDPOINTS, direction=_DIRECTIONS)
def effect_compares(case: TrainingCase, endpoint: str, direction: str) -> Finding:
    """Whether what s adds to the nudges is larger (smaller) than in the other arm.

    This holds on most seeds, for every s.
    """
    assert case.against is not None
    runs = (case.against, case.run)
    parts = {}
    for s in case.subgradients:
        levels = [[case.effect(seed, s, endpoint, run) for seed in case.seeds] for run in runs]
        low, high = levels if direction == "larger" else levels[::-1]
        parts[f"s = {s:g}"] = larger(high, low)
    return Finding(every(parts), f"{_against(case, endpoint, direction)}, beyond nudges, by: {said(parts)}")


@statistic("training", compares=True, endpoint=_ENDPOINTS, direction=_DIRECTIONS)
def reference_compares(case: TrainingCase, endpoint: str, direction: str) -> Finding:
    """Whether the endpoint of s = 0 is larger (smaller) than in the other arm, on most seeds."""
    assert case.against is not None
    levels = [[case.value(seed, 0.0, endpoint, run) for seed in case.seeds] for run in (case.against, case.run)]
    low, high = levels if direction == "larger" else levels[::-1]
    found = larger(high, low)
    return Finding(found, f"{_against(case, endpoint, direction)} by: {said({'': found})}")


def _against(case: TrainingCase, endpoint: str, direction: str) -> str:
    assert case.against is not None
    return f"{endpoint}, {direction} than in {case.against.comparison.name}{kernels(case.run, case.against)}"


# ---------------------------------------------------------------- s = 0 alone, and shapes


@statistic("training", endpoint=_ENDPOINTS, direction=_DIRECTIONS, level=float, margin=float)
def reference_exceeds(case: TrainingCase, endpoint: str, direction: str, level: float, margin: float) -> Finding:
    """Whether the mean of s = 0 is larger (smaller) than a level by at least the margin."""
    levels: list[Sequence[float | None]] = [[level] * len(case.seeds), case.values(0.0, endpoint, case.seeds)]
    found = grows(levels if direction == "larger" else levels[::-1], margin)
    return Finding(found, f"{endpoint} of s = 0, {direction} than {level:g} by: {said({'': found})}")


@statistic("training")
def distance_is_logarithmic(case: TrainingCase) -> Finding:
    """Whether a logarithm of the step fits the distance better than a line and a square root.

    This holds on most seeds, for every s. Only the steps that figures draw count, because a thinned result has no others.
    """
    parts, drawn = {}, drawn_steps(case.run.result.members)
    for s in case.subgradients:
        errors = [_errors_of_shapes(case.member(seed, s).at(drawn), case.reference(seed)) for seed in case.seeds]
        logarithms = [None if one is None else one["logarithm"] for one in errors]
        others = [None if one is None else min(one["line"], one["root"]) for one in errors]
        parts[f"s = {s:g}"] = larger(others, logarithms)
    return Finding(every(parts), f"squared error of the next best shape minus that of the logarithm: {said(parts)}")


_SHAPES: Final[Mapping[str, Callable[[float], float]]] = {"logarithm": math.log, "line": float, "root": math.sqrt}


def _errors_of_shapes(member: MemberResult, reference: MemberResult) -> Mapping[str, float] | None:
    """For each shape the mean squared error of its fit by least squares; None if a run diverged."""
    if member.diverged or reference.diverged or len(member.steps.step) < 3:
        return None
    return {name: _error(member.steps, [shape(step) for step in member.steps.step]) for name, shape in _SHAPES.items()}


def _error(distances: Distances, at: list[float]) -> float:
    count, values = len(at), distances.l1
    x, y = math.fsum(at) / count, math.fsum(values) / count
    xx = math.fsum((a - x) ** 2 for a in at)
    slope = math.fsum((a - x) * (b - y) for a, b in zip(at, values, strict=True)) / xx
    return math.fsum((b - y - slope * (a - x)) ** 2 for a, b in zip(at, values, strict=True)) / count
