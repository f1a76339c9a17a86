"""The wiring probe: what it finds, what it names, and that nothing that is out of reach passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from relucheck.activations import functional
from relucheck.activations.modules import LeakyReLU, ReLU, ReLU6
from relucheck.activations.rules import SubgradientError
from relucheck.bifurcation.wiring import Wire, WiringError, check_wiring, probe_wiring
from relucheck.errors import ModelError
from relucheck.numerics.dtypes import DTYPES, dtype_name
from tests.helpers.uniform import images

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def linear() -> nn.Linear:
    return nn.Linear(4, 4)


def found(build: Any, inputs: Any = X, **options: Any) -> dict[str, str]:
    return {wire.site: wire.verdict for wire in probe_wiring(build, inputs, **options)}


class Injected(torch.autograd.Function):
    """Published fault 1: alpha itself is the gradient at the kink."""

    @staticmethod
    def forward(ctx, x, alpha):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        ctx.alpha = alpha
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, cotangent):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        gradient = torch.where(x < 0, torch.zeros_like(cotangent), cotangent)
        return torch.where(x == 0, torch.full_like(cotangent, ctx.alpha), gradient), None


class InjectedReLU(nn.Module):
    def __init__(self, alpha: float = 0.0) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        return Injected.apply(x, self.alpha)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("activation", [ReLU, ReLU6, LeakyReLU, nn.ReLU, nn.ReLU6, nn.LeakyReLU])
def test_right_models_pass(dtype: torch.dtype, activation: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(4, 5), activation(), nn.Dropout(), nn.Linear(5, 4), activation()).to(dtype)
    assert check_wiring(model, X.to(dtype)) == tuple(Wire(name, activation.__name__, "answers") for name in ("1", "4"))
    assert type(model[1]) is activation, "the model itself stays as it is"


def test_subnormal_products_are_right() -> None:
    """Of many float16 cotangents some are so small that their product with a subgradient is rounded coarsely."""
    check_wiring(nn.ReLU(), torch.randn(2**18).half())


@pytest.mark.parametrize("kind", ["mlp", "convnet", "residual"])
def test_own_networks_pass(kind: str) -> None:
    network = images(kind, 3, batch_norm=True, input_shape=(1, 5, 5))
    wires = check_wiring(lambda s: network.build(lambda: ReLU(s)), torch.randn(2, 1, 5, 5))
    assert {wire.verdict for wire in wires} == {"answers"}


def test_published_dropped_chain_rule_is_caught() -> None:
    with pytest.raises(WiringError) as error:
        check_wiring(lambda alpha: nn.Sequential(linear(), InjectedReLU(alpha), linear(), ReLU(alpha)), X)
    (wire,) = error.value.wires
    assert (wire.site, wire.activation, wire.verdict) == ("1", "ReLU", "wrong rule")
    for part in (
        "1 (ReLU): wrong rule",
        "at 0 with subgradient 0.25 and upstream gradient",
        "the gradient is 0.25, not their product",
    ):
        assert part in str(error.value)


def test_published_residual_net_with_the_stem_only_is_caught() -> None:
    def build(s: float) -> nn.Module:
        model = images("residual", 3, 2).build(nn.ReLU)
        model.activation = ReLU(s)
        return model

    with pytest.raises(WiringError) as error:
        check_wiring(build, torch.randn(2, 1, 5, 5))
    assert [wire.site for wire in error.value.wires] == [
        f"blocks.{block}.activation{index}" for block in (0, 1) for index in (1, 2)
    ]
    assert {wire.verdict for wire in error.value.wires} == {"ignores"}
    assert "blocks.0.activation1 (ReLU): ignores; at 0 the gradient is the same for 0.25 and 0.75" in str(error.value)


def test_published_keyword_that_the_model_ignores_is_caught() -> None:
    def build(activation_fn: Callable[[], nn.Module] = nn.ReLU, **ignored: Any) -> nn.Module:
        block = torchvision.models.mobilenetv2.InvertedResidual(4, 4, 1, 2, norm_layer=nn.BatchNorm2d)
        return nn.Sequential(block, activation_fn())

    x = torch.randn(2, 4, 5, 5)
    with pytest.raises(WiringError) as error:
        check_wiring(lambda s: build(activation=lambda: ReLU(s)), x)
    for part in ("0.conv.0.2 (ReLU6): ignores", "0.conv.1.2 (ReLU6): ignores", "1 (ReLU): ignores"):
        assert part in str(error.value)
    assert found(lambda s: build(activation_fn=lambda: ReLU(s)), x)["1"] == "answers"
    assert set(found(build(), x).values()) == {"answers"}, "set_subgradient does reach it"


def test_a_forgotten_upper_kink_is_caught() -> None:
    with pytest.raises(WiringError, match=r"1 \(ReLU6\): ignores; at 6 "):
        check_wiring(lambda s: nn.Sequential(linear(), ReLU6(alpha=s)), X)


class OtherReLU(nn.ReLU):
    """A subclass, which set_subgradient leaves alone."""


@pytest.mark.parametrize(
    "module",
    [OtherReLU(), nn.Threshold(0, 0), nn.Hardtanh(0, 6), nn.PReLU(), nn.RReLU().eval(), InjectedReLU()],
    ids=lambda module: type(module).__name__,
)
def test_an_activation_of_another_class_is_named(module: nn.Module) -> None:
    assert found(nn.Sequential(linear(), module, linear(), nn.ReLU())) == {"1": "ignores", "3": "answers"}
    assert found(nn.Sequential(linear(), module)) == {"1": "ignores"}


@pytest.mark.parametrize("module", [nn.GELU(), nn.Identity(), nn.Hardtanh(), nn.Hardswish(), nn.Softplus(), nn.Dropout()])
def test_what_is_no_such_activation_is_not_named(module: nn.Module) -> None:
    assert found(nn.Sequential(linear(), module, nn.ReLU())) == {"2": "answers"}


class Then(nn.Module):
    """A linear layer, a module with a setting, and a function."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.linear = linear()
        self.relu = nn.ReLU()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.linear(self.relu(self.linear(x))))


class Box:
    def __init__(self, held: Tensor) -> None:
        self.held = held


OUT_OF_REACH: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "F.relu": (F.relu, "Then.relu()"),
    "relu6": (F.relu6, "Then.relu6()"),
    "aten": (torch.ops.aten.relu, "Then.relu()"),
    "clamp": (lambda x: x.clamp(min=0), "Then.clamp()"),
    "threshold": (lambda x: F.threshold(x, 0, 0), "Then._threshold()"),
    "maximum": (lambda x: torch.maximum(x, torch.zeros(())), "Then.maximum()"),
    "in a list": ([nn.ReLU()][0], "Then.relu()"),
    "custom": (lambda x: Injected.apply(x, 0.0), "Then"),
    "custom, then more": (lambda x: torch.tanh(Injected.apply(x, 0.0)), "Then"),
    "custom in a dict": (lambda x: {"a": [Injected.apply(x, 0.0)]}, "Then"),
    "custom in a tuple": (lambda x: (x, Injected.apply(x, 0.0)), "Then"),
    "custom in an object": (lambda x: Box(Injected.apply(x, 0.0)), "Then"),
}


@pytest.mark.parametrize("name", OUT_OF_REACH)
@pytest.mark.parametrize("frozen", [False, True])
def test_functions_are_named(name: str, frozen: bool) -> None:
    function, site = OUT_OF_REACH[name]
    model = Then(function)
    model.__dict__["function"] = model._modules.pop("function", function)  # a module here is no submodule
    model.requires_grad_(not frozen)
    assert found(model) == {"relu": "answers", site: "out of reach"}
    with pytest.raises(WiringError, match="no module whose subgradient could be set"):
        check_wiring(model, X)


def test_the_relu_of_a_recurrent_network_is_named() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()
            self.deep = nn.Sequential(nn.RNN(4, 4, nonlinearity="relu", batch_first=True))

        def forward(self, x: Tensor) -> Tensor:
            return self.deep(self.relu(x[None]))[0]

    assert found(Recurrent()) == {"relu": "answers", "deep.0.rnn_relu()": "out of reach"}


def test_an_encoder_layer_is_probed_in_eval_mode_too() -> None:
    x = torch.randn(2, 3, 4)
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    assert found(layer, x) == {"TransformerEncoderLayer.relu()": "out of reach"}
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, activation=nn.ReLU()).eval()
    assert found(layer, x) == {"activation": "answers"}


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.relu = linear(), nn.ReLU()

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        z = self.linear(x)
        return self.relu(input=z if more is None else z + more)


def test_ways_to_call() -> None:
    assert found(ByKeyword()) == {"relu": "answers"}
    assert found(ByKeyword(), (X, X)) == {"relu": "answers"}
    assert found(nn.ReLU()) == {"ReLU": "answers"}
    assert found(InjectedReLU, values=(0.5, -1.0)) == {"InjectedReLU": "wrong rule"}
    assert found(nn.ReLU6(), torch.tensor(1.0)) == {"ReLU6": "answers"}
    assert found(nn.Sequential(nn.Embedding(3, 4), nn.ReLU()), torch.tensor([0, 1])) == {"1": "answers"}
    shared = nn.ReLU()
    assert found(nn.Sequential(linear(), shared, linear(), shared)) == {"1": "answers"}
    model = nn.Sequential(linear(), nn.ReLU())
    with torch.inference_mode():
        assert found(model) == {"1": "answers"}
    with torch.no_grad():
        assert found(model) == {"1": "answers"}
    members = nn.Sequential(linear(), ReLU(torch.tensor([[0.0], [1.0], [2.0]])))
    assert found(members) == {"1": "answers"}


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x.detach())


class Demanding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert not bool((x == 9).any()), "a value that it does not take"
        return torch.tanh(x)


def test_awkward_modules_do_not_stop_the_probe() -> None:
    (first, second) = probe_wiring(nn.Sequential(linear(), Detached(), linear(), nn.ReLU()), X)
    assert (first.site, first.verdict, first.detail) == ("1", "out of reach", "no gradient passes through it")
    assert second.verdict == "answers"
    assert found(nn.Sequential(linear(), Demanding(), nn.ReLU())) == {"2": "answers"}


def test_nothing_is_left_behind() -> None:
    model = nn.Sequential(linear(), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout())
    model[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    probe_wiring(model, X)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model[0].weight.requires_grad
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch._C._len_torch_function_stack() == 0


class NoCopy(nn.Module):
    def __init__(self, s: float = 0.0) -> None:
        super().__init__()
        self.linear, self.relu = linear(), ReLU(s)
        self.cache = self.linear.weight * 2

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.linear(x))


def test_a_model_that_cannot_be_copied() -> None:
    with pytest.raises(ModelError, match=r"NoCopy\) cannot be copied: .*pass a function that builds the model"):
        probe_wiring(NoCopy(), X)
    assert found(NoCopy) == {"relu": "answers"}


SAME = nn.Sequential(linear(), ReLU())


@pytest.mark.parametrize(
    ("build", "inputs", "message"),
    [
        (nn.Sequential(linear(), nn.Tanh()), X, "Sequential: no activation was called on this input"),
        (nn.Sequential(linear(), nn.ReLU()), X[:0], "the mini-batch is empty.*pass at least one sample"),
        (lambda s: SAME, X, "the same model twice.*return a new model each time"),
        (lambda s: 3, X, "built as int; pass an nn.Module"),
        (
            lambda s: nn.Sequential(linear(), *([ReLU(s)] if s < 0.5 else [])),
            X,
            "'1' is a module of only some of the models.*must not depend",
        ),
        (nn.Sequential(linear(), nn.ReLU()).to("meta"), X.to("meta"), "meta device.*to_empty"),
    ],
    ids=["no activation", "empty", "same", "no module", "structure", "meta"],
)
def test_bad_models_are_refused(build: Any, inputs: Tensor, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        probe_wiring(build, inputs)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.5, 0.5), "two different"),
        ((0.0, 0.5), "other than 0"),
        ((0.5,), "two different"),
        ((0.5, float("nan")), "finite real number"),
        ((0.5, "1"), "finite real number"),
    ],
)
def test_bad_values_are_refused(values: Any, message: str) -> None:
    with pytest.raises(SubgradientError, match=message):
        probe_wiring(nn.Sequential(linear(), nn.ReLU()), X, values=values)


class NearlyRight(nn.Module):
    """The subgradient times the cotangent, 1 % too large."""

    def __init__(self, s: float) -> None:
        super().__init__()
        self.inner = s

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.relu(x)
        return torch.where(x == 0, (x - x.detach()) * self.inner * 1.01 + y.detach(), y)


def test_a_rule_that_is_wrong_by_one_per_cent_is_wrong() -> None:
    (wire,) = probe_wiring(lambda s: nn.Sequential(nn.Linear(3, 4), NearlyRight(s)), torch.randn(2, 3))
    assert wire.verdict == "wrong rule"


class Around(nn.Module):
    """A function of a ReLU that has a setting, in a module without children."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], subgradient: float) -> None:
        super().__init__()
        self.function, self.subgradient = function, subgradient

    def forward(self, x: Tensor) -> Tensor:
        subgradient = torch.tensor(self.subgradient, dtype=torch.float64)
        return self.function(x, functional.relu(x, subgradient))


@pytest.mark.parametrize(
    ("function", "verdict"),
    [
        (lambda x, relu: relu * 1.7139588, "answers"),
        (lambda x, relu: -2 * relu, "answers"),
        (lambda x, relu: (relu - relu.detach()) * 1.1 + relu.detach(), "wrong rule"),
        (lambda x, relu: x - relu, "out of reach"),
        (lambda x, relu: relu + 2 * x, "out of reach"),
    ],
)
def test_multiples_of_relu(function: Callable[[Tensor, Tensor], Tensor], verdict: str) -> None:
    def build(subgradient: float) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), Around(function, subgradient))

    (wire,) = probe_wiring(build, torch.randn(3, 4))
    assert wire.verdict == verdict
