"""Thinned results: reports are the same, the files say so, and no run goes on from them."""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
from pathlib import Path

import pytest

from relucheck.errors import SettingsError
from relucheck.networks.network import Network
from relucheck.reproduction.experiments.mlp import SCENARIOS
from relucheck.reproduction.report.document import report
from relucheck.reproduction.report.figures import draw
from relucheck.reproduction.report.summary import Reproduction, analyse
from relucheck.training import engine
from relucheck.training.engine import train
from relucheck.training.members import Member, members_of
from relucheck.training.results import seed_store
from relucheck.training.results.result import Distances, MemberResult, Result, SeedResult
from relucheck.training.results.thinning import PARTS, drawn_steps, thinned, thinning
from relucheck.training.settings import Settings
from tests.helpers import made_up

#: The kinds of figures that need what a thinned result can leave out.
ALL = ("distance", "boxes")


def _seeds(result: Result) -> dict[int, SeedResult]:
    members = {seed: [m for m in result.members if m.member.seed == seed] for seed in result.settings.seeds}
    return {seed: SeedResult(own, result.void, 1.0, {}) for seed, own in members.items()}


def _member(steps: range) -> MemberResult:
    column = [float(step) for step in steps]
    return MemberResult(Member(0, 1.0), steps=Distances(list(steps), column, column, column))


def test_steps_of_each_part_and_the_last_of_each_member_are_kept() -> None:
    whole, ended = _member(range(2, 2001, 2)), _member(range(2, 1235, 2))
    kept = drawn_steps([whole, ended])
    assert kept == {*range(10, 2001, 10), 1234}
    assert len(kept) == PARTS + 1
    assert drawn_steps([whole.at(kept), ended.at(kept)]) == kept, "of what is kept nothing is lost"
    assert ended.at(kept).steps.l2[-2:] == [1230.0, 1234.0]
    few = _member(range(67, 1000, 67))
    assert few.at(drawn_steps([few])) == few
    assert drawn_steps([_member(range(0))]) == set()


def test_report_and_figures_of_thinned_results_are_those_of_whole_ones(tmp_path: Path) -> None:
    scenario = SCENARIOS["E2"]
    comparison, *_ = scenario.comparisons("cpu", ("float32",))
    settings = dataclasses.replace(comparison.settings, every=1)
    whole = made_up.result(settings)
    numbers = random.Random(0)
    for member in whole.members:
        if not member.member.control and not member.member.is_reference:
            member.steps.sum_difference = [numbers.random() for _ in member.steps.step]
    ended = whole.find(1, 0.8, "injected")
    ended.outcome, ended.steps, ended.epochs = (
        "diverged: non-finite at step 778",
        ended.steps.at(range(778)),
        ended.epochs[:38],
    )
    less = Result.of(settings, thinned(_seeds(whole), scenario.figures))
    assert sum(len(m.steps.step) for m in less.members) < 0.4 * sum(len(m.steps.step) for m in whole.members)
    texts, pictures = [], []
    for name, result in (
        ("whole", whole),
        ("thinned", dataclasses.replace(less, device=whole.device, versions=whole.versions)),
    ):
        result.executor, result.wall_s = whole.executor, whole.wall_s
        runs = ((dataclasses.replace(comparison, settings=settings), result),)
        paths = draw.draw(scenario, "cpu", runs, tmp_path / name)
        pictures.append([path.read_bytes() for path in paths])
        texts.append(report(Reproduction(scenario, "cpu", tmp_path, runs, cells=tuple(analyse(runs)))))
    assert texts[0] == texts[1]
    assert pictures[0] == pictures[1]


def test_a_box_plot_needs_the_mini_batches_of_the_first_seed(tmp_path: Path) -> None:
    """Without them its figure is another one, so the test above can fail."""
    scenario = SCENARIOS["E3"]
    comparison, *_ = scenario.comparisons("cpu", ("float32",))
    whole = made_up.result(comparison.settings)
    pictures = []
    for number, kinds in enumerate((ALL, scenario.figures, ("distance",))):
        less = Result.of(comparison.settings, thinned(_seeds(whole), kinds))
        (path,) = draw.draw(
            dataclasses.replace(scenario, overview=False), "cpu", [(comparison, less)], tmp_path / str(number)
        )
        pictures.append(path.read_bytes())
    assert pictures[0] == pictures[1]
    assert pictures[0] != pictures[2]


@pytest.mark.parametrize("kinds", [(), ("distance",), ("boxes",), ALL])
def test_a_scenario_keeps_what_its_figures_draw(kinds: tuple[str, ...]) -> None:
    settings = dataclasses.replace(SCENARIOS["E2"].comparisons("cpu", ("float32",))[0].settings, every=1)
    whole = _seeds(made_up.result(settings))
    assert {len(epoch.test_batch_accuracies) for m in whole[0].members for epoch in m.epochs} == {2}
    for seed, part in thinned(whole, kinds).items():
        assert part.thinned == thinning(kinds)
        for member, before in zip(part.members, whole[seed].members, strict=True):
            assert dataclasses.replace(member, steps=before.steps, epochs=before.epochs) == before
            batches = 2 if "boxes" in kinds and seed == settings.seeds[0] else 0
            assert {len(epoch.test_batch_accuracies) for epoch in member.epochs} == {batches}
            assert member.without_batches() == dataclasses.replace(before.without_batches(), steps=member.steps)
            if member.member.control:
                assert member.steps == before.steps
            else:
                assert len(member.steps.step) == (PARTS if "distance" in kinds else 1)
                assert member.steps.l1[-1] == before.steps.l1[-1]


def test_a_thinned_file_says_so_and_a_file_that_does_not_say_is_refused() -> None:
    part = _seeds(made_up.result(SCENARIOS["E1"].comparisons("smoke", ("float32",))[0].settings))[0]
    assert part.to_json()["thinned"] is None
    (less,) = thinned({0: part}, ALL).values()
    content = json.loads(json.dumps(less.to_json()))
    assert content["thinned"] == thinning(ALL)
    assert SeedResult.from_json(content, {}) == less
    del content["thinned"]
    with pytest.raises(SettingsError, match="'thinned'"):
        SeedResult.from_json(content, {})


@pytest.mark.parametrize("first", [(), ("distance",), ("boxes",), ALL])
@pytest.mark.parametrize("second", [(), ("distance",), ("boxes",), ALL])
def test_what_is_thinned_is_thinned_again_only_to_less(first: tuple[str, ...], second: tuple[str, ...]) -> None:
    """A rule that keeps more would say that the file holds what it lacks."""
    settings = dataclasses.replace(SCENARIOS["E2"].comparisons("cpu", ("float32",))[0].settings, every=1)
    whole = _seeds(made_up.result(settings))
    less = thinned(whole, first)
    if set(second) <= set(first):
        assert thinned(less, second) == thinned(whole, second)
    else:
        with pytest.raises(SettingsError, match=r"the result of seed 0 was thinned before.*run the seed again"):
            thinned(less, second)
        with pytest.raises(SettingsError, match="seed 1"):
            thinned({0: whole[0], 1: less[1]}, second)


def test_what_an_unknown_rule_thinned_is_not_thinned_again() -> None:
    whole = _seeds(made_up.result(SCENARIOS["E1"].comparisons("smoke", ("float32",))[0].settings))
    odd = {seed: dataclasses.replace(part, thinned="every other step") for seed, part in whole.items()}
    with pytest.raises(SettingsError, match="'every other step'"):
        thinned(odd, ())


def test_a_thinned_seed_is_finished_but_never_continued(tmp_path: Path) -> None:
    """Its members are read; a member that is added runs with all of them, so that a file is never half thinned."""
    members = members_of((3,), (1.0,))
    wide = Settings(
        "digits", Network("mlp", (8,)), members, epochs=60, batch_size=50, train_samples=200, test_samples=50, every=1
    )
    chain = dataclasses.replace(wide, members=tuple(member for member in members if member.rule == "chain"))
    train(chain, folder=tmp_path, progress=False)
    found = seed_store.finished(chain, tmp_path, "forking")
    seed_store.keep(chain, tmp_path, "forking", thinned(found, ALL))
    assert engine.units(chain, tmp_path) == ()
    assert seed_store.finished(chain, tmp_path, "forking")[3].thinned == thinning(ALL)
    whole = train(wide, folder=tmp_path, progress=False)
    assert {len(member.steps.step) for member in whole.members} == {240}
    assert json.loads(gzip.decompress((tmp_path / "seed-3.json.gz").read_bytes()))["result"]["thinned"] is None
