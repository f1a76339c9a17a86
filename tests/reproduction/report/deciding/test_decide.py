"""Cases of claims: which comparisons decide, under which rules, and what is missing."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from relucheck.reproduction.claims import Decision
from relucheck.reproduction.report.deciding.cases import Trained, TrainingCase
from relucheck.reproduction.report.deciding.decide import decide
from relucheck.reproduction.report.deciding.registry import STATISTICS
from tests.reproduction.report.deciding.constructed import claim, decisions, jitter, settings, trained, without

_CLAIM = claim("equivalent_to_reference", options={"endpoint": "accuracy", "margin": 0.2}, controls=("0-0",))


def _named(name: str, arithmetic: str = "bfloat16", epochs: int = 4) -> Trained:
    return trained(settings(arithmetic, epochs=epochs), name=name)


def _where(found: tuple[Decision, ...]) -> list[tuple[str, str, str]]:
    return [(one.case, one.rule, one.said) for one in found]


def test_each_comparison_that_fits_an_arm_is_a_case_under_each_rule() -> None:
    of = dataclasses.replace(_CLAIM, arms=("bfloat16-published*", "bfloat16*"), rules=("injected", "chain"))
    found = decisions(of, _named("bfloat16-published-10-epochs"), _named("bfloat16-split"), _named("sgd-bfloat16"))
    assert _where(found) == [
        (name, rule, "confirmed")
        for name in ("bfloat16-published-10-epochs", "bfloat16-split")
        for rule in ("injected", "chain")
    ], "once, though both arms select it"


def test_a_name_selects_itself_alone_and_an_arithmetic_selects_all() -> None:
    runs = _named("float32", "float32"), _named("b21-float32", "float32"), _named("bfloat16")
    of = dataclasses.replace(_CLAIM, arms=("float32",))
    assert _where(decisions(of, *runs)) == [("float32", "injected", "confirmed")]
    assert {one.case for one in decisions(of, *runs[1:])} == {"b21-float32"}


def test_an_arm_without_a_comparison_is_said() -> None:
    of = dataclasses.replace(_CLAIM, arms=("bfloat16-published*", "bfloat16"), epochs=50)
    found = decisions(of, _named("bfloat16", epochs=50), _named("bfloat16-published-10-epochs", epochs=10))
    assert _where(found) == [("bfloat16-published*", "", "not run: arm"), ("bfloat16", "injected", "confirmed")]
    assert found[0].measured == "no finished comparison `bfloat16-published*` with 50 epochs"


def test_a_missing_member_is_said() -> None:
    of = dataclasses.replace(_CLAIM, subgradients=(0.5, 2.0, 4.0))
    (found,) = decisions(of, _named("bfloat16"))
    assert (found.said, found.measured) == ("not run: members", "no s = 2, s = 4 in bfloat16")
    (chain_only,) = decisions(_CLAIM, trained(settings(subgradients=())))
    assert (chain_only.said, chain_only.measured) == ("not run: members", "no s other than 0 in bfloat16")


class _Spy:
    """A case that notes what a statistic asks of it."""

    def __init__(self, case: TrainingCase) -> None:
        self._case = case
        self.asked: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.asked.add(name)
        return getattr(self._case, name)


def _some(option: Any) -> Any:
    return option[0] if isinstance(option, tuple) else [] if option is list else 0.1


@pytest.mark.parametrize("name", [name for name, one in STATISTICS.items() if one.about == "training"])
def test_statistics_say_whether_they_look_at_nudges_and_at_every_s(name: str) -> None:
    """The reader of claims relies on it."""
    one, run = STATISTICS[name], trained()
    spy = _Spy(TrainingCase(run, "chain", (0.5, 1.0), run if one.compares else None))
    one.decide(spy, **{option: _some(allowed) for option, allowed in one.options.items()})
    assert one.nudged == bool(spy.asked & {"live", "nudged", "one_nudge", "effect"})
    assert one.about_s == ("subgradients" in spy.asked)


def test_a_level_has_a_value_for_each_seed() -> None:
    """A seed without a live hit has no nudges, and is not left out in silence."""
    case = TrainingCase(trained(quiet=(2,)), "chain", (1.0,))
    values = case.one_nudge("accuracy", range(8))
    assert [seed for seed, value in enumerate(values) if value is None] == [2]
    assert len(values) == 8
    assert None not in case.one_nudge("accuracy", case.live)


def test_the_arm_to_compare_with_must_be_there_with_the_same_seeds() -> None:
    of = claim("effect_compares", options={"endpoint": "distance", "direction": "larger"}, against="float32")
    (found,) = decisions(of, _named("bfloat16"))
    assert (found.said, found.measured) == ("not run: arm", "no finished comparison `float32`")
    other = settings("float32")
    moved = dataclasses.replace(other, members=tuple(dataclasses.replace(m, seed=m.seed + 50) for m in other.members))
    (apart,) = decisions(of, _named("bfloat16"), trained(moved, name="float32"))
    assert apart.said == "not run: members"


def test_two_arms_with_two_kernels_are_said_to_have_them() -> None:
    """On CUDA the stacked executor computes float32 by baddbmm, and members of 16 bits one by one by nn.Linear."""
    of = claim("effect_compares", options={"endpoint": "distance", "direction": "larger"}, against="float32")
    half, full = trained(), trained(settings("float32"), name="float32")
    assert "linear layers" not in decisions(of, half, full)[0].measured
    runs = [without(run, executor="stacked", device="cuda (NVIDIA H200)") for run in (half, full)]
    says = "(linear layers: nn.Linear in bfloat16, baddbmm in float32)"
    assert says in decisions(of, *runs)[0].measured
    (missing,) = decisions(of, *(dataclasses.replace(run, nudges=None) for run in runs))
    assert missing.measured == f"no nudges of bfloat16 {says}"


@pytest.mark.parametrize("statistic", ["equivalent_to_reference", "volume_is_larger"])
def test_a_scenario_without_results_is_not_run(statistic: str) -> None:
    of = dataclasses.replace(_CLAIM, scenario="E7", statistic=statistic)
    (found,) = decide([of], STATISTICS, {"E2": []}, {})
    assert (found.case, found.said, found.measured) == ("-", "not run: results", "no results of E7")


def test_the_cases_of_a_claim_are_one_family() -> None:
    """A case that is confirmed by itself is not confirmed beside many that are not: Holm's correction counts them."""

    def run(name: str, cost: float) -> Trained:
        return trained(
            settings(seeds=6),
            lambda member, epoch: (0.9 - cost * member.subgradient + jitter(member, 0.0035), 0.1, 5),
            name=name,
        )

    of = claim(
        "differs_beyond_nudges",
        options={"endpoint": "accuracy", "direction": "smaller", "margin": 0.0},
        subgradients=(1.0,),
        arms=("bfloat16*",),
    )
    alone = decisions(of, run("bfloat16", 0.004))
    beside = decisions(of, run("bfloat16", 0.004), *(run(f"bfloat16-{index}", 0.0) for index in range(40)))
    assert alone[0].verdict == "confirmed"
    assert beside[0].verdict == "undecided"
    assert beside[0].measured == alone[0].measured
