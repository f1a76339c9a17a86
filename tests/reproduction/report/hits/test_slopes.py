"""Slopes of hits on made-up counts: which verdicts they give, and what the published counts show."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from relucheck.reproduction.experiments.counts import E9
from relucheck.reproduction.report.hits.figures import rates_figure
from relucheck.reproduction.report.hits.slopes import observed, published_trends, section, trends
from relucheck.reproduction.scenario import Comparison
from relucheck.results.figures import save
from relucheck.results.tables import render
from relucheck.training.members import Member
from relucheck.training.results.result import MemberResult, Result
from tests.helpers import counted, made_up
from tests.helpers.invariants import png_size

NAMES = ("default-rounded", "custom-rounded", "mobilenet-bfloat16-rounded")


def _run(
    name: str, default: float, injected: float, chain: float, void: str | None = None, seeds: int = 0
) -> tuple[Comparison, Result]:
    """Hits at 6 that change by these slopes from epoch to epoch, with some noise over seeds; none at 0."""
    (comparison,) = E9.comparisons("full", [name])
    settings = comparison.settings
    settings = settings.of_seeds(settings.seeds[: seeds or len(settings.seeds)])
    comparison = Comparison(comparison.name, comparison.part, settings)

    def hits(member: Member, kink: int, epoch: int) -> int:
        slope = default if not member.s else injected if member.rule == "injected" else chain
        jitter = 0.004 * ((3 * member.seed + 5 * (member.rule == "injected")) % 7 - 3)
        return round(3000 * math.exp((slope + jitter) * (epoch - settings.epochs / 2))) if kink else 0

    if settings.network.kind == "mlp":
        return comparison, counted.result(comparison, hits, void=void)
    made = made_up.result(settings, void=void)
    for member in made.members:
        member.hits = [
            [[0, hits(member.member, 1, epoch) if not layer else 0] for layer in range(len(member.hits[0]))]
            for epoch in range(1, settings.epochs + 1)
        ]
    return comparison, made


def _verdicts(*runs: tuple[Comparison, Result]) -> dict[tuple[str, str], str]:
    return {(one.where, one.rule): one.both.verdict for one in observed(runs)}


def test_the_observation_is_confirmed_refuted_and_undecided() -> None:
    holds, fails, flat = _run(NAMES[0], 0.1, -0.2, 0.1), _run(NAMES[1], 0.1, 0.1, -0.2), _run(NAMES[2], 0.0, 0.0, -0.2)
    found = _verdicts(holds, fails, flat)
    assert found[NAMES[0], "injected"] == "confirmed"
    assert found[NAMES[0], "chain"] == "refuted", "more hits with tuned ones, too"
    assert found[NAMES[1], "injected"] == "refuted"
    assert found[NAMES[1], "chain"] == "confirmed"
    assert found[NAMES[2], "injected"] == "undecided"
    assert found[NAMES[2], "chain"] == "undecided", "(0, 0) rises nowhere for sure"


def test_a_falling_default_refutes_it_as_well() -> None:
    assert _verdicts(_run(NAMES[2], -0.1, -0.2, -0.2))[NAMES[2], "injected"] == "refuted"


def test_the_publication_compares_two_configurations() -> None:
    found = _verdicts(_run(NAMES[0], 0.1, 0.1, 0.1), _run(NAMES[1], -0.1, -0.2, 0.1))
    where = "as published: default-rounded, (0, 0); custom-rounded, tuned"
    assert found[where, "injected"] == "confirmed", "(0, 0) of one, tuned of the other"
    assert "confirmed" not in {verdict for (place, _), verdict in found.items() if place != where}


def test_one_seed_and_void_comparisons_decide_nothing() -> None:
    assert set(_verdicts(_run(NAMES[0], 0.1, -0.2, 0.1, seeds=1)).values()) == {"undecided"}
    assert _verdicts(_run(NAMES[0], 0.1, -0.2, 0.1, void="the control differs")) == {}


def test_other_activations_and_coarse_roundings_are_left_out() -> None:
    runs = [
        (one, counted.result(one, lambda member, kink, epoch: 5))
        for one in E9.comparisons("full", ["default-product", "e1-rounded"])
    ]
    assert trends(runs) == []
    assert section(runs, "full") is None
    assert rates_figure(runs) is None


def test_rates_are_per_pre_activation() -> None:
    comparison, result = _run(NAMES[0], 0.0, 0.0, 0.0, seeds=2)
    for one in trends([(comparison, result)]):
        seen = [sum(member.activations[0]) for member in result.members]
        assert set(seen) == {1000}
        assert {len(seed) for seed in one.rates} == {30}
        assert (one.rate(0) == 0) == (one.kink == 0)
        assert set(one.slopes) == {None} if one.kink == 0 else None not in one.slopes


def test_the_published_counts_of_the_mobilenet_fall_for_both() -> None:
    """The publication says that hits become more with default subgradients."""
    found = {
        (one.run.network, one.run.member): one.slope
        for name in NAMES
        for one in published_trends(_run(name, 0.1, -0.1, 0.1, seeds=1)[1])
    }
    assert {key: slope is not None and slope > 0 for key, slope in found.items()} == {
        ("MLP", "default"): True,
        ("MLP", "custom"): False,
        ("MobileNet", "default"): False,
        ("MobileNet", "custom"): False,
    }
    made = section([_run(NAMES[2], -0.1, -0.3, -0.1)], "full")
    assert made is not None
    assert made.sentences[0].endswith("which is not what the publication says.")


def test_a_figure_without_a_hit_says_so(tmp_path: Path) -> None:
    """On digits, which have no published counts that could stand alone."""
    (one,) = E9.comparisons("smoke", [NAMES[0]])
    figure = rates_figure([(one, counted.result(one, lambda member, kink, epoch: 0))])
    (panel,) = figure.axes
    assert [text.get_text() for text in panel.texts] == ["no hit"]
    save(figure, tmp_path / "none.png")
    assert png_size(tmp_path / "none.png") > (400, 300)


@pytest.mark.parametrize("scale", ["full", "smoke"])
def test_the_section_is_shown_in_80_columns(scale: str) -> None:
    runs = [_run(name, 0.05, -0.1, 0.05) for name in NAMES]
    made = section(runs, scale)
    assert made is not None
    assert bool(made.sentences) == (scale == "full")
    shown = render(*made.terminal(), width=80, color=False)
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    text = "\n".join(made.markdown())
    assert "| (0, 0), at 0 | 10 | 0 | 0 | no hit |  |" in text
    assert len(rates_figure(runs).axes) == 3


def test_a_diverged_seed_is_not_called_one_without_a_hit() -> None:
    comparison, result = _run(NAMES[0], 0.1, -0.2, 0.1, seeds=4)
    quiet, lost = (one for one in result.members if one.member.seed in comparison.settings.seeds[:2] and _tuned(one))
    quiet.hits = [[[0, 0] for _ in layers] for layers in quiet.hits]
    lost.outcome, lost.epochs = "diverged: non-finite at step 3", []
    made = section([(comparison, result)], "full")
    assert made is not None
    (row,) = [row for row in made.tables[0].rows if row[0] == "tuned, chain, at 6"]
    assert row[4].endswith(", 1 seed without a hit, 1 diverged)")


def _tuned(one: MemberResult) -> bool:
    return bool(one.member.s) and one.member.rule == "chain"
