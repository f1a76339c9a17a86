"""The scenarios at smoke scale: really trained on the shipped digits, the same members, rules and reports as in full."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from relucheck.reproduction.experiments.counts import E9
from relucheck.reproduction.experiments.mlp import SCENARIOS
from relucheck.reproduction.experiments.searches.pairs import E7
from relucheck.reproduction.report.hits.fit import members
from relucheck.reproduction.report.hits.page import Counts
from relucheck.reproduction.report.summary import Reproduction
from relucheck.reproduction.run import reproduce
from relucheck.reproduction.scenario import Place
from relucheck.reproduction.trained import read, store_of
from relucheck.results.store import StoreError
from relucheck.results.tables import render
from relucheck.training import engine, model
from relucheck.training.results.result import MemberResult, Result
from relucheck.training.settings import Settings
from relucheck.work import Listener, Local, Unit
from tests.helpers import forked, invariants

# the first test of a worker that needs a scenario runs it
pytestmark = pytest.mark.slow

Smoke = Callable[[str], Reproduction]
HITTING = "bfloat16-product"


def _quiet(line: str) -> None:
    pass


@pytest.mark.parametrize("name", ["E1", "E2", "E5", "E6", "E8", "E10", "E11"])
def test_invariants(smoke: Smoke, name: str) -> None:
    invariants.everything(smoke(name))


class Refusing:
    """A backend that must have nothing to do."""

    def run(self, units: Sequence[Unit], listen: Listener | None = None) -> None:
        assert not units, [unit.name for unit in units]


def test_e3_takes_over_e2s_runs(smoke: Smoke) -> None:
    e2 = {comparison.name: result for comparison, result in smoke("E2").runs}
    parent = smoke("E2").folder.parent
    e3 = reproduce("E3", "smoke", parent / "E3-smoke", device="cpu", progress=False, say=_quiet, backend=Refusing()).made
    invariants.report_is_complete(e3)
    assert {comparison.name for comparison, _ in e3.runs} <= set(e2)
    for comparison, result in e3.runs:
        assert result == e2[comparison.name]


def test_e7_is_run_and_reported(smoke: Smoke) -> None:
    """Really trained: pairs whose nudges are members, a surface with both subgradients, and a report without gaps."""
    made = smoke("E7")
    assert [comparison for comparison, _ in made.runs] == list(E7.comparisons("smoke"))
    assert (made.missing, made.void) == ((), ())
    for comparison, result in made.runs:
        invariants.control_is_identical(result)
        invariants.shapes_fit(result)
        seeds = result.settings.seeds
        if comparison.settings.arithmetic.name == "float32":
            assert all(result.nudges(seed) is None for seed in seeds), "digits give no hit so soon"
        else:
            assert all(nudge.nudge is not None for seed in seeds for nudge in result.nudges(seed) or [])
            assert any(member.first_difference is not None for member in result.members if member.member.s)
    assert [section.title for section in made.sections] == ["Pairs", "Response surface", "Every draw"]
    text = (made.folder / "report.md").read_text(encoding="utf-8")
    for section in made.sections:
        assert "\n".join(section.markdown()) in text
        for sentence in section.sentences:
            assert f"- {sentence}\n" in text
    assert [path.name for path in made.figures] == ["pairs.png", "surface.png"]
    assert all(invariants.png_size(path) > (700, 400) for path in made.figures)
    again = reproduce("E7", "smoke", made.folder, device="cpu", progress=False, say=_quiet, backend=Refusing())
    assert again.made == made, "all was finished"
    shown = render(*again.shown(80), width=80, color=False)
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    assert "nudges: not run" not in shown, "they are members"


def test_e9_is_run_and_reported(smoke: Callable[[str], Any]) -> None:
    """Really trained; its digits are compared with nothing, and the terminal shows hits in 80 columns."""
    made: Counts = smoke("E9")
    assert [comparison for comparison, _ in made.runs] == list(E9.comparisons("smoke"))
    assert (made.missing, made.void, made.targets) == ((), (), ())
    for comparison, result in made.runs:
        invariants.control_is_identical(result)
        invariants.shapes_fit(result)
        if "split-k" in comparison.name and comparison.name.startswith("e2-"):
            assert sum(sum(epoch) for one in members(result) for epoch in one.counts) > 20
    text = (made.folder / "report.md").read_text(encoding="utf-8")
    assert "- Nothing is compared with published counts, because this scale has other data." in text
    assert invariants.png_size(made.folder / "figures" / "relu6-hits.png") > (400, 300)
    assert json.loads((made.folder / "summary.json").read_text(encoding="utf-8"))["targets"] == []
    again = reproduce("E9", "smoke", made.folder, device="cpu", progress=False, say=_quiet, backend=Refusing())
    assert again.made == made, "all was finished"
    shown = render(*again.shown(80), width=80, color=False)
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    for comparison, _ in made.runs:
        assert comparison.part in re.sub(r"\s+", " ", shown)
    words = set(re.sub(r"[│┃]", " ", render(*again.shown(200), width=200, color=False)).split())
    assert {word for word in re.sub(r"[│┃]", " ", shown).split() if word[0] not in "┏┡├└"} <= words, "broken words"


@pytest.mark.usefixtures("undrawn")
def test_e9_goes_on_where_it_was_broken_off(smoke: Callable[[str], Any], tmp_path: Path) -> None:
    folder, calls = tmp_path / "out", list[str]()
    only = ["default-rounded", "e1-rounded"]
    options: dict[str, Any] = {"device": "cpu", "progress": False, "say": _quiet, "only": only}
    with pytest.raises(BrokenOff):
        reproduce("E9", "smoke", folder, backend=Counting(calls, stop_at=2), **options)
    made: Counts = reproduce("E9", "smoke", folder, backend=Counting(calls), **options).made
    assert calls == ["default-rounded seed-0", "default-rounded seed-1", *calls[2:]]
    assert len(calls) == 1 + 6
    whole = {comparison.name: result for comparison, result in smoke("E9").runs}
    assert [comparison.name for comparison, _ in made.runs] == only
    for comparison, result in made.runs:
        assert result.members == whole[comparison.name].members
    assert len(made.missing) == len(whole) - 2


def test_emulated_arithmetic_hits_and_members_part(smoke: Smoke) -> None:
    result = _result(smoke("E2"), HITTING)
    for member in result.members:
        assert sum(kink for epoch in member.hits for layer in epoch for kink in layer) > 10
        parts = not (member.member.is_reference or member.member.control)
        assert (member.first_difference is not None) == parts


def _result(made: Reproduction, name: str) -> Result:
    return next(result for comparison, result in made.runs if comparison.name == name)


def test_plain_adam_in_float16_is_reported_as_it_is(smoke: Smoke) -> None:
    made = smoke("E2")
    for member in _result(made, "float16").members:
        assert member.outcome.startswith("diverged: non-finite at step ")
    cells = [cell for cell in made.cells if cell.comparison == "float16"]
    assert all(cell.diverged == 2 and cell.summary.n == 0 for cell in cells)
    assert {cell.paired.verdict for cell in cells if cell.paired} == {"undecided"}
    assert "float16: every member diverged: non-finite at step" in (made.folder / "report.md").read_text(encoding="utf-8")


# ---------------------------------------------------------------- both rules


def _hitting_settings() -> Settings:
    """One epoch of the comparison that hits, with one seed and s = 1 alone."""
    import dataclasses

    scenario = SCENARIOS["E2"]
    settings = scenario.comparisons("smoke", [HITTING])[0].settings
    chosen = tuple(member for member in settings.members if member.seed == 0 and member.subgradient in (0.0, 1.0))
    return dataclasses.replace(settings, members=chosen, epochs=1)


def test_rules_differ(smoke: Smoke) -> None:
    invariants.rules_differ(_result(smoke("E2"), HITTING))
    invariants.rules_differ(engine.train(_hitting_settings(), progress=False))


def _always(rule: str) -> Any:
    """The gradient at hits with one rule for all but the references."""
    original = model.at_hits

    def at_hits(gradient: Any, cotangent: Any, subgradient: Any, own: float, injects: bool = False) -> Any:
        return original(gradient, cotangent, subgradient, own, rule == "injected" and subgradient != 0)

    return at_hits


@pytest.mark.parametrize("rule", ["injected", "chain"], ids=["chain rule dropped", "injected rule made right"])
def test_a_fault_in_a_rule_is_found(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "at_hits", _always(rule))
    result = engine.train(_hitting_settings(), progress=False)
    with pytest.raises(AssertionError):
        invariants.rules_differ(result)


def test_a_control_that_differs_is_found(smoke: Smoke) -> None:
    """The invariants look at what they should: a result with one bit off is refused."""
    result = copy.deepcopy(_result(smoke("E2"), HITTING))
    invariants.control_is_identical(result)
    _control(result).steps.l1 = [*_control(result).steps.l1[:-1], 5e-324]
    with pytest.raises(AssertionError):
        invariants.control_is_identical(result)


def _control(result: Result) -> MemberResult:
    return result.find(0, 0.0, control=True)


# ---------------------------------------------------------------- resumption


class BrokenOff(KeyboardInterrupt):
    """Control-C, in a test."""


class Counting:
    """Runs units in this process; the names of those that began, and control-C before the ``stop_at``-th."""

    def __init__(self, calls: list[str], stop_at: int | None = None) -> None:
        self.calls, self.stop_at = calls, stop_at

    def run(self, units: Sequence[Unit], listen: Listener | None = None) -> None:
        for unit in units:
            self.calls.append(unit.name)
            if len(self.calls) == self.stop_at:
                raise BrokenOff
            Local(1).run([unit], listen)


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_was_broken_off_goes_on(smoke: Smoke, tmp_path: Path) -> None:
    """Finished seeds are not run again, and all ends as in an unbroken run."""
    only = ["float32", "float64", "b21-*"]
    folder, calls = tmp_path / "out", list[str]()
    options: dict[str, Any] = {"device": "cpu", "progress": False, "say": _quiet, "only": only}
    with pytest.raises(BrokenOff):
        reproduce("E1", "smoke", folder, backend=Counting(calls, stop_at=2), **options)
    first = list(calls)
    assert first == ["float32 seed-0", "float32 seed-1"]
    made = reproduce("E1", "smoke", folder, backend=Counting(calls), **options).made
    assert calls[2] == first[1], "the one that was broken off"
    assert first[0] not in calls[2:]
    assert len(calls) == 1 + 2 * len(made.runs)
    again = reproduce("E1", "smoke", folder, backend=Refusing(), **options).made
    for runs in (made.runs, again.runs):
        for comparison, result in runs:
            assert result.members == _result(smoke("E1"), comparison.name).members
    assert set(made.missing) == {"bfloat16", "bfloat16-product", "float16"}


@pytest.mark.usefixtures("undrawn")
def test_seeds_run_in_processes_end_as_in_one(smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forked.fork_units(monkeypatch)
    made = reproduce(
        "E1", "smoke", tmp_path / "out", device="cpu", progress=False, say=_quiet, only=["b21-float32"], processes=2
    ).made
    (comparison, result), *none = made.runs
    assert not none
    assert result.members == _result(smoke("E1"), comparison.name).members


def test_a_damaged_result_is_no_result(smoke: Smoke, tmp_path: Path) -> None:
    scenario = SCENARIOS["E1"]
    comparison, other = scenario.comparisons("smoke", ["b21-*"])
    place = Place("smoke", tmp_path, None, "cpu", "forking")
    folder, before = store_of(tmp_path, comparison), store_of(smoke("E1").folder, comparison)
    shutil.copytree(before, folder)
    assert read(place, comparison) is not None
    path = folder / "seed-1.json.gz"
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(StoreError, match=r"seed-1\.json\.gz is damaged .*move it away"):
        read(place, comparison)
    path.unlink()
    assert read(place, comparison) is None, "a seed is missing"
    shutil.copytree(before, store_of(tmp_path, other))
    with pytest.raises(StoreError, match="belongs to another run: its settings arithmetic is 'float32'"):
        read(place, other)
