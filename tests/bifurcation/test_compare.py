"""backprop_s and its comparison: outcomes, differences, the control, what stays untouched, and bad input."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relucheck.activations.modules import ReLU
from relucheck.activations.rules import SubgradientError
from relucheck.bifurcation.compare import Backprops, backprop, compare, judge
from relucheck.bifurcation.subgradient import set_subgradient
from relucheck.errors import ControlError, ModelError
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.bits import same_bits
from relucheck.numerics.dtypes import DTYPES, UnsupportedDtypeError, dtype_name
from tests.helpers.aimed import X, Y, aimed
from tests.helpers.uniform import mlp


def check_aimed(differ: Callable[..., Any], dtype: torch.dtype) -> None:
    """On :func:`aimed` the two gradients differ in the dead unit's row only, by its cotangent times the inputs."""
    model, x = aimed().to(dtype), X.to(dtype)
    cotangent = torch.tensor([[1.0, -2.0, 3.0], [0.5, 2.0, -1.0], [-1.0, 0.25, 4.0]]).to(dtype)
    comparison = differ(model, x, cotangent=cotangent)
    upstream = (cotangent @ model[2].weight.detach())[:, 1]
    assert comparison.outcome == "bifurcate"
    assert comparison.settings == (0.0, 1.0)
    assert comparison.first_difference == "0.weight"
    assert [(d.parameter, d.entries) for d in comparison.differences] == [("0.weight", 4), ("0.bias", 1)]
    expected = (upstream @ x).double().abs()
    tolerance = {"rtol": 32 * torch.finfo(dtype).eps, "atol": 32 * torch.finfo(dtype).eps}
    bias = upstream.sum().double().abs()
    torch.testing.assert_close(comparison.differences[0].l1, float(expected.sum()), **tolerance)
    torch.testing.assert_close(comparison.differences[0].largest, float(expected.max()), **tolerance)
    torch.testing.assert_close(comparison.differences[1].l1, float(bias), **tolerance)
    assert comparison.largest == max(d.largest for d in comparison.differences)
    assert comparison.l1 == sum(d.l1 for d in comparison.differences)
    (call,) = comparison.hits
    assert (call.site, comparison.hit_count, comparison.activation_count) == ("1", 3, 12)
    assert [positions.tolist() for positions in call.hits] == [[[0, 1], [1, 1], [2, 1]]]
    assert comparison.arithmetic == Arithmetic.current(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_a_dead_unit_bifurcates(dtype: torch.dtype) -> None:
    check_aimed(compare, dtype)


@pytest.mark.parametrize("wrong", [(0.0, 0.5), (0.0, 0.0), (1.0, 0.0)])
def test_the_check_fails_other_subgradients(wrong: tuple[float, float]) -> None:
    with pytest.raises(AssertionError):
        check_aimed(lambda *args, **options: compare(*args, **options, subgradients=wrong), torch.float32)


def test_the_check_fails_a_dropped_cotangent() -> None:
    def injected(model: nn.Module, x: Tensor, cotangent: Tensor) -> Any:
        return compare(model, x, cotangent=torch.ones_like(cotangent))

    with pytest.raises(AssertionError):
        check_aimed(injected, torch.float32)


def test_gradients_are_torchs_own_with_targets_loss_and_cotangent() -> None:
    model = mlp(4, 5, 2, 3).build(nn.ReLU)
    ways: list[tuple[dict[str, Any], Callable[[Tensor], Tensor]]] = [
        ({"targets": Y}, lambda y: F.cross_entropy(y, Y)),
        ({"loss": lambda y: y.square().mean()}, lambda y: y.square().mean()),
        ({"loss": lambda y: y.sum().reshape(1)}, lambda y: y.sum()),
        ({"cotangent": torch.full((3, 3), 0.5)}, lambda y: y.sum() / 2),
    ]
    for options, loss in ways:
        run = backprop(model, X, **options, subgradients=(None, 0.0))
        expected = torch.autograd.grad(loss(model(X)), list(model.parameters()))
        assert same_bits(run.output, model(X).detach())
        assert not run.output.requires_grad
        for gradients in run.gradients:
            assert list(gradients) == [name for name, _ in model.named_parameters()]
            assert all(same_bits(got, want) for got, want in zip(gradients.values(), expected, strict=True))


def test_the_default_cotangent_is_fixed_and_sees_a_dropped_chain_rule() -> None:
    one, other = (backprop(aimed(), X, subgradients=(1.0,)).gradients[0]["0.bias"] for _ in range(2))
    ones = backprop(aimed(), X, subgradients=(1.0,), cotangent=torch.ones(3, 3)).gradients[0]["0.bias"]
    assert torch.equal(one, other)
    assert not torch.equal(one, ones)


def test_several_backwards_of_one_forward() -> None:
    seen = []
    model = aimed()
    model[1].register_forward_hook(lambda *args: seen.append(1))
    run = backprop(model, X, subgradients=(0.0, 1.0, (0.5, 0.0), None, -0.5))
    assert seen == [1]
    assert run.settings == (0.0, 1.0, (0.5, 0.0), None, -0.5)
    zero, one, half, own, negative = (gradients["0.bias"] for gradients in run.gradients)
    assert torch.equal(zero, own)
    torch.testing.assert_close(half, (zero + one) / 2)
    torch.testing.assert_close(negative - zero, (zero - one) / 2)
    assert (run.hit_count, run.activation_count) == (3, 12)


def test_no_hit_agrees_and_a_dead_cotangent_agrees() -> None:
    model = aimed()
    nn.init.constant_(model[0].bias, 100.0)
    assert compare(model, X).outcome == "agree"
    model = aimed()
    with torch.no_grad():
        model[2].weight[:, 1] = 0
    comparison = compare(model, X)
    assert (comparison.outcome, comparison.hit_count, comparison.differences) == ("agree", 3, ())
    assert (comparison.first_difference, comparison.largest, comparison.l1) == (None, 0.0, 0.0)


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_non_finite_is_its_own_outcome(scale: float) -> None:
    comparison = compare(aimed(), X, loss=lambda y: (y * scale).sum())
    assert comparison.outcome == "non-finite"
    assert all(math.isfinite(difference.largest) for difference in comparison.differences)


@pytest.mark.parametrize(
    ("a", "b", "outcome", "entries"),
    [
        ([1.0, 0.0], [1.0, -0.0], "agree", 0),
        ([1.0, 2.0], [1.0, 2.5], "bifurcate", 1),
        ([1.0, math.nan], [1.0, math.nan], "non-finite", 0),
        ([1.0, math.inf], [3.0, 0.0], "non-finite", 2),
    ],
)
def test_judge(a: list[float], b: list[float], outcome: str, entries: int) -> None:
    run = Backprops((0.0, 1.0), (), None, (), (), Arithmetic.current(torch.float32))
    comparison = judge({"p": torch.tensor(a), "q": None}, {"p": torch.tensor(b), "q": None}, run, (0.0, 1.0))
    assert comparison.outcome == outcome
    assert sum(difference.entries for difference in comparison.differences) == entries
    assert all(math.isfinite(difference.l1) for difference in comparison.differences)


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_a_gradient_that_only_one_backward_has_is_zero_in_the_other(value: float) -> None:
    run = Backprops((0.0, 1.0), (), None, (), (), Arithmetic.current(torch.float32))
    for one, other in ((None, torch.tensor([value])), (torch.tensor([value]), None)):
        comparison = judge({"p": one}, {"p": other}, run, (0.0, 1.0))
        assert comparison.outcome == ("bifurcate" if value else "agree")
        assert comparison.largest == value


class Unsteady(torch.autograd.Function):
    calls = 0

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return x * 1

    @staticmethod
    def backward(ctx, cotangent):  # type: ignore[no-untyped-def]
        Unsteady.calls += 1
        return cotangent * (1 + Unsteady.calls)


class Applies(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Unsteady.apply(x)


def test_a_control_that_differs_voids_the_comparison() -> None:
    with pytest.raises(ControlError, match=r"subgradient 0.0 differ in '0.weight'.*not deterministic.*look for atomics"):
        compare(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Applies()), X)


class Everything(nn.Module):
    """Batch norm, dropout, a frozen, an unused and a shared parameter, two inputs, a dictionary, growing buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.second.bias.requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(2))
        self.relu = ReLU(0.25)
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("grown", torch.zeros(2))
        self.register_buffer("late", None)

    def forward(self, x: Tensor, more: Tensor) -> dict[str, Tensor]:
        self.replaced = self.replaced + 1
        self.grown = torch.ones(len(self.grown) + 1)
        self.late = torch.ones(1)
        self.register_buffer("new", torch.ones(1))
        return {"y": self.drop(F.relu(self.second(self.relu(self.norm(self.first(x))) + more)))}


def test_the_model_is_left_as_it_was() -> None:
    model = Everything()
    model.first.weight.grad = torch.ones(4, 4)
    x, more = X.clone().requires_grad_(), X.clone()
    replaced = model.replaced
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, mode = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    runs = [compare(model, (x, more), loss=lambda out: out["y"].sum()) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.are_deterministic_algorithms_enabled() == mode
    assert model.replaced is replaced
    assert model.state_dict().keys() == before.keys() | {"late", "new"}
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before if name != "grown")
    assert model.relu.subgradient == 0.25
    assert torch.equal(model.first.weight.grad, torch.ones(4, 4))
    assert model.unused.grad is x.grad is None
    assert runs[0].differences == runs[1].differences, "dropout is drawn alike"
    run = backprop(model, (x, more), loss=lambda out: out["y"].sum())
    assert list(run.gradients[0]) == ["unused", "first.weight", "first.bias", "norm.weight", "norm.bias"]
    assert run.gradients[0]["unused"] is None
    assert run.output.keys() == {"y"}


def test_own_settings_do_not_matter() -> None:
    plain = compare(aimed(), X)
    for value in (0.5, (1.0, 1.0), torch.tensor([[0.0], [1.0], [2.0]])):
        model = aimed()
        set_subgradient(model, value)
        assert compare(model, X).differences == plain.differences
    assert compare(aimed(nn.ReLU(inplace=True)), X).differences == plain.differences


def test_pairs_set_the_kinks_of_relu6() -> None:
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU6())
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([0.0, 6.0]))
    cotangent = torch.tensor([[2.0, 3.0]])
    run = backprop(model, X[:1, :1], subgradients=((0.5, 0.0), (0.0, 0.25), 1.0), cotangent=cotangent)
    assert [gradients["0.bias"].tolist() for gradients in run.gradients] == [[1.0, 0.0], [0.0, 0.75], [2.0, 3.0]]


def test_surroundings() -> None:
    expected = compare(aimed(), X, Y)
    model = aimed()
    with torch.no_grad():
        assert compare(model, X, Y).differences == expected.differences
    with torch.inference_mode():
        assert compare(model, X.clone() if X.is_inference() else X, Y).differences == expected.differences
    assert compare(model.eval(), X, Y).differences == expected.differences
    assert not model.training
    torch.set_default_device("meta")
    try:
        assert compare(model, X, Y).differences == expected.differences
        assert compare(model, X).outcome == "bifurcate"
    finally:
        torch.set_default_device(None)
    indices = torch.tensor([[0, 1]])
    embedding = nn.Sequential(nn.Embedding(3, 4), nn.ReLU())
    assert compare(embedding, indices).activation_count == 8


def test_text() -> None:
    text = str(compare(aimed(), X))
    for part in (
        "backprop_0.0 and backprop_1.0 in float32: bifurcate",
        "hits: 3 of 12 activations",
        "1 (ReLU) at 0: 3, the first at (0, 1)",
        "0.weight: 4 entries differ, by at most",
    ):
        assert part in text
    comparison = compare(aimed(), X)
    many = dataclasses.replace(comparison, differences=comparison.differences * 5)
    assert "and 2 more parameters (L1 over all parameters" in str(many)
    assert "more parameters" not in str(comparison)


class Frozen(nn.Module):
    """Its only trainable parameter is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4).requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.linear(x))


class Returns(nn.Module):
    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.make = nn.Linear(4, 4), make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.linear(x))


BAD: dict[str, tuple[nn.Module, dict[str, Any], type[Exception], str]] = {
    "no parameter": (nn.ReLU(), {}, ModelError, "ReLU: no parameter requires a gradient"),
    "all frozen": (nn.Linear(4, 4).requires_grad_(False), {}, ModelError, "Linear: no parameter requires a gradient"),
    "unused": (Frozen(), {}, ModelError, "does not depend on any parameter"),
    "unused, input needs a gradient": (
        Frozen(),
        {"inputs": X.clone().requires_grad_()},
        ModelError,
        "does not depend on any parameter",
    ),
    "detached": (Returns(torch.detach), {}, ModelError, "does not depend on any parameter"),
    "tuple": (Returns(lambda y: (y,)), {}, ModelError, "returned tuple, not a tensor; pass loss="),
    "dict": (Returns(lambda y: {"y": y}), {"targets": Y}, ModelError, "returned dict, not a tensor; pass loss="),
    "loss no scalar": (aimed(), {"loss": lambda y: y}, ModelError, "loss returned Tensor, not a scalar.*reduce it"),
    "loss no tensor": (aimed(), {"loss": lambda y: 1.0}, ModelError, "loss returned float, not a scalar"),
    "cotangent": (aimed(), {"cotangent": torch.ones(3)}, ModelError, r"shape \(3,\), the output \(3, 3\)"),
    "two of them": (aimed(), {"targets": Y, "cotangent": torch.ones(3, 3)}, ModelError, "exclude each other; pass one"),
    "one setting": (aimed(), {"subgradients": (0.0,)}, SubgradientError, "must be two settings, for example"),
    "no settings": (aimed(), {"subgradients": ()}, SubgradientError, "must be two settings"),
    "nan": (aimed(), {"subgradients": (0.0, math.nan)}, SubgradientError, "finite real number.*pass a float"),
    "members": (aimed(), {"subgradients": (0.0, torch.ones(3))}, SubgradientError, "one number is needed here"),
    "dtype": (
        nn.Linear(4, 4).to(torch.float8_e5m2),
        {},
        UnsupportedDtypeError,
        "float8_e5m2 is not supported.*pass one of these",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name: str) -> None:
    model, options, error, message = BAD[name]
    options = {"inputs": X, **options}
    with pytest.raises(error, match=message):
        compare(model, options.pop("inputs"), **options)


def test_no_settings_are_refused() -> None:
    with pytest.raises(SubgradientError, match="subgradients is empty; pass one setting per backward"):
        backprop(aimed(), X, subgradients=())


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning")
def test_complex_models_are_refused() -> None:
    with pytest.raises(UnsupportedDtypeError, match=r"torch.complex64 is not supported.*pass one of these"):
        compare(nn.Linear(4, 4).to(torch.complex64), X.to(torch.complex64))


def test_backwards_run_deterministically() -> None:
    seen: list[bool] = []

    class Looks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x.register_hook(lambda gradient: seen.append(torch.are_deterministic_algorithms_enabled()))
            seen.append(torch.are_deterministic_algorithms_enabled())
            return x

    compare(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), Looks()), torch.randn(2, 3))
    assert seen == [True] * 4, "one forward and three backwards"
    assert not torch.are_deterministic_algorithms_enabled()


def test_non_finite_in_the_second_gradient() -> None:
    run = Backprops((0.0, 1.0), (), None, (), (), Arithmetic.current(torch.float32))
    for bad in (math.inf, math.nan):
        assert judge({"p": torch.tensor([1.0])}, {"p": torch.tensor([bad])}, run, (0.0, 1.0)).outcome == "non-finite"


class Written(nn.Module):
    """An activation written out, in a model that has none of torch's."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linear, self.kind = nn.Linear(3, 3), kind

    def forward(self, x: Tensor) -> Tensor:
        z = self.linear(x)
        return {
            "where": lambda: torch.where(z > 0, z, 0.0),
            "mask": lambda: z * z.gt(0),
            "clamp": lambda: z.clamp(min=0),
            "upper": lambda: torch.where(torch.ge(z, torch.tensor(6.0)), 6.0, z),
        }[self.kind]()


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("where", r"ReLU written out"),
        ("mask", r"ReLU written out"),
        ("clamp", "ClampBackward"),
        ("upper", "kink at 6 written out"),
    ],
)
def test_a_written_out_activation_is_named(kind: str, named: str) -> None:
    with pytest.raises(ModelError, match=rf"no ReLU, ReLU6 or LeakyReLU was called.*out of reach: .*{named}"):
        compare(Written(kind), torch.randn(2, 3))
    beside = compare(nn.Sequential(Written(kind), nn.ReLU()), torch.randn(2, 3))
    assert [item.module for item in beside.out_of_reach] == ["0"]
    assert named in str(beside)


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"Linear: no ReLU, ReLU6 or LeakyReLU was called on this input"):
        compare(nn.Linear(3, 2), torch.randn(2, 3))
