"""E8 as data: the published configurations at their lengths, and what each scale has."""

from __future__ import annotations

import pytest

from relucheck.reproduction.experiments.searches.further import E8, SEEDS
from relucheck.reproduction.published import FURTHER, PublishedRun
from relucheck.reproduction.scenario import SCALES
from relucheck.training.members import Member
from tests.helpers import invariants


@pytest.mark.parametrize("scale", SCALES)
def test_comparisons_are_well_formed(scale: str) -> None:
    comparisons = E8.comparisons(scale)
    invariants.comparisons_are_well_formed(comparisons)
    for comparison in comparisons:
        settings = comparison.settings
        assert (settings.shuffle, settings.validation, settings.test_samples) == (True, 0.2, None)
        assert settings.network.activation == "relu6"
        for prefix in {run.comparisons for run in FURTHER if comparison.name.startswith(run.comparisons)}:
            (tuned,) = {run.subgradients for run in FURTHER if run.member == "custom" and _same(run, prefix)}
            for seed in settings.seeds:
                own = [member for member in settings.members if member.seed == seed]
                assert own == [
                    *(Member(seed, 0.0), Member(seed, 0.0, control=True)),
                    *(Member(seed, tuned[0], rule, second=tuned[1]) for rule in ("chain", "injected")),
                ]


def _same(run: PublishedRun, prefix: str) -> bool:
    networks = {other.network for other in FURTHER if other.comparisons == prefix}
    return run.network in networks


@pytest.mark.parametrize(
    ("name", "network", "lr", "batch_size", "epochs"),
    [
        ("mlp-default-bfloat16-rounded", "784-128-10", 0.0027, 128, 30),
        ("mlp-custom-bfloat16-rounded", "784-128-10", 0.0009, 32, 30),
        ("mobilenet-bfloat16", "mobilenet-v3-small", 0.001, 64, 10),
    ],
)
def test_full_scale_is_what_was_published(name: str, network: str, lr: float, batch_size: int, epochs: int) -> None:
    (comparison,) = E8.comparisons("full", [name])
    settings = comparison.settings
    assert settings.network.name.startswith(network)
    assert settings.network.classes == (1000 if network.startswith("mobile") else 10)
    found = settings.optimiser.name, settings.optimiser.lr, settings.batch_size, settings.epochs, settings.optimiser.fused
    assert found == ("adam", lr, batch_size, epochs, False)
    assert settings.seeds == SEEDS
    assert settings.seeds[0] == 42, "the published one"
    assert settings.trained(60_000) == 48_000


def test_the_published_arithmetics_are_at_full_scale() -> None:
    found: dict[str, set[str]] = {}
    for comparison in E8.comparisons("full"):
        found.setdefault(comparison.part, set()).add(comparison.settings.arithmetic.name)
    assert len(found) == 3
    assert all(names == {"bfloat16 emulated (rounded)", "float32", "bfloat16"} for names in found.values())


def test_a_cpu_has_the_mlp_at_full_size_and_a_short_mobilenet() -> None:
    for comparison in E8.comparisons("cpu"):
        settings, exact = comparison.settings, comparison.settings.arithmetic.name == "float32"
        if comparison.name.startswith("mlp-"):
            assert (settings.train_samples, settings.epochs) == (None, 30)
            assert settings.seeds == SEEDS[: 1 if exact else 3]
        else:
            assert (settings.train_samples, settings.epochs, settings.seeds) == (3200, 4, SEEDS[:2])


def test_reports_speak_of_validation() -> None:
    assert E8.evaluated == "validation"
