"""E7 as data: the same draws with tuned and default subgradients, and what each scale has."""

from __future__ import annotations

import pytest

from relucheck.reproduction.experiments.searches.pairs import E7, GRID, SEED
from relucheck.reproduction.scenario import SCALES
from relucheck.search.space import Space
from relucheck.training.members import Member
from tests.helpers import invariants


@pytest.mark.parametrize("scale", SCALES)
def test_comparisons_are_well_formed(scale: str) -> None:
    comparisons = E7.comparisons(scale)
    invariants.comparisons_are_well_formed(comparisons)
    for comparison in comparisons:
        settings = comparison.settings
        assert (settings.shuffle, settings.validation, settings.network.activation) == (True, 0.2, "relu6")
        assert settings.every == settings.steps_of(settings.trained(settings.train_samples or 60_000))


@pytest.mark.parametrize("scale", SCALES)
def test_a_pair_has_the_draw_with_and_without_its_subgradients(scale: str) -> None:
    pairs = [one for one in E7.comparisons(scale) if "-pair-" in one.name]
    draws = Space().draws(40, SEED)
    for comparison in pairs:
        settings = comparison.settings
        draw = draws[int(comparison.name.split("-")[2]) - 1]
        assert (settings.batch_size, settings.optimiser.lr) == (draw.batch_size, draw.lr)
        assert settings.members == (
            *(Member(draw.seed, 0.0), Member(draw.seed, 0.0, control=True)),
            *(Member(draw.seed, draw.alpha, rule, second=draw.beta) for rule in ("chain", "injected")),
            *(Member(draw.seed, 0.0, nudge=number) for number in (1, 2)),
        )


def test_the_surface_is_a_grid_under_both_rules() -> None:
    (surface,) = [one for one in E7.comparisons("cpu") if "-surface-" in one.name]
    settings = surface.settings
    assert (settings.batch_size, settings.optimiser.lr, settings.seeds) == (128, 1e-3, (0, 1))
    assert settings.arithmetic.name == "bfloat16 emulated (rounded)"
    assert GRID == (0.0, 1 / 3, 2 / 3, 1.0)
    every = {(alpha, beta) for alpha in GRID for beta in GRID}
    for seed in settings.seeds:
        own = [member for member in settings.members if member.seed == seed]
        for rule in ("chain", "injected"):
            grid = [member.subgradients for member in own if member.rule == rule and member.s]
            assert len(grid) == 15
            assert set(grid) == every - {(0.0, 0.0)}
        assert sum(member.nudge is not None for member in own) == 5


def test_the_numbers_of_pairs() -> None:
    def pairs(scale: str) -> dict[str, int]:
        names = [one.name.rpartition("-pair-")[0::2] for one in E7.comparisons(scale) if "-pair-" in one.name]
        return {network: len({rest.partition("-")[0] for name, rest in names if name == network}) for network, _ in names}

    assert pairs("cpu") == {"mlp": 12, "mobilenet": 6}
    assert pairs("full") == {"mlp": 40, "mobilenet": 20}
    lengths = {one.name.partition("-")[0]: one.settings for one in E7.comparisons("cpu") if "-pair-" in one.name}
    assert (lengths["mlp"].network.name, lengths["mlp"].train_samples, lengths["mlp"].epochs) == ("784-2000-10", 12_000, 5)
    assert (lengths["mobilenet"].network.classes, lengths["mobilenet"].train_samples) == (1000, 1600)
    whole = {(one.settings.network.kind, one.settings.epochs) for one in E7.comparisons("full")}
    assert whole == {("mlp", 10), ("mobilenet-v3-small", 6)}, "as published"
