"""Every spelling of the three activations is served and recorded; the rest is named; nothing stays switched on."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules._functions import BackwardHookFunction
from torch.utils.checkpoint import checkpoint

from relucheck.activations.modules import LeakyReLU, ReLU, ReLU6
from relucheck.activations.rules import RELU, SubgradientError, as_model_subgradient
from relucheck.bifurcation.compare import backprop, compare
from relucheck.bifurcation.forward import nodes
from relucheck.bifurcation.forward.arguments import tensors_in
from relucheck.bifurcation.interception import Interception
from relucheck.bifurcation.wiring import probe_wiring
from relucheck.errors import ModelError
from relucheck.training.model import Kinked, Switch

CPU = torch.device("cpu")
X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
DEFAULT = F.relu


@pytest.fixture(autouse=True)
def _mode_is_off_afterwards() -> Iterator[None]:
    yield
    assert torch._C._len_torch_function_stack() == 0


class Calls(nn.Module):
    """A layer whose pre-activations all equal one number, and a function of them."""

    def __init__(self, function: Callable[..., Tensor], at: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, at)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x))


def captured(x: Tensor, activation: Callable[[Tensor], Tensor] = DEFAULT) -> Tensor:
    return activation(x)


SPELLINGS: dict[str, tuple[Callable[..., Tensor], str]] = {
    "F.relu": (F.relu, "ReLU"),
    "F.relu in place": (lambda x: F.relu(x, inplace=True), "ReLU"),
    "F.relu_": (F.relu_, "ReLU"),
    "torch.relu": (torch.relu, "ReLU"),
    "torch.relu_": (torch.relu_, "ReLU"),
    "Tensor.relu": (lambda x: x.relu(), "ReLU"),
    "Tensor.relu_": (lambda x: x.relu_(), "ReLU"),
    "a default argument": (captured, "ReLU"),
    "nn.ReLU": (nn.ReLU(), "ReLU"),
    "nn.ReLU in place": (nn.ReLU(inplace=True), "ReLU"),
    "own": (ReLU(0.125), "ReLU"),
    "own in place": (ReLU(0.125, inplace=True), "ReLU"),
    "own members": (ReLU(torch.tensor([[1.0], [2.0], [3.0]])), "ReLU"),
    "F.relu6": (F.relu6, "ReLU6"),
    "F.relu6 in place": (lambda x: F.relu6(x, inplace=True), "ReLU6"),
    "nn.ReLU6": (nn.ReLU6(), "ReLU6"),
    "own ReLU6": (ReLU6(0.125, 0.125, inplace=True), "ReLU6"),
    "hardtanh": (lambda x: F.hardtanh(x, 0, 6), "ReLU6"),
    "hardtanh by keywords": (lambda x: F.hardtanh(x, min_val=0.0, max_val=6.0), "ReLU6"),
    "hardtanh_": (lambda x: F.hardtanh_(x, 0.0, 6.0), "ReLU6"),
    "nn.Hardtanh": (nn.Hardtanh(0, 6), "ReLU6"),
    "F.leaky_relu": (lambda x: F.leaky_relu(x, 0.25), "LeakyReLU"),
    "F.leaky_relu in place": (lambda x: F.leaky_relu(x, negative_slope=0.25, inplace=True), "LeakyReLU"),
    "F.leaky_relu_": (lambda x: F.leaky_relu_(x, 0.25), "LeakyReLU"),
    "nn.LeakyReLU": (nn.LeakyReLU(0.25), "LeakyReLU"),
    "own LeakyReLU": (LeakyReLU(0.25), "LeakyReLU"),
    "in a vmap": (lambda x: torch.vmap(F.relu)(x), "ReLU"),
}


def check_served(function: Callable[..., Tensor], rule: str) -> None:
    """Hits are counted and their gradient is the chosen subgradient times the cotangent, for each backward."""
    for at, settings in ((0.0, (-0.5, 1.0)), (6.0, ((0.0, -0.5), (0.0, 1.0)))):
        if at and rule != "ReLU6":
            continue
        model = Calls(function, at)
        cotangent = torch.randn(3, 4)
        run = backprop(model, X, subgradients=settings, cotangent=cotangent)
        assert run.hit_count == 12, "hits are not recorded"
        (call,) = run.calls
        assert call.rule.name == rule
        assert call.differentiated
        assert [len(positions) for positions in call.hits] == [12 if kink == at else 0 for kink in call.rule.kinks]
        assert call.shape == (3, 4)
        assert not run.out_of_reach
        for s, gradients in zip((-0.5, 1.0), run.gradients, strict=True):
            torch.testing.assert_close(gradients["linear.bias"], s * cotangent.sum(0))


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_served(name: str) -> None:
    check_served(*SPELLINGS[name])


@pytest.mark.parametrize("function", [torch.ops.aten.relu, lambda x: x.clamp(min=0)])
def test_the_check_fails_a_spelling_that_is_not(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(AssertionError, match="hits are not recorded"):
        check_served(function, "ReLU")


def test_slopes_are_kept_and_none_is_torchs_own() -> None:
    model = Calls(lambda x: F.leaky_relu(x, 0.25), -2.0)
    run = backprop(model, X, subgradients=(None,), cotangent=torch.ones(3, 4))
    assert torch.equal(run.output, torch.full((3, 4), -0.5))
    model = Calls(lambda x: F.leaky_relu(x, 0.25))
    run = backprop(model, X, subgradients=(None, 0.5), cotangent=torch.ones(3, 4))
    assert [gradients["linear.bias"].tolist() for gradients in run.gradients] == [[0.75] * 4, [1.5] * 4]


class Custom(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return x * 1

    @staticmethod
    def backward(ctx, cotangent):  # type: ignore[no-untyped-def]
        return cotangent


OUT_OF_REACH: dict[str, tuple[Callable[..., Tensor], str]] = {
    "clamp": (lambda x: x.clamp(min=0), "Calls.clamp() (ClampBackward1)"),
    "maximum": (lambda x: torch.maximum(x, torch.zeros(())), "Calls.maximum() (MaximumBackward0)"),
    "threshold": (nn.Threshold(0, 0), "function._threshold() (ThresholdBackward0)"),
    "abs": (torch.abs, "Calls.abs() (AbsBackward0)"),
    "aten": (torch.ops.aten.relu, "Calls.relu() (ReluBackward0)"),
    "prelu": (nn.PReLU(), "function.prelu() (PreluKernelBackward0)"),
    "hardtanh": (nn.Hardtanh(), "function.hardtanh() (HardtanhBackward0)"),
    "custom": (Custom.apply, "Calls (CustomBackward)"),
    "custom in a module": (nn.Sequential(Calls(lambda x: Custom.apply(x)), nn.Tanh()), "function.0 (CustomBackward)"),
    "max pool": (lambda x: F.max_pool2d(x[None], 2), "Calls.max_pool2d() (MaxPool2DWithIndicesBackward0)"),
    "max pool 1d": (nn.MaxPool1d(2), "function.max_pool1d() (MaxPool2DWithIndicesBackward0)"),
    "adaptive": (nn.AdaptiveMaxPool1d(2), "function.adaptive_max_pool1d() (AdaptiveMaxPool2DBackward0)"),
    "fractional": (
        lambda x: F.fractional_max_pool2d(x[None], 2, output_size=1),
        "Calls.fractional_max_pool2d() (FractionalMaxPool2DBackward0)",
    ),
    "max": (lambda x: x.max(1)[0], "Calls.max() (MaxBackward0)"),
}


@pytest.mark.parametrize("name", OUT_OF_REACH)
def test_what_is_out_of_reach_is_named(name: str) -> None:
    function, expected = OUT_OF_REACH[name]
    run = backprop(Calls(function), X)
    assert [str(item) for item in run.out_of_reach] == [expected]
    assert run.out_of_reach[0].custom == ("custom" in name)
    with pytest.raises(ModelError, match=re.escape(expected)):
        compare(Calls(function), X)  # and nothing but this


#: For each node with a kink or a tie, a function of a [3, 4] tensor that makes it.
NODES: dict[str, Callable[[Tensor], Any]] = {
    "Relu": torch.ops.aten.relu,
    "Threshold": lambda x: F.threshold(x, 1, 2),
    "Hardtanh": F.hardtanh,
    "LeakyRelu": torch.ops.aten.leaky_relu,
    "PreluKernel": lambda x: F.prelu(x, torch.ones(1)),
    "RreluWithNoise": lambda x: F.rrelu(x, training=True),
    "Elu": F.elu,
    "Celu": F.celu,
    "Hardswish": F.hardswish,
    "Hardsigmoid": F.hardsigmoid,
    "Softshrink": F.softshrink,
    "Hardshrink": F.hardshrink,
    "Abs": torch.abs,
    "Clamp": lambda x: x.clamp(-1, 1),
    "ClampMin": lambda x: x.clamp_min(0),
    "ClampMax": lambda x: x.clamp_max(0),
    "Maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "Minimum": lambda x: torch.minimum(x, torch.zeros_like(x)),
    "Fmax": lambda x: torch.fmax(x, torch.zeros_like(x)),
    "Fmin": lambda x: torch.fmin(x, torch.zeros_like(x)),
    "Max": torch.max,
    "Min": torch.min,
    "Amax": torch.amax,
    "Amin": torch.amin,
    "Aminmax": lambda x: x.aminmax()[0],
    "Topk": lambda x: x.topk(2)[0],
    "Sort": lambda x: x.sort()[0],
    "Median": torch.median,
    "MaxPool2DWithIndices": lambda x: F.max_pool2d(x[None], 2),
    "MaxPool3DWithIndices": lambda x: F.max_pool3d(x[None, None], (1, 2, 2)),
    "AdaptiveMaxPool2D": lambda x: F.adaptive_max_pool2d(x[None], 2),
    "AdaptiveMaxPool3D": lambda x: F.adaptive_max_pool3d(x[None, None], (1, 2, 2)),
    "FractionalMaxPool2D": lambda x: F.fractional_max_pool2d(x[None], 2, output_size=1),
    "Copysign": lambda x: torch.copysign(x, torch.ones(())),
    "Mode": lambda x: x.mode()[0],
    "Nanmedian": torch.nanmedian,
    "Kthvalue": lambda x: x.kthvalue(2)[0],
    "Cummax": lambda x: x.cummax(1)[0],
    "Cummin": lambda x: x.cummin(1)[0],
    "LinalgVectorNorm": lambda x: x.norm(dim=1),
    "Norm": lambda x: torch._C._VariableFunctions.norm(x, 2),
    "Dist": lambda x: torch.dist(x, torch.zeros_like(x)),
    "Cdist": lambda x: torch.cdist(x, torch.zeros_like(x)),
    "Pdist": F.pdist,
    "Renorm": lambda x: x.renorm(2, 0, 1.0),
    "Std": lambda x: x.std(1),
    "StdMean": lambda x: torch.std_mean(x, 1)[0],
    "MultiMarginLoss": lambda x: F.multi_margin_loss(x, torch.tensor([0, 1, 2])),
    "MultilabelMarginLoss": lambda x: F.multilabel_margin_loss(x[0], torch.tensor([0, 1, -1, -1])),
    "EmbeddingBag": lambda x: F.embedding_bag(torch.tensor([[0, 1]]), x, mode="max"),
    "ScatterReduce": lambda x: torch.zeros(3, 4).scatter_reduce(0, torch.zeros(3, 4, dtype=torch.int64), x, "amax"),
    "IndexReduce": lambda x: torch.zeros(3, 4).index_reduce(0, torch.tensor([0, 1, 1]), x, "amin"),
    "SegmentReduce": lambda x: torch.segment_reduce(x, "max", lengths=torch.tensor([1, 2])),
    "FractionalMaxPool3D": lambda x: F.fractional_max_pool3d(x.repeat(1, 1, 3, 1, 1), 2, output_size=1),
}


def test_the_list_of_nodes_is_whole() -> None:
    assert {f"{name}Backward" for name in NODES} == nodes._KINKED | nodes._KINKED_IF.keys()


@pytest.mark.filterwarnings("ignore:index_reduce.. is in beta:UserWarning")
@pytest.mark.parametrize("name", NODES)
def test_every_node_with_a_kink_is_known(name: str) -> None:
    if name == "Aminmax" and torch.__version__ < "2.12":
        pytest.skip("torch 2.11 does not differentiate aminmax")
    found = [item.node for item in backprop(Calls(NODES[name]), X, loss=lambda y: y.sum()).out_of_reach]
    assert any(node.rstrip("0123456789") == f"{name}Backward" for node in found), found


#: Other modes of functions that have ties in one mode only.
WITHOUT_TIES: dict[str, Callable[[Tensor], Any]] = {
    "embedding bag": lambda x: F.embedding_bag(torch.tensor([[0, 1]]), x, mode="sum"),
    "scatter": lambda x: torch.zeros(3, 4).scatter_reduce(0, torch.zeros(3, 4, dtype=torch.int64), x, "sum"),
    "segments": lambda x: torch.segment_reduce(x, "mean", lengths=torch.tensor([1, 2])),
    "smooth loss": lambda x: F.smooth_l1_loss(x, torch.zeros_like(x)),
    "a backward hook": lambda x: BackwardHookFunction.apply(x)[0],
}


@pytest.mark.parametrize("name", WITHOUT_TIES)
def test_a_function_without_a_tie_is_not_named(name: str) -> None:
    assert backprop(Calls(WITHOUT_TIES[name]), X, loss=lambda y: y.sum()).out_of_reach == ()


def test_a_smooth_model_has_nothing_out_of_reach() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.LayerNorm(4), nn.SiLU(), nn.Softmax(1))
    run = backprop(model, X)
    assert (run.out_of_reach, run.calls) == ((), ())


class Sites(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.inner = nn.ModuleList([nn.ReLU()])
        self.plain = [nn.ReLU()]
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.relu(x * self.weight))
        x = F.relu(torch.relu(self.plain[0](self.inner[0](x))))
        with torch.no_grad():
            F.leaky_relu(x)
        return x


def test_sites_and_what_was_differentiated() -> None:
    comparison = compare(Sites(), X, loss=lambda y: F.relu(y - 1).sum())
    assert [(call.site, call.module, call.differentiated) for call in comparison.calls] == [
        ("relu", "relu", True),
        ("relu#2", "relu", True),
        ("inner.0", "inner.0", True),
        ("Sites.relu()", "", True),
        ("Sites.relu()#2", "", True),
        ("Sites.relu()#3", "", True),
        ("Sites.leaky_relu()", "", False),
        ("Sites.relu()#4", "", True),
    ]


def test_a_lone_activation_and_a_loss_that_calls_the_model() -> None:
    relu = nn.ReLU()
    with Interception(relu, CPU) as interception:
        relu(X)
    assert [call.site for call in interception.calls] == ["ReLU"]
    model = Calls(nn.ReLU())
    comparison = compare(model, X, loss=lambda y: model(y).sum())
    assert [(call.site, call.hit_count) for call in comparison.calls] == [("function", 12), ("function#2", 12)]


def test_recording_can_stop_and_integers_pass() -> None:
    model = nn.ReLU()
    with Interception(model, CPU) as interception:
        interception.recording = False
        model(X)
        assert interception.calls == []
        interception.recording = True
        assert model(torch.tensor([-1, 2])).tolist() == [0, 2]
    assert interception.calls == []
    model(X)
    assert interception.calls == []


def hooks(model: nn.Module) -> list[Any]:
    return [
        hook
        for module in model.modules()
        for kept in (module._forward_hooks, module._forward_pre_hooks, module._forward_hooks_always_called)
        for hook in kept
    ]


class Raising(nn.Module):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.inner = Calls(nn.ReLU())
        self.error: BaseException | None = error

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        if self.error is not None:
            raise self.error
        return x


@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt("boom")], ids=lambda error: type(error).__name__)
def test_nothing_is_left_after_an_error(error: BaseException) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Raising(error)))
    with pytest.raises(type(error), match="boom"):
        compare(model, X)
    assert torch._C._len_torch_function_stack() == 0
    assert hooks(model) == []
    model[1][0].error = None
    assert compare(model, X).hit_count == 12


def test_nothing_is_left_after_an_error_of_a_hook_or_a_loss() -> None:
    def fail(*args: Any) -> Any:
        raise ValueError("boom")

    for register in ("register_forward_pre_hook", "register_forward_hook"):
        model = Calls(nn.Sequential(nn.ReLU()))
        handle = getattr(model.function[0], register)(fail)  # type: ignore[index]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ValueError, match="boom"):
                compare(model, X)
        handle.remove()
        assert hooks(model) == []
        assert torch._C._len_torch_function_stack() == 0
        assert compare(model, X).hit_count == 12
    with pytest.raises(ValueError, match="boom"):
        compare(model, X, loss=fail)
    assert hooks(model) == []


def test_a_comparison_inside_of_another() -> None:
    inner = nn.Sequential(Calls(nn.ReLU()), nn.Linear(4, 2))
    expected = compare(inner, X)
    assert expected.outcome == "bifurcate"
    seen = []

    def both(z: Tensor) -> Tensor:
        seen.append(compare(inner, X))
        return F.relu(z)

    outer = compare(Calls(both, 1.0), X)
    assert (seen[0].outcome, seen[0].differences) == ("bifurcate", expected.differences)
    assert (outer.outcome, outer.activation_count) == ("agree", 12)


class Checkpointed(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = Calls(nn.Identity())
        self.function = function
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(lambda x: self.function(self.inner(x)), x, use_reentrant=False))


@pytest.mark.parametrize(
    "function",
    [nn.ReLU(), F.relu, nn.Sequential(nn.ReLU(), nn.Linear(4, 4), nn.ReLU6())],
    ids=["module", "function", "sequence"],
)
def test_checkpointed_parts_are_recomputed_alike(function: Callable[[Tensor], Tensor]) -> None:
    model = Checkpointed(function)
    kept = Checkpointed(function)
    kept.load_state_dict(model.state_dict())
    kept.forward = lambda x: kept.head(kept.function(kept.inner(x)))  # type: ignore[method-assign]
    one, other = compare(model, X), compare(kept, X)
    assert one.outcome == other.outcome == "bifurcate"
    assert one.differences == other.differences
    assert one.hit_count == other.hit_count


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
# torch 2.11 makes an instance of its own base class when it traces a custom function
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("activation", [F.relu, ReLU(1.0)], ids=["F.relu", "relucheck.ReLU"])
def test_a_compiled_function_inside_a_model_is_named(activation: Callable[[Tensor], Tensor]) -> None:
    """It keeps its own subgradient, and its hits cannot be counted: never a silent agree."""
    if activation is not F.relu and torch.__version__ < (2, 11):
        pytest.skip(f"torch {torch.__version__} names relucheck's own node in place of the compiled one (seen in 2.4.1)")
    torch._dynamo.reset()
    model = Calls(torch.compile(lambda x: activation(x), backend="aot_eager"))
    with pytest.raises(ModelError, match=r"no ReLU.* was called .*out of reach: Calls .*\(CompiledFunctionBackward\)"):
        compare(model, X, cotangent=torch.ones(3, 4))
    both = nn.Sequential(Calls(F.relu), model)
    comparison = compare(both, X, cotangent=torch.ones(3, 4))
    assert [item.node for item in comparison.out_of_reach] == ["CompiledFunctionBackward"]
    torch._dynamo.reset()


@pytest.mark.parametrize("at", [0.0, 1.0], ids=["hits", "no hits"])
def test_an_activation_of_a_training_member_is_named(at: float) -> None:
    """Its subgradient is its switch's, which no interception changes."""
    kinked = Kinked(RELU, Switch(((0.5, 0.5), "chain")))
    comparison = compare(nn.Sequential(Calls(F.relu), Calls(kinked, at)), X, cotangent=torch.ones(3, 4))
    assert [(item.site, item.node) for item in comparison.out_of_reach] == [("1.function", "ReluBackward0")]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*is deprecated:DeprecationWarning")
def test_compiled_scripted_and_meta_models_are_refused() -> None:
    compiled = Calls(nn.ReLU())
    compiled.compile(backend="eager")
    inside = nn.Sequential(nn.Linear(4, 4), torch.compile(nn.ReLU(), backend="eager"))
    scripted = nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.ReLU()))
    itself = r"\(the model itself\)"
    for model, where, kind in (
        (torch.compile(Calls(nn.ReLU()), backend="eager"), itself, "compiled"),
        (compiled, itself, "compiled"),
        (inside, "1", "compiled"),
        (scripted, "1", "scripted"),
        (torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU())), itself, "scripted"),
    ):
        fix = "pass the eager model" if kind == "compiled" else "pass the model from which it was scripted"
        for measure in (compare, *([probe_wiring] if kind == "scripted" else [])):
            with pytest.raises(ModelError, match=rf"module '{where}' is {kind}.*{fix}"):
                measure(model, X)
    with pytest.raises(ModelError, match=r"Calls is on the meta device.*to_empty"):
        compare(Calls(nn.ReLU()).to("meta"), X.to("meta"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((0.0,), "a tuple holds two numbers.*pass one number or a pair"),
        ((0.0, 0.5, 1.0), "a tuple holds two numbers"),
        ((None, 0.5), "finite real number"),
        (float("nan"), "finite real number"),
        ("1", "finite real number"),
        (True, "finite real number"),
        (torch.tensor([0.0, 1.0]), "not one per member; pass a float"),
    ],
)
def test_settings_are_checked(value: Any, message: str) -> None:
    with pytest.raises(SubgradientError, match=message):
        as_model_subgradient(value)
    with pytest.raises(SubgradientError, match=message):
        backprop(Calls(nn.ReLU()), X, subgradients=(0.0, value))


def test_settings() -> None:
    assert as_model_subgradient(None) is None
    assert as_model_subgradient((1, torch.tensor(0.5))) == (1.0, 0.5)
    assert as_model_subgradient(1) == 1.0


def test_tensors_in_anything_that_a_model_returns() -> None:
    class Held:
        def __init__(self) -> None:
            self.tensor = X

    assert [t is X for t in tensors_in({"a": [X, (X, None)], "b": Held(), "c": 3, "d": "text"})] == [True] * 3


def test_tensors_in_an_object_that_leads_back_to_itself() -> None:
    class Output:
        pass

    output, tensor = Output(), torch.ones(2)
    output.logits, output.owner, output.parts = tensor, output, [output, {"again": tensor}]  # type: ignore[attr-defined]
    assert list(tensors_in(output)) == [tensor, tensor]
