"""E7's searches as parts of a scenario: selection, units, and their sections and figures on made-up trials."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from relucheck.reproduction import searched
from relucheck.reproduction.experiments.searches.pairs import E7
from relucheck.reproduction.report.summary import Reproduction
from relucheck.reproduction.run import reproduce
from relucheck.reproduction.scenario import Place, ScenarioError
from relucheck.results.tables import render
from relucheck.search import Search, SearchResult, Space, TrialEpoch, TrialResult
from tests.helpers.invariants import png_size


def _result(search: Search) -> SearchResult:
    """Trials that end with other accuracies; the last one diverged."""
    trials = []
    for draw in search.draws:
        epochs = tuple(
            TrialEpoch(epoch, 0.5, 0.2, 0.9 + 0.007 * (draw.number + epoch / 10), (1, 20), 1000)
            for epoch in range(1, search.epochs + 1)
        )
        lost = draw.number == search.trials - 1
        trials.append(TrialResult(draw, epochs, "diverged: non-finite at step 3" if lost else "finished", 1.0, {}))
    return SearchResult(search, tuple(trials))


@pytest.mark.parametrize("scale", ["full", "cpu"])
def test_the_searches_are_the_published_ones(scale: str) -> None:
    """A tuned search for each rule and the default one draw the same batch sizes, learning rates and seeds."""
    every = E7.chosen(scale, ["search-*"])
    assert len({one.name for one in every}) == len({one.search.digest for one in every}) == len(every)
    for one in every:
        search, convolved = one.search, one.model == "mobilenet_v3_small"
        assert (search.grace, search.reduction, search.validation, search.data) == (3, 2, 0.2, "mnist")
        assert search.trials == (10 if convolved else 12)
        assert search.network.classes == (1000 if convolved else 10)
        assert search.space == (Space() if one.subgradients == "tuned" else Space().default)
        if scale == "full":
            assert (search.epochs, search.train_samples) == (6 if convolved else 10, 60_000)
        else:
            assert (search.network.name, search.epochs, search.train_samples) == ("784-2000-10", 5, 12_000)
    of_network = {}
    for one in every:
        drawn = [(draw.batch_size, draw.lr, draw.seed) for draw in one.search.draws]
        assert of_network.setdefault(one.model, drawn) == drawn
    assert {one.said for one in every} == {"tuned, injected", "tuned, chain", "default"}


def test_searches_run_only_where_they_are_named() -> None:
    names = [one.name for one in E7.searches["cpu"]]
    assert len(names) == 6
    assert not set(names) & set(E7.parts("cpu"))
    assert E7.parts("cpu", ["search-*"]) == tuple(names)
    assert E7.parts("cpu", ["search-mlp-default-*"]) == (
        "search-mlp-default-float32",
        "search-mlp-default-bfloat16-rounded",
    )
    assert E7.parts("cpu", ["mlp-pair-01-float32", "search-mlp-default-float32"]) == (
        "mlp-pair-01-float32",
        "search-mlp-default-float32",
    )
    assert all(not part.startswith("search-") for part in E7.parts("cpu", ["float32"]))
    assert E7.data_sets("cpu", ["search-*"]) == (("mnist", "train"),)


def test_an_unknown_search_is_refused() -> None:
    with pytest.raises(
        ScenarioError, match=r"no search 'search-mpl'; did you mean 'search-mlp-.*searches: search-mlp-tuned"
    ):
        E7.parts("cpu", ["search-mpl"])


@pytest.mark.parametrize("wanted", ["mlp-pair-01-float32-nudges", "*-nudges", "search-*-nudges"])
def test_nudges_are_members_and_no_parts(wanted: str) -> None:
    """They would run for hours and be reported nowhere."""
    with pytest.raises(ScenarioError, match=r"E7 has no part '.*-nudges': its comparisons have their nudges as members"):
        E7.parts("cpu", [wanted])


def test_a_search_is_one_unit_that_runs_alone(tmp_path: Path) -> None:
    (found,) = E7.units(Place("smoke", tmp_path, None, "cpu", "forking"), ["search-mlp-default-float32"])
    assert (found.name, found.alone, found.done) == ("search-mlp-default-float32", True, 0)
    assert found.steps > 0


def test_options_of_units_are_those_of_a_searchs_trials(tmp_path: Path) -> None:
    """A search that nobody sent to a cluster starts a Ray of its own, whatever $RAY_ADDRESS says."""
    wanted = ["search-mlp-default-float32"]
    for place, options in (
        (Place("smoke", tmp_path, None, "cpu", "forking"), ("local", 1, 0.0, None)),
        (Place("smoke", tmp_path, None, "cpu", "forking", 3, None, None), (None, 1, 0.0, 3)),
        (Place("smoke", tmp_path, None, "cuda", "forking", 2, 0.5, "head:6379"), ("head:6379", 1, 0.5, 2)),
    ):
        (found,) = E7.units(place, wanted)
        assert found.arguments[-4:] == options


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reproduction:
    """A folder in which all searches of scale cpu have ended, and nothing else."""
    monkeypatch.setattr(searched, "read", lambda folder, search: _result(search))
    return Reproduction(E7, "cpu", tmp_path)


def test_the_sections_have_every_trial_beside_the_published_ones(made: Reproduction) -> None:
    best, trials = E7.own_sections(made)
    assert len(best.sentences) == 6
    assert best.sentences[0].startswith("Search on 784-2000-10, tuned, chain, float32: of 12 trials, ")
    assert [row[0] for row in best.tables[0].rows][-2:] == ["tuned [R22]", "default [R22]"]
    assert len(trials.tables) == 6
    assert {len(table.rows) for table in trials.tables} == {12}, "rank by rank"
    assert {name: len(one["trials"]) for name, one in best.data.items()} == dict.fromkeys(E7.parts("cpu", ["search-*"]), 12)
    shown = render(*best.terminal(), *trials.terminal(), width=80, color=False)
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    assert "published" not in shown, "every trial is for the report alone"


def test_the_figures_have_a_panel_for_each_search(made: Reproduction, tmp_path: Path) -> None:
    paths = E7.own_figures(made, tmp_path)
    assert [path.name for path in paths] == ["search-784-2000-10-scatter.png", "search-784-2000-10-parallel.png"]
    assert all(png_size(path) > (700, 700) for path in paths)


def test_without_results_there_is_no_section(tmp_path: Path) -> None:
    made = Reproduction(E7, "cpu", tmp_path)
    assert E7.own_sections(made) == ()
    assert E7.own_figures(made, tmp_path) == []


@pytest.mark.ray
@pytest.mark.long
def test_searches_really_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's 15 would let other tests take the time of its workers
    folder = tmp_path / "E7"
    reported = reproduce("E7", "smoke", folder, device="cpu", only=["search-*"], progress=False, say=lambda line: None)
    best, trials = reported.made.sections
    assert [section.title for section in (best, trials)] == ["Searches on 784-16-10", "Every trial on 784-16-10"]
    assert [len(table.rows) for table in trials.tables] == [3, 3]
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "![search-784-16-10-scatter](figures/search-784-16-10-scatter.png)" in text
    again = reproduce("E7", "smoke", folder, device="cpu", only=["search-*"], progress=False, say=lambda line: None)
    assert dataclasses.replace(again.made) == reported.made, "all had ended, so Ray does not start"
