"""E5 and E6 as data: what the publication gives, what varies, and what each scale has."""

from __future__ import annotations

import pytest

from relucheck.networks.mobilenet import MOBILENET_V3_SMALL
from relucheck.networks.resnets import RESNET_20
from relucheck.reproduction.experiments.convolutional import SCENARIOS
from relucheck.reproduction.published import SUBGRADIENTS
from relucheck.reproduction.scenario import SCALES, ScenarioError
from relucheck.training.settings import Optimiser, Settings
from tests.helpers import invariants

E5, E6 = SCENARIOS["E5"], SCENARIOS["E6"]


def _by_name(name: str, scale: str) -> dict[str, Settings]:
    return {comparison.name: comparison.settings for comparison in SCENARIOS[name].comparisons(scale)}


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("scale", SCALES)
def test_comparisons_are_well_formed(name: str, scale: str) -> None:
    comparisons = SCENARIOS[name].comparisons(scale)
    invariants.comparisons_are_well_formed(comparisons)
    for comparison in comparisons:
        settings = comparison.settings
        assert (settings.batch_size, settings.shuffle) == (50 if scale == "smoke" else 128, False), "file order"
        assert {member.rule for member in settings.members} == {"chain", "injected"}
        arithmetics = {member.s for member in settings.members}
        assert {0.0, 1.0} <= arithmetics <= {0.0, *SUBGRADIENTS}
        if not comparison.name.startswith("sgd-"):
            assert settings.optimiser.name == "adam"
            assert settings.optimiser.lr == 0.001
            assert not settings.optimiser.fused


def test_e5_is_the_published_net_with_the_setting_in_all_layers() -> None:
    found = _by_name("E5", "full")
    for name in ("float32", "float32-tf32", "bfloat16", "bfloat16-rounded", "float16", "mixed-bfloat16", "mixed-float16"):
        settings = found[name]
        assert str(settings.network) == "resnet-convolved-skips 1x28x28-16*3-32*3-64*3-10 (batch norm)"
        assert settings.network.widths == RESNET_20
        assert settings.network.bias
        assert (settings.data, settings.epochs, settings.train_samples) == ("mnist", 20, None)
        assert settings.seeds[0] == 42069
        assert {member.s for member in settings.members} == {0.0, *SUBGRADIENTS}
    first = found["first-float32"]
    assert (first.epochs, first.seeds[0], {m.s for m in first.members}) == (2, 42, {0.0, 1.0})


def test_e5s_variations_change_one_thing() -> None:
    full = _by_name("E5", "full")
    base = full["bfloat16-rounded"].to_json()
    wanted = {
        "stem-only": {"network": {"kind": "resnet-convolved-skips-stem-only"}},
        "no-batchnorm": {"network": {"batch_norm": False}},
        "identity-skips": {"network": {"kind": "resnet"}},
        "fashionmnist": {"data": "fashionmnist"},
        "leaky": {"network": {"activation": "leaky_relu"}},
        "sgd": {"optimiser": Optimiser("sgd", 0.1)},
    }
    for name, changes in wanted.items():
        other = full[f"{name}-bfloat16-rounded"].to_json()
        differing = {key: other[key] for key in base if other[key] != base[key]}
        assert differing.keys() == changes.keys(), name
        if "network" in changes:
            network = {k: v for k, v in other["network"].items() if v != base["network"][k]}
            assert network == changes["network"]


def test_every_title_says_which_form_of_the_network_is_trained() -> None:
    for scale in ("full", "cpu"):
        for comparison in E5.comparisons(scale):
            kind = comparison.settings.network.kind
            words = {
                "resnet-convolved-skips": "3x3 convolutions on all skips",
                "resnet-convolved-skips-stem-only": "s in the stem only",
                "resnet": "identity skips",
                "resnet-18": "ResNet-18",
            }
            assert words[kind] in comparison.part
        for comparison in E6.comparisons(scale):
            settings = comparison.settings
            assert f"{settings.network.classes} outputs, {settings.epochs} epochs" in comparison.part
            assert ("ReLU6" in comparison.part) == (settings.network.activation == "relu6")


def test_e6_has_the_published_forms_and_longer_ones() -> None:
    full = _by_name("E6", "full")
    for name, settings in full.items():
        published = name.startswith("published-")
        assert settings.network.widths == MOBILENET_V3_SMALL
        assert settings.network.dropout == 0.2
        assert (settings.network.classes, settings.epochs) == ((1000, 2) if published else (10, 10))
        assert settings.seeds[0] == 12345
        pairs = {member.subgradients for member in settings.members if member.s}
        form = name.removeprefix("published-")
        wanted = {"relu-": (1.0, 1.0), "relu6-alpha-": (1.0, 0.0), "relu6-beta-": (0.0, 1.0)}
        assert pairs == {next(pair for prefix, pair in wanted.items() if form.startswith(prefix))}
    assert {"published-relu-float32", "published-relu6-alpha-bfloat16", "relu6-beta-bfloat16-rounded"} <= set(full)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_cpu_runs_104_steps(name: str) -> None:
    for part, settings in _by_name(name, "cpu").items():
        assert settings.epochs * settings.steps_of(settings.train_samples or 0) == 104, part
        assert settings.test_samples == 1000
        assert "float32" in settings.arithmetic.name or settings.arithmetic.emulated is not None, "native would take hours"


def test_the_published_arithmetic_is_selected() -> None:
    assert next(c.name for c in E5.comparisons("cpu", ["published"])) == "bfloat16-rounded"
    arithmetic = "bfloat16 emulated (rounded)"
    assert {c.settings.arithmetic.name for c in E6.comparisons("full", [arithmetic])} == {arithmetic}


@pytest.mark.parametrize("scale", ["full", "cpu", "smoke"])
def test_published_is_refused_where_parts_have_this_name(scale: str) -> None:
    """A reader of the list of E6's parts means those, and the reader of another experiment means the arithmetic."""
    with pytest.raises(
        ScenarioError, match=r"E6: .*write 'published-\*' for the parts .* or 'bfloat16 emulated \(rounded\)'"
    ):
        E6.comparisons(scale, ["published"])
    if scale != "smoke":
        assert {c.name.partition("-")[0] for c in E6.comparisons(scale, ["published-*"])} == {"published"}
