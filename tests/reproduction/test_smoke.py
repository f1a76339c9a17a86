"""The scenarios at smoke scale: really trained on the shipped digits, the same members, rules and reports as in full."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from relucheck.reproduction.experiments.mlp import SCENARIOS
from relucheck.reproduction.report.summary import Reproduction
from relucheck.reproduction.run import ReproductionError, read, reproduce
from relucheck.reproduction.scenario import Scenario
from relucheck.training import engine, model
from relucheck.training.result import MemberResult, Result
from relucheck.training.settings import Settings
from tests.reproduction import invariants

Smoke = Callable[[str], Reproduction]
HITTING = "bfloat16-product"


def _quiet(line: str) -> None:
    pass


@pytest.mark.parametrize("name", ["E1", "E2"])
def test_invariants(smoke: Smoke, name: str) -> None:
    invariants.everything(smoke(name))


def test_e3_takes_over_e2s_runs(smoke: Smoke) -> None:
    e2 = {comparison.name: result for comparison, result in smoke("E2").runs}

    def never(*args: Any, **options: Any) -> Result:
        raise AssertionError("E3 trained what E2 had")

    parent = smoke("E2").folder.parent
    e3 = reproduce("E3", "smoke", parent / "E3-smoke", device="cpu", progress=False, say=_quiet, trainer=never)
    invariants.report_is_complete(e3)
    assert {comparison.name for comparison, _ in e3.runs} <= set(e2)
    for comparison, result in e3.runs:
        assert result.to_json() == e2[comparison.name].to_json()


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
    """The correction at a member's hits with one rule for all."""
    original = model._at_hits

    def at_hits(module: Any, *rest: Any) -> Any:
        before = module.switch.choice
        try:
            module.switch.choice = (before[0], rule if any(before[0]) else "chain")
            return original(module, *rest)
        finally:
            module.switch.choice = before

    return at_hits


@pytest.mark.parametrize("rule", ["injected", "chain"], ids=["chain rule dropped", "injected rule made right"])
def test_a_fault_in_a_rule_is_found(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "_at_hits", _always(rule))
    result = engine.train(_hitting_settings(), progress=False)
    with pytest.raises(AssertionError):
        invariants.rules_differ(result)


def test_a_control_that_differs_is_found(smoke: Smoke) -> None:
    """The invariants look at what they should: a result with one bit off is refused."""
    result = Result.from_json(_result(smoke("E2"), HITTING).to_json())
    invariants.control_is_identical(result)
    _control(result).steps.l1 = [*_control(result).steps.l1[:-1], 5e-324]
    with pytest.raises(AssertionError):
        invariants.control_is_identical(result)


def _control(result: Result) -> MemberResult:
    return result.find(0, 0.0, control=True)


# ---------------------------------------------------------------- resumption


class BrokenOff(KeyboardInterrupt):
    """Control-C, in a test."""


def _counting(calls: list[str], stop_at: int | None = None) -> Callable[..., Result]:
    def trainer(settings: Settings, **options: Any) -> Result:
        calls.append(Path(options["folder"]).name)
        if len(calls) == stop_at:
            raise BrokenOff
        return engine.train(settings, **options)

    return trainer


def test_a_run_that_was_broken_off_goes_on(smoke: Smoke, tmp_path: Path) -> None:
    """Finished comparisons are not run again, and all ends as in an unbroken run."""
    only = ["float32", "float64", "b21-*"]
    folder, calls = tmp_path / "out", list[str]()
    options: dict[str, Any] = {"device": "cpu", "progress": False, "say": _quiet, "only": only}
    with pytest.raises(BrokenOff):
        reproduce("E1", "smoke", folder, trainer=_counting(calls, stop_at=2), **options)
    first = list(calls)
    assert len(first) == 2
    made = reproduce("E1", "smoke", folder, trainer=_counting(calls), **options)
    assert calls[2] == first[1], "the one that was broken off"
    assert first[0] not in calls[2:]
    said: list[str] = []
    again = reproduce("E1", "smoke", folder, **{**options, "say": said.append}, trainer=_counting(calls, stop_at=0))
    assert len(calls) == 1 + len(made.runs), "nothing is left to run"
    assert all("finished before, not run again" in line for line in said[1:])
    for runs in (made.runs, again.runs):
        for comparison, result in runs:
            assert [m.to_json() for m in result.members] == [
                m.to_json() for m in _result(smoke("E1"), comparison.name).members
            ]
    assert set(made.missing) == {"bfloat16", "bfloat16-product", "float16"}


def test_a_damaged_result_is_no_result(smoke: Smoke, tmp_path: Path) -> None:
    scenario = SCENARIOS["E1"]
    assert isinstance(scenario, Scenario)
    comparison = scenario.comparisons("smoke", ["b21-float32"])[0]
    path = tmp_path / "runs" / comparison.name / "result.json"
    path.parent.mkdir(parents=True)
    content = (smoke("E1").folder / "runs" / comparison.name / "result.json").read_bytes()
    path.write_bytes(content)
    assert read(tmp_path, comparison) is not None
    path.write_bytes(content[:-100])
    with pytest.raises(ReproductionError, match=r"result\.json is unreadable or damaged: .*delete it"):
        read(tmp_path, comparison)
    other = scenario.comparisons("smoke", ["b21-float64"])[0]
    path.parent.rename(path.parent.with_name(other.name))
    path.parent.with_name(other.name).joinpath("result.json").write_bytes(content)
    with pytest.raises(ReproductionError, match="is of other settings"):
        read(tmp_path, other)
