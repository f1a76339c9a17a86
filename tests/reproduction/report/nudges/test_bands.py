"""The band of a figure, through its data."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from scipy import stats

from relucheck.reproduction.report.figures import kinds
from relucheck.reproduction.report.nudges.bands import Band, distance_band, draw_band, epoch_band
from relucheck.reproduction.scenario import Comparison
from relucheck.results.figures import blank
from relucheck.training.results.result import NO_EFFECT, Epoch, MemberResult, Nudge, Result, SeedResult
from relucheck.training.results.thinning import drawn_steps, thinned
from tests.helpers import made_up

COMPARISON, OTHER = made_up.E2.comparisons("cpu", ("bfloat16-product-3-epochs", "bfloat16-split-k-4-3-epochs"))
LEGEND = "nudges: 95 % prediction interval of one run"
_Runs = list[tuple[Comparison, Result]]


def _made(seeds: tuple[int, ...] = (0, 1, 2, 3, 4), quiet: tuple[int, ...] = (2,)) -> tuple[_Runs, dict[str, Result]]:
    settings = COMPARISON.settings.of_seeds(seeds)
    result, nudges = made_up.with_nudges(settings, quiet=quiet)
    return [(dataclasses.replace(COMPARISON, settings=settings), result)], {COMPARISON.name: nudges}


def _interval(groups: np.ndarray) -> tuple[float, float]:
    """The 95 % prediction interval of numbers [seeds, nudges], from the analysis of variance."""
    seeds, nudges = groups.shape
    means = groups.mean(1)
    between, within = means.var(ddof=1), groups.var(axis=1, ddof=1).mean()
    half = stats.t.ppf(0.975, seeds - 1) * np.sqrt(between + (1 - 1 / nudges) * within + between / seeds)
    return means.mean() - half, means.mean() + half


def _numbers(nudges: Result, seeds: list[int], number: Any) -> np.ndarray:
    return np.array([[number(nudges.find(seed, 0.0, nudge=n)) for n in range(1, 6)] for seed in seeds])


def _error(epoch: Epoch) -> float:
    return 100 * (1 - epoch.test_accuracy)


def test_distances_have_the_interval_of_their_logarithms() -> None:
    _, nudges = _made()
    beside = nudges[COMPARISON.name]
    band = distance_band(beside)
    # rows of 67 steps; no nudge has departed in the first two
    kept = sorted(drawn_steps(beside.members))
    assert band.places == tuple(step for step in kept if step > 2 * 67)
    for place, low, high in list(zip(band.places, band.low, band.high, strict=True))[::20]:
        row = int(place) // 67 - 1
        wanted = np.exp(_interval(np.log(_numbers(beside, [0, 1, 3, 4], lambda member, row=row: member.steps.l1[row]))))
        assert [low, high] == pytest.approx(wanted.tolist())
    assert band.alone == ()


def test_epochs_have_the_interval_of_the_numbers() -> None:
    _, nudges = _made()
    band = epoch_band(nudges[COMPARISON.name], _error)
    assert band.places == (1, 2, 3)
    for epoch in range(3):
        numbers = _numbers(nudges[COMPARISON.name], [0, 1, 3, 4], lambda member, epoch=epoch: _error(member.epochs[epoch]))
        assert [band.low[epoch], band.high[epoch]] == pytest.approx(list(_interval(numbers)))


def test_a_quiet_seed_is_not_in_the_band() -> None:
    """The band of four live seeds and a quiet one is that of the four alone; were it counted, it would be another."""
    four, five = _made((0, 1, 3, 4), ()), _made()
    assert distance_band(four[1][COMPARISON.name]) == distance_band(five[1][COMPARISON.name])
    other = _made(quiet=())
    assert distance_band(other[1][COMPARISON.name]) != distance_band(five[1][COMPARISON.name])


def test_one_seed_gives_no_interval_but_its_nudges() -> None:
    _, nudges = _made((0, 2))
    beside = nudges[COMPARISON.name]
    for band, first in ((distance_band(beside), 3 * 67), (epoch_band(beside, _error), 1)):
        assert (band.places, band.low, band.high) == ((), (), ())
        assert len(band.alone) == 5
        assert {places[0] for places, _ in band.alone} == {first}
    errors = [tuple(map(_error, beside.find(0, 0.0, nudge=n).epochs)) for n in range(1, 6)]
    assert [values for _, values in epoch_band(beside, _error).alone] == errors


def test_two_seeds_give_their_nudges_one_by_one() -> None:
    """An interval with one degree of freedom is 13 standard deviations wide to each side: it would fill the panel."""
    _, nudges = _made((0, 1, 2))
    for band in (distance_band(nudges[COMPARISON.name]), epoch_band(nudges[COMPARISON.name], _error)):
        assert (band.places, len(band.alone)) == ((), 10)
    _, nudges = _made((0, 1, 3), ())
    assert distance_band(nudges[COMPARISON.name]).places


def test_there_is_no_band_where_nothing_can_be_drawn() -> None:
    _, nudges = _made(quiet=(0, 1, 2, 3, 4))
    assert distance_band(nudges[COMPARISON.name]) == Band()
    _, nudges = _made()
    nudges[COMPARISON.name].void = "control differed at step 1"
    assert distance_band(nudges[COMPARISON.name]) == epoch_band(nudges[COMPARISON.name], _error) == Band()


def test_a_band_ends_where_the_first_nudge_diverges() -> None:
    _, nudges = _made()
    member = nudges[COMPARISON.name].find(3, 0.0, nudge=2)
    member.outcome, member.steps, member.epochs = "diverged: non-finite at step 9", member.steps.at(range(778)), []
    assert max(distance_band(nudges[COMPARISON.name]).places) == 777 // 67 * 67
    assert epoch_band(nudges[COMPARISON.name], _error) == Band()


def test_nudges_that_end_at_distance_0_are_not_in_the_band_of_distances() -> None:
    _, nudges = _made()
    before, errors = distance_band(nudges[COMPARISON.name]), epoch_band(nudges[COMPARISON.name], _error)
    member = nudges[COMPARISON.name].find(3, 0.0, nudge=2)
    member.steps.l1[-200:] = [0.0] * 200
    after = distance_band(nudges[COMPARISON.name])
    assert after.places == before.places
    assert after.low != before.low
    assert epoch_band(nudges[COMPARISON.name], _error) == errors
    for number in range(1, 6):
        nudges[COMPARISON.name].find(3, 0.0, nudge=number).steps.l1[-1] = 0.0
    alone = {COMPARISON.name: made_up.with_nudges(COMPARISON.settings.of_seeds((0, 1, 4)))[1]}
    assert distance_band(nudges[COMPARISON.name]) == distance_band(alone[COMPARISON.name])


def test_nudges_without_effect_are_left_out() -> None:
    _, nudges = _made()
    before = epoch_band(nudges[COMPARISON.name], _error)
    member = nudges[COMPARISON.name].find(3, 0.0, nudge=2)
    member.__dict__.update(vars(MemberResult(member.member, NO_EFFECT, nudge=Nudge(3, 100, None, None))))
    after = epoch_band(nudges[COMPARISON.name], _error)
    assert after.places == before.places
    assert after.low != before.low


def test_a_thinned_band_is_the_same() -> None:
    _, nudges = _made()
    whole = nudges[COMPARISON.name]
    parts = {
        seed: SeedResult([member for member in whole.members if member.member.seed == seed], None, 1.0, {})
        for seed in whole.settings.seeds
    }
    less = Result.of(whole.settings, thinned(parts, ("distance",)))
    assert sum(len(member.steps.step) for member in less.members) < 0.8 * sum(len(m.steps.step) for m in whole.members)
    assert distance_band(less) == distance_band(whole)
    assert epoch_band(less, _error) == epoch_band(whole, _error)
    for member in less.members:  # were other steps kept, it would be another
        member.steps = member.steps.at(member.steps.step[::2])
    assert distance_band(less) != distance_band(whole)


# ---------------------------------------------------------------- drawn


def _faces(panel: Any) -> list[Any]:
    return [one for one in panel.collections if isinstance(one, PolyCollection) and one.get_label() == LEGEND]


@pytest.mark.parametrize("kind", ["distance", "loss", "error"])
def test_figures_draw_the_band_under_both_rules(kind: str) -> None:
    runs, nudges = _made()
    other, _ = made_up.with_nudges(OTHER.settings)
    runs.append((OTHER, other))
    beside = nudges[COMPARISON.name]
    band = {
        "distance": lambda: distance_band(beside),
        "loss": lambda: epoch_band(beside, lambda epoch: epoch.train_loss),
        "error": lambda: epoch_band(beside, _error),
    }[kind]()
    figure, without = (kinds.FIGURES[kind](made_up.E2, "cpu", "a part", runs, known) for known in (nudges, {}))
    panels = figure.get_axes()
    for panel in (panels[0], panels[2]):
        (face,) = _faces(panel)
        corners = {(x, y) for x, y in face.get_paths()[0].vertices.tolist()}
        assert corners == {*zip(band.places, band.low, strict=True), *zip(band.places, band.high, strict=True)}
    assert not any(map(_faces, (panels[1], panels[3]))), "without nudges"
    names, others = ([text.get_text() for text in one.legends[0].get_texts()] for one in (figure, without))
    assert names == [*others, LEGEND]
    assert ["where one run with a nudge lies" in one.get_suptitle() for one in (figure, without)] == [True, False]
    limits, wanted = ([(panel.get_xlim(), panel.get_ylim()) for panel in one.get_axes()] for one in (figure, without))
    assert limits == wanted, "lines decide the range of the axes"


def test_one_seed_is_drawn_as_lines() -> None:
    axes = blank(6, 4).subplots()
    axes.plot([1, 2, 3], [5, 6, 7])
    range_before = axes.get_ylim()
    draw_band(axes, Band(alone=(((1.0, 2.0), (50.0, 60.0)), ((1.0, 2.0), (70.0, 80.0)))))
    lines = axes.get_lines()[1:]
    assert [list(line.get_ydata()) for line in lines] == [[50, 60], [70, 80]]
    assert lines[0].get_label() == "nudges, one by one"
    axes.autoscale_view()
    assert axes.get_ylim() == range_before
