"""The published findings of E1 to E3 beside the measurements, with reasons.

A reason is given only where numbers of the same run show it; otherwise it is "not found".
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from relucheck.reproduction.report.summary import Checked, Claim, MemberGroup, group
from relucheck.reproduction.scenario import Comparison
from relucheck.results.statistics import summarise
from relucheck.training.result import Result

#: How the claims begin that a conclusion looks for.
LARGER: Final = "the difference is larger in 16 bits"
SPREAD: Final = "standard deviation over seeds"
_NONE_FOUND: Final = "not found"
_Runs = Sequence[tuple[Comparison, Result]]
#: An arithmetic hits "rarely" with at most so many hits an epoch, beside one that hits at least so many times as often.
_FEW: Final = 10
_RARE: Final = 10


def claims(scenario: str, runs: _Runs, cells: Sequence[MemberGroup]) -> list[Claim]:
    """List a scenario's published findings in words, each with measurement and verdict."""
    makers: dict[str, tuple[Callable[[_Runs, Sequence[MemberGroup]], list[Claim]], ...]] = {
        "E1": (_controls, _departures, _larger_in_16_bits),
        "E2": (_controls, _float32_unmoved, _growing_errors),
        "E3": (_growing_spread,),
    }
    return [claim for maker in makers.get(scenario, ()) for claim in maker(runs, cells)]


def reason(checked: Checked, cells: Sequence[MemberGroup]) -> str:
    """Explain why a figure agrees or not, if cells of the same run show it; else return ""."""
    published = checked.published
    if checked.verdict not in ("agrees", "disagrees"):
        return ""
    matching = [cell for cell in cells if cell.comparison == published.comparison and not cell.control]
    if published.subgradient:
        if checked.verdict == "agrees":
            return _dropped_chain_rule(checked, matching)
        return _few_hits(matching, cells) or _NONE_FOUND
    return _NONE_FOUND if checked.verdict == "disagrees" else ""


def _hits(cells: Sequence[MemberGroup]) -> float | None:
    return next((cell.hits for cell in cells if cell.is_reference), None)


def _few_hits(matching: Sequence[MemberGroup], cells: Sequence[MemberGroup]) -> str:
    """Explain by few hits: exact zeros are rare here, but frequent in an emulation of the dtype."""
    here = _hits(matching)
    if here is None or here > _FEW:
        return ""
    arithmetic, comma, setting = matching[0].label.partition(", ")
    like = f"{arithmetic.partition(' emulated')[0]} emulated"  # in the same dtype
    others = [
        cell
        for cell in cells
        if cell.is_reference and cell.label.startswith(like) and cell.label.partition(", ")[1:] == (comma, setting)
    ]
    most = max((cell for cell in others if cell.hits), key=lambda cell: cell.hits or 0.0, default=None)
    if most is None or most.hits is None or most.hits < _RARE * max(here, 1.0):
        return ""
    by = f"in {matching[0].label}" if matching[0].kernel == "emulated" else f"with {matching[0].kernel}"
    return (
        f"{here:,.1f} hits an epoch {by}, {most.hits:,.0f} in {most.label}: with so few hits the subgradient is hardly used"
    )


def _dropped_chain_rule(checked: Checked, matching: Sequence[MemberGroup]) -> str:
    """Explain by the rule: accuracy is lost under the injected rule and not under the chain rule."""
    s, measured = checked.published.subgradient, checked.measured
    chain = next((cell for cell in matching if cell.rule == "chain" and cell.subgradient == s), None)
    if chain is None or chain.summary.low is None or measured.low is None or chain.summary.mean is None:
        return ""
    if 100 - chain.summary.low >= measured.low:  # the intervals meet
        return ""
    return f"the rule: {100 - chain.summary.mean:.2f} % with the chain rule, in the same arithmetic"


# ---------------------------------------------------------------- findings in words


def _controls(runs: _Runs, cells: Sequence[MemberGroup]) -> list[Claim]:
    controls = [member for _, result in runs for member in group(result)[0.0, "chain", True]]
    distances = [value for member in controls for value in member.steps.l1]
    void = [comparison.name for comparison, result in runs if result.void]
    verdict = "disagrees" if void or any(distances) else "agrees" if distances else "not measured"
    measured = f"largest L1 distance {max(distances, default=0.0):g} at {len(distances):,} recorded steps"
    return [Claim("[R22] Fig. 1", "0 against 0: identical", measured, verdict, f"void: {', '.join(void)}" if void else "")]


@dataclasses.dataclass(frozen=True)
class Departures:
    """Counts of runs of s = 1 beside their s = 0, without void runs and diverged references.

    Attributes:
        seeds: how many.
        met: those in which s = 0 meets an exact zero.
        departed: those in which the parameters of s = 1 differ from those of s = 0.
        without: those of them in which s = 0 meets no exact zero.
    """

    seeds: int
    met: int
    departed: int
    without: int


def departures(runs: _Runs) -> Departures:
    """Count the seeds of all comparisons in which s = 1 departs, and in which s = 0 has a hit."""
    departed = without = met = seeds = 0
    for _, result in runs:
        for seed in result.settings.seeds:
            reference = result.find(seed, 0.0)
            others = [m for m in result.members if m.member.seed == seed and m.member.subgradient]
            if reference.diverged or result.void:
                continue
            hits = any(kink for epoch in reference.hits for layer in epoch for kink in layer)
            parts = any(member.first_difference is not None for member in others)
            seeds, met = seeds + 1, met + hits
            departed, without = departed + parts, without + (parts and not hits)
    return Departures(seeds, met, departed, without)


def _departures(runs: _Runs, cells: Sequence[MemberGroup]) -> list[Claim]:
    counts = departures(runs)
    measured = (
        f"{counts.met} of {counts.seeds} runs of s = 0 meet an exact zero; s = 1 departs in {counts.departed}, "
        f"{counts.without} of them without one"
    )
    verdict = "not measured" if not counts.met else "disagrees" if counts.without or not counts.departed else "agrees"
    return [Claim("[R22] Fig. 1", "0 against 1: departs at the first exact zero", measured, verdict)]


def _larger_in_16_bits(runs: _Runs, cells: Sequence[MemberGroup]) -> list[Claim]:
    listed = []
    for rule in ("injected", "chain"):
        pair = [_one(cells, name, 1.0, rule) for name in ("float32", "bfloat16")]
        what = f"{LARGER} ({rule} rule)"
        if any(cell is None or cell.l1 is None or cell.void for cell in pair):
            listed.append(Claim("[R22] Fig. 1", what, "-", "not measured"))
            continue
        single, half = (cell for cell in pair if cell is not None)
        measured = f"last L1 distance {single.l1:.4g} in float32, {half.l1:.4g} in bfloat16 ({half.kernel})"
        verdict = _larger(*(_last_distances(runs, name, rule) for name in ("float32", "bfloat16")))
        why = "" if verdict == "agrees" else f"hits of s = 0 an epoch: {_count(cells, single)} and {_count(cells, half)}"
        listed.append(Claim("[R22] Fig. 1", what, measured, verdict, why))
    return listed


def _last_distances(runs: _Runs, name: str, rule: str) -> dict[int, float | None]:
    """The last L1 distance of s = 1 by seed; None where that run or its reference diverged."""
    (result,) = (result for comparison, result in runs if comparison.name == name)
    distances: dict[int, float | None] = {}
    for seed in result.settings.seeds:
        member = result.find(seed, 1.0, rule)
        lost = member.diverged or result.find(seed, 0.0).diverged or not member.steps.l1
        distances[seed] = None if lost else member.steps.l1[-1]
    return distances


def _larger(small: Mapping[int, float | None], large: Mapping[int, float | None]) -> str:
    """The verdict on "larger", by the 95 % interval of the mean difference on the same seeds."""
    pairs = [(small[seed], large[seed]) for seed in small if seed in large]
    differences = [high - low for low, high in pairs if low is not None and high is not None]
    if len(pairs) < 2:
        return "one run"
    if len(differences) < len(pairs):  # seeds that are left after a divergence are a biased selection
        return "undecided"
    interval = summarise(differences)
    assert interval.low is not None
    assert interval.high is not None
    return "agrees" if interval.low > 0 else "disagrees" if interval.high < 0 else "undecided"


def _count(cells: Sequence[MemberGroup], like: MemberGroup) -> str:
    hits = _hits([cell for cell in cells if cell.comparison == like.comparison])
    return "unknown" if hits is None else f"{hits:,.1f}"


def _one(cells: Sequence[MemberGroup], name: str, s: float, rule: str) -> MemberGroup | None:
    rule = rule if s else "chain"
    return next(
        (cell for cell in cells if (cell.comparison, cell.subgradient, cell.rule, cell.control) == (name, s, rule, False)),
        None,
    )


def _float32_unmoved(runs: _Runs, cells: Sequence[MemberGroup]) -> list[Claim]:
    what = "float32: weights differ, errors do not (injected rule)"
    matching = [c for c in cells if c.comparison == "float32" and c.rule == "injected" and c.subgradient and not c.void]
    if not matching:
        return [Claim("[R22] Figs. 2 and 3", what, "-", "not measured")]
    words = [cell.paired.verdict for cell in matching if cell.paired]
    moved = [cell for cell in matching if cell.differing]
    if len(matching[0].accuracies) < 2:
        verdict = "one run"
    elif "differs" in words or not moved:
        verdict = "disagrees"
    else:
        verdict = "agrees" if set(words) == {"equivalent"} else "undecided"
    counts = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
    measured = f"weights differ for {len(moved)} of {len(matching)} s (in up to {max(c.differing for c in matching)} of "
    measured += f"{len(matching[0].accuracies)} seeds); accuracies: {counts}"
    why = "" if moved else f"hits of s = 0 an epoch: {_count(cells, matching[0])} with {matching[0].kernel}"
    return [Claim("[R22] Figs. 2 and 3", what, measured, verdict, why)]


def _growing_errors(runs: _Runs, cells: Sequence[MemberGroup]) -> list[Claim]:
    return _growing(cells, "[R22] Fig. 3", "test error", lambda c: None if c.summary.mean is None else 100 - c.summary.mean)


def _growing_spread(runs: _Runs, cells: Sequence[MemberGroup]) -> list[Claim]:
    return _growing(cells, "[R22] Fig. 4", SPREAD, lambda cell: cell.summary.sd)


def _growing(
    cells: Sequence[MemberGroup], source: str, noun: str, value: Callable[[MemberGroup], float | None]
) -> list[Claim]:
    """Check in each 16-bit arithmetic whether a value grows with s = 0, 0.5, 0.8, 1 under the injected rule."""
    listed = []
    for name in dict.fromkeys(cell.comparison for cell in cells if cell.comparison in _SIXTEEN):
        matching = [_one(cells, name, s, "injected") for s in (0.0, 0.5, 0.8, 1.0)]
        known = [cell for cell in matching if cell is not None and not cell.void]
        values = [number for cell in known if (number := value(cell)) is not None]
        what = f"{noun} grows with s in 16 bits (injected rule)"
        few = not known or len(known[0].accuracies) < 2
        label = known[0].label if known else name
        if len(values) < len(matching):
            listed.append(Claim(source, what, f"{label}: -", "one run" if known and few else "not measured"))
            continue
        grows = all(a < b for a, b in itertools.pairwise(values))
        measured = f"{label}: {', '.join(f'{number:.2f}' for number in values)} for s = 0, 0.5, 0.8, 1"
        why = "" if grows else _few_hits([cell for cell in cells if cell.comparison == name], cells) or _NONE_FOUND
        listed.append(Claim(source, what, measured, "one run" if few else "agrees" if grows else "disagrees", why))
    return listed


_SIXTEEN: Final = ("bfloat16", "bfloat16-rounded", "bfloat16-product", "bfloat16-split-k-4")
