"""What agrees with the published conclusions, what does not, and why."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from relucheck.reproduction.experiments.mlp import SCENARIOS
from relucheck.reproduction.report import claims as report_claims
from relucheck.reproduction.report import summary as report_summary
from relucheck.reproduction.report import tables
from relucheck.reproduction.report.document import report
from relucheck.reproduction.report.summary import Reproduction
from relucheck.results.tables import render
from relucheck.training.settings import Member
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
        claims=tuple(report_claims.claims("E2", runs, cells)),
    )


def test_the_report_says_what_agrees_and_why(tmp_path: Path) -> None:
    whole = _outcomes(tmp_path)
    found = {
        (c.published.comparison, c.published.subgradient): (c.verdict, report_claims.reason(c, whole.cells))
        for c in whole.published
    }
    assert len(found) == 25, "5 arithmetics, s = 0 and 4 others"
    verdict, why = found["bfloat16", 1.0]
    assert verdict == "disagrees"
    assert why.startswith("0.0 hits an epoch with nn.Linear, 2,400 in bfloat16 emulated (product)")
    verdict, why = found["bfloat16-product", 1.0]
    assert verdict == "agrees"
    assert why == "the rule: 1.99 % with the chain rule, in the same arithmetic"
    assert found["float32", 1.0] == ("agrees", "")
    assert found["bfloat16", 0.0] == ("agrees", "")
    assert found["bfloat16-split-k-4", 1.0] == ("not measured", "")
    text = report(whole)
    section = text[text.index("## Against the published figures") : text.index("## Controls\n")]
    for figure in whole.published:
        row = f"| {figure.published.source} | {figure.published.comparison} |"
        assert row in section
    assert f"| {why} |" in section
    claims = {(claim.claim.split(":")[0], claim.measured.split(":")[0]): claim for claim in whole.claims}
    assert claims["test error grows with s in 16 bits (injected rule)", "bfloat16 emulated (product)"].verdict == "agrees"
    flat = claims["test error grows with s in 16 bits (injected rule)", "bfloat16"]
    assert flat.verdict == "disagrees"
    assert "hits an epoch with nn.Linear" in flat.reason
    assert next(claim for claim in whole.claims if claim.claim.startswith("0 against 0")).verdict == "agrees"
    float32 = next(claim for claim in whole.claims if claim.claim.startswith("float32"))
    assert float32.verdict == "undecided", "3 seeds without spread"
    same = [
        (c, made_up.result(c.settings, identical=True, hits={"chain": 0}, executor="forking")) for c, _ in whole.runs[:1]
    ]
    _, float32 = report_claims.claims("E2", same, report_summary.analyse(same))
    assert (float32.verdict, float32.reason) == ("disagrees", "hits of s = 0 an epoch: 0.0 with nn.Linear")
    shown = render(*tables.rich_outcomes(whole.published, whole.claims), width=200, color=False)
    assert "published test errors in %, and what was measured here" in shown
    assert "disagrees" in shown
    assert "…" not in render(*tables.rich_outcomes(whole.published, whole.claims), width=80, color=False), "cut off"
    missing = [figure for figure in whole.published if figure.verdict == "not measured"]
    assert missing
    assert f"{len(missing)} more are of comparisons that are not here; report.md lists them" in shown
    assert "bfloat16-split-k-4" not in shown.partition("published test errors in %, and")[2]
    only_missing = tables.rich_outcomes(missing, ())
    assert only_missing == [], "nothing to show"


@pytest.mark.parametrize(
    ("rounded", "product", "excused"),
    [(0, 800, True), (3, 800, True), (50, 800, False), (1, 3, False)],
    ids=["none", "few", "many, though sixteen times as rare", "few in both"],
)
def test_few_hits_are_a_reason_where_they_are_few_and_others_many(rounded: int, product: int, excused: bool) -> None:
    """Hits a layer; errors do not grow in either, so a reason is asked for."""
    runs = []
    for name, hits in (("bfloat16-rounded", rounded), ("bfloat16-product", product)):
        (comparison,) = E2.comparisons("full", (name,))
        settings = dataclasses.replace(comparison.settings, every=50)
        runs.append((comparison, made_up.result(settings, lambda member: 0.98, hits={"chain": hits})))
    claims = {c.measured.split(":")[0]: c for c in report_claims.claims("E2", runs, report_summary.analyse(runs))}
    mild, coarse = (claims[f"bfloat16 emulated ({name})"] for name in ("rounded", "product"))
    assert mild.verdict == coarse.verdict == "disagrees"
    assert coarse.reason == "not found", "nobody hits ten times as often"
    if excused:
        assert mild.reason.startswith(f"{3 * rounded:.1f} hits an epoch in bfloat16 emulated (rounded), {3 * product:,} in")
    else:
        assert mild.reason == "not found"


def test_few_hits_are_compared_in_the_same_setting() -> None:
    runs = []
    for name, hits in (("bfloat16-rounded", 0), ("sgd-bfloat16-product", 800)):
        (comparison,) = E2.comparisons("full", (name,))
        runs.append((comparison, made_up.result(comparison.settings, lambda member: 0.98, hits={"chain": hits})))
    (claim,) = [c for c in report_claims.claims("E2", runs, report_summary.analyse(runs)) if "grows" in c.claim]
    assert claim.reason == "not found", "another optimiser"


def test_findings_of_e1_and_e3() -> None:
    e1, e3 = SCENARIOS["E1"], SCENARIOS["E3"]
    runs = [(c, made_up.result(c.settings, hits={"chain": 3})) for c in e1.comparisons("full", ("float32", "bfloat16"))]

    def verdicts(name: str, runs: Any) -> list[str]:
        return [claim.verdict for claim in report_claims.claims(name, runs, report_summary.analyse(runs))]

    assert verdicts("E1", runs)[:2] == ["agrees", "agrees"]
    assert verdicts("E1", runs)[2:] == ["undecided", "undecided"], "made-up distances are the same in both"
    runs[0][1].find(1, 0.0, control=True).steps.l1[3] = 5e-324
    assert verdicts("E1", runs)[0] == "disagrees"
    runs[0][1].find(1, 0.0).hits = [[[0]], [[0]]]
    assert verdicts("E1", runs)[1] == "disagrees", "a run departs without a hit"
    alone = [(c, made_up.result(c.settings)) for c in e1.comparisons("cpu", ("float32", "bfloat16"))]
    assert verdicts("E1", alone)[2:] == ["one run", "one run"]

    def spread(member: Member) -> float:
        return 0.9 + (0.001 + 0.01 * abs(member.subgradient)) * (member.seed - 1)

    runs = [(c, made_up.result(c.settings, spread)) for c in e3.comparisons("cpu", ("bfloat16",))]
    assert verdicts("E3", runs) == ["agrees"]
    runs = [(c, made_up.result(c.settings, lambda m: 0.9 + 0.001 * m.seed)) for c in e3.comparisons("cpu", ("bfloat16",))]
    assert verdicts("E3", runs) == ["disagrees"]


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
