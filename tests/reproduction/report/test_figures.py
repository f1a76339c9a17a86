"""The figures of a training report."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from relucheck.reproduction.experiments.mlp import SCENARIOS
from relucheck.reproduction.report import summary as report_summary
from relucheck.reproduction.report.figures import draw, kinds, overview, panels
from relucheck.results.figures import blank
from tests.helpers import invariants, made_up
from tests.helpers.made_up import E2, runs_of_e2


def test_figures_have_the_reports_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at before they are written: labels, one panel per arithmetic and rule, published points, both poolings."""
    runs = runs_of_e2()
    labels = {
        "distance": ("step", "L1 distance of all parameters"),
        "loss": ("epoch", "train loss"),
        "error": ("epoch", "%"),
    }
    for kind, (x, y) in labels.items():
        figure = kinds.FIGURES[kind](E2, "cpu", "a part", runs, {})
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
    figure = kinds.FIGURES["boxes"](E2, "cpu", "a part", runs, {})
    titles = [panel.get_title() for panel in figure.get_axes()]
    assert len(titles) == 8
    assert sum("over seeds" in title for title in titles) == 4
    assert sum("published pooling" in title for title in titles) == 4


def test_the_overview_shows_means_intervals_and_published_differences() -> None:
    """Each point by its y-data: the mean difference from s = 0 of a rule and s, its interval, and what was published."""
    runs = runs_of_e2(only=("bfloat16", "bfloat16-product-3-epochs"))
    runs.append((E2.comparisons("cpu", ("float16",))[0], made_up.result(runs[0][1].settings, diverged=lambda member: True)))
    figure = overview.differences(E2, "cpu", runs)
    half, brief = [panel for panel in figure.get_axes() if panel.get_title()]
    assert half.get_title() == "bfloat16\n50 epochs, 3 seeds"
    assert brief.get_title() == "bfloat16 emulated (product)\n3 epochs, 10 seeds"
    judged = {
        (cell.comparison, cell.subgradient, cell.rule): cell.paired
        for cell in report_summary.analyse(runs)
        if not cell.control
    }
    for place, s in enumerate((-0.5, 0.5, 0.8, 1.0)):
        for rule in ("chain", "injected"):
            difference = judged["bfloat16", s, rule]
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


def test_titles_of_panels_fit_their_panels() -> None:
    """Long arithmetics are broken between their clauses, and no title is wider than its panel or meets another one."""
    runs = runs_of_e2(only=("float32", "bfloat16"))
    long = "bfloat16 emulated (rounded; layer 1 forward: split-k 4 bias joined; layers 2, 3 forward: split-k 4)"
    settings = dataclasses.replace(runs[0][1].settings, arithmetic=long)
    wide = (dataclasses.replace(runs[0][0], name="long", settings=settings), made_up.result(settings))
    shown = [runs[0], wide, (dataclasses.replace(wide[0], name="longer"), wide[1]), runs[1]]
    for figure in (
        overview.differences(E2, "cpu", shown),
        *(drawing(E2, "cpu", "a part", shown, {}) for drawing in kinds.FIGURES.values()),
    ):
        figure.get_layout_engine().execute(figure)
        for panel in figure.get_axes():
            title, frame = panel.title.get_window_extent(), panel.get_window_extent()
            assert title.width <= 1.05 * frame.width, panel.get_title()
        assert any("\nlayer 1 forward: split-k 4 bias joined;\n" in panel.get_title() for panel in figure.get_axes())


def test_boxes_hold_each_seed_once_and_the_pooled_ones_every_epoch() -> None:
    """What is plotted, by its y-data: points of the last epoch of each seed; medians of all mini-batches of one run."""
    import statistics

    comparison, result = runs_of_e2(only=("bfloat16",))[0]
    for member in result.members:  # every epoch, mini-batch and seed another value
        for number, epoch in enumerate(member.epochs):
            epoch.test_batch_accuracies = [0.5 + number / 1000 + member.member.seed / 7, 0.6 + number / 900]
    figure = kinds.FIGURES["boxes"](E2, "cpu", "a part", [(comparison, result)], {})
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
    panels.mean_and_range(axes, series, "s = 1", ("#000000", "solid", "o"), marker=False)
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
    result = runs_of_e2(only=("float32",))[0][1]
    member = result.members[0]
    member.epochs = member.epochs[:4]
    member.epochs[1].train_loss = None
    x, y = panels.curve(member, lambda epoch: epoch.train_loss)
    assert (x, y) == ([1.0, 3.0, 4.0], [member.epochs[i].train_loss for i in (0, 2, 3)])
    whole = ([1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0])
    mean = _drawn([(x, y), whole])[0]
    assert mean[0] == [1, 3, 4]
    assert mean[1] == pytest.approx([value / 2 for value in y])


def test_published_points_are_drawn_for_runs_as_long_only() -> None:
    for name, points in (("bfloat16-product", 5), ("bfloat16-product-3-epochs", 0)):
        figure = kinds.FIGURES["error"](E2, "cpu", "a part", runs_of_e2(only=(name,)), {})
        lines = [line for panel in figure.get_axes() for line in panel.get_lines()]
        assert sum(line.get_markerfacecolor() == "white" for line in lines) == points


def test_figures_of_an_earlier_report_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One page becomes two, and one again; what is not the part's stays. Nothing is drawn, which is quicker."""
    monkeypatch.setattr(draw, "save", lambda figure, path: path.write_bytes(b""))
    undrawn = dict.fromkeys(kinds.FIGURES, lambda *rest: None)
    names = ("float32", "bfloat16", "bfloat16-rounded", "bfloat16-product", "bfloat16-split-k-4")
    few, many = runs_of_e2(only=names[:2]), runs_of_e2(only=names)
    foreign = tmp_path / "mine.png"
    foreign.write_bytes(b"")
    pages = {}
    for name, runs in (("few", few), ("many", many), ("few again", few)):
        written = draw.draw(E2, "cpu", runs, tmp_path, figures=undrawn)
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
    runs = [(c, made_up.result(c.settings, **o)) for c, o in zip(comparisons, options, strict=True)]
    paths = draw.draw(E2, "cpu", runs, tmp_path)
    assert len(paths) == 5
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in paths}
    for path in paths:
        assert invariants.png_size(path) > (400, 300)
        assert _ink(path) > 0.01


def test_many_arithmetics_go_on_in_further_files(tmp_path: Path) -> None:
    pages: list[list[str]] = []

    def drawn(scenario: Any, scale: str, part: str, page: Any, nudges: Any) -> Any:
        pages.append([comparison.name for comparison, _ in page])
        return blank(1, 1)

    e3 = SCENARIOS["E3"]
    runs = [(comparison, made_up.result(comparison.settings)) for comparison in e3.comparisons("cpu")]
    paths = draw.draw(e3, "cpu", runs, tmp_path, figures={"boxes": drawn})
    boxes = ["mnist-adam-relu-r22-boxes-1.png", "mnist-adam-relu-r22-boxes-2.png"]
    assert [path.name for path in paths] == ["differences.png", *boxes]
    assert [name for page in pages for name in page] == [comparison.name for comparison, _ in runs]
    assert max(map(len, pages)) <= 4


def _ink(path: Path) -> float:
    """Share of pixels that are not white."""
    from matplotlib import image

    return float((image.imread(path)[..., :3] < 0.95).any(-1).mean())
