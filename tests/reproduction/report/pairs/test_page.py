"""E7's sections on made-up results: verdicts that hold, fail and stay open, power, and what is shown."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from relucheck.reproduction.experiments.searches.pairs import SEED
from relucheck.reproduction.report.pairs.differences import Effect, effects, groups
from relucheck.reproduction.report.pairs.page import draw, sections
from relucheck.reproduction.report.pairs.surface import surfaces
from relucheck.results.statistics import seeds_for_power
from relucheck.results.tables import render
from relucheck.search.space import Space
from relucheck.training.members import Member
from tests.helpers.invariants import png_size
from tests.reproduction.report.pairs.made_up_pairs import Accuracy, noise, reproduction, worse_if_injected

PAIRS, SURFACE = "mlp-pair-*-bfloat16-rounded", "mlp-surface-*"


def _effects(accuracy: Accuracy = worse_if_injected, pattern: str = PAIRS, *, quiet: bool = False) -> dict[str, Effect]:
    return {one.rule: one for one in effects(groups(reproduction(accuracy, pattern, quiet=quiet).runs))}


def test_a_loss_under_one_rule_is_told_from_the_other() -> None:
    found = _effects()
    injected, chain = found["injected"], found["chain"]
    assert (injected.found.verdict, injected.beyond.paired.verdict) == ("differs", "differs")
    assert injected.found.difference.mean == pytest.approx(-3, abs=0.1)
    assert (chain.found.verdict, chain.beyond.paired.verdict) == ("equivalent", "equivalent")
    assert injected.found.n == chain.found.n == 12
    assert injected.departed == 12


def test_what_nudges_do_too_is_no_effect_beyond_them() -> None:
    """The seeded fault: every run but (0, 0) loses 3 points, those of nudges too."""
    found = _effects(lambda member: 0.9 + noise(f"{member}") - 0.03 * bool(member.s or member.nudge))
    for one in found.values():
        assert one.found.verdict == "differs"
        assert one.beyond.paired.verdict == "equivalent"
        assert one.nudges is not None
        assert one.nudges[0] == pytest.approx(-3, abs=0.1)


def test_noise_leaves_it_undecided_and_says_what_could_be_shown() -> None:
    found = _effects(lambda member: 0.9 + 50 * noise(f"{member}"))
    for one in found.values():
        assert one.found.verdict == "undecided"
        assert one.shown is not None
        assert one.shown > 1
        sd = one.found.difference.sd
        assert sd is not None
        assert seeds_for_power(sd, one.shown) == one.found.n, "the smallest number of pairs with this power"
        assert seeds_for_power(sd, 0.98 * one.shown) > one.found.n


def test_quiet_pairs_are_identical_and_have_no_nudges() -> None:
    for one in _effects(quiet=True).values():
        assert (one.found.verdict, one.departed, one.nudges, one.shown) == ("identical", 0, None, None)
        assert one.beyond.quiet == 12
    said = sections(reproduction(worse_if_injected, PAIRS, quiet=True))[0].sentences
    assert all("tuned subgradients change no bit of any run in 12 pairs." in one for one in said)


def test_a_diverged_run_leaves_its_group_undecided() -> None:
    made = reproduction(worse_if_injected, PAIRS)
    lost = next(one for one in made.runs[0][1].members if one.member.rule == "injected")
    lost.outcome, lost.epochs = "diverged: non-finite at step 3", []
    found = {one.rule: one for one in effects(groups(made.runs))}
    assert (found["injected"].found.verdict, found["injected"].found.lost) == ("undecided", 1)
    assert found["chain"].found.verdict == "equivalent"
    assert "1 more lost to a diverged run" in sections(made)[0].sentences[0]


def test_pairs_that_are_one_run_decide_nothing() -> None:
    """Nine differences of exactly 0 and three small ones are no evidence that subgradients do nothing."""

    def spread(member: Member) -> float:
        return 0.9 + 4 * noise(f"{member}")

    made = reproduction(spread, PAIRS)
    for _, result in made.runs[3:]:
        (reference,) = (one for one in result.members if one.member.is_reference)
        for one in result.members:
            if one.member.s:
                one.first_difference, one.epochs = None, reference.epochs
    chain = {one.rule: one for one in effects(groups(made.runs))}["chain"]
    assert (chain.departed, chain.found.n, chain.pairs) == (3, 3, 12)
    assert _effects(spread)["chain"].found.verdict == "equivalent", "where all twelve depart, with the same spread"
    assert chain.found.verdict == "undecided"
    assert "change a bit of the run in 3 of 12 pairs. There they" in sections(made)[0].sentences[1]


def test_void_pairs_are_left_out() -> None:
    made = reproduction(worse_if_injected, PAIRS)
    made.runs[0][1].void = "the control differs"
    (group,) = groups(made.runs)
    assert [one.draw.number for one in group.pairs] == list(range(1, 12))
    assert (group.planned, group.void) == (12, 1)
    made = dataclasses.replace(made, runs=made.runs[:5])
    section = sections(made)[0]
    assert all(" in 4 of 4 pairs (1 more void, 7 more not run yet). " in one for one in section.sentences)
    assert section.tables[0].rows[0][0].endswith(": 4 of 12")


def test_the_draws_are_those_of_the_space() -> None:
    (group,) = groups(reproduction(worse_if_injected, PAIRS).runs)
    assert [one.draw for one in group.pairs] == list(Space().draws(12, SEED))


def _grid(member: Member) -> float:
    """Accuracy falls with alpha under the injected rule; nudges and the chain rule do nothing but noise."""
    fall = 0.03 * member.subgradient * (member.rule == "injected")
    return 0.95 - fall + 0.2 * noise(f"{member}") + (0.001 * (member.nudge - 3) if member.nudge else 0)


def test_the_surface_is_the_difference_from_its_corner() -> None:
    (found,) = surfaces(reproduction(_grid, SURFACE).runs)
    for (alpha, _), difference in found.differences["injected"].items():
        assert difference == pytest.approx(-3 * alpha, abs=0.05)
    assert found.nudges == pytest.approx([-0.2, -0.1, 0, 0.1, 0.2], abs=0.05)
    assert found.outside("injected") == 12, "all with alpha above 0"
    assert found.outside("chain") == 0
    assert set(found.differences["chain"]) == set(found.differences["injected"])
    assert len(found.differences["chain"]) == 15


def test_points_outside_of_the_nudges_are_counted_beside_those_of_chance() -> None:
    """Of five nudges and a point of one kind, the point is the least or the greatest in 2 of 6 cases."""
    (found,) = surfaces(reproduction(_grid, SURFACE).runs)
    assert found.by_chance("injected") == found.by_chance("chain") == 15 * 2 / 6
    injected, chain = sections(reproduction(_grid, SURFACE))[0].sentences
    assert "; 12 of the 15 runs that differ between its 15 points lie outside of what nudges do in the same" in injected
    assert "and about 5 would if" in injected
    assert "; 0 of the 15 runs that differ" in chain


def test_points_of_one_run_count_once() -> None:
    """Without a hit at 6 beta has no effect, so that the 15 points are 3 runs, and 3 of them are (0, 0) itself."""

    def without_beta(member: Member) -> float:
        alpha = member.subgradient
        return _grid(Member(member.seed, alpha, member.rule if alpha else "chain", nudge=member.nudge))

    made = reproduction(without_beta, SURFACE)
    for one in made.runs[0][1].members:
        if one.member.s and one.member.subgradients[0] == 0:
            one.first_difference = None
    (found,) = surfaces(made.runs)
    for rule in ("injected", "chain"):
        assert len(found.differences[rule]) == 15
        assert [len(points) for points in found.same[rule]] == [4, 4, 4]
        assert found.by_chance(rule) == 3 * 2 / 6
    assert found.outside("injected") == 3
    injected, _ = sections(made)[0].sentences
    assert "; 3 of the 3 runs that differ between its 15 points lie outside of what nudges do" in injected


def test_a_grid_without_a_hit_is_one_run() -> None:
    (found,) = surfaces(reproduction(_grid, SURFACE, quiet=True).runs)
    assert found.nudges == ()
    assert {one.verdict for one in found.means.values()} == {"identical"}
    said = sections(reproduction(_grid, SURFACE, quiet=True))[0].sentences
    assert all(one.endswith("no subgradient changes a bit of any run.") for one in said)


def test_a_diverged_point_has_no_number() -> None:
    made = reproduction(_grid, SURFACE)
    lost = next(one for one in made.runs[0][1].members if one.member.subgradients == (1.0, 1.0))
    lost.outcome, lost.epochs = "diverged: non-finite at step 3", []
    (found,) = surfaces(made.runs)
    assert found.differences[lost.member.rule][1.0, 1.0] is None
    assert found.by_chance(lost.member.rule) == 14 * 2 / 6
    assert any("of the 14 runs that differ between its 15 points lie" in one for one in sections(made)[0].sentences)
    assert found.means[lost.member.rule].verdict == "undecided"


def test_sections_are_shown_in_80_columns_and_every_draw_in_the_report_alone(tmp_path: Path) -> None:
    made = reproduction(worse_if_injected, "m*")
    pairs, surface, draws = sections(made)
    assert (pairs.title, surface.title, draws.title) == ("Pairs", "Response surface", "Every draw")
    assert len(pairs.sentences) == 6, "two arithmetics of the MLP and one of the MobileNet, under both rules"
    said = r"under the injected rule of the published code: .* There they change the validation accuracy by -(2\.9|3\.0)"
    assert re.search(said, pairs.sentences[0])
    assert "with a probability of 80 %" in pairs.sentences[0]
    for section in (pairs, surface):
        shown = render(*section.terminal(), width=80, color=False)
        assert max(map(len, shown.splitlines())) <= 80
        assert "…" not in shown
    assert draws.terminal() == []
    assert sum(line.startswith("| ") for line in draws.markdown()) == 3 * 2 + 12 * 2 + 6
    assert [path.name for path in draw(dataclasses.replace(made, folder=tmp_path), tmp_path)] == [
        "pairs.png",
        "surface.png",
    ]
    for name in ("pairs", "surface"):
        assert png_size(tmp_path / f"{name}.png") > (700, 400)


def test_nothing_finished_has_no_section(tmp_path: Path) -> None:
    made = dataclasses.replace(reproduction(worse_if_injected, PAIRS), runs=())
    assert sections(made) == ()
    assert draw(made, tmp_path) == []
