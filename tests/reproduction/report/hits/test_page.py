"""The report of E9: conclusions, tables in 80 columns, figures, page and summary, from results made up by formula."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from relucheck.reproduction.counted import CountsScenario
from relucheck.reproduction.experiments.counts import E9
from relucheck.reproduction.folder import reserve
from relucheck.reproduction.report.hits import figures as hits_figures
from relucheck.reproduction.report.hits import page as report
from relucheck.reproduction.report.hits.fit import Fit, fits
from relucheck.reproduction.report.hits.page import (
    Counts,
    conclusion,
    counts_of,
    fit_table,
    hits_table,
    page,
    summary,
    title,
)
from relucheck.reproduction.scenario import Comparison, Place, Reported
from relucheck.reproduction.trained import store_of
from relucheck.results.tables import render
from relucheck.training.members import Member
from relucheck.training.results import seed_store
from relucheck.training.results.result import Result
from relucheck.training.results.thinning import thinning
from tests.docs.documents import tool
from tests.helpers import counted, invariants, made_up

#: How many times as many hits as published each comparison has.
FACTORS = {
    "e2-rounded": 1.0,
    "e2-layer-1-forward-split-k-4-by-64-wide-bias-joined": 1.0,
    "e2-layer-1-forward-split-k-5": 3.0,
    "more-layer-1-forward-split-k-3-wide-bias-joined": 1.0,
    "more-layer-1-forward-split-k-5": 2.0,
    "e1-bfloat16": 0.5,
    "default-rounded": 1.0,
    "custom-rounded": 4.0,
}
MISSING = len(E9.comparisons("full")) - len(FACTORS)


@functools.cache
def _run(name: str, factor: float) -> tuple[Comparison, Result]:
    of = counted.comparison(name)
    return of, counted.result(of, counted.like_the_published(of, factor))


def _place(folder: Path) -> Place:
    return Place("full", folder, None, "cpu", "stacked")


def _reported(folder: Path, factors: Mapping[str, float] = FACTORS, void: str = "") -> Reported:
    """The report of a folder with some finished comparisons."""
    place = _place(folder)
    reserve(place, E9)
    for name, factor in factors.items():
        of, made = _run(name, factor)
        why = "control differed at step 1" if name == void else None
        made_up.keep(dataclasses.replace(made, executor="stacked", void=why), store_of(folder, of))
    return E9.report(place)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Reported:
    return _reported(tmp_path_factory.mktemp("counts") / "E9")


def _counts(factors: Mapping[str, float], scale: str = "full") -> Counts:
    runs = [_run(name, factor) for name, factor in factors.items()]
    return counts_of(E9, scale, Path("folder"), runs, ["another"])


# ---------------------------------------------------------------- conclusions


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        (
            {"e2-rounded": 1.0},
            "E2: 784-200-200-200-10, ReLU: the 50 published counts do not exclude “rounded”, the only arithmetic that was "
            "compared (10 seeds).",
        ),
        (
            {"e2-rounded": 3.0},
            "E2: 784-200-200-200-10, ReLU: the 50 published counts exclude “rounded”, the only arithmetic that was "
            "compared (10 seeds).",
        ),
        (
            {"default-rounded": 3.0, "default-product": 9.0},
            "E9: 784-128-10, ReLU6, default subgradients: the 8 published counts and the published bounds of 30 more are "
            "compared with 2 arithmetics, with 10 seeds each. They exclude all of them; the likeliest is “rounded”.",
        ),
        (
            {"e1-rounded": 50.0, "e1-bfloat16": 0.5},
            "E1: 784-2000-10, ReLU: the published bounds of 4 counts are compared with 2 arithmetics, with 10 seeds each. "
            "They exclude all but one, “bfloat16 of the device”.",
        ),
        (
            {"default-rounded": 1.0, "default-product": 1.0, "default-split-k-4": 9.0},
            "E9: 784-128-10, ReLU6, default subgradients: the 8 published counts and the published bounds of 30 more are "
            "compared with 3 arithmetics, with 10 seeds each. They do not exclude “{}” and “{}”.",
        ),
        (
            {f"e2-layer-1-forward-split-k-4{end}": 1.0 for end in ("", "-wide", "-bias-joined", "-by-16")},
            "E2: 784-200-200-200-10, ReLU: the 50 published counts are compared with 4 arithmetics, with 10 seeds each. "
            "They do not exclude 4; the likeliest of these are “{}”, “{}” and “{}”.",
        ),
    ],
    ids=["only one", "only one, excluded", "none", "one of two", "two of three", "many"],
)
def test_the_conclusion_says_what_the_counts_exclude(factors: dict[str, float], expected: str) -> None:
    sentence, *_ = conclusion(_counts(factors))
    pattern = re.escape(expected).replace(r"\{\}", r"[^“”]+")
    found = re.match(pattern, sentence)
    assert found, sentence
    assert re.fullmatch(
        r"( Of the series of counts, s = \d deviates most from its seeds, by [\d.]+ SD \(alone, p = [\d.]+\)\.)?"
        r"( The published accuracy that deviates most does so by [+-][\d.]+ SD \(s = \d\)\.)?",
        sentence[found.end() :],
    )


def test_the_conclusion_names_the_accuracy_of_what_is_left() -> None:
    sentence, *_ = conclusion(_counts({"e2-rounded": 1.0, "e2-product": 9.0}))
    (_, (fit, _)), *_ = _counts({"e2-rounded": 1.0, "e2-product": 9.0}).targets
    assert fit.accuracy is not None
    assert f"does so by {fit.accuracy[1]:+.1f} SD ({fit.accuracy[0]})." in sentence
    sentence, *_ = conclusion(_counts({"e2-rounded": 9.0, "e2-product": 9.0}))
    assert "accuracy" not in sentence


def test_the_conclusion_names_the_series_that_deviates_most() -> None:
    made = _counts({"e2-rounded": 1.0, "e2-product": 9.0})
    (target, (fit, other)), *_ = made.targets
    found = dataclasses.replace(fit, worst=("s = 4", 3.21, 0.048))
    sentence, *_ = conclusion(dataclasses.replace(made, targets=((target, (found, other)),)))
    assert "Of the series of counts, s = 4 deviates most from its seeds, by 3.2 SD (alone, p = 0.05)." in sentence
    found = dataclasses.replace(fit, worst=("s = 4", -0.5, 0.9))
    sentence, *_ = conclusion(dataclasses.replace(made, targets=((target, (found, other)),)))
    assert "series of counts" not in sentence


def test_without_a_fit_the_conclusion_says_why() -> None:
    assert conclusion(_counts({})) == [
        "Nothing is compared with published counts, because no comparison is finished and valid."
    ]
    assert conclusion(_counts({"e2-rounded": 1.0}, "smoke")) == [
        "Nothing is compared with published counts, because this scale has other data."
    ]
    of, _ = _run("e2-rounded", 1.0)
    few = dataclasses.replace(of, settings=of.settings.of_seeds((0, 1)))
    made = counts_of(E9, "full", Path("folder"), [(few, counted.result(few, counted.like_the_published(few)))], [])
    assert conclusion(made) == [
        "E2: 784-200-200-200-10, ReLU: undecided, because no arithmetic has 3 seeds and a whole run of each."
    ]


def test_the_title_says_what_was_not_run() -> None:
    assert title(_counts({"e2-rounded": 1.0})).endswith("(full scale, 1 of 2 comparisons)")
    whole = counts_of(E9, "cpu", Path("folder"), [_run("e2-rounded", 1.0)], [])
    assert title(whole).endswith("(reduced: cpu scale)")


# ---------------------------------------------------------------- tables


def _fit(**changes: object) -> Fit:
    (fit,) = fits(report.TARGETS[0], [_run("e2-rounded", 1.0)])
    return dataclasses.replace(fit, **changes)  # type: ignore[arg-type]


def test_a_row_holds_the_numbers_of_the_fit() -> None:
    fit = _fit(log_likelihood=-1234.56, deviation=2.34, surprise=0.0909, share=0.256)
    table = fit_table([fit, _fit(log_likelihood=None, deviation=None, surprise=None, share=None)])
    measures = ["log-likelihood", "deviation", "p", "excluded", "best", "worst series", "accuracy"]
    assert table.header[:8] == ["rounding", *measures]
    assert table.header[8:] == ["hits, s = 0", "hits, s = 1", "hits, s = 8"]
    first, unjudged, published = table.rows
    assert first[:6] == ["rounded", "-1,234.6", "2.3", "0.091", "no", "26 %"]
    assert fit.worst is not None
    assert first[6] == f"{fit.worst[0]}: {fit.worst[1]:.1f} SD"
    assert first[7] == f"{fit.accuracy[1]:+.1f} SD ({fit.accuracy[0]})" if fit.accuracy else "-"
    s0 = fit.series[0].counts
    assert first[8] == f"{sum(seed[0] for seed in s0) / 10:,.1f} → {sum(seed[9] for seed in s0) / 10:,.1f}"
    assert unjudged[1:8] == ["-"] * 7
    assert published == ["published", *[""] * 7, "652 → 971", "381 → 68", "372 → 24"]
    assert fit_table([_fit(deviation=9.0)]).rows[0][4] == "yes"
    assert fit_table([_fit(deviation=float("inf"))]).rows[0][2] == "inf"
    assert fit_table([fit], 1).header[8:] == ["hits, s = 0"]
    assert [row[8] for row in fit_table([fit], 1).rows] == [first[8], published[8]]


def test_bounds_are_shown_as_bounds() -> None:
    (fit,) = fits(report.TARGETS[2], [_run("e1-bfloat16", 0.5)])
    assert fit_table([fit]).rows[-1][8:] == ["1 to 4 → 1 to 4"] * 2


def test_hits_of_every_member_are_means_over_whole_runs() -> None:
    of = counted.comparison("default-rounded")
    lost = counted.result(of, lambda member, kink, epoch: 10 * epoch + kink)
    lost.members[0].outcome, lost.members[0].epochs, lost.members[0].hits = "diverged: non-finite at step 1", [], []
    table = hits_table([(of, lost)])
    known = [100 * made_up.accuracy(Member(seed, 0.0)) for seed in range(1, 10)]
    accuracy = f"{sum(known) / 9:.2f}"
    assert table.rows[0] == ["default-rounded", "rounded", "s = 0, at 0", "10", "10.0", "300.0", accuracy, "1"]
    assert table.rows[1][2:6] == ["s = 0, at 6", "10", "11.0", "301.0"]
    assert [row[2] for row in table.rows[2:]] == [
        f"s = (0.37, 0.32) {rule}, at {kink}" for rule in ("chain", "injected") for kink in (0, 6)
    ]


def _narrow(shown: Reported, width: int = 80) -> str:
    text = render(*shown.shown(width), width=width, color=False)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text, "cut off"
    return text


def _words(text: str) -> set[str]:
    return set(re.sub(r"[│┃]", " ", text).split())


def test_the_terminal_shows_conclusion_tables_and_legend_in_80_columns(reported: Reported) -> None:
    text = _narrow(reported)
    assert [text.index(part) for part in ("E9: Hits", "do not exclude", "┏", "deviation: how far")] == sorted(
        text.index(part) for part in ("E9: Hits", "do not exclude", "┏", "deviation: how far")
    )
    wide = _words(render(*reported.shown(300), width=300, color=False))
    lines = {word for word in _words(text) if word[0] not in "┏┡├└"}
    assert lines <= wide, f"broken words: {lines - wide}"
    for target, _ in reported.made.targets:
        assert target.name in text


@pytest.mark.usefixtures("undrawn")
def test_a_long_list_is_cut_and_says_so(tmp_path: Path) -> None:
    names = [one.name for one in E9.comparisons("full", ["e2-*"])][:12]
    text = _narrow(_reported(tmp_path / "E9", dict.fromkeys(names, 1.0)))
    assert f"2 more in {tmp_path}" in re.sub(r"\s+", " ", text)
    assert text.count("rounded; layer") + text.count("│ rounded ") >= 8


# ---------------------------------------------------------------- page, figures, summary


def test_the_page_has_everything(reported: Reported) -> None:
    text = reported.report.read_text(encoding="utf-8")
    figures = re.findall(r"!\[.*\]\((figures/.*)\)", text)
    assert text == page(reported.made, [reported.folder / figure for figure in figures])
    for sentence in conclusion(reported.made):
        assert f"- {sentence}\n" in text
    assert [Path(figure).name for figure in figures] == [
        *(f"{prefix}-fit.png" for prefix in ("e2", "more", "e1", "default", "custom")),
        "relu6-hits.png",
        "hit-rates.png",
    ]
    for figure in figures:
        assert invariants.png_size(reported.folder / figure) > (400, 300)
    for target, every in reported.made.targets:
        assert f"\n## {target.name}\n\n" + "\n".join(fit_table(every).markdown()) in text
    for line in report.legend(()):
        assert f"- {line}\n" in text
    assert "at least 7.0 with 3 seeds and 2.8 with 10 seeds" in text
    assert "{" not in text
    for name in FACTORS:
        assert f"| {name} |" in text
    assert f"- Not run (yet): {', '.join(reported.missing)}." in text


def test_missing_parts_are_named(reported: Reported) -> None:
    assert len(reported.missing) == MISSING
    assert "e2-product" in reported.missing
    assert not set(reported.missing) & set(FACTORS)
    assert f"{len(FACTORS)} of {len(FACTORS) + MISSING} comparisons" in title(reported.made)


@pytest.mark.usefixtures("undrawn")
def test_a_void_comparison_is_named_and_judges_nothing(tmp_path: Path) -> None:
    name = "e2-rounded"
    shown = _reported(tmp_path / "E9", {name: 1.0, "e2-product": 9.0}, void=name)
    assert shown.void == (name,)
    assert [fit.comparison for fit in shown.made.targets[0][1]] == ["e2-product"]
    text = shown.report.read_text(encoding="utf-8")
    assert f"**Void, because a control differed: {name}.**" in text
    assert "control differed at step 1" in text
    assert f"void: delete {tmp_path / 'E9' / 'runs' / name}" in re.sub(
        r"\n", "", render(*shown.shown(300), width=300, color=False)
    )


def test_the_summary_is_what_was_computed(reported: Reported) -> None:
    stored = json.loads((reported.folder / "summary.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(summary(reported.made)))
    assert (stored["schema"], stored["schema_version"]) == ("relucheck-counts-summary", report.VERSION)
    assert (stored["scenario"], stored["scale"], stored["void"]) == ("E9", "full", [])
    assert stored["missing"] == list(reported.missing)
    for target, (known, every) in zip(stored["targets"], reported.made.targets, strict=True):
        assert target["target"] == known.name
        assert [fit["log_likelihood"] for fit in target["fits"]] == [fit.log_likelihood for fit in every]
        assert [fit["fits"] for fit in target["fits"]] == [fit.fits for fit in every]


def test_the_figure_shows_published_counts_over_the_best_three() -> None:
    names = [f"e2-layer-1-forward-split-k-{parts}" for parts in (2, 3, 4, 5)]
    found = fits(report.TARGETS[0], [_run(name, factor) for name, factor in zip(names, (9.0, 1.0, 1.2, 3.0), strict=True)])
    figure = hits_figures.fit_figure("E2", found)
    panels = figure.get_axes()
    assert len(panels) == 15, "a row for each series, a column for each arithmetic"
    for panel, fit in zip(panels[:3], found[:3], strict=True):
        lines = panel.get_title().splitlines()
        assert lines[1] == fit.arithmetic.partition("; ")[2]
        assert lines[2].endswith(": not excluded" if fit.fits else ": excluded")
    for place, panel in enumerate(panels):
        fit = found[place % 3]
        (line,) = panel.get_lines()
        assert list(map(int, line.get_ydata())) == list(fit.series[place // 3].low)
        assert len(panel.collections) == 1, "the band"
    (fit,) = fits(report.TARGETS[2], [_run("e1-bfloat16", 0.5)])
    panel, _ = hits_figures.fit_figure("E1", [fit]).get_axes()
    bounds = {float(line.get_ydata()[0]) for line in panel.get_lines() if line.get_linestyle() == ":"}
    assert bounds == {1.0, 4.0}
    assert panel.get_yscale() == "symlog"
    assert {one.get_yscale() for one in panels} == {"linear"}, "exact counts"


# ---------------------------------------------------------------- thinned results


def test_the_report_is_the_same_after_the_tool_has_thinned_its_results(tmp_path: Path) -> None:
    def written() -> list[bytes]:
        return [path.read_bytes() for path in [*sorted(place.folder.glob("*.*")), *sorted(place.folder.glob("figures/*"))]]

    place = _place(tmp_path / "E9")
    _reported(place.folder, {"e1-bfloat16": 0.5, "custom-rounded": 1.0})
    whole = written()
    assert len(whole) == 7
    assert tool("thin_results").thin(place.folder) == 20
    E9.report(place)
    assert written() == whole
    assert tool("thin_results").thin(place.folder) == 0
    of = counted.comparison("custom-rounded")
    for part in seed_store.finished(of.settings, store_of(place.folder, of), "stacked").values():
        assert part.thinned == thinning(E9.figures)
        assert not any(epoch.test_batch_accuracies for member in part.members for epoch in member.epochs)
        assert all(len(member.steps.step) == 1 for member in part.members if not member.member.control)


def test_e9_is_a_scenario_of_counts() -> None:
    assert isinstance(E9, CountsScenario)
    assert E9.figures == ()
