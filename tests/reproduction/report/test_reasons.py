"""Reasons beside published figures, and what of them a report shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from relucheck.reproduction.report import summary as report_summary
from relucheck.reproduction.report import tables
from relucheck.reproduction.report.deciding.cases import Trained
from relucheck.reproduction.report.deciding.catalogue import decided
from relucheck.reproduction.report.document import report
from relucheck.reproduction.report.reasons import reason
from relucheck.reproduction.report.summary import Reproduction
from relucheck.results.tables import render
from relucheck.training.members import Member
from relucheck.training.settings import Optimiser, Settings
from tests.helpers import invariants, made_up
from tests.helpers.made_up import E2, runs_of_e2


def _published_like(member: Member) -> float:
    """As published: the injected rule costs what the figure shows, the chain rule nothing; a little noise."""
    cost = {0.0: 0.0, -0.5: 0.02, 0.5: 0.05, 0.8: 0.07, 1.0: 0.09}[member.subgradient] if member.rule == "injected" else 0.0
    return 0.98 - cost + 1e-4 * member.seed


def _outcomes(folder: Path) -> Reproduction:
    """Native arithmetics without hits or effect, an emulated one with both, over 3 seeds; split-K is not there."""
    single, half, product = E2.comparisons("cpu", ("float32", "bfloat16", "bfloat16-product"))[:2] + E2.comparisons(
        "cpu", ("bfloat16-product",)
    )
    seeds = half.settings.members
    many = made_up.result(dataclasses.replace(product.settings, members=seeds), _published_like, hits={"chain": 800})
    quiet = {"accuracy": lambda member: 0.98 + 1e-4 * member.seed, "hits": {"chain": 0}, "executor": "forking"}
    runs = (
        (single, made_up.result(single.settings, **quiet)),
        (half, made_up.result(half.settings, **quiet)),
        (product, many),
    )
    cells = tuple(report_summary.analyse(runs))
    results = {comparison.name: result for comparison, result in runs}
    return Reproduction(
        E2,
        "cpu",
        folder,
        runs,
        cells=cells,
        published=tuple(report_summary.check(E2.published_figures("cpu"), results)),
        decisions=decided({"E2": [Trained(*run) for run in runs]}, scenario="E2"),
    )


def test_the_report_says_what_agrees_and_why(tmp_path: Path) -> None:
    whole = _outcomes(tmp_path)
    found = {
        (c.published.comparison, c.published.subgradient): (c.verdict, reason(c, whole.cells)) for c in whole.published
    }
    assert len(found) == 30, "6 arithmetics, s = 0 and 4 others"
    verdict, why = found["bfloat16", 1.0]
    assert verdict == "refuted"
    assert why.startswith("0.0 hits an epoch with nn.Linear, 2,400 in bfloat16 emulated (product)")
    verdict, why = found["bfloat16-product", 1.0]
    assert verdict == "confirmed"
    assert why == "the rule: 1.99 % with the chain rule, in the same arithmetic"
    assert found["float32", 1.0] == ("confirmed", "")
    assert found["bfloat16", 0.0] == ("confirmed", "")
    assert found["bfloat16-split-k-4", 1.0] == ("not run", "")
    text = report(whole)
    section = text[text.index("## Against the published figures") : text.index("## Controls\n")]
    for figure in whole.published:
        row = f"| {figure.published.source} | {figure.published.comparison} |"
        assert row in section
    assert f"| {why} |" in section
    assert "### Claims" in section
    for decision in whole.decisions:
        assert f"| {decision.claim.id} | `{decision.case}` | {decision.rule} | {decision.said} |" in section
    shown = render(*tables.rich_outcomes(whole.published, whole.decisions), width=200, color=False)
    assert "published test errors in %, and what was measured here" in shown
    assert "refuted" in shown
    assert "…" not in render(*tables.rich_outcomes(whole.published, whole.decisions), width=80, color=False), "cut off"
    missing = [figure for figure in whole.published if figure.verdict == "not run"]
    assert missing
    assert f"{len(missing)} more are of comparisons that are not here; report.md lists them" in shown
    assert "bfloat16-split-k-4" not in shown.partition("published test errors in %, and")[2]
    only_missing = tables.rich_outcomes(missing, ())
    assert only_missing == [], "nothing to show"


def _why(
    rounded: tuple[str, int], product: tuple[str, int], change: Callable[[Settings], Settings] = lambda same: same
) -> dict[str, str]:
    """The reasons by comparison, where 50 epochs of both give the error of s = 0 for s = 1, which is refuted.

    The settings of the second one are changed.
    """
    runs = []
    for name, hits in (rounded, product):
        (comparison,) = E2.comparisons("full", (name,))
        settings = dataclasses.replace(comparison.settings, every=50)
        settings = change(settings) if name == product[0] else settings
        runs.append((comparison, made_up.result(settings, lambda member: 0.98 + 1e-4 * member.seed, hits={"chain": hits})))
    cells = report_summary.analyse(runs)
    figures = report_summary.check(E2.published_figures("full"), {comparison.name: result for comparison, result in runs})
    found = {f.published.comparison: f for f in figures if f.published.subgradient == 1 and f.verdict != "not run"}
    assert {figure.verdict for figure in found.values()} == {"refuted"}
    return {name: reason(figure, cells) for name, figure in found.items()}


@pytest.mark.parametrize(
    ("rounded", "product", "excused"),
    [(0, 800, True), (3, 800, True), (50, 800, False), (1, 3, False)],
    ids=["none", "few", "many, though sixteen times as rare", "few in both"],
)
def test_few_hits_are_a_reason_where_they_are_few_and_others_many(rounded: int, product: int, excused: bool) -> None:
    """Hits a layer; neither has the published error, so a reason is asked for."""
    found = _why(("bfloat16-rounded", rounded), ("bfloat16-product", product))
    mild, coarse = found["bfloat16-rounded"], found["bfloat16-product"]
    assert coarse == "not found", "nobody hits ten times as often"
    if excused:
        assert mild.startswith(f"{3 * rounded:.1f} hits an epoch in bfloat16 emulated (rounded), {3 * product:,} in")
    else:
        assert mild == "not found"


def test_few_hits_are_compared_in_the_same_setting() -> None:
    def by_sgd(settings: Settings) -> Settings:
        return dataclasses.replace(settings, optimiser=Optimiser("sgd", 0.1))

    found = _why(("bfloat16-rounded", 0), ("bfloat16-product", 800), by_sgd)
    assert found["bfloat16-rounded"] == "not found", "another optimiser"


def test_a_reference_that_diverged_proves_nothing_about_hits() -> None:
    """Its hits end where it diverged; the others go on, meet kinks and part."""
    comparison = E2.comparisons("cpu", ("float32",))[0]
    result = made_up.result(comparison.settings, diverged=lambda member: member.subgradient == 0 and member.seed == 1)
    for control in (False, True):
        result.find(1, 0.0, control=control).hits = []
    invariants.no_hits_no_difference(result)
    result.find(1, 0.0).outcome = "finished"
    with pytest.raises(AssertionError):
        invariants.no_hits_no_difference(result)


def test_the_accuracy_is_that_of_the_last_epoch() -> None:
    member = runs_of_e2(only=("float32",))[0][1].members[0]
    assert report_summary.final_accuracy(member) == 100 * member.epochs[-1].test_accuracy
    member.outcome = "diverged: non-finite at step 3"
    assert report_summary.final_accuracy(member) is None
