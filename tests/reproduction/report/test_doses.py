"""E11's section: the dose-response of made-up results that must say the one and the other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from relucheck.reproduction.experiments.variations import E11
from relucheck.reproduction.report import doses
from relucheck.reproduction.report.nudges.effects import effects, nudge_groups
from relucheck.reproduction.report.summary import Reproduction
from relucheck.results.tables import render
from relucheck.training.members import Member
from relucheck.training.results.result import Distances
from tests.helpers import invariants, made_up

_STEPS = range(50, 1000, 50)


def _made(
    folder: Path,
    cost: Callable[[Member], float],
    distance: Callable[[float], float] = math.sqrt,
    quiet: bool = False,
) -> Reproduction:
    """Runs whose accuracy is less than that of nudges by ``cost`` points, at ``distance`` of the steps since step 3."""
    (comparison,) = E11.comparisons("full", ("bfloat16-published",))
    settings = dataclasses.replace(comparison.settings, epochs=3)
    result, beside = made_up.with_nudges(settings, quiet=settings.seeds if quiet else ())
    for member in (*result.members, *beside.members):
        which = member.member
        if quiet:
            continue
        for epoch in member.epochs:
            noise = epoch.test_accuracy % 1e-3
            epoch.test_accuracy = 0.9 + 0.01 * which.seed - 0.01 * cost(which) + noise
        if which.is_reference or which.control:
            continue
        member.first_difference = 3
        rows = [distance(step - 2) for step in _STEPS]
        member.steps = Distances(list(_STEPS), rows, rows, rows)
    runs, nudges = [(comparison, result)], {comparison.name: beside}
    made = Reproduction(E11, "full", folder, tuple(runs), nudges=tuple(nudge_groups(runs, nudges)))
    return dataclasses.replace(made, effects=tuple(effects(runs, nudges, within_seeds=True)))


def _injected(member: Member) -> float:
    return 2.0 * member.s if member.rule == "injected" else 0.0


def test_a_loss_that_grows_with_s_is_found_under_its_rule(tmp_path: Path) -> None:
    made = _made(tmp_path, _injected)
    (one,) = doses.responses(made)
    assert one.slope["injected"].mean == pytest.approx(-2.0, abs=0.1)
    assert abs(one.slope["chain"].mean or 1.0) < 0.1
    (section,) = doses.sections(made)
    said = " ".join(section.sentences)
    assert "Under the injected rule of the published code, 10 of 10 s act beyond nudges (-0." in said
    assert "Under the chain rule, no s is shown to act beyond nudges" in said
    assert "no s from 0.1 to 1, under either rule, is shown to be more accurate" in said


def test_a_gain_is_said_to_be_one(tmp_path: Path) -> None:
    gain = _made(tmp_path, lambda member: -1.0 if member.s == 0.5 and member.rule == "chain" and not member.nudge else 0.0)
    (section,) = doses.sections(gain)
    assert "more accurate than nudges of s = 0 are the s 0.5 (chain)." in " ".join(section.sentences)


def test_runs_without_a_hit_depart_from_nothing(tmp_path: Path) -> None:
    made = _made(tmp_path, _injected, quiet=True)
    (section,) = doses.sections(made)
    assert "no s departs from s = 0 by a bit" in " ".join(section.sentences)
    (one,) = doses.responses(made)
    assert all(dose.first is None and dose.same for dose in one.doses)
    assert one.slope["chain"].mean == 0.0


@pytest.mark.parametrize("exponent", [0.0, 0.3, 0.5, 1.0])
def test_the_exponent_of_the_distance_is_found(exponent: float, tmp_path: Path) -> None:
    made = _made(tmp_path, _injected, lambda t: 3 + 7 * (t**exponent if exponent else math.log(t)))
    (one,) = doses.responses(made)
    for rule in ("chain", "injected"):
        assert one.exponents[rule] == (exponent,) * 50
    (section,) = doses.sections(made)
    assert [row[-1] for row in section.tables[1].rows] == [f"{exponent:g} ({exponent:g} to {exponent:g})"] * 2


def test_the_tables_fit_a_terminal_and_the_figure_is_drawn(tmp_path: Path) -> None:
    made = _made(tmp_path, _injected)
    (section,) = doses.sections(made)
    for table in section.tables:
        shown = render(table.without(*section.wide).rich(first=True), width=80, color=False)
        assert max(map(len, shown.splitlines())) <= 80
    (path,) = doses.draw(made, tmp_path)
    assert min(invariants.png_size(path)) > 300


def test_eleven_values_under_both_rules() -> None:
    for scale in ("full", "cpu"):
        (settings,) = [one.settings for one in E11.comparisons(scale, ("bfloat16-published",))]
        assert sorted({member.subgradient for member in settings.members}) == pytest.approx([n / 10 for n in range(11)])
        assert {member.rule for member in settings.members} == {"chain", "injected"}
        assert (len(settings.seeds), settings.epochs) == (5, 10)
