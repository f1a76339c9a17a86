"""The conclusion of a training report, computed from its verdicts and numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from relucheck.reproduction.report.deciding.departures import departures
from relucheck.reproduction.report.deciding.page import sentence
from relucheck.reproduction.report.summary import MemberGroup, Reproduction
from relucheck.reproduction.report.tables import rounded_up
from relucheck.reproduction.scenario import SCALE_NAMES
from relucheck.results.statistics import MARGIN, Verdict
from relucheck.results.tables import counted, listed, with_verb

_NO_CLAIM: Final = "At this scale no published claim is decided."
_RULES: Final = {"chain": "the chain rule", "injected": "the injected rule of the published code"}


def title(made: Reproduction) -> str:
    """The title of a report, which names a reduced scale and what was not run."""
    run, every = len(made.runs), len(made.runs) + len(made.missing)
    part = f", {run} of {every} comparisons" if made.missing else ""
    return f"{made.experiment.name}: {made.experiment.title} ({SCALE_NAMES[made.scale]}{part})"


def conclusion(made: Reproduction) -> tuple[str, str, str]:
    """The conclusion in three sentences, without the void comparisons."""
    if made.experiment.name == "E1":
        larger = sentence(made.decisions, "E1-larger-in-16-bits") or _NO_CLAIM
        return _departure(made), larger, _accuracies(made.cells, "chain", "injected")
    chain, injected = _accuracies(made.cells, "chain"), _accuracies(made.cells, "injected")
    if made.experiment.name == "E3":
        return sentence(made.decisions, "E3-spread") or _NO_CLAIM, injected, chain
    return chain, injected, _published(made)


# ---------------------------------------------------------------- accuracy


def _accuracies(cells: Sequence[MemberGroup], *rules: str) -> str:
    """What the tests say of the accuracy under one rule or several."""
    under = f"Under {listed([_RULES[rule] for rule in rules])}"
    own = [cell for cell in cells if cell.rule in rules and not (cell.control or cell.is_reference or cell.void)]
    if not own:
        return f"{under}, no subgradient was compared with s = 0."
    words = Counter(cell.paired.verdict if cell.paired else "undecided" for cell in own)
    undecided = [cell for cell in own if (cell.paired.verdict if cell.paired else "undecided") == "undecided"]
    untested = sum(cell.paired is None or cell.paired.adjusted_difference is None for cell in undecided)
    pairs = f"{counted(len(own), 'comparison')} with s = 0"
    if untested == len(own):
        return f"{under}, the test accuracy is undecided in all {pairs}: each has one seed, or a run that diverged."
    others = _others(own, words)
    others += f" ({untested} of them untested: one seed, or a run that diverged)" if untested else ""
    if not words["differs"]:
        return f"{under}, no subgradient is shown to change the test accuracy: of {pairs}, {others}."
    differing = [cell for cell in own if cell.paired and cell.paired.verdict == "differs"]
    means = [mean for cell in differing if cell.paired and (mean := cell.paired.difference.mean) is not None]
    where = listed(list(dict.fromkeys(cell.label.partition(",")[0] for cell in differing)))
    return (
        f"{under}, the test accuracy differs in {len(differing)} of {pairs}, by {min(means):+.2f} to {max(means):+.2f} "
        f"points on average and only in {where}; {others}."
    )


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


def _published(made: Reproduction) -> str:
    """The control, and how many published figures are confirmed."""
    distances = sum(len(m.steps.step) for _, r in made.runs if not r.void for m in r.members if m.member.control)
    kept = " outside the void comparisons" if made.void else ""
    control = (
        f"A second run of s = 0 is identical to the first at all {counted(distances, 'recorded step')}{kept}"
        if distances
        else f"No second run of s = 0 was compared with the first{kept}"
    )
    words = Counter(figure.verdict for figure in made.published)
    if all(figure.evidence.p_for is None for figure in made.published):
        return f"{control}; no published figure can be tested with these runs."
    rest = f", {with_verb(words['not run'], 'was', 'were')} not run" if words["not run"] else ""
    confirmed, margin = with_verb(words["confirmed"], "is", "are"), made.published[0].published.margin
    return (
        f"{control}; of {counted(len(made.published), 'published test error')}, {confirmed} confirmed to within {margin:g} "
        f"points, {words['refuted']} refuted and {words['undecided']} undecided{rest}."
    )
