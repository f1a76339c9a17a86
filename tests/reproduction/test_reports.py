"""Tables, figures and reports on made-up results: every outcome that training could have."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from relucheck.reproduction.experiments.mlp import SCENARIOS
from relucheck.reproduction.report import claims as report_claims
from relucheck.reproduction.report import figures as report_figures
from relucheck.reproduction.report import summary as report_summary
from relucheck.reproduction.report import tables
from relucheck.reproduction.report.document import report, summary
from relucheck.reproduction.report.summary import Reproduction
from relucheck.reproduction.scenario import Comparison
from relucheck.results.figures import blank
from relucheck.results.tables import render
from relucheck.training.result import Result
from relucheck.training.settings import Member
from tests.reproduction import invariants, made

E2 = SCENARIOS["E2"]
PUBLISHED = E2.published_at("cpu")


def _runs(
    scale: str = "cpu", only: tuple[str, ...] = ("float32", "bfloat16"), **options: Any
) -> list[tuple[Comparison, Result]]:
    return [(comparison, made.result(comparison.settings, **options)) for comparison in E2.comparisons(scale, only)]


def _text(runs: list[tuple[Comparison, Result]], width: int = 120) -> str:
    cells = report_summary.analyse(runs)
    return render(*tables.rich_tables("E2", cells, PUBLISHED, width), width=width, color=False)


def _cell(runs: list[tuple[Comparison, Result]], name: str, s: float, rule: str) -> report_summary.MemberGroup:
    return next(
        cell
        for cell in report_summary.analyse(runs)
        if (cell.comparison, cell.subgradient, cell.rule, cell.control) == (name, s, rule, False)
    )


def test_a_cell_says_what_the_members_did() -> None:
    """By hand: three seeds, accuracies 97, 98, 99 % against 98, 98.5, 99.9 % of s = 0."""

    def accuracy(member: Member) -> float:
        values = (0.97, 0.98, 0.99) if member.subgradient else (0.98, 0.985, 0.999)
        return values[member.seed]

    cell = _cell(_runs(accuracy=accuracy), "float32", 0.5, "injected")
    assert cell.accuracies == pytest.approx((97, 98, 99))
    assert (cell.summary.mean, cell.summary.sd) == pytest.approx((98, 1))
    assert cell.paired is not None
    assert cell.paired.difference.mean == pytest.approx((-1 - 0.5 - 0.9) / 3)
    assert cell.paired.family == 16, "4 subgradients, 2 rules, 2 arithmetics"
    steps = 50 * 20 // 67 * 67
    assert cell.l1 == pytest.approx(300 * steps)
    assert cell.sum_difference == pytest.approx(300 / 7)
    assert (cell.first, cell.differing) == (3, 3)
    assert cell.hits == 3 * 7


def test_the_table_has_a_row_per_s_and_a_column_per_arithmetic_and_rule(snapshot: SnapshotAssertion) -> None:
    assert _text(_runs()) == snapshot


@pytest.mark.parametrize("width", [80, 120, 200])
def test_tables_fit_the_terminal(width: int) -> None:
    lines = _text(_runs("smoke", ("*",)), width).splitlines()
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines), "nothing is cut off"


def test_published_figures_stand_beside_the_rule_that_made_them() -> None:
    cells = report_summary.analyse(_runs())
    found = {(cell.comparison, cell.rule, cell.subgradient): tables.published_accuracy(cell, PUBLISHED) for cell in cells}
    assert found["bfloat16", "injected", 1.0] == "about 89"
    assert found["float32", "injected", 1.0] == "about 98"
    text = "\n".join(tables.markdown(cells, PUBLISHED))
    chain = [line for line in text.splitlines() if line.startswith("| 1 | chain")]
    assert chain
    assert not any("about" in line for line in chain)
    assert "about" not in "\n".join(tables.markdown(cells, {}))


def test_published_figures_stand_beside_emulated_arithmetics_labelled() -> None:
    names = ("bfloat16-product", "bfloat16-split-k-4", "bfloat16-product-3-epochs", "bfloat16-split-k-4-15-epochs")
    cells = report_summary.analyse(_runs(only=(*names, "float16-product-3-epochs")))
    found = {
        (cell.comparison, cell.subgradient): tables.published_accuracy(cell, PUBLISHED)
        for cell in cells
        if cell.rule == "injected"
    }
    for name in names:
        assert found[name, 1.0] == "about 89 (GPU bfloat16)"
        assert found[name, -0.5] == "about 96 (GPU bfloat16)"
    assert found["float16-product-3-epochs", 1.0] == "", "nothing was published in float16"
    assert "about 89 (GPU bfloat16)" in _text(_runs(only=names[:1]), 200)


def test_hits_are_named_with_the_kernel_that_made_them() -> None:
    for executor, kernel in (("forking", "nn.Linear"), ("stacked", "baddbmm")):
        runs = _runs(only=("float32", "bfloat16-product"), executor=executor)
        text = "\n".join(tables.markdown(report_summary.analyse(runs), {}))
        assert f"| hits / epoch ({kernel}) |" in text
        assert "| hits / epoch (emulated) |" in text
        head = _text(runs[:1]).splitlines()[4]
        assert [cell.strip() for cell in head.split("┃")[3:5]] == [kernel] * 2


def test_16_bit_members_stacked_on_cuda_are_nn_linears() -> None:
    runs = _runs(only=("float32", "bfloat16", "bfloat16-product"), executor="stacked", device="cuda (NVIDIA H100)")
    found = {comparison.name: report_summary.kernel(result) for comparison, result in runs}
    assert found == {"float32": "baddbmm", "bfloat16": "nn.Linear", "bfloat16-product": "emulated"}


def test_fused_kernels_are_named() -> None:
    settings = E2.comparisons("cpu", ("bfloat16",))[0].settings
    fused = dataclasses.replace(settings, optimiser=dataclasses.replace(settings.optimiser, fused=True))
    assert (report_summary.label(settings), report_summary.label(fused)) == ("bfloat16", "bfloat16, fused")
    assert settings.optimiser.label == "adam, lr 0.001, eps 1e-08"
    assert fused.optimiser.label == "adam, lr 0.001, eps 1e-08, fused"


def test_a_void_comparison_says_nothing_else() -> None:
    comparison = E2.comparisons("cpu", ("float32",))[0]
    why = "control differed at step 12 in parameter layers.0.weight (seed 1)"
    runs = [(comparison, made.result(comparison.settings, void=why)), *_runs(only=("bfloat16",))]
    cells = report_summary.analyse(runs)
    assert all(cell.paired is None for cell in cells if cell.comparison == "float32")
    assert all(cell.paired.family == 8 for cell in cells if cell.paired and not cell.control)
    assert {line for cell in cells if cell.void for line in tables.lines(cell)} == {"-", "void"}
    assert f"void: float32: {why}" in " ".join(_text(runs, 200).split())
    assert f"Void: {why}." in "\n".join(tables.markdown(cells, PUBLISHED))


def test_a_control_off_by_one_bit_is_not_identical() -> None:
    runs = _runs(only=("float32",))
    control = runs[0][1].find(0, 0.0, control=True)
    cell = next(cell for cell in report_summary.analyse(runs) if cell.control)
    assert tables.verdict(cell) == "identical"
    control.steps.l1[-1] = 1e-300
    cell = next(cell for cell in report_summary.analyse(runs) if cell.control)
    assert tables.verdict(cell) == "void"


def test_diverged_members_are_counted_and_decide_nothing() -> None:
    runs = _runs(diverged=lambda member: member.subgradient == 0.8 and member.seed == 1, only=("float32",))
    cell = _cell(runs, "float32", 0.8, "injected")
    assert (cell.diverged, cell.summary.n) == (1, 2)
    assert cell.paired is not None
    assert cell.paired.verdict == "undecided"
    text = _text(runs)
    assert "(1 lost)" in text
    assert "float32: s = 0.8 chain, s = 0.8 injected diverged: non-finite at step 1" in text
    every = _text(_runs(diverged=lambda member: True, only=("float32",)))
    assert "float32: every member diverged: non-finite at step 1" in every


@pytest.mark.parametrize(("scale", "verdict"), [("cpu", "undecided"), ("full", "equivalent")], ids=["3 seeds", "10 seeds"])
def test_identical_runs_differ_by_0_exactly_and_the_seeds_decide(scale: str, verdict: str) -> None:
    cell = _cell(_runs(scale, ("float32",), identical=True), "float32", 1.0, "injected")
    assert cell.paired is not None
    assert (cell.paired.identical, cell.paired.verdict) == (True, verdict)
    assert tables.lines(cell)[2:6] == ["0 exactly", "0", "0", "never"]


def test_the_family_holds_what_tests_something() -> None:
    """16 rows beside s = 0: one arithmetic has identical runs, of the other one s has lost a run under both rules."""
    single, half = E2.comparisons("cpu", ("float32", "bfloat16"))
    lost = made.result(half.settings, diverged=lambda member: member.subgradient == 0.8 and member.seed == 1)
    cells = report_summary.analyse([(single, made.result(single.settings, identical=True)), (half, lost)])
    assert {cell.paired.family for cell in cells if cell.paired and not cell.control} == {6}
    assert "by Holm over every row of this report that has a test" in tables.LEGEND["p differs, p equivalent"]


def test_one_seed_decides_nothing() -> None:
    cell = _cell(_runs(only=("bfloat16-product",)), "bfloat16-product", 1.0, "injected")
    assert cell.paired is not None
    assert cell.paired.verdict == "undecided"
    assert tables.lines(cell)[1] == "-", "no interval of one run"


def test_published_figures_are_checked() -> None:
    """The made-up members under the chain rule stay near s = 0; the injected ones lose 8 points times s."""
    runs = _runs(only=("bfloat16-split-k-4",))
    product, *_ = E2.comparisons("cpu", ("bfloat16-product",))
    one = tuple(member for member in product.settings.members if member.seed == 0)
    runs.append((product, made.result(dataclasses.replace(product.settings, members=one))))
    figures = E2.published_figures("cpu")
    checked = report_summary.check(figures, {comparison.name: result for comparison, result in runs})
    found = {(c.published.comparison, c.published.rule, c.published.subgradient): c.verdict for c in checked}
    assert found["bfloat16-split-k-4", "injected", 1.0] == "agrees"
    assert found["bfloat16-split-k-4", "chain", 0.0] == "agrees"
    assert found["bfloat16-product", "injected", 1.0] == "one run"
    assert found["float32", "injected", 1.0] == "not measured"
    far = [dataclasses.replace(figure, value=figure.value + 5) for figure in figures]
    moved = report_summary.check(far, {comparison.name: result for comparison, result in runs})
    assert {c.verdict for c in moved if c.published.comparison == "bfloat16-split-k-4"} == {"disagrees"}
    table = tables.published_table(checked)
    assert len(table.rows) == len(figures)
    assert all(len(line) == len(table.header) for line in table.rows)


def test_hits_of_an_epoch_are_those_of_all_layers() -> None:
    member = _runs(only=("float32",))[0][1].members[0]
    member.hits = [[[2], [0], [1]], [[4], [0], [1]]]
    del member.epochs[2:]
    assert report_summary.hits_per_epoch(member) == 4


# ---------------------------------------------------------------- what agrees and what does not


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
    many = made.result(dataclasses.replace(product.settings, members=seeds), _published_like, hits={"chain": 800})
    quiet = {"accuracy": lambda member: 0.98 + 1e-4 * member.seed, "hits": {"chain": 0}, "executor": "forking"}
    runs = ((single, made.result(single.settings, **quiet)), (half, made.result(half.settings, **quiet)), (product, many))
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
    same = [(c, made.result(c.settings, identical=True, hits={"chain": 0}, executor="forking")) for c, _ in whole.runs[:1]]
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
        runs.append((comparison, made.result(settings, lambda member: 0.98, hits={"chain": hits})))
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
        runs.append((comparison, made.result(comparison.settings, lambda member: 0.98, hits={"chain": hits})))
    (claim,) = [c for c in report_claims.claims("E2", runs, report_summary.analyse(runs)) if "grows" in c.claim]
    assert claim.reason == "not found", "another optimiser"


def test_findings_of_e1_and_e3() -> None:
    e1, e3 = SCENARIOS["E1"], SCENARIOS["E3"]
    runs = [(c, made.result(c.settings, hits={"chain": 3})) for c in e1.comparisons("full", ("float32", "bfloat16"))]

    def verdicts(name: str, runs: Any) -> list[str]:
        return [claim.verdict for claim in report_claims.claims(name, runs, report_summary.analyse(runs))]

    assert verdicts("E1", runs)[:2] == ["agrees", "agrees"]
    assert verdicts("E1", runs)[2:] == ["disagrees", "disagrees"], "made-up distances are the same in both"
    runs[0][1].find(1, 0.0, control=True).steps.l1[3] = 5e-324
    assert verdicts("E1", runs)[0] == "disagrees"
    runs[0][1].find(1, 0.0).hits = [[[0]], [[0]]]
    assert verdicts("E1", runs)[1] == "disagrees", "a run departs without a hit"
    alone = [(c, made.result(c.settings)) for c in e1.comparisons("cpu", ("float32", "bfloat16"))]
    assert verdicts("E1", alone)[2:] == ["one run", "one run"]

    def spread(member: Member) -> float:
        return 0.9 + (0.001 + 0.01 * abs(member.subgradient)) * (member.seed - 1)

    runs = [(c, made.result(c.settings, spread)) for c in e3.comparisons("cpu", ("bfloat16",))]
    assert verdicts("E3", runs) == ["agrees"]
    runs = [(c, made.result(c.settings, lambda m: 0.9 + 0.001 * m.seed)) for c in e3.comparisons("cpu", ("bfloat16",))]
    assert verdicts("E3", runs) == ["disagrees"]


def test_a_reference_that_diverged_proves_nothing_about_hits() -> None:
    """Its hits end where it diverged; the others go on, meet kinks and part."""
    comparison = E2.comparisons("cpu", ("float32",))[0]
    result = made.result(comparison.settings, diverged=lambda member: member.subgradient == 0 and member.seed == 1)
    for control in (False, True):
        result.find(1, 0.0, control=control).hits = []
    invariants.no_hits_no_difference(result)
    result.find(1, 0.0).outcome = "finished"
    with pytest.raises(AssertionError):
        invariants.no_hits_no_difference(result)


def test_the_accuracy_is_that_of_the_last_epoch() -> None:
    member = _runs(only=("float32",))[0][1].members[0]
    assert report_summary.final_accuracy(member) == 100 * member.epochs[-1].test_accuracy
    member.outcome = "diverged: non-finite at step 3"
    assert report_summary.final_accuracy(member) is None


# ---------------------------------------------------------------- figures and files


def test_figures_have_the_reports_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at before they are written: labels, one panel per arithmetic and rule, published points, both poolings."""
    runs = _runs()
    labels = {
        "distance": ("step", "L1 distance of all parameters"),
        "loss": ("epoch", "train loss"),
        "error": ("epoch", "%"),
    }
    for kind, (x, y) in labels.items():
        figure = report_figures._FIGURES[kind](E2, "cpu", "a part", runs)
        panels = figure.get_axes()
        assert len(panels) == 4
        assert {panel.get_xlabel() for panel in panels} == {x}
        assert y in panels[0].get_ylabel()
        names = [text.get_text() for text in figure.legends[0].get_texts()]
        assert {"s = -0.5", "s = 0.5", "s = 0.8", "s = 1"} <= set(names)
        assert ("control: s = 0 again" in names) == (kind == "distance")
        assert ("hollow: published [R22], read off" in names) == (kind == "error")
        if kind == "error":
            hollow = [line for line in panels[3].get_lines() if line.get_markerfacecolor() == "white"]
            assert sorted(float(line.get_ydata()[0]) for line in hollow) == [2, 4, 7, 9, 11]
    figure = report_figures._FIGURES["boxes"](E2, "cpu", "a part", runs)
    titles = [panel.get_title() for panel in figure.get_axes()]
    assert len(titles) == 8
    assert sum("over seeds" in title for title in titles) == 4
    assert sum("published pooling" in title for title in titles) == 4


def test_the_overview_shows_means_intervals_and_published_differences() -> None:
    """Each point by its y-data: the mean difference from s = 0 of a rule and s, its interval, and what was published."""
    runs = _runs(only=("bfloat16", "bfloat16-product-3-epochs"))
    runs.append((E2.comparisons("cpu", ("float16",))[0], made.result(runs[0][1].settings, diverged=lambda member: True)))
    figure = report_figures._differences(E2, "cpu", runs)
    half, brief = [panel for panel in figure.get_axes() if panel.get_title()]
    assert half.get_title() == "bfloat16\n50 epochs, 3 seeds"
    assert brief.get_title() == "bfloat16 emulated (product)\n3 epochs, 10 seeds"
    for place, s in enumerate((-0.5, 0.5, 0.8, 1.0)):
        for rule in ("chain", "injected"):
            difference = _cell(runs, "bfloat16", s, rule).paired
            assert difference is not None
            (bar,) = [
                c for c in half.containers if c.get_label() == rule and round(float(c.lines[0].get_xdata()[0])) == place
            ]
            assert float(bar.lines[0].get_ydata()[0]) == difference.difference.mean
            ends = bar.lines[2][0].get_segments()[0][:, 1]
            assert ends.tolist() == pytest.approx([difference.difference.low, difference.difference.high])
    label = "published [R22] (GPU), read off"
    assert [list(line.get_ydata()) for line in half.get_lines() if line.get_label() == label] == [[-2, -5, -7, -9]]
    assert not [line for line in brief.get_lines() if line.get_label() == label], "published were 50 epochs"


def test_boxes_hold_each_seed_once_and_the_pooled_ones_every_epoch() -> None:
    """What is plotted, by its y-data: points of the last epoch of each seed; medians of all mini-batches of one run."""
    import statistics

    comparison, result = _runs(only=("bfloat16",))[0]
    for member in result.members:  # every epoch, mini-batch and seed another value
        for number, epoch in enumerate(member.epochs):
            epoch.test_batch_accuracies = [0.5 + number / 1000 + member.member.seed / 7, 0.6 + number / 900]
    figure = report_figures._FIGURES["boxes"](E2, "cpu", "a part", [(comparison, result)])
    titles = [panel.get_title() for panel in figure.get_axes()]
    for rule in ("chain", "injected"):
        over, pooled = (
            next(
                panel
                for panel, title in zip(figure.get_axes(), titles, strict=True)
                if f"{rule}: {what}" in title.split("\n")[1]
            )
            for what in ("over seeds", "published pooling")
        )
        for place, s in enumerate((-0.5, 0.0, 0.5, 0.8, 1.0)):
            members = [result.find(seed, s, rule if s else "chain") for seed in (0, 1, 2)]
            points = [
                line for line in over.get_lines() if line.get_linestyle() == "None" and set(line.get_xdata()) == {place}
            ]
            assert [list(line.get_ydata()) for line in points] == [[100 * m.epochs[-1].test_accuracy for m in members]]
            every = [100 * value for epoch in members[0].epochs for value in epoch.test_batch_accuracies]
            assert len(every) == 100
            assert _median(pooled, place) == pytest.approx(statistics.median(every))
            assert _median(over, place) == pytest.approx(statistics.median(points[0].get_ydata()))


def _median(panel: Any, place: int) -> float:
    """Height of the median line of the box at a place: the black one."""
    black = [line for line in panel.get_lines() if line.get_color() == "black" and line.get_linestyle() == "-"]
    lines = [line for line in black if round(sum(line.get_xdata()) / 2) == place]
    assert len(lines) == 1
    return float(lines[0].get_ydata()[0])


def _drawn(series: list[tuple[list[float], list[float]]]) -> list[tuple[list[float], list[float], str]]:
    """x, y and linestyle of what ``_band`` plots, without what is not drawn."""
    axes = blank(6, 4).subplots()
    report_figures._band(axes, series, "s = 1", ("#000000", "solid", "o"), marker=False)
    found = []
    for line in axes.get_lines():
        points = [(float(x), float(y)) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True) if y == y]
        found.append(([x for x, _ in points], [y for _, y in points], line.get_linestyle()))
    return found


def test_a_mean_is_of_all_seeds_or_not_drawn() -> None:
    """Two seeds of four points, one that diverged after two: the mean has two points, the rest is drawn one by one."""
    long = [1.0, 2.0, 3.0, 4.0]
    mean, *rest = _drawn([(long, [1, 1, 1, 1]), (long[:2], [4, 4]), (long, [1, 1, 7, 7])])
    assert mean[:2] == ([1, 2], [2, 2])
    assert ([2.0, 3.0, 4.0], [1.0, 1.0, 1.0], "-") in rest
    assert ([2.0, 3.0, 4.0], [1.0, 7.0, 7.0], "-") in rest
    assert ([2.0], [4.0], "None") in rest, "a cross where it diverged"
    assert len(rest) == 3
    assert _drawn([([], []), (long, [1, 2, 3, 4])])[0][0] == [], "one that never came to a point leaves no mean"
    assert _drawn([([], [])]) == []


def test_a_value_stands_at_its_epoch() -> None:
    """An epoch whose loss is not finite has no point; those behind it keep their places."""
    result = _runs(only=("float32",))[0][1]
    member = result.members[0]
    member.epochs = member.epochs[:4]
    member.epochs[1].train_loss = None
    x, y = report_figures._curve(member, lambda epoch: epoch.train_loss)
    assert (x, y) == ([1.0, 3.0, 4.0], [member.epochs[i].train_loss for i in (0, 2, 3)])
    whole = ([1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0])
    mean = _drawn([(x, y), whole])[0]
    assert mean[0] == [1, 3, 4]
    assert mean[1] == pytest.approx([value / 2 for value in y])


def test_published_points_are_drawn_for_runs_as_long_only() -> None:
    for name, points in (("bfloat16-product", 5), ("bfloat16-product-3-epochs", 0)):
        figure = report_figures._FIGURES["error"](E2, "cpu", "a part", _runs(only=(name,)))
        lines = [line for panel in figure.get_axes() for line in panel.get_lines()]
        assert sum(line.get_markerfacecolor() == "white" for line in lines) == points


def test_figures_of_an_earlier_report_are_removed(tmp_path: Path) -> None:
    """One page becomes two, and one again; what is not the part's stays."""
    names = ("float32", "bfloat16", "bfloat16-rounded", "bfloat16-product", "bfloat16-split-k-4")
    few, many = _runs(only=names[:2]), _runs(only=names)
    foreign = tmp_path / "mine.png"
    foreign.write_bytes(b"")
    pages = {}
    for name, runs in (("few", few), ("many", many), ("few again", few)):
        written = report_figures.draw(E2, "cpu", runs, tmp_path)
        pages[name] = {path.name for path in written}
        assert {path.name for path in tmp_path.iterdir()} == {*pages[name], foreign.name}
    assert pages["few"] == pages["few again"]
    assert pages["few"] & pages["many"] == {"differences.png"}


def test_figures_of_every_outcome_are_drawn(tmp_path: Path) -> None:
    """Void, diverged, identical, one seed: nothing warns (warnings are errors here) and every file is a picture."""
    comparisons = E2.comparisons("cpu", ("float32", "bfloat16", "float16", "bfloat16-product"))
    options: list[dict[str, Any]] = [
        {"void": "control differed"},
        {"diverged": lambda member: member.seed == 1},
        {"diverged": lambda member: True},
        {"identical": True},
    ]
    runs = [(c, made.result(c.settings, **o)) for c, o in zip(comparisons, options, strict=True)]
    paths = report_figures.draw(E2, "cpu", runs, tmp_path)
    assert len(paths) == 5
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in paths}
    for path in paths:
        assert invariants.png_size(path) > (400, 300)
        assert _ink(path) > 0.01


def test_many_arithmetics_go_on_in_further_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[list[str]] = []

    def drawn(scenario: Any, scale: str, part: str, page: Any) -> None:
        pages.append([comparison.name for comparison, _ in page])

    monkeypatch.setattr(report_figures, "_FIGURES", {"boxes": drawn})
    monkeypatch.setattr(report_figures, "save", lambda figure, path: None)
    monkeypatch.setattr(report_figures, "_differences", lambda *arguments: None)
    e3 = SCENARIOS["E3"]
    runs = [(comparison, made.result(comparison.settings)) for comparison in e3.comparisons("cpu")]
    paths = report_figures.draw(e3, "cpu", runs, tmp_path)
    boxes = ["mnist-adam-relu-r22-boxes-1.png", "mnist-adam-relu-r22-boxes-2.png"]
    assert [path.name for path in paths] == ["differences.png", *boxes]
    assert [name for page in pages for name in page] == [comparison.name for comparison, _ in runs]
    assert max(map(len, pages)) <= 4


def _ink(path: Path) -> float:
    """Share of pixels that are not white."""
    from matplotlib import image

    return float((image.imread(path)[..., :3] < 0.95).any(-1).mean())


def test_report_and_summary(tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    runs = tuple(_runs())
    cells = tuple(report_summary.analyse(runs))
    drawn = (tmp_path / "figures" / "one.png",)
    whole = Reproduction(E2, "cpu", tmp_path, runs, ("float16",), cells, figures=drawn)
    assert report(whole) == snapshot
    body = json.loads(json.dumps(summary(whole), allow_nan=False))
    assert body["schema_version"] == 3
    assert {run["comparison"] for run in body["runs"]} == {"float32", "bfloat16"}
    assert len(body["cells"]) == len(cells)
    bare = report(Reproduction(E2, "cpu", tmp_path, runs, (), cells))
    assert "pip install 'relucheck[plot]'" in bare
