"""The scenarios are what was published, at every scale, and bad names are refused with the nearest good one."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from relucheck.numerics.dtypes import dtype_name
from relucheck.reproduction.experiments import find_scenario
from relucheck.reproduction.experiments.counts import CANDIDATES, E9, FEW, FINALISTS, FURTHER, SEEDS
from relucheck.reproduction.experiments.mlp import SCENARIOS
from relucheck.reproduction.experiments.searches.further import E8
from relucheck.reproduction.published import TUNED_MLP
from relucheck.reproduction.scenario import SCALES, Comparison, ScenarioError
from relucheck.training.settings import Optimiser, Settings

ALL = [(name, scale) for name in SCENARIOS for scale in SCALES]
#: In E9 the network of E2 is counted in another arithmetic than the others.
_E2_COUNTED = "layer-1-forward-split-k-3-wide-bias-joined"
_OF_E8 = ("mlp-custom-bfloat16-rounded", "mobilenet-bfloat16-rounded")


def _by_name(name: str, scale: str) -> dict[str, Settings]:
    return {comparison.name: comparison.settings for comparison in SCENARIOS[name].comparisons(scale)}


@pytest.mark.parametrize(("name", "scale"), ALL)
def test_comparisons_are_well_formed(name: str, scale: str) -> None:
    comparisons = SCENARIOS[name].comparisons(scale)
    names = [comparison.name for comparison in comparisons]
    assert len(set(names)) == len(names)
    assert len({comparison.settings.digest for comparison in comparisons}) == len(names)
    for comparison in comparisons:
        assert re.fullmatch(r"[a-z0-9-]+", comparison.name), "it is a file name"
        assert {member.rule for member in comparison.settings.members} == {"chain", "injected"}
        again = Settings.from_json(json.loads(json.dumps(comparison.settings.to_json())))
        assert again == comparison.settings


@pytest.mark.parametrize("scale", ["full", "cpu"])
def test_e1_is_the_published_one(scale: str) -> None:
    found = _by_name("E1", scale)
    for name, settings in found.items():
        assert {member.subgradient for member in settings.members} == {0.0, 1.0}
        assert (settings.data, settings.batch_size, settings.shuffle, settings.every) == ("mnist", 128, False, 1)
        if name.startswith("b21-"):
            assert settings.network.widths == (2000, 128)
            assert settings.optimiser == Optimiser("sgd", settings.optimiser.lr, fused=False)
            assert settings.optimiser.lr == pytest.approx(0.0118592, abs=1e-7)
            assert settings.epochs == 1
        else:
            assert (settings.network.widths, settings.epochs, settings.optimiser.lr) == ((2000,), 2, 0.001)
            assert settings.seeds[0] == 42069
    assert {dtype_name(settings.arithmetic.dtype) for settings in found.values()} >= {
        "float64",
        "float32",
        "bfloat16",
        "float16",
    }
    assert {"b21-float32", "b21-float64"} <= set(found)


def test_b21s_learning_rate_is_its_notebooks() -> None:
    import numpy as np

    drawn = np.random.RandomState(12345).random_sample()
    assert SCENARIOS["E1"].comparisons("cpu", ["b21-float32"])[0].settings.optimiser.lr == pytest.approx(
        0.01 * (drawn / 5 + 1), rel=1e-9
    )


def test_e2_full_is_the_published_one_over_ten_seeds() -> None:
    for name, settings in _by_name("E2", "full").items():
        assert settings.network.widths == (200, 200, 200)
        lengths = {"-3-epochs": 3, "-10-epochs": 10, "-15-epochs": 15}
        assert settings.epochs == next((n for end, n in lengths.items() if name.endswith(end)), 50)
        few = {"bfloat16", "bfloat16-strict", "bfloat16-full-precision-reduction"}
        five = {f"{arm}-10-epochs" for arm in few}
        five |= {"bfloat16-layer-1-split-k-4", "bfloat16-published", "bfloat16-published-3-epochs"}
        assert len(settings.seeds) == (5 if name in five else 10)
        # an earlier version of the published notebook, of 10 epochs, has other subgradients than the figures
        notebook = {0.0, 1.0, 2.0, 4.0, 8.0}
        subgradients = notebook if settings.epochs == 10 else {-0.5, 0.0, 0.5, 0.8, 1.0}
        assert {member.subgradient for member in settings.members} == subgradients
        assert (settings.batch_size, settings.shuffle) == (128, False)
        assert settings.optimiser.lr == 0.001


def test_e2_full_has_every_arithmetic() -> None:
    found = _by_name("E2", "full")
    published = [settings for name, settings in found.items() if settings.network.widths and _plain(settings)]
    labels = {settings.arithmetic.name for settings in published}
    assert {"float32", "float32 TF32"} <= labels
    assert "float32 strict" not in labels, "PyTorch's default is strict in float32"
    for label in ("bfloat16", "float16", "mixed bfloat16", "mixed float16"):
        assert {label, f"{label} strict"} <= labels
    assert {"float64", "float32 TF32", "bfloat16 emulated (product)", "bfloat16 emulated (split-k 4)"} <= labels
    # Adam in float16 is run as it is, and with a stated eps
    assert {s.optimiser.eps for s in published if s.arithmetic.name == "float16"} == {1e-8, 1e-4}


def _plain(settings: Settings) -> bool:
    return (
        settings.data == "mnist"
        and settings.network.activation == "relu"
        and settings.optimiser.name == "adam"
        and not settings.network.batch_norm
    )


def test_e2_on_a_cpu() -> None:
    found = _by_name("E2", "cpu")
    for name in ("float32", "bfloat16"):
        assert (len(found[name].seeds), found[name].epochs) == (3, 50)
    for kind, seeds in (("product", 1), ("split-k-4", 3)):
        assert (len(found[f"bfloat16-{kind}"].seeds), found[f"bfloat16-{kind}"].epochs) == (seeds, 50)
    for name in ("bfloat16-product", "bfloat16-split-k-4", "float16-product"):
        settings = found[f"{name}-3-epochs"]
        assert (len(settings.seeds), settings.epochs) == (10, 3)
    for name in ("bfloat16-rounded", "bfloat16-split-k-4"):
        settings = found[f"{name}-15-epochs"]
        assert (len(settings.seeds), settings.epochs) == (5, 15)
    assert (len(found["bfloat16-15-epochs"].seeds), found["bfloat16-15-epochs"].epochs) == (3, 15)
    assert found["float16-product-3-epochs"].optimiser.eps == 1e-4
    assert not any(settings.arithmetic.reduction != (True, True) or settings.arithmetic.tf32 for settings in found.values())


def test_what_is_required_of_a_cpu_comes_first_and_what_costs_most_last() -> None:
    names = list(_by_name("E2", "cpu"))
    assert names[:2] == ["float32", "bfloat16"]
    assert names[-2:] == ["bfloat16-product", "bfloat16-split-k-4"]


@pytest.mark.parametrize(("name", "scale"), ALL)
def test_published_runs_use_torchs_default_optimiser(name: str, scale: str) -> None:
    """Whatever the engine's default is: the fused kernels round once, the published ones after every operation."""
    assert not any(settings.optimiser.fused for settings in _by_name(name, scale).values())


@pytest.mark.parametrize("name", SCENARIOS)
def test_smoke_needs_no_data_root_and_little_time(name: str) -> None:
    for settings in _by_name(name, "smoke").values():
        assert settings.data == "digits"
        assert settings.epochs <= 2
        assert max(settings.network.widths) <= 64


@pytest.mark.parametrize("scale", SCALES)
def test_e3_reads_e2s_runs(scale: str) -> None:
    e2 = {settings.digest for settings in _by_name("E2", scale).values()}
    e3 = {settings.digest for settings in _by_name("E3", scale).values()}
    assert e3
    assert e3 <= e2
    labels = {settings.arithmetic.name for settings in _by_name("E3", scale).values()}
    assert {"float32", "bfloat16"} <= labels, "16 and 32 bits side by side"


@pytest.mark.parametrize("scale", ["full", "cpu"])
def test_what_is_published_is_measured_by_a_comparison_of_that_scale(scale: str) -> None:
    found, published = _by_name("E2", scale), SCENARIOS["E2"].published_at(scale)
    assert {"float32", "bfloat16"} <= set(published) & set(found)
    native = {
        name
        for name, settings in found.items()
        if _plain(settings) and settings.arithmetic.name == "bfloat16" and settings.epochs != 10
    }
    assert native <= set(published)


def test_digits_are_compared_with_nothing_published() -> None:
    assert not SCENARIOS["E2"].published_at("smoke")
    assert SCENARIOS["E2"].published_figures("smoke") == ()


def test_published_figures_are_those_of_runs_as_long() -> None:
    figures = SCENARIOS["E2"].published_figures("cpu")
    emulated = {"bfloat16-product", "bfloat16-split-k-4", "bfloat16-rounded", "bfloat16-published"}
    assert {figure.comparison for figure in figures} == {"float32", "bfloat16", *emulated}
    assert {(f.subgradient, f.value) for f in figures if f.comparison == "bfloat16"} == {
        *((0.0, 2.0), (-0.5, 4.0), (0.5, 7.0), (0.8, 9.0), (1.0, 11.0))
    }
    assert {figure.rule for figure in figures if figure.subgradient} == {"injected"}
    assert SCENARIOS["E1"].published_figures("cpu") == ()


# ---------------------------------------------------------------- E9


@pytest.mark.parametrize("scale", SCALES)
def test_e9s_comparisons_are_well_formed(scale: str) -> None:
    """Names are unique and files; E2 is compared twice at full scale, with other seeds."""
    comparisons = E9.comparisons(scale)
    names = [comparison.name for comparison in comparisons]
    assert len(set(names)) == len(names)
    assert len({(comparison.settings.digest, comparison.settings.seeds) for comparison in comparisons}) == len(names)
    for comparison in comparisons:
        assert re.fullmatch(r"[a-z0-9-]+", comparison.name), "it is a file name"
        again = Settings.from_json(json.loads(json.dumps(comparison.settings.to_json())))
        assert again == comparison.settings


@pytest.mark.parametrize("scale", SCALES)
def test_e9_reports_the_counts_of_e8s_other_comparisons(scale: str) -> None:
    """Equal settings under the same names, so that finished seeds of E8 are taken over."""
    known = {comparison.name: comparison for comparison in E8.comparisons(scale)}
    shared = [comparison for comparison in E9.comparisons(scale) if comparison.name in known]
    assert [known[comparison.name] for comparison in shared] == shared
    beginnings = {comparison.name.partition("-bfloat16")[0] for comparison in shared}
    assert beginnings == {"mlp-custom", "mobilenet"}, "default- trains the MLP's other configuration"
    assert {dtype_name(comparison.settings.arithmetic.dtype) for comparison in shared} == {"bfloat16"}
    assert E9.shares == ("E8",)


def _own(scale: str) -> list[Comparison]:
    """The comparisons of E9 that E8 does not have."""
    known = {comparison.name for comparison in E8.comparisons(scale)}
    return [comparison for comparison in E9.comparisons(scale) if comparison.name not in known]


@pytest.mark.parametrize("scale", ["full", "cpu"])
def test_e9_has_the_published_networks(scale: str) -> None:
    kinds = {
        "e2": ((200, 200, 200), "relu", 0.001, 10, 128, False, None),
        "more": ((200, 200, 200), "relu", 0.001, 10, 128, False, None),
        "e1": ((2000,), "relu", 0.001, 2, 128, False, None),
        "default": ((128,), "relu6", 0.0027, 30, 128, True, 48_000),
        "custom": ((128,), "relu6", 0.0009, 10, 32, True, 48_000),
    }
    subgradients = {"e1": {0.0, 1.0}, "default": {0.0, TUNED_MLP[0]}, "custom": {0.0, TUNED_MLP[0]}}
    for comparison in _own(scale):
        kind, s = comparison.name.partition("-")[0], comparison.settings
        found = (s.network.widths, s.network.activation, s.optimiser.lr, s.epochs, s.batch_size, s.shuffle, s.train_samples)
        assert found == kinds[kind]
        assert (s.data, s.optimiser.name, s.optimiser.fused) == ("mnist", "adam", False)
        assert dtype_name(s.arithmetic.dtype) == "bfloat16"
        assert {member.subgradient for member in s.members} == subgradients.get(kind, {0.0, 1.0, 2.0, 4.0, 8.0})
        seconds = {TUNED_MLP[1] if member.subgradient else 0.0 for member in s.members if s.network.activation == "relu6"}
        assert {member.second or 0.0 for member in s.members} == (seconds or {0.0})
        steps = -(-(s.train_samples or 60_000) // s.batch_size)
        assert s.every == steps, "distances once an epoch, which no figure of E9 draws"
        assert "injected" in {member.rule for member in s.members}
        assert s.seeds == ((FURTHER if kind == "more" else SEEDS) if scale == "full" else SEEDS[:3])


def test_e9s_parts_say_what_is_trained() -> None:
    assert list(dict.fromkeys(comparison.part for comparison in _own("full"))) == [
        "784-128-10, ReLU6, lr 0.0027, mini-batches of 128",
        "784-128-10, ReLU6, lr 0.0009, mini-batches of 32",
        "784-2000-10, ReLU, 2 epochs",
        "784-200-200-200-10, ReLU, 10 epochs",
        "784-200-200-200-10, ReLU, 10 epochs, further seeds",
    ]


def test_e9_full_has_every_candidate() -> None:
    found: dict[str, list[str]] = {}
    for comparison in _own("full"):
        found.setdefault(comparison.name.partition("-")[0], []).append(comparison.settings.arithmetic.name)
    assert found == {
        "default": ["bfloat16", *FEW],
        "custom": ["bfloat16 emulated (rounded)"],
        "e1": ["bfloat16", *FEW],
        "e2": list(CANDIDATES),
        "more": list(FINALISTS),
    }
    assert len(set(CANDIDATES)) == len(CANDIDATES) == 40
    assert set(FINALISTS) <= set(CANDIDATES), "chosen among them"
    assert not set(SEEDS) & set(FURTHER), "judged by other seeds than those that chose them"
    assert len(FURTHER) >= 20, "so that the p-value can decide"


def test_e9_smoke_is_small() -> None:
    for comparison in _own("smoke"):
        settings = comparison.settings
        assert (settings.data, settings.epochs, settings.train_samples) == ("digits", 2, 500)
        assert max(settings.network.widths) <= 32
        assert len(settings.seeds) == 3, "fewer give no fit"
        assert comparison.part.startswith(f"{settings.network.name}, ReLU"), "the network that ran, not the published one"


def test_scenarios_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SCENARIOS["E1"].title = "another"  # type: ignore[misc]


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["E2", "e2", " E2 "])
def test_find(name: str) -> None:
    found = find_scenario(name)
    assert found.name == "E2"


@pytest.mark.parametrize("name", ["E22", "2", "", "float32"])
def test_unknown_scenario(name: str) -> None:
    with pytest.raises(ScenarioError, match=rf"unknown scenario '{name}'; .*known: E1 \(.*E2 \(.*E3 \("):
        find_scenario(name)


@pytest.mark.parametrize(
    ("name", "scale", "chosen"),
    [
        ("E1", "full", ["bfloat16-rounded"]),
        ("E2", "cpu", ["bfloat16-published-3-epochs", "bfloat16-published-10-epochs", "bfloat16-published"]),
        ("E3", "full", ["bfloat16-published"]),
        ("E9", "cpu", ["default-rounded", "custom-rounded", "e1-rounded", f"e2-{_E2_COUNTED}", *_OF_E8]),
        (
            "E9",
            "full",
            ["default-rounded", "custom-rounded", "e1-rounded", f"e2-{_E2_COUNTED}", f"more-{_E2_COUNTED}", *_OF_E8],
        ),
    ],
)
def test_published_selects_the_arithmetic_of_the_published_counts(name: str, scale: str, chosen: list[str]) -> None:
    assert list(find_scenario(name).parts(scale, ["published"])) == chosen


def test_nearest_scenario_is_named() -> None:
    with pytest.raises(ScenarioError, match="did you mean 'E2'"):
        find_scenario("E22")


def test_unknown_scale() -> None:
    with pytest.raises(ScenarioError, match=r"unknown scale 'smoek'; did you mean 'smoke'\? known: full, cpu, smoke"):
        SCENARIOS["E2"].comparisons("smoek")


@pytest.mark.parametrize(
    ("only", "chosen"),
    [
        (["float32"], ["float32"]),
        (["bfloat16"], ["bfloat16"]),  # and not bfloat16-15-epochs, which has that arithmetic
        (["bfloat16 emulated (product)"], ["bfloat16-product-3-epochs", "bfloat16-product"]),
        (
            ["*-3-epochs"],
            [
                f"{name}-3-epochs"
                for name in ("bfloat16-product", "bfloat16-split-k-4", "float16-product", "bfloat16-published")
            ],
        ),
        (["bfloat16-product", "float32"], ["float32", "bfloat16-product"]),
    ],
    ids=["name", "name of an arithmetic", "arithmetic", "glob", "two"],
)
def test_only(only: list[str], chosen: list[str]) -> None:
    assert [comparison.name for comparison in SCENARIOS["E2"].comparisons("cpu", only)] == chosen


def test_only_of_something_unknown() -> None:
    with pytest.raises(
        ScenarioError, match="E2 at scale cpu has no part or arithmetic 'bfloat61'; did you mean 'bfloat16'"
    ):
        SCENARIOS["E2"].comparisons("cpu", ["float32", "bfloat61"])


@pytest.mark.parametrize(
    ("name", "scale", "says"),
    [
        (
            "E1",
            "smoke",
            "E1: published (the arithmetic bfloat16 emulated (rounded)) is no part at scale smoke; it is at full",
        ),
        ("E3", "smoke", "bias joined)) is no part at scale smoke; it is at full, cpu"),
        ("E4", "cpu", "E4: published is for trainings"),
    ],
)
def test_published_says_at_which_scales_it_is(name: str, scale: str, says: str) -> None:
    with pytest.raises(ScenarioError, match=re.escape(says)):
        find_scenario(name).parts(scale, ["published"])
