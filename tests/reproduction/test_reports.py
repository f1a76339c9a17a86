"""Tables, figures and reports on made-up results: every outcome that training could have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from relucheck import training_figures, training_summary, training_tables
from relucheck.reports import render
from relucheck.scenarios import SCENARIOS, Comparison
from relucheck.training_report import report, summary
from relucheck.training_settings import Member, Result
from relucheck.training_summary import Reproduction
from tests.reproduction import invariants, made

E2 = SCENARIOS["E2"]
PUBLISHED = E2.published["cpu"]


def _runs(
    scale: str = "cpu", only: tuple[str, ...] = ("float32", "bfloat16"), **options: Any
) -> list[tuple[Comparison, Result]]:
    return [(comparison, made.result(comparison.settings, **options)) for comparison in E2.comparisons(scale, only)]


def _text(runs: list[tuple[Comparison, Result]], width: int = 120) -> str:
    cells = training_summary.analyse(runs)
    return render(*training_tables.rich_tables("E2", cells, PUBLISHED, width), width=width, color=False)


def _cell(runs: list[tuple[Comparison, Result]], name: str, s: float, rule: str) -> training_summary.Cell:
    return next(
        cell
        for cell in training_summary.analyse(runs)
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


def test_the_table_has_a_row_per_s_and_a_column_per_arithmetic_and_rule() -> None:
    text = _text(_runs())
    rows = [line[1:14].strip() for line in text.splitlines() if line.startswith("│") and line[1:14].strip(" s")]
    assert rows == ["0", "0 (control)", "-0.5", "0.5", "0.8", "1"]
    head = text.splitlines()[2:4]
    assert [cell.strip() for cell in head[0].split("┃")[3:7]] == ["float32", "float32", "bfloat16", "bfloat16"]
    assert [cell.strip() for cell in head[1].split("┃")[3:7]] == ["chain", "injected"] * 2
    for line in ("accuracy %", "95 % interval", "to s = 0", "L1 distance", "first step", "hits / epoch", "verdict"):
        assert line in text
    assert "differs" in text
    assert "identical" in text


@pytest.mark.parametrize("width", [80, 120, 200])
def test_tables_fit_the_terminal(width: int) -> None:
    lines = _text(_runs("smoke", ("*",)), width).splitlines()
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines), "nothing is cut off"


def test_published_figures_stand_beside_the_rule_that_made_them() -> None:
    cells = training_summary.analyse(_runs())
    found = {
        (cell.comparison, cell.rule, cell.subgradient): training_tables.published_accuracy(cell, PUBLISHED)
        for cell in cells
    }
    assert found["bfloat16", "injected", 1.0] == "about 89"
    assert found["float32", "injected", 1.0] == "about 98"
    text = "\n".join(training_tables.markdown(cells, PUBLISHED))
    chain = [line for line in text.splitlines() if line.startswith("| 1 | chain")]
    assert chain
    assert not any("about" in line for line in chain)
    assert "about" not in "\n".join(training_tables.markdown(cells, {}))


def test_a_void_comparison_says_nothing_else() -> None:
    comparison = E2.comparisons("cpu", ("float32",))[0]
    why = "control differed at step 12 in parameter layers.0.weight (seed 1)"
    runs = [(comparison, made.result(comparison.settings, void=why)), *_runs(only=("bfloat16",))]
    cells = training_summary.analyse(runs)
    assert all(cell.paired is None for cell in cells if cell.comparison == "float32")
    assert all(cell.paired.family == 8 for cell in cells if cell.paired and not cell.control)
    assert {line for cell in cells if cell.void for line in training_tables.lines(cell)} == {"-", "void"}
    assert f"void: float32: {why}" in " ".join(_text(runs, 200).split())
    assert f"Void: {why}." in "\n".join(training_tables.markdown(cells, PUBLISHED))


def test_a_control_off_by_one_bit_is_not_identical() -> None:
    runs = _runs(only=("float32",))
    control = runs[0][1].find(0, 0.0, control=True)
    cell = next(cell for cell in training_summary.analyse(runs) if cell.control)
    assert training_tables.verdict(cell) == "identical"
    control.steps.l1[-1] = 1e-300
    cell = next(cell for cell in training_summary.analyse(runs) if cell.control)
    assert training_tables.verdict(cell) == "void"


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


def test_identical_runs_are_equivalent_exactly() -> None:
    cell = _cell(_runs(identical=True), "float32", 1.0, "injected")
    assert cell.paired is not None
    assert (cell.paired.identical, cell.paired.verdict) == (True, "equivalent")
    assert training_tables.lines(cell)[2:5] == ["0 exactly", "0", "never"]


def test_one_seed_decides_nothing() -> None:
    cell = _cell(_runs(only=("bfloat16-product",)), "bfloat16-product", 1.0, "injected")
    assert cell.paired is not None
    assert cell.paired.verdict == "undecided"
    assert training_tables.lines(cell)[1] == "-", "no interval of one run"


def test_stated_figures_are_checked() -> None:
    """The made-up chain members stay near s = 0, as was stated; the injected ones lose 8 points times s, which was not."""
    runs = _runs(only=("bfloat16-product-3-epochs", "bfloat16-split-k-4"))
    checked = training_summary.check(E2.stated["cpu"], {comparison.name: result for comparison, result in runs})
    found = {(c.stated.comparison, c.stated.quantity, c.stated.rule, c.stated.subgradient): c.verdict for c in checked}
    assert found["bfloat16-product-3-epochs", "difference", "chain", 1.0] == "agrees"
    assert found["bfloat16-product-3-epochs", "difference", "injected", 1.0] == "disagrees"
    assert found["bfloat16-product-3-epochs", "hits", "chain", 0.0] == "disagrees"
    assert found["bfloat16-split-k-4", "accuracy", "injected", 1.0] == "one run"
    assert found["float32", "difference", "chain", 1.0] == "not measured"
    header, body = training_tables.stated_lines(checked)
    assert len(body) == len(E2.stated["cpu"])
    assert all(len(line) == len(header) for line in body)


def test_accuracy_after_an_epoch() -> None:
    """The figure for epoch 15 is read after epoch 15 of the 50."""
    member = _runs(only=("float32",))[0][1].members[0]
    assert training_summary.final_accuracy(member, 15) == 100 * member.epochs[14].test_accuracy
    assert training_summary.final_accuracy(member, 51) is None
    assert training_summary.final_accuracy(member) == 100 * member.epochs[-1].test_accuracy


# ---------------------------------------------------------------- figures and files


def test_figures_have_the_reports_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at before they are written: labels, one panel per arithmetic and rule, published points, both poolings."""
    runs = _runs()
    from matplotlib import pyplot

    labels = {
        "distance": ("step", "L1 distance of all parameters"),
        "loss": ("epoch", "train loss"),
        "error": ("epoch", "%"),
    }
    for kind, (x, y) in labels.items():
        figure = training_figures._FIGURES[kind](E2, "cpu", "a part", runs)
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
        pyplot.close(figure)
    figure = training_figures._FIGURES["boxes"](E2, "cpu", "a part", runs)
    titles = [panel.get_title() for panel in figure.get_axes()]
    assert len(titles) == 8
    assert sum("over seeds" in title for title in titles) == 4
    assert sum("published pooling" in title for title in titles) == 4
    # 5 subgradients x 3 seeds as points; pooled: 2 test mini-batches x 50 epochs of one run
    assert sum(len(line.get_ydata()) for line in figure.get_axes()[0].get_lines() if line.get_linestyle() == "None") == 15
    pyplot.close(figure)


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
    paths = training_figures.draw(E2, "cpu", runs, tmp_path)
    assert len(paths) == 4
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in paths}
    for path in paths:
        assert invariants.png_size(path) > (400, 300)
        assert _ink(path) > 0.01


def test_many_arithmetics_go_on_in_further_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[list[str]] = []

    def drawn(scenario: Any, scale: str, part: str, page: Any) -> None:
        pages.append([comparison.name for comparison, _ in page])

    monkeypatch.setattr(training_figures, "_FIGURES", {"boxes": drawn})
    monkeypatch.setattr(training_figures, "_save", lambda figure, path: None)
    e3 = SCENARIOS["E3"]
    runs = [(comparison, made.result(comparison.settings)) for comparison in e3.comparisons("cpu")]
    paths = training_figures.draw(e3, "cpu", runs, tmp_path)
    assert [path.name for path in paths] == ["mnist-adam-relu-r22-boxes-1.png", "mnist-adam-relu-r22-boxes-2.png"]
    assert [name for page in pages for name in page] == [comparison.name for comparison, _ in runs]
    assert max(map(len, pages)) <= 4


def _ink(path: Path) -> float:
    """Share of pixels that are not white."""
    from matplotlib import image

    return float((image.imread(path)[..., :3] < 0.95).any(-1).mean())


def test_report_and_summary(tmp_path: Path) -> None:

    runs = tuple(_runs())
    cells = tuple(training_summary.analyse(runs))
    whole = Reproduction(E2, "cpu", tmp_path, runs, ("float16",), cells, (), (tmp_path / "figures" / "one.png",))
    text = report(whole)
    for needed in ("# E2: ", "![one](figures/one.png)", "Not run (yet): float16.", "784-200-200-200-10, relu", "made up"):
        assert needed in text
    body = json.loads(json.dumps(summary(whole), allow_nan=False))
    assert body["schema_version"] == 1
    assert {run["comparison"] for run in body["runs"]} == {"float32", "bfloat16"}
    assert len(body["cells"]) == len(cells)
    bare = report(Reproduction(E2, "cpu", tmp_path, runs, (), cells, (), ()))
    assert "pip install 'relucheck[plot]'" in bare
