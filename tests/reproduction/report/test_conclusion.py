"""Conclusions follow from numbers and verdicts: other results give other sentences."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from relucheck.hits.plans import Planned
from relucheck.hits.validation import ValidatedLayer
from relucheck.reproduction.experiments import hit_rates, ties
from relucheck.reproduction.experiments.mlp import SCENARIOS
from relucheck.reproduction.published import PublishedCell
from relucheck.reproduction.report.conclusion import conclusion, title
from relucheck.reproduction.report.deciding.cases import Trained
from relucheck.reproduction.report.deciding.catalogue import decided
from relucheck.reproduction.report.document import report
from relucheck.reproduction.report.nudges.effects import effects, nudge_groups
from relucheck.reproduction.report.summary import Reproduction, analyse, check
from relucheck.reproduction.report.volume import conclusion as volume_conclusion
from relucheck.reproduction.report.volume.summary import Entry, Line, Report, judge
from relucheck.training.members import Member
from relucheck.volume.cell import Cell, Draw, Estimate
from relucheck.volume.compensation import Sum
from tests.helpers import made_up


def _made(name: str, only: tuple[str, ...], scale: str = "full", **options: Any) -> Reproduction:
    scenario = SCENARIOS[name]
    runs = tuple((one, made_up.result(one.settings, **options)) for one in scenario.comparisons(scale, only))
    cells = tuple(analyse(runs))
    results = {comparison.name: result for comparison, result in runs}
    checked = tuple(check(scenario.published_figures(scale), results))
    missing = tuple(one.name for one in scenario.comparisons(scale) if one.name not in results)
    decisions = () if scale == "smoke" else decided({name: [Trained(*run) for run in runs]}, scenario=name)
    return Reproduction(scenario, scale, Path(), runs, missing, cells, checked, decisions)


def _noisy(cost: Callable[[Member], float]) -> Callable[[Member], float]:
    return lambda member: 0.9 - cost(member) + 1e-4 * ((7 * member.seed + int(10 * member.subgradient)) % 5)


@pytest.mark.parametrize(
    ("cost", "chain", "injected"),
    [
        (
            lambda member: 0.0,
            "no subgradient is shown to change the test accuracy: of 4 comparisons with s = 0, 4 are equivalent within 0.2 "
            "points and 0 are undecided.",
            "no subgradient is shown to change the test accuracy",
        ),
        (
            lambda member: 0.05 * (member.rule == "injected"),
            "no subgradient is shown to change the test accuracy",
            "the test accuracy differs in 4 of 4 comparisons with s = 0, by -5.0",
        ),
        (
            lambda member: 0.03 * (member.rule == "chain" and member.subgradient == 1),
            "the test accuracy differs in 1 of 4 comparisons with s = 0, by -3.0",
            "no subgradient is shown to change the test accuracy",
        ),
        (
            lambda member: 0.02 * (member.subgradient == 1) * (-1) ** member.seed,
            "3 are equivalent within 0.2 points and 1 is undecided.",
            "3 are equivalent within 0.2 points and 1 is undecided.",
        ),
    ],
    ids=["equivalent", "injected differs", "chain differs", "undecided"],
)
def test_accuracies_of_e2(cost: Callable[[Member], float], chain: str, injected: str) -> None:
    first, second, third, control = conclusion(_made("E2", ("bfloat16-product",), accuracy=_noisy(cost)))
    assert first.startswith("Under the chain rule, ")
    assert chain in first
    assert second.startswith("Under the injected rule of the published code, ")
    assert injected in second
    assert "on average and in bfloat16 emulated (product)" in first + second or "differs" not in first + second
    assert third.startswith("A second run of s = 0 is identical to the first at all ")
    assert control.startswith("No valid nudges were run: it is not shown that a difference from s = 0 is larger than ")


def _in_arithmetics(moved: int, hits: list[int]) -> str:
    """The second sentence on arithmetics of which the first ``moved`` differ, with so many hits an epoch each."""
    made = _made("E2", ("split-k-4-*",))
    names = [comparison.name for comparison, _ in made.runs]
    runs = []
    for (comparison, result), count in zip(made.runs, hits, strict=True):
        cost = 0.05 * (names.index(comparison.name) < moved)
        found = made_up.result(
            result.settings, accuracy=_noisy(lambda member, cost=cost: cost * (member.rule == "injected"))
        )
        for member in found.members:
            member.hits = [[[count]] for _ in member.hits]
        runs.append((comparison, found))
    return conclusion(dataclasses.replace(made, runs=tuple(runs), cells=tuple(analyse(runs))))[1]


def test_few_arithmetics_are_named_and_many_are_counted_with_their_hits() -> None:
    assert "only in bfloat16 emulated (rounded; layer 1: split-k 4) and bfloat16" in _in_arithmetics(2, [9] * 8)
    assert _in_arithmetics(5, [700, 600, 650, 999, 800, 3, 1, 0]).count(
        "only in 5 of 8 settings (arithmetic, epochs), those in which s = 0 meets 600 hits an epoch or more (elsewhere at "
        "most 3.0);"
    )
    assert "and in 8 of 8 settings (arithmetic, epochs);" in _in_arithmetics(8, [9] * 8)
    assert "only in 5 of 8 settings (arithmetic, epochs);" in _in_arithmetics(5, [700, 600, 650, 999, 800, 3, 1, 900])


def test_runs_that_test_nothing_are_undecided() -> None:
    first, *_ = conclusion(_made("E2", ("bfloat16-product",), scale="cpu"))
    assert first == (
        "Under the chain rule, the test accuracy is undecided in all 4 comparisons with s = 0: each has one seed, or a run "
        "that diverged."
    )
    lost = _made("E2", ("float32",), diverged=lambda member: True)
    assert conclusion(lost)[2].startswith("No second run of s = 0 was compared with the first; no published figure can")
    some = _made("E2", ("float32",), diverged=lambda member: member.subgradient == 1 and member.seed == 2)
    assert "(1 of them untested: one seed, or a run that diverged)" in conclusion(some)[0]


def test_identical_runs_say_what_their_seeds_leave_open() -> None:
    first, *_ = conclusion(_made("E2", ("float32",), identical=True))
    assert first.endswith(
        "of 4 comparisons with s = 0, 0 are equivalent within 0.2 points, 4 are identical on every seed (at most 31 % of "
        "seeds differ) and 0 are undecided."
    )
    assert "(at most 71 % of seeds differ)" in conclusion(_made("E2", ("float32",), scale="cpu", identical=True))[0]


def test_published_errors_that_are_confirmed_are_counted() -> None:
    cost = {0.0: 0.0, -0.5: 0.02, 0.5: 0.05, 0.8: 0.07, 1.0: 0.09}

    def like_published(member: Member) -> float:
        return 0.98 - cost[member.subgradient] * (member.rule == "injected") + 1e-4 * member.seed

    good = conclusion(_made("E2", ("bfloat16-product",), accuracy=like_published))[2]
    assert "5 are confirmed to within 2 points, 0 refuted and 0 undecided, 30 were not run" in good
    bad = conclusion(_made("E2", ("bfloat16-product",), accuracy=lambda member: 0.5 + 1e-4 * member.seed))[2]
    assert "0 are confirmed to within 2 points, 5 refuted and 0 undecided" in bad
    wide = conclusion(_made("E2", ("bfloat16-product",), accuracy=lambda member: 0.9 + 0.01 * (member.seed % 9)))[2]
    assert "0 are confirmed to within 2 points, 0 refuted and 5 undecided" in wide
    assert "no published figure can be tested" in conclusion(_made("E2", ("bfloat16-product",), scale="cpu"))[2]


def test_void_comparisons_are_left_out_and_named_first() -> None:
    void = _made("E2", ("float32",), void="control differed at step 3 in parameter p (seed 0)")
    assert conclusion(void)[0] == "Under the chain rule, no subgradient was compared with s = 0."
    assert conclusion(void)[2].startswith(
        "No second run of s = 0 was compared with the first outside the void comparisons;"
    )
    other = _made("E2", ("bfloat16-product",))
    both = dataclasses.replace(void, runs=(*void.runs, *other.runs))
    assert " at all 140 recorded steps outside the void comparisons; " in conclusion(both)[2]
    assert report(void).splitlines()[2].startswith("**Void, because a control differed: float32.")


def test_findings_of_e1() -> None:
    only = ("float32", "bfloat16")
    first, second, third, control = conclusion(_made("E1", only, hits={"chain": 3}))
    assert first.startswith("The parameters of s = 1 depart from those of s = 0 in 20 of 20 runs, and s = 0 meets an exact")
    assert second == (
        '"The weights of s = 1 depart further from those of s = 0 in 16 bits than in 32", as published, is not run '
        "(missing: nudges) in bfloat16 (injected rule) and bfloat16 (chain rule)."
    )
    assert third.startswith("Under the chain rule and the injected rule of the published code, ")
    assert control.startswith("No valid nudges were run: it is not shown ")
    without = conclusion(_made("E1", only, hits={"chain": 0}))[0]
    assert without.endswith("in 20 of 20 runs, in 20 of them although s = 0 meets no exact zero.")
    same = {"identical": True, "scale": "full"}
    assert conclusion(_made("E1", only, hits={"chain": 0}, **same))[0].startswith(
        "No run of s = 0 met an exact zero (20 runs)"
    )
    none = conclusion(_made("E1", only, hits={"chain": 3}, **same))[0]
    assert none.endswith("in 0 of 20 runs, although s = 0 meets an exact zero in 20.")
    lost = conclusion(_made("E1", only, diverged=lambda member: True))[0]
    assert lost == "Departure at an exact zero was not measured: no run of s = 0 is left that neither diverged nor is void."
    half = _made("E1", only, hits={"chain": 3})
    half.runs[0][1].find(1, 0.0).hits = [[[0]], [[0]]]
    assert conclusion(half)[0].endswith("in 1 of them although s = 0 meets no exact zero.")


def test_the_spread_of_e3() -> None:
    nudges = ("bfloat16", "float32")
    first = conclusion(_made("E3", nudges))[0]
    assert first.startswith(
        '"In 16 bits the spread of the test accuracy grows with s", as published, is not run (missing: arm)'
    )
    assert conclusion(_made("E3", ("float32",), scale="smoke"))[0] == "At this scale no published claim is decided."


def test_a_title_names_the_scale_and_what_is_missing() -> None:
    assert title(_made("E1", ("float32",), scale="cpu")).endswith("(reduced: cpu scale, 1 of 11 comparisons)")
    assert title(_made("E1", ("*",), scale="full")).endswith("(full scale)")
    assert "smoke test" in title(_made("E1", ("*",), scale="smoke"))


def test_a_report_opens_with_conclusion_figure_and_tables() -> None:
    whole = dataclasses.replace(_made("E2", ("float32",)), figures=(Path("figures/one.png"), Path("figures/two.png")))
    text = report(whole)
    order = [" ".join(conclusion(whole)), "![one](figures/one.png)", "## Results", "- accuracy %: ", "![two]("]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert text.splitlines()[2] == order[0]


# ---------------------------------------------------------------- volumes


def _line(bifurcated: int, published: int | None, **cell: Any) -> Line:
    draws = tuple(Draw(seed, "bifurcate" if seed < bifurcated else "agree", 0) for seed in range(100))
    versions = {"torch": "2", "processor": "a CPU"}
    ours = Cell(draws=100, **cell)
    theirs = None if published is None else PublishedCell("B21", "neurons", 32, 3, 256, 256, 60000, 1000, published)
    return Line(
        Entry("B21", "neurons", 256, ours, theirs, theirs is not None),
        Estimate(ours, draws, 5, 9, 1.0, "0", "cpu", versions, ""),
    )


def test_volumes() -> None:
    """float32 against [B21], float16, and the split over the reals; each has tests of its own in volume/."""

    def conclude(*lines: Line, sums: Any = None) -> tuple[str, str, str]:
        one = Report("cpu", lines)
        return volume_conclusion.conclusion(one, judge(one), sums)

    far, near = _line(80, 54, batch_size=64), _line(46, 463)
    first, second, third = conclude(far, near, _line(3, None, arithmetic="bfloat16"))
    assert first.startswith("In float32 our shares are higher than [B21]'s in 1 of 2 tests, by 0.75 at 3 x 256 ")
    assert first.endswith("TF32 was not run on the same networks.")
    assert second == "No arithmetic was fitted to published float16 cells."
    assert third == "Whether any of these differences exists over the reals too was not looked at."
    assert conclude(near)[0].startswith("In float32 none of 1 tests tells our shares from [B21]'s")
    assert conclude(_line(3, None))[0] == "float32 was not compared with [B21]."
    real = conclude(near, sums={"float32": Sum(9, 0, 6, 1), "bfloat16": Sum(4, 2, 2, 0)})[2]
    assert real.startswith("Of 11 networks with such a difference")
    assert real.endswith("2 differ there too (2 in bfloat16); for 8 it is rounding alone, and 1 is undecided.")
    assert conclude(near, sums={"float32": Sum(9, 0, 6, 0)})[2].endswith("0 differ there too; for 6 it is rounding alone.")


# ---------------------------------------------------------------- hit rates and ties


def test_hit_rates() -> None:
    layers = [
        ValidatedLayer("bfloat16", "grey", 16, 1, 1, 9, expected, hits, 10**6)
        for hits, expected in ((30, 33.0), (90, 30.0))
    ]
    plan = [
        Planned("net", "a step", "f", out, kind, 9, 1.0, hits, 0.0)
        for out, kind, hits in (("a", "x", 5.0), ("b", "y", 2.0))
    ]
    first, second, third = hit_rates.conclusion(hit_rates.Results(layers, 1.0, "2", plan, [], [], [], [], "2"))
    assert "Over the 2 layers with at least 10 predicted hits" in first
    assert "Of the 2 layers with at least 20 predicted hits, 1 (50%)" in second
    assert third.endswith("a training step of net meets between 2 hits (b, y) and 5 (a, x), by format and rounding.")
    few = [ValidatedLayer("bfloat16", "grey", 16, 1, 1, 9, 1.0, 1, 10**6)]
    assert hit_rates.conclusion(hit_rates.Results(few, 1.0, "2", [], [], [], [], [], "2")) == (
        "No layer has 10 predicted hits, which is too few to test the prediction.",
        "No layer has 20 predicted hits, which is too few to test its count.",
        "No network is planned for.",
    )


def test_pooling_ties() -> None:
    def volume(dtype: torch.dtype, inside: int, different: int, kept: int, judged: int) -> ties.TieVolume:
        return ties.TieVolume(dtype, "relu-pool", 10, inside, 0, different, 0, 0, 9, 9, 9, 9, 9, kept, judged)

    both = [volume(torch.float64, 10, 0, 0, 0), volume(torch.float16, 9, 4, 1, 50)]
    first, second, third = ties.conclusion(both)
    assert first.endswith("10 of 10 in float64 and 9 of 10 in float16.")
    assert second.endswith("0 of 10 in float64 and 4 of 10 in float16.")
    assert "float64 keeps 1 of 50 (float16); whether any tie matters over the reals is undecided" in third
    assert ties.conclusion(both[:1])[2].startswith("No tie between different inputs was met")


# ---------------------------------------------------------------- nudges

_NUDGED = "bfloat16-product-3-epochs"


def _with_nudges(name: str, beside: tuple[str, ...] = (), **options: Any) -> Reproduction:
    """A comparison with nudges, and others without."""
    other = _made(name, beside) if beside else None
    (comparison,) = SCENARIOS[name].comparisons("full", (_NUDGED if name == "E2" else "bfloat16",))
    result, nudged = made_up.with_nudges(comparison.settings, **options)
    runs = ((comparison, result), *(other.runs if other else ()))
    nudges = {comparison.name: nudged}
    cells = tuple(analyse(runs))
    trained = [Trained(*run, nudges.get(run[0].name)) for run in runs]
    found = decided({name: trained}, scenario=name)
    done = Reproduction(SCENARIOS[name], "full", Path(), runs, (), cells, (), found)
    return dataclasses.replace(done, nudges=tuple(nudge_groups(runs, nudges)), effects=tuple(effects(runs, nudges)))


def test_with_nudges_an_effect_is_what_is_beyond_them() -> None:
    """The sentence counts the effects' verdicts; a family of other tests has no say in it."""
    made = _with_nudges("E2", quiet=(3,))
    chain, injected, *rest = conclusion(made)
    verdicts = [effect.beyond.paired.verdict for effect in made.effects if effect.endpoint == "last epoch"]
    assert verdicts == ["undecided"] * 4 + ["differs"] * 4, "else this test shows nothing"
    assert chain == (
        "Under the chain rule, s is not shown to change the test accuracy more than nudges do: of 4 comparisons with "
        "nudges, 0 are equivalent to nudges within 0.2 points and 4 are undecided; for the mean over the second half of "
        "the epochs, 0 of 4 differ."
    )
    means = [effect.beyond.paired.difference.mean for effect in made.effects if effect.rule == "injected"][::2]
    assert injected == (
        "Under the injected rule of the published code, s changes the test accuracy more than nudges do in 4 of 4 "
        f"comparisons with nudges, by {min(means):+.2f} to {max(means):+.2f} points on average and in bfloat16 "
        "emulated (product); 0 are equivalent to nudges within 0.2 points and 0 are undecided; for the mean over the "
        "second half of the epochs, 4 of 4 differ."
    )
    assert len(rest) == 1
    assert rest[0].startswith("A second run of s = 0 is identical"), "no control is lacking"


def test_a_difference_from_s_0_that_nudges_make_too_is_no_effect() -> None:
    """Every run but s = 0 loses 3 points: against s = 0 all differ, beyond nudges none does."""
    made = _with_nudges("E2")
    (run,) = made.runs
    nudged = made_up.with_nudges(run[0].settings)[1]
    for member in (*run[1].members, *nudged.members):
        which = member.member
        for epoch in member.epochs:
            jitter = 1e-4 * ((7 * which.seed + int(10 * which.subgradient) + 3 * (which.nudge or 0)) % 5)
            epoch.test_accuracy = 0.9 - 0.03 * (not (which.is_reference or which.control)) + jitter
    cells, nudges = tuple(analyse(made.runs)), {_NUDGED: nudged}
    assert {cell.paired.verdict for cell in cells if cell.paired and not cell.control} == {"differs"}
    made = dataclasses.replace(made, cells=cells, effects=tuple(effects(made.runs, nudges)))
    for sentence in conclusion(made)[:2]:
        assert "s is not shown to change the test accuracy more than nudges do: of 4 comparisons with nudges" in sentence
    without = dataclasses.replace(made, effects=(), nudges=())
    assert "the test accuracy differs in 4 of 4 comparisons with s = 0" in conclusion(without)[0]
    assert conclusion(without)[-1].startswith("No valid nudges were run: it is not shown that a difference ")


def test_comparisons_without_nudges_are_concluded_apart_and_the_lack_is_said_once() -> None:
    sentences = conclusion(_with_nudges("E2", ("bfloat16-product",)))
    assert [sentence.partition(",")[0] for sentence in sentences[:4]] == [
        *["Under the chain rule"] * 2,
        *["Under the injected rule of the published code"] * 2,
    ]
    assert "with nudges" in sentences[0]
    assert "comparisons with s = 0" in sentences[1]
    assert sentences[-1] == (
        "For 1 of 2 comparisons no valid nudges were run: it is not shown there that a difference from s = 0 is larger "
        "than what a change of one bit leads to."
    )
    assert sum("no valid nudges" in sentence for sentence in sentences) == 1


def test_void_nudges_are_no_control() -> None:
    made = _with_nudges("E2")
    void = dataclasses.replace(made, effects=(), nudges=(dataclasses.replace(made.nudges[0], void="another reference"),))
    assert conclusion(void)[-1].startswith("No valid nudges were run:")


def test_seeds_without_a_live_hit_test_nothing() -> None:
    one = conclusion(_with_nudges("E2", quiet=tuple(range(9))))
    assert one[0] == (
        "Under the chain rule, an effect of s on the test accuracy beyond that of nudges was not tested in 4 comparisons "
        "with nudges (one seed with a live hit, or a run without an accuracy)."
    )
    none = conclusion(_with_nudges("E2", quiet=tuple(range(10))))
    assert none[0].endswith("was not tested in 4 comparisons with nudges (no seed with a live hit).")


@pytest.mark.parametrize("name", ["E1", "E3"])
def test_nudges_count_in_every_experiment(name: str) -> None:
    sentences = conclusion(_with_nudges(name))
    assert sum("with nudges" in sentence for sentence in sentences) == (1 if name == "E1" else 2)
    assert not any("no valid nudges" in sentence.lower() for sentence in sentences)
