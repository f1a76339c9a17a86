"""Tables and figures of searches: order, published trials, widths, and what a figure marks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from relucheck.networks import Network
from relucheck.reproduction.published import SEARCHED, search_trials
from relucheck.reproduction.report.searching import tables
from relucheck.reproduction.report.searching.figures import parallel_figure, scatter_figure
from relucheck.reproduction.report.searching.points import measured_points, published_points, varies
from relucheck.results.figures import save
from relucheck.results.tables import render
from relucheck.search import Search, SearchResult, Space, TrialEpoch, TrialResult

SEARCH = Search(network=Network("mlp", (2000,), activation="relu6"), data="mnist", trials=4, epochs=6, train_samples=12_000)
#: (epochs, accuracy of the last, outcome) by trial.
ENDS = [
    (3, 0.955, "stopped by ASHA at epoch 3"),
    (6, 0.9812, "finished"),
    (1, 0.5, "diverged: non-finite at step 900"),
    (6, 0.97, "finished"),
]


def result(search: Search = SEARCH) -> SearchResult:
    trials = []
    for draw, (count, accuracy, outcome) in zip(search.draws, ENDS, strict=True):
        epochs = tuple(
            TrialEpoch(n, 0.3, None if draw.number == 3 else 0.1, accuracy, (n, 1000 * n), 9) for n in range(1, count + 1)
        )
        trials.append(TrialResult(draw, epochs, outcome, 10.0, {}))
    return SearchResult(search, tuple(trials))


DEFAULT = dataclasses.replace(SEARCH, space=Space().default)


def test_the_published_trials_are_those_of_the_release() -> None:
    counts = {(model, kind): len(search_trials(model, kind)) for model in SEARCHED for kind in ("tuned", "default")}
    assert list(counts.values()) == [10, 10, 12, 12]
    best = {key: search_trials(*key)[0] for key in counts}
    # the figures that the report gives in its text
    assert [round(best[key].accuracy, 4) for key in counts] == [96.9167, 97.3583, 97.975, 98.3167]
    tuned = best["mobilenet_v3_small", "tuned"]
    assert (tuned.batch_size, round(tuned.lr, 7), round(tuned.alpha, 6), round(tuned.beta, 6)) == (
        64,
        0.0017024,
        0.496422,
        0.455249,
    )
    assert round(tuned.loss, 6) == 0.101213
    for model, kind in counts:
        trials = search_trials(model, kind)
        assert {trial.epochs for trial in trials} == ({3, 6} if model == "mobilenet_v3_small" else {3, 6, 10})
        assert (kind == "tuned") == all(trial.alpha for trial in trials) == varies(published_points(model, kind))


def test_trials_are_listed_from_the_best_to_the_worst() -> None:
    table = tables.trial_table(result())
    columns = {name: [row[index] for row in table.rows] for index, name in enumerate(table.header)}
    assert columns["trial"] == ["1", "3", "0", "2"]
    assert columns["accuracy %"] == ["98.12", "97.00", "95.50", "-"]
    assert columns["loss"] == ["0.1000", "-", "0.1000", "-"]
    assert columns["hits at 0"] == ["6", "6", "3", "-"]
    assert columns["at 6"] == ["6,000", "6,000", "3,000", "-"]
    assert columns["outcome"] == ["finished", "finished", "stopped", "diverged"]
    assert columns["epochs"] == ["6", "6", "3", "1"]
    assert columns["alpha"][0] == f"{SEARCH.draws[1].alpha:.3f}"


def test_the_best_trials_stand_beside_the_published_ones() -> None:
    table = tables.best_table({"tuned": result(), "default": result(DEFAULT)}, "mlp_2000")
    rows = {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}
    assert list(rows) == ["tuned", "default", "tuned [R22]", "default [R22]"]
    assert rows["tuned"]["accuracy %"] == "98.12"
    assert rows["tuned"]["median %"] == "96.25"  # of 98.12, 97, 95.5 and 0
    assert (rows["tuned"]["ended"], rows["tuned"]["finished"]) == ("4", "2")
    assert rows["default [R22]"]["accuracy %"] == "98.32"
    assert rows["default [R22]"]["finished"] == "10"
    none = tables.best_table({"tuned": SearchResult(SEARCH, result().trials[2:3])})
    assert none.rows == [["tuned", *["-"] * 7, "1", "0"]]


def test_ranks_of_two_searches_stand_side_by_side() -> None:
    table = tables.side_by_side(result(), "mlp_2000", "default")
    assert len(table.rows) == 12
    assert all(len(row) == len(table.header) for row in table.rows)
    assert table.rows[0][6] == "98.12"
    assert table.rows[0][-1] == "98.32"
    assert table.rows[4][1:7] == [""] * 6


def test_a_terminal_of_80_columns_has_room_for_every_cell() -> None:
    searches = {"tuned, injected": result(), "default": result(DEFAULT)}
    text = render(*tables.shown(searches, "mlp_2000"), width=80, color=False)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("98.12") == 4
    published = render(tables.published_table("mobilenet_v3_small", "tuned").rich(frame=False), width=80, color=False)
    assert "…" not in published


def test_a_search_in_words() -> None:
    assert tables.sentence("tuned", result()) == (
        "tuned: of 4 trials, 2 trained to the end, 1 was stopped by ASHA and 1 diverged; the best is trial 1 with 98.12 %."
    )
    begun = SearchResult(SEARCH, result().trials[2:3])
    assert tables.sentence("x", begun) == "x: of 1 trial, 1 diverged (3 more have not ended yet)."
    assert tables.sentence("x", SearchResult(SEARCH, result().trials[:3])).endswith(
        "and 1 diverged (1 more has not ended yet); the best is trial 1 with 98.12 %."
    )


def test_figures_show_every_trial(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra reproduce)")
    panels = {"tuned": measured_points(result()), "published": published_points("mlp_2000", "tuned")}
    scatter = scatter_figure("E7", panels)
    finished, stopped, lost = scatter.axes[0].collections
    assert [len(found.get_offsets()) for found in (finished, stopped, lost)] == [2, 1, 1]
    assert len(finished.get_facecolors()) == 2
    assert len(stopped.get_facecolors()) == 0  # hollow
    assert sum(len(found.get_offsets()) for found in scatter.axes[1].collections) == 12
    parallel = parallel_figure("E7", panels)
    dashes = [line.get_linestyle() for line in parallel.axes[0].lines if len(line.get_xdata()) == 5]
    assert sorted(dashes) == ["-", "-", "--", ":"]
    for name, figure in (("scatter", scatter), ("parallel", parallel)):
        save(figure, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_figures_of_one_trial_and_of_none_can_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra reproduce)")
    one, lost = (measured_points(SearchResult(SEARCH, (trial,))) for trial in result().trials[1:3])
    for name, panels in {"one": {"a": one}, "lost": {"a": lost}, "none": {}}.items():
        save(scatter_figure("E7", panels), tmp_path / f"scatter-{name}.png")
        save(parallel_figure("E7", panels), tmp_path / f"parallel-{name}.png")
