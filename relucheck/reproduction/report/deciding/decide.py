"""The verdicts on claims, case by case."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from relucheck.reproduction.claims import Claim, Decision, Statistic
from relucheck.reproduction.report.deciding.cases import Trained, TrainingCase, VolumeCase, Volumes, kernels
from relucheck.reproduction.report.deciding.statistics.pairs import PairsCase
from relucheck.results.statistics import decide as judge
from relucheck.training.settings import Settings
from relucheck.training.subgradients import Subgradients

#: The case of a claim whose scenario has no results.
_NOTHING: Final = "-"


def decide(
    claims: Iterable[Claim],
    statistics: Mapping[str, Statistic],
    trained: Mapping[str, Sequence[Trained]],
    volumes: Mapping[str, Volumes],
) -> tuple[Decision, ...]:
    """Decide claims in every case.

    A case is a comparison under a rule, all pairs of an arm under a rule, or the volumes in an arithmetic. Its verdict is
    "not run" if an arm, a member, a control, a pair or a result is missing. The tests of the cases of a claim are corrected
    together, by Holm's method.

    Args:
        claims: what to decide.
        statistics: the functions that decide, by name.
        trained: the finished comparisons, by scenario.
        volumes: the finished volumes, by scenario.

    Returns:
        The decisions, in the order of the claims and their arms; each claim has one at least.
    """
    decisions: list[Decision] = []
    for claim in claims:
        about = statistics[claim.statistic].about
        results = volumes if about == "volume" else trained
        if claim.scenario not in results:
            decisions.append(Decision(claim, _NOTHING, "", "not run", f"no results of {claim.scenario}", "results"))
        elif about == "volume":
            decisions += _decided(claim, statistics[claim.statistic], _volume_cases(claim, volumes[claim.scenario]))
        else:
            of = _pairs_cases if about == "pairs" else _training_cases
            decisions += _decided(claim, statistics[claim.statistic], of(claim, trained[claim.scenario]))
    return tuple(decisions)


class _Missing(NamedTuple):
    """Which part a claim needs and the results do not have, in a word and in detail."""

    part: str
    detail: str


#: The name of a case, its rule, and what its statistic looks at, or what is missing.
_Case = tuple[str, str, TrainingCase | PairsCase | VolumeCase | _Missing]


def _decided(claim: Claim, statistic: Statistic, cases: Sequence[_Case]) -> list[Decision]:
    found = {
        (name, rule): statistic.decide(case, **claim.options)
        for name, rule, case in cases
        if not isinstance(case, _Missing)
    }
    judged = judge({key: finding.evidence for key, finding in found.items()})
    decisions = []
    for name, rule, case in cases:
        if isinstance(case, _Missing):
            decisions.append(Decision(claim, name, rule, "not run", case.detail, case.part))
        else:
            # there is a result here, though no seed of it may tell anything
            verdict = "undecided" if judged[name, rule].n == 0 else judged[name, rule].verdict
            decisions.append(Decision(claim, name, rule, verdict, found[name, rule].measured))
    return decisions


# ---------------------------------------------------------------- trainings


def _training_cases(claim: Claim, runs: Sequence[Trained]) -> list[_Case]:
    cases: list[_Case] = []
    fitting = {arm: _fitting(runs, arm, claim.epochs) for arm in claim.arms}
    seen: set[str] = set()
    for arm, found in fitting.items():
        if not found:
            epochs = f" with {claim.epochs} epochs" if claim.epochs else ""
            cases.append((arm, "", _Missing("arm", f"no finished comparison `{arm}`{epochs}")))
        for run, rule in itertools.product(found, claim.rules or ("",)):
            if run.comparison.name not in seen:
                cases.append((run.comparison.name, rule, _training_case(claim, runs, run, rule)))
        seen |= {run.comparison.name for run in found}
    return cases


def _fitting(runs: Sequence[Trained], arm: str, epochs: int) -> list[Trained]:
    """The comparisons of an arm: that of this name alone, or else those that a glob or an arithmetic selects."""
    labels = {run.comparison.name: run.result.settings.arithmetic.name for run in runs}
    names = {name for name, label in labels.items() if fnmatch.fnmatchcase(name, arm) or label == arm}
    chosen = {arm} if arm in labels else names
    return [run for run in runs if run.comparison.name in chosen and epochs in (0, run.result.settings.epochs)]


def _training_case(claim: Claim, runs: Sequence[Trained], run: Trained, rule: str) -> TrainingCase | _Missing:
    others = _fitting(runs, claim.against, claim.epochs) if claim.against else []
    if claim.against and not others:
        return _Missing("arm", f"no finished comparison `{claim.against}`")
    against = others[0] if others else None
    for one in (run, *others[:1]):
        missing = _missing(claim, one, rule)
        if missing is not None:
            return missing if against is None else missing._replace(detail=missing.detail + kernels(run, against))
    s = claim.subgradients or tuple(sorted(_subgradients(run.result.settings, rule)))
    case = TrainingCase(run, rule or "chain", s, against)
    return case if case.seeds else _Missing("members", f"no seed that {claim.against} has, too")


def _missing(claim: Claim, run: Trained, rule: str) -> _Missing | None:
    name, result = run.comparison.name, run.result
    there, several = _subgradients(result.settings, rule), _several(result.settings)
    if several:
        return _Missing("members", f"s does not name one member of {name}: {several}")
    absent = [f"s = {s:g}" for s in claim.subgradients if s not in there]
    if rule and (absent or not there):
        return _Missing("members", f"no {', '.join(absent) or 's other than 0'} in {name}")
    # a void result decides the claim about the control itself
    if result.void and claim.statistic != "control_is_identical":
        return _Missing("0-0", f"the control of {name} differs: {result.void}")
    if "nudges" not in claim.controls:
        return None
    if run.nudges is None:
        return _Missing("nudges", f"no nudges of {name}")
    return _Missing("nudges", f"the nudges of {name} are void: {run.nudges.void}") if run.nudges.void else None


def _subgradients(settings: Settings, rule: str) -> set[float]:
    """The s but 0 that every seed of a comparison has under a rule."""
    of = [{m.s for m in settings.members if m.seed == seed and m.rule == rule} for seed in settings.seeds]
    return set.intersection(*of) - {0.0}


def _several(settings: Settings) -> str:
    """The subgradients of members with one s, where a comparison has several forms of them; "" if it has one form."""
    forms: dict[float, set[Subgradients]] = {}
    for member in settings.members:
        forms.setdefault(member.s, set()).add(member.at)
    return next((" and ".join(f"{at:g}" for at in sorted(found)) for found in forms.values() if len(found) > 1), "")


# ---------------------------------------------------------------- pairs


def _pairs_cases(claim: Claim, runs: Sequence[Trained]) -> list[_Case]:
    """A case for each arm and each rule.

    Its pairs are the comparisons of one part, all that are planned and none that is void. So whoever decides cannot stop
    when the pairs that have finished say what they like to hear.
    """
    cases: list[_Case] = []
    for arm in claim.arms:
        found = _most_complete(_fitting(runs, arm, claim.epochs))
        if not found:
            cases.append((arm, "", _Missing("arm", f"no finished comparison `{arm}`")))
            continue
        valid = tuple(run for run in found if not run.result.void)
        planned = found[0].comparison.pairs
        missing = None
        if len(found) < planned:
            missing = _Missing("pairs", f"{len(found)} of {planned} pairs have finished")
        elif not valid:
            missing = _Missing("0-0", f"every comparison `{arm}` is void")
        void = len(found) - len(valid)
        cases += [(arm, rule, missing or PairsCase(valid, rule, void)) for rule in claim.rules]
    return cases


def _most_complete(runs: Sequence[Trained]) -> list[Trained]:
    """The runs of the part that lacks the fewest of its pairs; folders of two scales have a part of each."""
    parts: dict[str, list[Trained]] = {}
    for run in runs:
        parts.setdefault(run.comparison.part, []).append(run)
    return min(parts.values(), key=lambda found: found[0].comparison.pairs - len(found), default=[])


# ---------------------------------------------------------------- volumes


def _volume_cases(claim: Claim, volumes: Volumes) -> list[_Case]:
    """The tables of the claim's source decide; a source without a table has all of them."""
    sources = {share.source for share in volumes.shares}
    shares = [share for share in volumes.shares if share.source == claim.source or claim.source not in sources]
    names = dict.fromkeys(share.arithmetic for share in shares)
    cases: list[_Case] = []
    for arm in claim.arms:
        found = [name for name in names if fnmatch.fnmatchcase(name, arm)]
        cases += [] if found else [(arm, "", _Missing("arm", f"no volume in `{arm}`"))]
        for name in found:
            here = tuple(share for share in shares if share.arithmetic == name)
            mine = VolumeCase(here, volumes.zones.get(name, {}), volumes.device)
            sweep, at = claim.options.get("sweep"), claim.options.get("at", ())
            lacks = sweep is not None and len(mine.sweep(sweep, at)) < max(1, len(at))
            cases.append((name, "", _Missing("results", f"no cell of this sweep in {name}") if lacks else mine))
    return cases
