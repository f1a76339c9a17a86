"""The modules as users use them: hooks, checkpoints, copies, casts, devices and what they show of themselves."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import relucheck
from relucheck.activations import modules as activations_modules
from relucheck.activations.kinks import Kink
from relucheck.activations.modules import LeakyReLU, ReLU, ReLU6
from relucheck.numerics.bits import same_bits
from tests.helpers.activation_cases import Case, at_each, cotangents, every_case, expected, gradient

# --------------------------------------------------------------------------------------------- what users do with modules


@every_case
def test_no_graph_without_need(case: Case) -> None:
    module, x = case.ours(at_each(case, 0.7)), torch.tensor([0.0, 1.0, 6.0], requires_grad=True)
    with torch.no_grad():
        assert module(x).grad_fn is None
    with torch.inference_mode():
        assert module(x).is_inference()
    assert module(x.detach()).grad_fn is None


@every_case
def test_parameter_input(case: Case) -> None:
    parameter = nn.Parameter(torch.tensor([case.kinks[0], case.kinks[-1], 2.5]))
    s = at_each(case, 0.7)
    y = case.ours(s)(parameter)
    assert type(y) is Tensor
    g = torch.tensor([2.0, 3.0, 4.0])
    y.backward(g)
    assert same_bits(parameter.grad, expected(case, parameter.detach(), g, s))


@pytest.mark.parametrize("module", [ReLU(0.5), ReLU6(0.5, 0.5)], ids=["ReLU", "ReLU6"])
def test_integer_input_as_torch(module: nn.Module) -> None:
    x = torch.tensor([-1, 0, 1, 7])
    native = nn.ReLU6() if isinstance(module, ReLU6) else nn.ReLU()
    assert torch.equal(module(x), native(x))
    assert module(x).dtype == native(x).dtype


@every_case
def test_hooks(case: Case) -> None:
    module, seen = case.ours(at_each(case, 0.5)), []
    module.register_full_backward_hook(lambda m, gin, gout: seen.append((gin[0].clone(), gout[0].clone())))
    x = torch.full((3,), case.kinks[0], requires_grad=True)
    z = x * 1
    z.register_hook(lambda g: g * 10)
    module(z).backward(torch.tensor([1.0, 2.0, 4.0]))
    assert x.grad.tolist() == [5.0, 10.0, 20.0]
    assert seen[0][0].tolist() == [0.5, 1.0, 2.0]
    assert seen[0][1].tolist() == [1.0, 2.0, 4.0]


@every_case
@pytest.mark.parametrize("size", [3, 512])
def test_checkpoint_and_saved_tensor_hooks(case: Case, size: int) -> None:
    x = torch.full((size,), 2.5)
    x[1] = case.kinks[0]
    g, s, module = cotangents(x), at_each(case, 0.7), case.ours(at_each(case, 0.1))
    leaf = x.clone().requires_grad_()
    y = checkpoint(module, leaf, use_reentrant=False)
    for name, value in zip(module.rule.names, s, strict=True):
        setattr(module, name, value)
    assert same_bits(torch.autograd.grad(y, leaf, g)[0], expected(case, x, g, s))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy(force=True), torch.from_numpy):
        y = module(leaf)
    assert same_bits(torch.autograd.grad(y, leaf, g)[0], expected(case, x, g, s))


def test_tensor_subclasses_and_modes() -> None:
    class Mine(Tensor):
        pass

    for inplace in (False, True):
        x = torch.zeros(3).as_subclass(Mine).requires_grad_()
        y = ReLU(0.5, inplace=inplace)(x * 1)
        assert type(y) is Mine
        y.sum().backward()
        assert x.grad.as_subclass(Tensor).tolist() == [0.5] * 3
    x = torch.zeros(3, requires_grad=True)
    with FlopCounterMode(display=False):  # a dispatch mode
        y = ReLU(0.5)(x)
    y.sum().backward()
    assert x.grad.tolist() == [0.5] * 3


def test_fx_keeps_the_subgradient() -> None:
    net = nn.Sequential(nn.Linear(2, 2), ReLU(0.5), LeakyReLU(0.1, 0.25), ReLU6(0.5, 0.25))
    nn.init.zeros_(net[0].bias)
    traced = torch.fx.symbolic_trace(net)
    traced(torch.zeros(1, 2)).sum().backward()
    assert net[0].bias.grad.tolist() == [0.5 * 0.25 * 0.5] * 2


# --------------------------------------------------------------------------------------------------------------- state


@every_case
def test_drop_in(case: Case) -> None:
    native, ours = case.native(), case.ours(at_each(case, 0.7))
    assert isinstance(ours, type(native))
    assert ours.inplace is False
    assert not ours.state_dict()
    assert not list(ours.parameters())
    nets = [nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), m) for m in (native, ours)]
    assert list(nets[0].state_dict()) == list(nets[1].state_dict())
    nets[1].load_state_dict(nets[0].state_dict(), strict=True)
    nets[0].load_state_dict(nets[1].state_dict(), strict=True)
    assert [getattr(ours, name) for name in ours.rule.names] == list(at_each(case, 0.7))


@every_case
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("members", [False, True])
def test_copies_are_independent(case: Case, how: str, members: bool) -> None:
    s = [torch.tensor([0.25, 0.75])] * len(case.kinks) if members else at_each(case, 0.7)
    module = case.ours(s)
    if how == "deepcopy":
        other = copy.deepcopy(module)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(module))
    else:
        stream = io.BytesIO()
        torch.save(module, stream)
        stream.seek(0)
        other = torch.load(stream, weights_only=False)
    assert repr(other) == repr(module)
    for name in module.rule.names:
        setattr(other, name, -1.0)
    assert repr(module) == repr(case.ours(s))
    x, g = torch.full((2,), case.kinks[0]), torch.tensor([2.0, 3.0])
    assert gradient(other, x, g).tolist() == [-2.0, -3.0]


@every_case
@pytest.mark.parametrize(
    "move",
    [lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.float(), lambda m: m.double(), lambda m: m.cpu(),
     lambda m: m.to("cpu", torch.float16), lambda m: m.type(torch.float32)],
)  # fmt: skip
def test_casting_a_model_does_not_round_the_subgradient(case: Case, move: Callable[[nn.Module], nn.Module]) -> None:
    net = nn.Sequential(nn.Linear(2, 2), case.ours(at_each(case, 0.1)))
    module = net[1]
    assert move(net)[1] is module
    assert [getattr(module, name) for name in module.rule.names] == list(at_each(case, 0.1))
    assert all(getattr(module, f"{name}_tensor").dtype == torch.float64 for name in module.rule.names)


def test_meta_device() -> None:
    net = nn.Sequential(nn.Linear(2, 2), ReLU(0.3), LeakyReLU(0.1), ReLU6(0.1, 0.2)).to("meta")
    x = torch.zeros(1, 2, device="meta", requires_grad=True)
    net(x).sum().backward()
    assert x.grad.device.type == "meta"
    net = net.to_empty(device="cpu")
    assert (net[1].subgradient, net[2].subgradient, net[3].alpha, net[3].beta) == (0.3, None, 0.1, 0.2)


def test_default_device() -> None:
    with torch.device("meta"):
        modules = [ReLU(0.3), LeakyReLU(0.1), LeakyReLU(0.1, 0.3), ReLU6(0.3, 0.2)]
        modules[0].subgradient = 0.5
    assert (modules[0].subgradient, modules[1].subgradient) == (0.5, None)
    x = torch.tensor([0.0, 6.0, 1.0], requires_grad=True)
    with torch.device("meta"):
        (got,) = torch.autograd.grad(modules[3](x).sum(), x)
    assert got.tolist() == [torch.tensor(0.3).item(), torch.tensor(0.2).item(), 1.0]


def test_inference_mode_leaves_nothing_behind() -> None:
    with torch.inference_mode():
        module, leaky = ReLU(0.5), LeakyReLU(0.1)
        module.subgradient = torch.tensor([0.25, 0.5])
    assert not module.subgradient_tensor.is_inference()
    assert not leaky.subgradient_tensor.is_inference()
    x = torch.zeros(2)
    assert torch.func.grad(lambda t: module(t).sum())(x).tolist() == [0.25, 0.5]
    module.subgradient = 0.75
    assert gradient(module, x, torch.ones(2)).tolist() == [0.75, 0.75]


def test_repr_shows_what_is_in_force() -> None:
    assert repr(ReLU(0.5)) == "ReLU(subgradient=0.5)"
    assert repr(ReLU(inplace=True)) == "ReLU(subgradient=0.0, inplace=True)"
    assert repr(ReLU6(0.5, -1)) == "ReLU6(alpha=0.5, beta=-1.0)"
    assert repr(ReLU6(inplace=True)) == "ReLU6(alpha=0.0, beta=0.0, inplace=True)"
    assert repr(LeakyReLU()) == "LeakyReLU(subgradient=None, negative_slope=0.01)"
    assert repr(LeakyReLU(0.2, 1, inplace=True)) == "LeakyReLU(subgradient=1.0, negative_slope=0.2, inplace=True)"


def test_package_names() -> None:
    assert (relucheck.ReLU, relucheck.ReLU6, relucheck.LeakyReLU, relucheck.Kink) == (ReLU, ReLU6, LeakyReLU, Kink)
    assert {"ReLU", "Activation"} <= set(dir(relucheck))
    with pytest.raises(AttributeError, match="no attribute 'relu'"):
        _ = relucheck.relu


def test_replacements_cover_the_rules() -> None:
    for plain, chosen in activations_modules.REPLACEMENTS.items():
        assert issubclass(chosen, plain)
        assert chosen.rule.name == plain.__name__
        assert len(chosen.rule.names) == len(chosen.rule.kinks)
