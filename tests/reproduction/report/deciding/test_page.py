"""Sentences and tables about claims follow from the decisions."""

from __future__ import annotations

import dataclasses

import pytest

from relucheck.reproduction.claims import Decision, Figure
from relucheck.reproduction.report.deciding import page as pages
from relucheck.results.statistics import Outcome
from tests.reproduction.report.deciding.constructed import claim

_FIRST = dataclasses.replace(
    claim("grows_with_s"), id="first", figures=(Figure("error, s = 1", 11, "%", "off the figure"),)
)
_SECOND = dataclasses.replace(_FIRST, id="second", statement="It falls.", source="B21")


def _decision(of: object, verdict: Outcome, case: str = "bfloat16", rule: str = "injected", missing: str = "") -> Decision:
    return Decision(of, case, rule, verdict, "numbers", missing)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("verdicts", "says"),
    [
        (
            ["confirmed", "confirmed"],
            "1 of 2 claims is decided in at least one case. 1 of them is decided in every case: 1",
        ),
        (
            ["confirmed", "refuted"],
            "every case: 0 confirmed, 0 refuted, and 1 confirmed in some cases and refuted in other",
        ),
        (["refuted"], "1 of them is decided in every case: 0 confirmed, 1 refuted, and 0 confirmed in some cases"),
        (["refuted", "not run"], "0 of them are decided in every case: 0 confirmed, 0 refuted,"),
        (
            ["refuted", "not run"],
            "1 is decided in some cases only, in the arithmetics that were run with enough seeds: 0 confirmed, 1 refuted,",
        ),
        (
            ["confirmed", "undecided"],
            "1 is decided in some cases only, in the arithmetics that were run with enough seeds: 1",
        ),
        (["undecided", "not run"], "0 of 2 claims are decided in at least one case"),
        (["not run"], "0 are undecided, and 2 have not been run."),
        (["undecided", "not run"], "1 is undecided, and 1 has not been run."),
    ],
)
def test_the_conclusion_counts_claims_and_not_cases(verdicts: list[Outcome], says: str) -> None:
    decisions = [_decision(_FIRST, verdict, str(index)) for index, verdict in enumerate(verdicts)]
    assert says in pages.conclusion([*decisions, _decision(_SECOND, "not run")])


def test_the_conclusion_says_over_what_holm_corrects() -> None:
    assert "no correction is made over claims" in pages.conclusion([_decision(_FIRST, "confirmed")])


def test_a_sentence_names_the_cases_of_each_verdict() -> None:
    decisions = [
        _decision(_FIRST, "not run", "published*", "", "arm"),
        _decision(_FIRST, "refuted", rule="chain"),
        _decision(_FIRST, "confirmed"),
        _decision(_SECOND, "not run", "-", "", "results"),
    ]
    assert pages.sentence(decisions, "first") == (
        '"It grows", as published, is confirmed in bfloat16 (injected rule), refuted in bfloat16 (chain rule) and not run '
        "(missing: arm) in published*."
    )
    assert pages.sentence(decisions, "second") == '"It falls", as published, is not run (missing: results).'
    assert pages.sentence(decisions, "third") == ""


def test_the_page_has_conclusion_claims_cases_and_definitions_in_this_order() -> None:
    decisions = [_decision(_FIRST, "confirmed"), _decision(_SECOND, "not run", missing="nudges")]
    text = pages.page(decisions)
    order = [
        pages.conclusion(decisions),
        "| first | It grows. [R22] | 1 confirmed |",
        "| second | `bfloat16` | injected | not run: nudges | numbers |",
        "| first | [R22] Figure 1 | error, s = 1: 11 % (off the figure) | `grows_with_s` |",
        "- [R22] ",
        "- [B21] ",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
