"""All claims with their verdicts: in sentences, for a terminal and as a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

from rich.text import Text

from relucheck.reproduction.claims import VERDICTS, Claim, Decision
from relucheck.reproduction.published import SOURCES
from relucheck.results.tables import Table, counted, listed, with_verb

_DECIDED: Final = ("confirmed", "refuted")
#: So many cases a sentence names; of more it gives the number.
_FEW: Final = 3
#: What a reader of many verdicts has to know.
_CORRECTION: Final = (
    "Holm's correction is over the cases of each claim, and no correction is made over claims: each of them may have a "
    "wrong verdict with a probability of 5 %."
)
#: What the verdicts mean, a line each.
LEGEND: Final = (
    "A case is a comparison under a rule, or for volumes an arithmetic. Each case of a claim has a verdict.",
    "confirmed: the evidence for the claim is significant, after Holm's correction over the cases of the claim.",
    "refuted: the evidence against it is.",
    "undecided: neither is, or too few seeds, or a run that diverged.",
    "not run: a result, an arm, a member or a control that the claim needs is missing; the table says which.",
)


def by_claim(decisions: Iterable[Decision]) -> dict[str, list[Decision]]:
    """Group decisions by the id of their claim, in order."""
    grouped: dict[str, list[Decision]] = {}
    for decision in decisions:
        grouped.setdefault(decision.claim.id, []).append(decision)
    return grouped


def conclusion(decisions: Iterable[Decision]) -> str:
    """Count the claims that are decided, those in every case apart from those in some cases."""
    words = [[one.verdict for one in cases] for cases in by_claim(decisions).values()]
    decided = [found for found in words if set(found) & set(_DECIDED)]
    everywhere = [found for found in decided if set(found) <= set(_DECIDED)]
    partly = [found for found in decided if not set(found) <= set(_DECIDED)]
    undecided = sum(found not in decided and "undecided" in found for found in words)
    missing = len(words) - len(decided) - undecided
    return (
        f"{len(decided)} of {counted(len(words), 'claim')} {_are(decided)} decided in at least one case. "
        f"{len(everywhere)} of them {_are(everywhere)} decided in every case: {_verdicts(everywhere)}. "
        f"{len(partly)} {_are(partly)} decided in some cases only, in the arithmetics that were run with enough seeds: "
        f"{_verdicts(partly)}. {with_verb(undecided, 'is', 'are')} undecided, and {with_verb(missing, 'has', 'have')} not "
        f"been run. {_CORRECTION}"
    )


def _are(claims: Sequence[object]) -> str:
    return "is" if len(claims) == 1 else "are"


def _verdicts(claims: Sequence[Sequence[str]]) -> str:
    """Count the claims of each verdict; each of them is decided."""
    both = sum(set(found) >= set(_DECIDED) for found in claims)
    confirmed, refuted = (sum(word in found for found in claims) - both for word in _DECIDED)
    return f"{confirmed} confirmed, {refuted} refuted, and {both} confirmed in some cases and refuted in others"


def sentence(decisions: Iterable[Decision], claim_id: str) -> str:
    """Say in which cases a claim has which verdict; "" without such a claim."""
    cases = by_claim(decisions).get(claim_id, [])
    if not cases:
        return ""
    parts = []
    for verdict, missing in dict.fromkeys(
        (one.verdict, one.missing) for one in sorted(cases, key=lambda one: VERDICTS.index(one.verdict))
    ):
        names = list(dict.fromkeys(_name(one) for one in cases if (one.verdict, one.missing) == (verdict, missing)))
        where = listed(names) if len(names) <= _FEW else f"{len(names)} cases"
        lacks = f" (missing: {missing})" if missing else ""
        parts.append(verdict + lacks if missing == "results" else f"{verdict}{lacks} in {where}")
    return f'"{cases[0].claim.statement.rstrip(".")}", as published, is {listed(parts)}.'


def _name(decision: Decision) -> str:
    return f"{decision.case} ({decision.rule} rule)" if decision.rule else decision.case


def case_table(decisions: Iterable[Decision]) -> Table:
    """Tabulate every case with its numbers, for Markdown."""
    rows = [[one.claim.id, f"`{one.case}`", one.rule, one.said, one.measured] for one in decisions]
    return Table(
        ["claim", "case", "rule", "verdict", "measured, or what is missing"], rows, "published claims, case by case"
    )


def claim_table(decisions: Sequence[Decision]) -> Table:
    """Tabulate the claims, a row each, with the number of cases by verdict."""
    rows = []
    for cases in by_claim(decisions).values():
        claim = cases[0].claim
        words = Counter(one.said for one in sorted(cases, key=lambda one: VERDICTS.index(one.verdict)))
        verdicts = ", ".join(f"{count} {word}" for word, count in words.items())
        rows.append([claim.id, f"{claim.statement} [{claim.source}]", verdicts])
    return Table(["claim", "statement", "cases"], rows, "published claims")


def shown(decisions: Sequence[Decision]) -> list[Any]:
    """What a terminal of 80 columns or more shows."""
    return [Text(conclusion(decisions)), Text(), claim_table(decisions).rich(), *map(Text, LEGEND)]


def page(decisions: Sequence[Decision]) -> str:
    """The page on all claims, as Markdown."""
    lines = ["# Published claims", "", conclusion(decisions), "", *claim_table(decisions).markdown(), ""]
    lines += [*(f"- {line}" for line in LEGEND), "", "## Case by case", "", *case_table(decisions).markdown(), ""]
    lines += ["## What was published, and what decides it", ""]
    claims = [cases[0].claim for cases in by_claim(decisions).values()]
    lines += [*_definitions(claims).markdown(), ""]
    sources = dict.fromkeys(claim.source for claim in claims)
    return "\n".join([*lines, *(f"- [{name}] {SOURCES[name]}." for name in sources), ""])


def _definitions(claims: Sequence[Claim]) -> Table:
    rows = []
    for claim in claims:
        figures = "; ".join(f"{one.what}: {one.value:g} {one.unit} ({one.read})" for one in claim.figures)
        options = ", ".join(f"{name} {_option(value)}" for name, value in claim.options.items())
        rule = f"`{claim.statistic}`" + (f" ({options})" if options else "")
        arms = listed([f"`{arm}`" for arm in claim.arms]) + (f" against `{claim.against}`" if claim.against else "")
        arms += f", {claim.epochs} epochs" if claim.epochs else ""
        rows.append(
            [claim.id, f"[{claim.source}] {claim.place}", figures or "-", rule, arms, listed(claim.controls) or "-"]
        )
    header = ["claim", "place", "published figures", "statistic", "arms", "controls"]
    return Table(header, rows)


def _option(value: Any) -> str:
    return (", ".join(map(str, value)) or "all") if isinstance(value, list) else str(value)
