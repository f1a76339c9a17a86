"""The conclusion of a training report, computed from its verdicts and numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from relucheck.reproduction.report.deciding.departures import departures
from relucheck.reproduction.report.deciding.page import sentence
from relucheck.reproduction.report.nudges.effects import HALF, LAST
from relucheck.reproduction.report.summary import Effect, MemberGroup, Reproduction
from relucheck.reproduction.report.tables import rounded_up
from relucheck.reproduction.scenario import SCALE_NAMES, Experiment
from relucheck.results.statistics import MARGIN, Paired, Verdict
from relucheck.results.tables import counted, listed, with_verb

#: The arithmetic at the beginning of a label, whose roundings may contain commas.
_ARITHMETIC: Final = re.compile(r"^[^,(]+(?:\([^()]*\))?")
#: Number of arithmetics that a sentence lists.
_NAMED: Final = 3
_NO_CLAIM: Final = "At this scale no published claim is decided."
_RULES: Final = {"chain": "the chain rule", "injected": "the injected rule of the published code"}


def title(made: Reproduction) -> str:
    """The title of a report, which names a reduced scale and what was not run."""
    return titled(made.experiment, made.scale, len(made.runs) - made.partial, len(made.missing))


def titled(experiment: Experiment, scale: str, run: int, missing: int) -> str:
    """The title of a report on a scale's comparisons, some of which may be missing."""
    part = f", {run} of {run + missing} comparisons" if missing else ""
    return f"{experiment.name}: {experiment.title} ({SCALE_NAMES[scale]}{part})"


def conclusion(made: Reproduction) -> tuple[str, ...]:
    """The conclusion in sentences, without the void comparisons."""
    if made.experiment.name == "E1":
        larger = sentence(made.decisions, "E1-larger-in-16-bits") or _NO_CLAIM
        sentences = [_departure(made), larger, *_accuracy(made, "chain", "injected")]
    elif made.experiment.name == "E3":
        spread = sentence(made.decisions, "E3-spread") or _NO_CLAIM
        sentences = [spread, *_accuracy(made, "injected"), *_accuracy(made, "chain")]
    else:
        sentences = [*_accuracy(made, "chain"), *_accuracy(made, "injected"), _published(made)]
    if not made.experiment.tables:
        sentences = [_control(made) + "."] if made.runs else []
    own = [sentence for section in made.sections for sentence in section.sentences]
    return (*own, *sentences, *(_without_nudges(made) if made.experiment.tables else ()))


# ---------------------------------------------------------------- accuracy


def _accuracy(made: Reproduction, *rules: str) -> list[str]:
    """What the tests say of the accuracy: beyond nudges where there are any, and against s = 0 elsewhere."""
    known, images = {effect.comparison for effect in made.effects}, made.experiment.evaluated
    if not known:
        return [_accuracies(made.cells, *rules, images=images)]
    others = [cell for cell in made.cells if cell.comparison not in known and not cell.void]
    rest = [_accuracies(others, *rules, images=images, besides=" and without nudges")] if others else []
    return [_beyond_nudges(made, *rules), *rest]


def _beyond_nudges(made: Reproduction, *rules: str) -> str:
    """What the tests against nudges say of the accuracy under one rule or several."""
    under = f"Under {listed([_RULES[rule] for rule in rules])}"
    images, every = made.experiment.evaluated, [effect for effect in made.effects if effect.rule in rules]
    own = [effect for effect in every if effect.endpoint == LAST]
    words = Counter(effect.beyond.paired.verdict for effect in own)
    tested = [effect for effect in own if effect.beyond.paired.adjusted_difference is not None]
    pairs = f"{counted(len(own), 'comparison')} with nudges"
    live = [effect for effect in own if effect.beyond.paired.n + effect.beyond.paired.lost]
    reasons = ["one seed with a live hit, or a run without an accuracy"] * (len(live) > len(tested))
    why = "; ".join([*reasons, *["no seed with a live hit"] * (len(own) > len(live))])
    if not tested:
        return f"{under}, an effect of s on the {images} accuracy beyond that of nudges was not tested in {pairs} ({why})."
    untested = len(own) - len(tested)
    others = (
        f"{with_verb(words['equivalent'], 'is', 'are')} equivalent to nudges within {MARGIN:g} points and "
        f"{with_verb(words['undecided'], 'is', 'are')} undecided"
    )
    others += f" ({untested} of them untested: {why})" if untested else ""
    half = [effect for effect in every if effect.endpoint == HALF]
    later = sum(effect.beyond.paired.verdict == "differs" for effect in half)
    over = f"; for the mean over the second half of the epochs, {later} of {len(half)} differ" if half else ""
    if not words["differs"]:
        return f"{under}, s is not shown to change the {images} accuracy more than nudges do: of {pairs}, {others}{over}."
    differing = [effect for effect in own if effect.beyond.paired.verdict == "differs"]
    where = _where([(effect.comparison, effect.label) for effect in differing], own, made.cells)
    return (
        f"{under}, s changes the {images} accuracy more than nudges do in {len(differing)} of {pairs}, by "
        f"{_range([effect.beyond.paired for effect in differing])} points on average and {where}; {others}{over}."
    )


def _range(differing: Sequence[Paired]) -> str:
    """The smallest and the largest mean difference."""
    means = [paired.difference.mean for paired in differing if paired.difference.mean is not None]
    ends = dict.fromkeys(f"{mean:+.2f}" for mean in (min(means), max(means)))
    return " to ".join(ends)


def _without_nudges(made: Reproduction) -> list[str]:
    """Say which differences lack the control that nudges are."""
    run = [comparison.name for comparison, result in made.runs if not result.void]
    valid = {one.comparison for one in made.nudges if one.void is None}
    lacking = [name for name in run if name not in valid]
    if not lacking:
        return []
    every = len(lacking) == len(run)
    where = "No" if every else f"For {len(lacking)} of {counted(len(run), 'comparison')} no"
    return [
        f"{where} valid nudges were run: it is not shown {'' if every else 'there '}that a difference from s = 0 is larger "
        "than what a change of one bit leads to."
    ]


def _accuracies(cells: Sequence[MemberGroup], *rules: str, images: str, besides: str = "") -> str:
    """What the tests say of the accuracy under one rule or several; ``besides`` says which comparisons the cells are of."""
    under = f"Under {listed([_RULES[rule] for rule in rules])}"
    own = [cell for cell in cells if cell.rule in rules and not (cell.control or cell.is_reference or cell.void)]
    if not own:
        return f"{under}, no subgradient was compared with s = 0."
    words = Counter(cell.paired.verdict if cell.paired else "undecided" for cell in own)
    undecided = [cell for cell in own if (cell.paired.verdict if cell.paired else "undecided") == "undecided"]
    untested = sum(cell.paired is None or cell.paired.adjusted_difference is None for cell in undecided)
    pairs = f"{counted(len(own), 'comparison')} with s = 0{besides}"
    if untested == len(own):
        return f"{under}, the {images} accuracy is undecided in all {pairs}: each has one seed, or a run that diverged."
    others = _others(own, words)
    others += f" ({untested} of them untested: one seed, or a run that diverged)" if untested else ""
    if not words["differs"]:
        return f"{under}, no subgradient is shown to change the {images} accuracy: of {pairs}, {others}."
    differing = [cell for cell in own if cell.paired and cell.paired.verdict == "differs"]
    where = _where([(cell.comparison, cell.label) for cell in differing], own, cells)
    return (
        f"{under}, the {images} accuracy differs in {len(differing)} of {pairs}, by "
        f"{_range([cell.paired for cell in differing if cell.paired])} points on average and {where}; {others}."
    )


def _where(
    differing: Sequence[tuple[str, str]], tested: Sequence[MemberGroup | Effect], cells: Sequence[MemberGroup]
) -> str:
    """Where the accuracy differs: the arithmetics, or of many only their number and how often s = 0 meets a kink there.

    For example "only in bfloat16"; without "only" where nothing else was tested.

    Args:
        differing: comparison and label of each difference.
        tested: all that was tested, in these comparisons and others.
        cells: whose references have the hits.
    """
    names = list(dict.fromkeys(map(_arithmetic, (label for _, label in differing))))
    only = "only in" if {_arithmetic(one.label) for one in tested} - set(names) else "in"
    if len(names) <= _NAMED:
        return f"{only} {listed(names)}"
    own, every = {name for name, _ in differing}, {one.comparison for one in tested}
    hits = {cell.comparison: cell.hits for cell in cells if cell.is_reference and cell.hits is not None}
    least = min((hits[name] for name in own if name in hits), default=0.0)
    most = max((hits[name] for name in every - own if name in hits), default=0.0)
    apart = f", those in which s = 0 meets {least:,.0f} hits an epoch or more (elsewhere at most {most:,.1f})"
    some = f"{len(own)} of {counted(len(every), 'setting')} (arithmetic, epochs)"
    return f"only in {some}{apart * (least > most)}" if every - own else f"in {some}"


def _arithmetic(label: str) -> str:
    """The arithmetic that a label names."""
    return _ARITHMETIC.findall(label)[0].strip()


def _others(cells: Sequence[MemberGroup], words: Counter[Verdict]) -> str:
    """The comparisons that do not differ; those of identical runs with what their seeds leave open."""
    equivalent, identical, undecided = (
        with_verb(words[word], "is", "are") for word in ("equivalent", "identical", "undecided")
    )
    bounds = [cell.paired.differs_at_most for cell in cells if cell.paired and cell.paired.differs_at_most is not None]
    same = f", {identical} identical on every seed (at most {rounded_up(max(bounds))} % of seeds differ)" if bounds else ""
    return f"{equivalent} equivalent within {MARGIN:g} points{same} and {undecided} undecided"


# ---------------------------------------------------------------- published findings


def _departure(made: Reproduction) -> str:
    found = departures(made.runs)
    if not found.seeds:
        return "Departure at an exact zero was not measured: no run of s = 0 is left that neither diverged nor is void."
    every = counted(found.seeds, "run")
    apart = f"The parameters of s = 1 depart from those of s = 0 in {found.departed} of {every}"
    if found.without:
        return f"{apart}, in {found.without} of them although s = 0 meets no exact zero."
    if not found.met:
        return f"No run of s = 0 met an exact zero ({every}), so departure at one was not measured."
    if not found.departed:
        return f"{apart}, although s = 0 meets an exact zero in {found.met}."
    return f"{apart}, and s = 0 meets an exact zero in all of these; it meets one in {counted(found.met, 'run')} in all."


def _control(made: Reproduction) -> str:
    """Say that the second run of s = 0 is the first one."""
    distances = sum(len(m.steps.step) for _, r in made.runs if not r.void for m in r.members if m.member.control)
    kept = " outside the void comparisons" if made.void else ""
    return (
        f"A second run of s = 0 is identical to the first at all {counted(distances, 'recorded step')}{kept}"
        if distances
        else f"No second run of s = 0 was compared with the first{kept}"
    )


def _published(made: Reproduction) -> str:
    """The control, and how many published figures are confirmed."""
    control = _control(made)
    if made.sections and not made.published:  # the sections have compared what is published
        return f"{control}."
    words = Counter(figure.verdict for figure in made.published)
    if all(figure.evidence.p_for is None for figure in made.published):
        return f"{control}; no published figure can be tested with these runs."
    rest = f", {with_verb(words['not run'], 'was', 'were')} not run" if words["not run"] else ""
    confirmed, margin = with_verb(words["confirmed"], "is", "are"), made.published[0].published.margin
    return (
        f"{control}; of {counted(len(made.published), 'published test error')}, {confirmed} confirmed to within {margin:g} "
        f"points, {words['refuted']} refuted and {words['undecided']} undecided{rest}."
    )
