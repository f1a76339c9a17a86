"""Explanations: one aimed network per reason, effects of hits against brute force, zones, text, JSON, and faults."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from relucheck import data
from relucheck.activations import functional
from relucheck.activations import modules as activations_modules
from relucheck.bifurcation import explain as explaining
from relucheck.bifurcation.compare import compare
from relucheck.bifurcation.exact_gradients import over_the_reals
from relucheck.bifurcation.explain import explain
from relucheck.bifurcation.explanation import Explanation, Hit, Reason
from relucheck.errors import ModelError
from relucheck.networks.convnets import ConvNet
from relucheck.networks.examples import Example, network_for
from relucheck.networks.mlp import MLP
from relucheck.networks.strategies import examples
from relucheck.numerics import dyadics
from relucheck.numerics.bits import differs
from relucheck.numerics.determinism import deterministic, generator
from relucheck.numerics.dtypes import DTYPES, dtype_name
from relucheck.numerics.emulation import Emulation, Rounding, emulate
from relucheck.reproduction.experiments import explained
from tests.helpers.per_dtype import fewer
from tests.helpers.uniform import mlp

Y = torch.tensor([1])
#: A product of these two is lost beside 1 in every dtype and in float32 accumulation.
SMALL = {torch.float16: 2.0**-12, torch.bfloat16: 2.0**-30, torch.float32: 2.0**-30, torch.float64: 2.0**-30}


def network(
    dtype: torch.dtype,
    layers: list[tuple[list[list[float]], list[float]]],
    make: Callable[[], nn.Module] = activations_modules.ReLU,
) -> nn.Sequential:
    """A network with these weights and biases, and a last layer without a zero."""
    modules: list[nn.Module] = []
    for weight, bias in [
        *layers,
        ([[0.5 * (k + 1) * (-1) ** j for k in range(len(layers[-1][0]))] for j in (0, 1)], [0, 0]),
    ]:
        linear = nn.Linear(len(weight[0]), len(weight)).to(dtype)
        with torch.no_grad():
            linear.weight.copy_(torch.tensor(weight, dtype=torch.float64))
            linear.bias.copy_(torch.tensor(bias, dtype=torch.float64))
        modules += [linear, make()]
    return nn.Sequential(*modules[:-1])


Aimed = tuple[nn.Sequential, list[float], str, Fraction, Fraction]  # network, sample, site, real, local


def _aimed(dtype: torch.dtype) -> dict[Reason, Aimed]:
    small, zero, six = SMALL[dtype], Fraction(0), Fraction(6)
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    lost = Fraction(small) ** 2
    identity = ([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
    one = ([[1.0, small], [1.0, 0.0]], [0.0, 0.0])  # rounds to (1, 1)

    def relu6() -> nn.Module:
        return activations_modules.ReLU6()

    return {
        "zero input": (network(dtype, [([[1, 2], [3, 4]], [0.0, 1.0])]), [0.0, 0.0], "1", zero, zero),
        "dead previous layer": (
            network(dtype, [([[-1, 0], [0, -1]], [0.0, 0.0]), ([[1, 2], [3, 4]], [0.0, 1.0])]),
            [1.0, 1.0],
            "3",
            zero,
            zero,
        ),
        "dead unit": (network(dtype, [([[0, 0], [3, 4]], [0.0, 1.0])]), [1.0, 2.0], "1", zero, zero),
        "no live product": (
            network(dtype, [([[-1, 0], [0, 1]], [0.0, 0.0]), ([[1, 0], [0, 1]], [0.0, 0.0])]),
            [1.0, 1.0],
            "3",
            zero,
            zero,
        ),
        "exact cancellation": (network(dtype, [([[1, -1], [1, 1]], [0.0, 0.0])]), [1.5, 1.5], "1", zero, zero),
        "rounding cancellation": (
            network(dtype, [one, ([[1, -1], [1, 1]], [0.0, 0.0])]),
            [1.0, small],
            "3",
            lost,
            zero,
        ),
        "underflow": (
            network(dtype, [([[tiny, 0], [0, 1]], [0.0, 0.0])]),
            [0.25, 1.0],
            "1",
            Fraction(tiny) / 4,
            Fraction(tiny) / 4,
        ),
        "exact saturation": (network(dtype, [([[2, 1], [0, 1]], [0.0, 0.0])], relu6), [2.0, 2.0], "1", six, six),
        "rounded saturation": (
            network(dtype, [([[6, small], [0, 1]], [0.0, 0.0]), identity], relu6),
            [1.0, small],
            "1",
            six + lost,
            six + lost,
        ),
    }


REASONS: tuple[Reason, ...] = tuple(_aimed(torch.float32))


def check_reason(dtype: torch.dtype, reason: Reason) -> None:
    model, sample, site, real, local = _aimed(dtype)[reason]
    explanation = explain(model, torch.tensor([sample], dtype=torch.float64).to(dtype), Y)
    kink = 6.0 if "saturation" in reason else 0.0
    found = [hit for hit in explanation.hits if hit.site == site and hit.kink == kink and hit.unit == (0,)]
    assert [(hit.reason, hit.real, hit.local, hit.sample) for hit in found] == [(reason, real, local, 0)]
    assert found[0].exact == (real == Fraction(kink))
    assert explanation.comparison.outcome == "bifurcate"
    if len(explanation.hits) == 1:
        assert explanation.zone == ("bifurcation" if found[0].exact else "compensation")


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_reason(dtype: torch.dtype, reason: Reason) -> None:
    check_reason(dtype, reason)


FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "idle units cancel": lambda patch: patch.setattr(
        explaining, "_reason", _with(explaining._reason, lambda args: (*args[:3], None, args[4]))
    ),
    "no underflow": lambda patch: patch.setattr(
        explaining, "_reason", _with(explaining._reason, lambda args: (*args[:4], Fraction(0)))
    ),
    "everything exact": lambda patch: patch.setattr(
        explaining, "_values", lambda x, rows, units, kink: [Fraction(kink)] * len(rows)
    ),
    "another sample's or unit's value": lambda patch: patch.setattr(
        dyadics.Dyadic,
        "fractions",
        _with(dyadics.Dyadic.fractions, lambda args: (args[0], (args[1][0], args[1][1] * 0 + 1))),
    ),
    "the float's neighbour": lambda patch: patch.setattr(
        dyadics, "compare", _with(dyadics.compare, lambda args: (args[0], args[1] + 1))
    ),
}


def _with(function: Any, change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Any:
    return lambda *args: function(*change(args))


def _check_all_reasons() -> None:
    for reason in REASONS:
        check_reason(torch.float32, reason)


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_in_reasons_are_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS[fault](monkeypatch)
    with pytest.raises(AssertionError):
        _check_all_reasons()


class Chosen(nn.Module):
    """A fully connected network whose every activation has subgradients of its own, as tensors."""

    def __init__(self, model: MLP) -> None:
        super().__init__()
        self.layers = model.layers
        self.values: dict[int, tuple[Tensor, Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        for index, module in enumerate(self.layers):
            if isinstance(module, nn.Linear | nn.Flatten):
                x = module(x)
                continue
            lower, upper = self.values.setdefault(index, tuple(torch.zeros(x.shape, dtype=torch.float64) for _ in "ab"))
            if isinstance(module, activations_modules.ReLU6):
                x = functional.relu6(x, lower, upper)
            elif isinstance(module, activations_modules.LeakyReLU):
                x = functional.leaky_relu(x, lower, module.negative_slope)
            else:
                x = functional.relu(x, lower)
        return x

    def gradients(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        names = dict(self.named_parameters())
        with deterministic():
            found = torch.autograd.grad(F.cross_entropy(self(x), y), list(names.values()))
        return dict(zip(names, found, strict=True))


def check_effects(model: MLP, x: Tensor, y: Tensor, pair: tuple[float, float] = (0.0, 1.0), **options: Any) -> Explanation:
    """Each hit's effect, from a forward and backward of its own with another implementation of the network."""
    explanation = explain(model, x, y, subgradients=pair, **options)
    own = Chosen(model)
    own.gradients(x, y)  # makes the tensors
    for tensor in itertools.chain.from_iterable(own.values.values()):
        tensor.fill_(pair[0])
    base = own.gradients(x, y)
    assert len(explanation.hits) == compare(model, x, y, subgradients=pair).hit_count
    for hit in explanation.hits:
        tensor = own.values[int(hit.site.rpartition(".")[2])][hit.kink == 6]
        tensor[hit.position] = pair[1]
        other = own.gradients(x, y)
        tensor[hit.position] = pair[0]
        expected = {name: int(differs(base[name], other[name]).sum()) for name in base}
        if hit.changed is not None:
            changed = {difference.parameter: difference.entries for difference in hit.changed}
            assert changed == {name: count for name, count in expected.items() if count}
            for difference in hit.changed:
                distance = (base[difference.parameter].double() - other[difference.parameter].double()).abs()
                assert difference.largest == float(distance.max())
    return explanation


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@fewer
@given(draws=st.data())
def test_effects_are_those_of_brute_force(dtype: torch.dtype, draws: st.DataObject) -> None:
    drawn = examples(
        dtype,
        kinds=["mlp"],
        aims=("dead unit", "saturated unit", "negated twin", "shifted bias", "dead input"),
        inputs=("normal", "integer"),
        batch_norm=False,
        max_width=3,
        max_batch=3,
    )
    model, x, y = draws.draw(drawn).build()
    assert isinstance(model, MLP)
    check_effects(model, x, y, draws.draw(st.sampled_from([(0.0, 1.0), (1.0, 0.0), (0.5, -0.25)])))


def _aimed_effects() -> None:
    for name, aim in (("relu", "dead unit"), ("relu6", "saturated unit"), ("leaky_relu", "dead input")):
        example = Example("float32", network_for("mlp", name, 2, 3), aim=aim, batch=3, seed=5)
        model, x, y = example.build()
        assert isinstance(model, MLP)
        assert any(hit.changed for hit in check_effects(model, x, y).hits)


EFFECT_FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "effects of other hits": lambda patch: patch.setattr(explaining, "_effects", _reversed(explaining._effects)),
    "the base's subgradient": lambda patch: patch.setattr(
        explaining, "as_subgradient", lambda value, optional: torch.zeros((), dtype=torch.float64)
    ),
    "every entry differs": lambda patch: patch.setattr(
        "relucheck.bifurcation.compare.differs", lambda a, b: torch.full(a.shape, not torch.equal(a, b))
    ),
}


def _reversed(effects: Any) -> Any:
    def injected(*args: Any) -> Any:
        found, unmeasured = effects(*args)
        return found[::-1], unmeasured

    return injected


@pytest.mark.parametrize("fault", EFFECT_FAULTS)
def test_faults_in_effects_are_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _aimed_effects()
    EFFECT_FAULTS[fault](monkeypatch)
    with pytest.raises(AssertionError):
        _aimed_effects()


def many_hits() -> tuple[MLP, Tensor, Tensor]:
    model, x, y = Example("float32", network_for("mlp", depth=2, width=4), aim="dead unit", batch=6, seed=2).build()
    assert isinstance(model, MLP)
    return model, x, y


def test_a_limit_is_kept_and_said() -> None:
    model, x, y = many_hits()
    explanation = check_effects(model, x, y, limit=2)
    live = [hit for hit in explanation.hits if hit.cotangent != 0]
    assert [hit.changed is None for hit in live] == [False, False, *[True] * (len(live) - 2)]
    assert explanation.unmeasured == len(live) - 2 > 0
    assert f"the effects of {len(live) - 2} further hits are not measured (limit=2)" in str(explanation)
    with pytest.raises(ModelError, match="limit=-1: must be a whole number"):
        explain(model, x, y, limit=-1)


def test_the_model_stays_as_it_is() -> None:
    model, x, y = many_hits()
    before = compare(model, x, y)
    explain(model, x, y)
    after = compare(model, x, y)
    assert before.differences == after.differences
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_hits_that_rounding_misses() -> None:
    """Over the reals 1 + small - 1 - small is 0; the float's layer before has lost one of the two."""
    small = 2.0**-24
    first = ([[1.0, small, 0.0], [1.0, 0.0, 0.0], [0.0, small, 0.0]], [0.0, 0.0, 0.0])
    model = network(torch.float32, [first, ([[1, -1, -1], [1, 1, 1]], [0.0, 0.0])])
    explanation = explain(model, torch.tensor([[1.0, 1.0, 1.0]]), Y)
    assert explanation.comparison.outcome == "agree"
    assert explanation.hits == ()
    assert explanation.zone is None
    assert [(m.site, m.position, m.kink) for m in explanation.missed] == [("3", (0, 0), 0.0)]
    assert explanation.reals is not None
    assert explanation.reals.verdict == "differs"
    assert "but not in floating point: 1 pre-activations, the first at 3 (0, 0)" in str(explanation)


def test_other_models_have_hits_and_effects_but_no_reasons() -> None:
    for batch_norm in (False, True):
        model, x, y = Example(
            "float32", network_for("convnet", depth=2, width=3, batch_norm=batch_norm), aim="dead unit", batch=2, seed=1
        ).build()
        assert isinstance(model, ConvNet)
        explanation = explain(model, x, y, limit=5)
        assert {hit.reason for hit in explanation.hits} == {"unknown"}
        assert explanation.zone is None
        assert explanation.reals is None
        assert "exact evaluation supports" in str(explanation.unserved)
        assert "over the reals: not evaluated" in str(explanation)
        assert any(hit.changed for hit in explanation.hits)
        assert all(len(hit.unit) == 3 for hit in explanation.hits)


def test_what_nothing_proves_is_undecided() -> None:
    """Equal columns: over the reals the dead unit's cotangent is 0, which no bound proves; as floats it is not 0."""
    outcomes = []
    for seed in range(8):
        model = mlp(2, 2, 1, 7).build()
        one, _, last = list(model.layers)[1:]
        assert isinstance(one, nn.Linear)
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            one.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
            one.bias.zero_()
            last.weight.fill_(1 / 3)
            last.bias.copy_(torch.randn(7, generator=generator(seed)))
        explanation = explain(model, torch.tensor([[1.0, 2.0], [3.0, 1.0]]), torch.tensor([0, 3]))
        outcomes.append(explanation.comparison.outcome)
        if outcomes[-1] == "bifurcate":
            assert explanation.zone == explanation.data()["zone"] == "undecided"
            assert "zone: undecided: 2 exact hits, but no difference of gradients beyond" in str(explanation)
        else:
            assert explanation.zone is None
    assert "bifurcate" in outcomes


def test_emulated_arithmetic_is_labelled_and_explained() -> None:
    model, x, y = Example("bfloat16", network_for("mlp", depth=2, width=3), aim="dead unit", batch=2, seed=1).build()
    emulate(model, Emulation(torch.bfloat16, Rounding()))
    explanation = explain(model, x, y)
    assert str(explanation).startswith("backprop_0.0 and backprop_1.0 in bfloat16 emulated (product): bifurcate")
    assert "dead unit" in {hit.reason for hit in explanation.hits}
    assert explanation.zone == "bifurcation"


def test_functional_calls_and_in_place() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)
            with torch.no_grad():
                self.one.weight[1] = self.one.bias[1] = 0

        def forward(self, x: Tensor) -> Tensor:
            return self.two(F.relu(self.one(x), inplace=True))

    torch.manual_seed(0)
    (hit,) = explain(Functional(), torch.ones(1, 2), Y).hits
    assert (hit.site, hit.position, [d.parameter for d in hit.changed or ()]) == (
        "Functional.relu()",
        (0, 1),
        ["one.weight", "one.bias"],
    )


def test_without_targets_the_cotangent_is_compares_own() -> None:
    model, x, _ = many_hits()
    explanation = explain(model, x)
    assert explanation.comparison.differences == compare(model, x).differences
    assert explanation.zone == "bifurcation"


def test_text_table_and_json() -> None:
    model, x, y = many_hits()
    explanation = explain(model, x, y, limit=3)
    text = str(explanation)
    assert "zone: bifurcation: the gradients differ over the reals, too (" in text
    assert "dead unit (every weight of the unit is 0 and the bias equals the kink)" in text
    assert "not measured" in text
    plain = json.loads(explanation.json())
    assert plain["schema"] == 2
    assert plain["zone"] == "bifurcation"
    assert len(plain["hits"]) == len(explanation.hits) == explanation.comparison.hit_count
    assert plain["hits"][0]["real"] == "0"
    assert {(hit["site"], tuple(hit["position"])) for hit in plain["hits"]} == {
        (hit.site, hit.position) for hit in explanation.hits
    }
    assert len(explanation.table(1).rows) == 1


def test_the_default_device_does_not_matter() -> None:
    model, x, y = many_hits()
    expected = over_the_reals(model, x, y)
    with torch.device("meta"):
        found = over_the_reals(model, x, y)
    assert (found.verdict, found.parameters, found.hit_count) == (
        expected.verdict,
        expected.parameters,
        expected.hit_count,
    )


def test_a_shifted_bias_is_a_rounding_cancellation_in_float64() -> None:
    digits = data.load("digits")
    x, y = digits.scaled(torch.float64)[:256], digits.labels[:256]
    explanation = explain(explained.shifted(torch.float64, x), x, y)
    assert {hit.reason for hit in explanation.hits} <= {"rounding cancellation", "exact cancellation"}
    assert len(explanation.hits) >= 1
    with pytest.raises(ModelError, match="no bias gives a hit"):
        explained.shifted(torch.float64, torch.full_like(x, torch.nan))


def test_no_hit_reads_well() -> None:
    model = mlp(2, 2, 1, 2).build()
    with torch.no_grad():
        model.layers[1].bias.fill_(5)
    text = str(explain(model, torch.ones(1, 2), Y))
    assert "agree" in text
    assert "over the reals: the gradients are equal over the reals (0 exact hits)" in text


def test_hit_without_reason_knows_nothing() -> None:
    hit = Hit("1", 0, (), 0.0, "unknown", None, None, None, None)
    assert (hit.sample, hit.unit, hit.exact) == (0, (), None)
