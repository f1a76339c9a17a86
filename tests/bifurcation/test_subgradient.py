"""Setting the subgradient of any model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from relucheck.activations.modules import ChosenSubgradient, LeakyReLU, ReLU
from relucheck.activations.rules import SubgradientError
from relucheck.bifurcation.subgradient import Reached, set_subgradient
from relucheck.errors import ModelError


def mixed() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Sequential(nn.ReLU6(), nn.LeakyReLU(0.25)), ReLU(0.5), LeakyReLU())


def check_reaches_all(setter: Callable[[nn.Module, float], Any], model: nn.Module) -> None:
    """After setting, the gradient of every activation at 0 is the subgradient times the cotangent."""
    setter(model, 0.75)
    for name, module in model.named_modules():
        if isinstance(module, nn.ReLU | nn.ReLU6 | nn.LeakyReLU):
            x = torch.zeros(2, requires_grad=True)
            (gradient,) = torch.autograd.grad(module(x + 0), x, torch.tensor([3.0, -5.0]))
            assert gradient.tolist() == [2.25, -3.75], name


def test_every_activation_is_reached() -> None:
    check_reaches_all(set_subgradient, mixed())
    check_reaches_all(set_subgradient, torchvision.models.mobilenet_v3_small(num_classes=3))


def test_the_check_fails_when_one_is_missed() -> None:
    with pytest.raises(AssertionError, match=r"2\.0"):
        check_reaches_all(lambda model, value: set_subgradient(model[1], value), mixed())


def test_names_are_reported() -> None:
    model = mixed()
    reached = set_subgradient(model, 0.5)
    assert reached == Reached(("1", "2.0", "2.1"), ("3", "4"))
    assert len(reached) == 5
    assert set_subgradient(model, 0.5) == Reached((), ("1", "2.0", "2.1", "3", "4"))
    assert set_subgradient(nn.ReLU(), 1.0) == Reached(("",), ())


def test_plain_modules_change_in_place() -> None:
    relu = nn.ReLU(inplace=True)
    elsewhere = [relu]
    calls: list[int] = []
    relu.register_forward_hook(lambda *args: calls.append(1))
    model = nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu).eval()
    state = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 4)
    before = model(x)
    reached = set_subgradient(model, 0.5)
    assert reached.replaced == ("1",), "shared modules count once"
    assert model[1] is model[3] is elsewhere[0] is relu
    assert isinstance(relu, ReLU)
    assert relu.subgradient == 0.5
    assert relu.inplace
    assert not relu.training
    assert torch.equal(model(x), before)
    assert calls == [1] * 4
    assert state.keys() == model.state_dict().keys()
    assert copy.deepcopy(model)[1].subgradient == 0.5


def test_pairs_none_and_members() -> None:
    model = mixed()
    set_subgradient(model, (0.25, 0.75))
    assert (model[1].subgradient, model[2][0].alpha, model[2][0].beta, model[2][1].subgradient) == (0.25, 0.25, 0.75, 0.25)
    set_subgradient(model, (None, 1.0))
    assert (model[1].subgradient, model[2][0].alpha, model[2][0].beta, model[2][1].subgradient) == (0.0, 0.0, 1.0, None)
    assert model[2][1].negative_slope == 0.25
    set_subgradient(model, None)
    assert (model[2][0].alpha, model[2][0].beta, model[4].subgradient) == (0.0, 0.0, None)
    members = torch.tensor([[0.0], [1.0]])
    set_subgradient(model, members)
    assert all(torch.equal(value, members) for value in (model[1].subgradient, model[2][0].beta, model[4].subgradient))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "finite real number"),
        (float("inf"), "finite real number"),
        ("half", "finite real number"),
        ([0.5, 0.5], "finite real number"),
        (True, "finite real number"),
        ((0.5, float("nan")), "finite real number"),
        ((0.5,), "pass one value or a pair"),
        ((0.0, 0.5, 1.0), "pass one value or a pair"),
    ],
    ids=str,
)
def test_a_wrong_value_changes_nothing(value: Any, message: str) -> None:
    model = mixed()
    with pytest.raises(SubgradientError, match=message):
        set_subgradient(model, value)
    assert type(model[1]) is nn.ReLU
    assert model[3].subgradient == 0.5


class OtherReLU(nn.ReLU):
    """Somebody's own: nothing says that it would take a setting."""


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.Sequential(nn.Tanh()), nn.Hardtanh(0, 6), OtherReLU()], ids=repr)
def test_a_model_without_an_activation_is_refused(model: nn.Module) -> None:
    with pytest.raises(ModelError) as error:
        set_subgradient(model, 0.5)
    fix = "'(the model itself)' are subclasses" if isinstance(model, OtherReLU) else "relucheck.compare"
    for part in (type(model).__name__, "nn.ReLU6", "nothing to set", fix):
        assert part in str(error.value)


def test_a_meta_model_keeps_values() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    set_subgradient(model, 0.5)
    assert model[1].subgradient == 0.5
    assert isinstance(model[1], ChosenSubgradient)
    assert isinstance(model(torch.empty(1, 2, device="meta")), Tensor)


def test_subclasses_are_left_out_and_named() -> None:
    class Shifted(nn.ReLU):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input - 1)

    reached = set_subgradient(nn.Sequential(nn.ReLU(), nn.Sequential(Shifted())), 0.5)
    assert (reached.replaced, reached.left_out) == (("0",), ("1.0",))


SCRIPTING = pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:Warning")


@SCRIPTING
def test_scripted_activations_are_left_out_and_named() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Tanh()))
    traced = torch.jit.trace(nn.Sequential(nn.LeakyReLU()), torch.ones(2, 4))
    reached = set_subgradient(nn.Sequential(nn.ReLU(), scripted, traced), 0.5)
    assert (reached.replaced, reached.left_out) == (("0",), ("1.1", "2.0"))
    with pytest.raises(ModelError, match=r"'1' are subclasses or scripted.*script a model after its setting"):
        set_subgradient(scripted, 0.5)


@SCRIPTING
@pytest.mark.parametrize("compiled", [torch.jit.script, lambda model: torch.jit.trace(model, torch.ones(2, 4))])
def test_a_model_that_is_scripted_after_its_setting_keeps_it(compiled: Callable[[nn.Module], nn.Module]) -> None:
    model = mixed()
    set_subgradient(model, (0.5, 0.25))
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    x = torch.ones(2, 4)
    expected = torch.autograd.grad(model(x).sum(), model[0].bias)[0]
    assert expected.tolist() == [2 * 0.5**5] * 4
    program = compiled(model)
    assert torch.equal(program(x), model(x))
    for _ in range(3):  # scripted programs are compiled anew after a few runs
        assert torch.equal(torch.autograd.grad(program(x).sum(), dict(program.named_parameters())["0.bias"])[0], expected)
