"""Members that differ in one kink's subgradient are told apart, in results, tables, figures and verdicts."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from relucheck.errors import SettingsError
from relucheck.reproduction.experiments.convolutional import SCENARIOS
from relucheck.reproduction.report import tables
from relucheck.reproduction.report.deciding.decide import _several
from relucheck.reproduction.report.figures import kinds, overview
from relucheck.reproduction.report.nudges.effects import effects
from relucheck.reproduction.report.summary import MemberGroup, analyse, group
from relucheck.reproduction.scenario import Comparison
from relucheck.training.members import Member, members_of
from relucheck.training.results.result import Result
from relucheck.training.settings import Settings
from relucheck.training.subgradients import Pair, along
from tests.helpers import made_up
from tests.reproduction.report.deciding.constructed import claim, decisions, settings, trained

E6 = SCENARIOS["E6"]
PAIRS = (Pair(0.0, 1.0), Pair(1.0, 0.0), Pair(1.0, 1.0), Pair(1.0, 2.0))


def plane(seeds: tuple[int, ...] = (0, 1)) -> Comparison:
    """E6 with a reference, its control, and members at four places of the plane, each with another accuracy."""
    base = E6.comparisons("cpu", ("relu6-alpha-float32",))[0]
    members = [
        member
        for seed in seeds
        for member in (*members_of([seed], []), *(Member(seed, at.lower, second=at.upper) for at in PAIRS))
    ]
    return dataclasses.replace(base, settings=dataclasses.replace(base.settings, members=tuple(members)))


def accuracy(member: Member) -> float:
    return 0.9 - 0.1 * member.subgradients[0] - 0.03 * member.subgradients[1] + 0.001 * member.seed


def result_of(comparison: Comparison) -> Result:
    return made_up.result(comparison.settings, accuracy=accuracy)


def test_pairs_are_written_and_ordered() -> None:
    assert f"{Pair(1.0, 0.25):g}" == "(1, 0.25)"
    assert f"{Pair(1.0, -0.5):.2f}" == "(1.00, -0.50)"
    wanted: list[Any] = [
        -1.0,
        Pair(0.0, -2.0),
        0.0,
        Pair(0.0, 1.0),
        Pair(1.0, 0.0),
        1.0,
        Pair(1.0, 1.0),
        Pair(1.0, 2.0),
        3.0,
    ]
    backwards = wanted[::-1]
    assert sorted(backwards) == sorted(wanted) == wanted
    assert Pair(1.0, 1.0) != 1.0
    assert [along(at) for at in (0.5, Pair(0.5, 0.0), Pair(0.0, 0.5), Pair(0.5, 2.0))] == [0.5] * 4


def test_a_member_has_both_subgradients_where_both_are_given() -> None:
    every = {Member(0, 1.0): 1.0, Member(0, 1.0, second=0.0): Pair(1.0, 0.0), Member(0, 0.0, second=1.0): Pair(0.0, 1.0)}
    assert [member.at for member in every] == list(every.values())
    assert {member.s for member in every} == {1.0}
    for zero in (
        Member(0, 0.0),
        Member(0, 0.0, control=True),
        Member(0, 0.0, nudge=1),
        Member(0, 0.0, second=0.0, nudge=1),
    ):
        assert zero.at == 0.0
    assert Member(2, 1.0, second=0.0).name == "s = (1, 0), chain, seed 2"
    assert Member(2, 0.0, nudge=3, upper=True).name == "s = 0, nudge 3 of hits at the upper kink, seed 2"


def test_a_result_finds_members_by_both_subgradients() -> None:
    result = result_of(plane())
    for at in PAIRS:
        assert result.find(1, at).member == Member(1, at.lower, second=at.upper)
    assert result.find(1, 0.0).member.is_reference
    with pytest.raises(SettingsError, match=r"4 members with seed 1, s = 1, .*: \(0, 1\) and \(1, 0\) and .*as a Pair"):
        result.find(1, 1.0)
    with pytest.raises(SettingsError, match=r"no member with seed 1, s = \(2, 1\), rule chain"):
        result.find(1, Pair(2.0, 1.0))


def test_a_number_finds_the_member_of_a_comparison_with_one_form() -> None:
    for options in ({}, {"second": 0.0}, {"upper": True}):
        settings = dataclasses.replace(plane().settings, members=members_of([3], [0.5, 1.0], **options))  # type: ignore[arg-type]
        result = made_up.result(settings)
        assert [result.find(3, s, "injected").member.s for s in (0.5, 1.0)] == [0.5, 1.0]
        assert _several(settings) == ""


def test_tables_have_a_row_for_each_pair() -> None:
    """Seeded fault: by s alone, four members of a seed were one row, with the mean of their accuracies."""
    comparison = plane()
    result = result_of(comparison)
    groups = group(result)
    assert [key for key in groups if key[0] != 0] == [(at, "chain", False) for at in PAIRS]
    assert {len(members) for members in groups.values()} == {2}
    cells = analyse([(comparison, result)])
    means = {cell.subgradient: cell.summary.mean for cell in cells if not cell.control}
    expected = {at: 100 * accuracy(Member(0, at.lower, second=at.upper)) + 0.05 for at in PAIRS}
    assert {at: means[at] for at in PAIRS} == pytest.approx(expected)
    text = "\n".join(tables.markdown(cells, {}))
    assert all(text.count(f"| {name} | chain |") == 1 for name in ("(0, 1)", "(1, 0)", "(1, 1)", "(1, 2)"))


def test_summaries_hold_both_subgradients_as_numbers() -> None:
    comparison = plane()
    cells = analyse([(comparison, result_of(comparison))])
    written = json.loads(json.dumps([cell.as_dict() for cell in cells]))
    assert [(cell["subgradient"], cell.get("second")) for cell in written] == [
        *((0.0, None), (0.0, None), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (1.0, 2.0)),
    ]
    assert not any("second" in cell for cell in written[:2])
    assert all(isinstance(cell, MemberGroup) for cell in cells)


def test_figures_draw_each_pair_in_its_style() -> None:
    comparison = plane()
    figure = kinds.FIGURES["error"](E6, "cpu", comparison.part, [(comparison, result_of(comparison))], {})
    (panel,) = figure.get_axes()
    lines = {line.get_label(): (line.get_color(), line.get_marker()) for line in panel.get_lines()}
    names = ["s = 0", "s = (0, 1)", "s = (1, 0)", "s = (1, 1)", "s = (1, 2)"]
    assert [name for name in lines if name.startswith("s = ")] == names
    assert len({lines[name] for name in names}) == 5
    # of one form, s decides the style, so that figures of several forms can be compared
    one = E6.comparisons("cpu", ("relu6-alpha-float32",))[0]
    chain = dataclasses.replace(one, settings=_chain(one.settings))
    (panel,) = kinds.FIGURES["error"](E6, "cpu", one.part, [(chain, made_up.result(chain.settings))], {}).get_axes()
    assert [line.get_marker() for line in panel.get_lines() if line.get_label() == "s = (1, 0)"] == ["v"]
    shown = overview.differences(E6, "cpu", [(comparison, result_of(comparison))])
    assert [text.get_text() for text in shown.get_axes()[0].get_xticklabels()] == [name[4:] for name in names[1:]]


def _chain(settings: Settings) -> Settings:
    return dataclasses.replace(settings, members=tuple(m for m in settings.members if m.rule == "chain"))


def test_effects_beyond_nudges_are_those_of_each_pair() -> None:
    comparison = plane((0, 1, 2))
    result, nudges = made_up.with_nudges(comparison.settings)
    found = effects([(comparison, result)], {comparison.name: nudges})
    assert list(dict.fromkeys(effect.subgradient for effect in found)) == list(PAIRS)
    assert {effect.beyond.paired.n for effect in found} == {3}


def test_claims_about_s_are_not_decided_where_s_names_several_members() -> None:
    """They are refused by name, whatever the statistic would make of the first of them."""
    of = claim(
        "differs_beyond_nudges", arms=("bfloat16",), options={"endpoint": "error", "direction": "larger", "margin": 0.0}
    )
    usual = trained(settings(subgradients=(1.0,)))
    assert [one.said for one in decisions(of, usual)] != ["not run: members"]
    mixed = settings(subgradients=(1.0,))
    seeds = mixed.seeds
    members = (*mixed.members, *(Member(seed, 1.0, rule, second=0.0) for seed in seeds for rule in ("chain", "injected")))
    run = trained(dataclasses.replace(mixed, members=members))
    found = decisions(of, run)
    assert {one.said for one in found} == {"not run: members"}
    assert {one.measured for one in found} == {"s does not name one member of bfloat16: (1, 0) and 1"}
