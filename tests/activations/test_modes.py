"""The activations under torch.func, forward mode, double backward and autocast, against plain eager reverse mode."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

from relucheck.activations.modules import LeakyReLU, ReLU, ReLU6
from relucheck.activations.rules import SubgradientError
from relucheck.numerics.bits import same_bits
from relucheck.numerics.dtypes import dtype_name
from tests.helpers.activation_modes import (
    MODES,
    Case,
    by_batched_cotangents,
    by_vmap,
    cotangents,
    eager,
    every_case,
    every_dtype,
    inputs,
)

pytestmark = [
    # torch's forward-mode AD imports its own scripted decompositions
    pytest.mark.filterwarnings(r"ignore:.*torch\.jit\.script.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings(r"ignore:.*torch\.jit\.script.*is deprecated:DeprecationWarning"),
    # torch 2.11 makes an instance of its own base class when it traces a custom function
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*should not be instantiated:DeprecationWarning"),
]


@every_case
@every_dtype
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("s", [0.7, -0.5])
def test_every_mode_gives_the_same_jacobian(case: Case, dtype: torch.dtype, mode: Any, s: float) -> None:
    x = inputs(dtype)
    g, module = cotangents(x), case.make(s)
    assert same_bits(mode(module, x, g), eager(module, x, g))


@every_case
@pytest.mark.parametrize("mode", MODES)
def test_own_subgradient_is_torchs_own_in_every_mode(case: Case, mode: Any) -> None:
    module = {"ReLU": ReLU(), "LeakyReLU": LeakyReLU()}.get(case.name, ReLU6())
    x = inputs(torch.float32)
    g = torch.where(x == 0, math.inf, cotangents(x))  # 0 * infinity must not appear
    assert same_bits(mode(module, x, g), mode(case.native(), x, g))


@every_case
@pytest.mark.parametrize("mode", [m for m in MODES if m not in (by_vmap, by_batched_cotangents)])
def test_in_place_in_every_mode(case: Case, mode: Any) -> None:
    x = inputs(torch.float32)
    g = cotangents(x)
    assert same_bits(mode(lambda t: case.make(0.7, inplace=True)(t * 1), x, g), eager(case.make(0.7), x, g))


@every_case
def test_values_in_every_mode_are_torchs_own(case: Case) -> None:
    x, module, native = inputs(torch.float32), case.make(0.7), case.native()(inputs(torch.float32))
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(module(forward_ad.make_dual(x, x))).primal
    for value in (vmap(module)(x), vjp(module, x)[0], jvp(module, (x,), (x,))[0], dual):
        assert same_bits(value, native, signed_zero=True)


@every_case
@pytest.mark.parametrize("few", [True, False])
def test_jacobians(case: Case, few: bool) -> None:
    x = torch.full((64,), 2.5)
    x[1], x[2] = case.kinks[0], case.kinks[-1]
    if not few:
        x[3:40] = case.kinks[0]
    module = case.make(0.7)
    want = torch.diag(eager(module, x, torch.ones_like(x)))
    assert torch.equal(jacrev(module)(x), want)
    assert torch.equal(jacfwd(module)(x), want)
    for options in ({"vectorize": True}, {"vectorize": True, "strategy": "forward-mode"}, {}):
        assert torch.equal(torch.autograd.functional.jacobian(module, x, **options), want)


@every_case
def test_vmap_over_input_subgradient_or_both(case: Case) -> None:
    s = torch.tensor([0.0, 0.5, -0.5], dtype=torch.float64)
    x = torch.stack([inputs(torch.float32)] * 3)
    x[1] = x[1].flip(0)
    derivative = grad(lambda t, u: case.functional(t, u).sum())
    want = [[eager(case.make(float(u)), row, torch.ones_like(row)) for u in s] for row in x]
    both = vmap(derivative)(x, s)
    assert all(same_bits(both[i], want[i][i]) for i in range(3))
    only_s = vmap(derivative, in_dims=(None, 0))(x[1], s)
    assert all(same_bits(only_s[i], want[1][i]) for i in range(3))
    only_x = vmap(derivative, in_dims=(0, None))(x, s[1])
    assert all(same_bits(only_x[i], want[i][1]) for i in range(3))
    nested = vmap(vmap(derivative, in_dims=(None, 0)), in_dims=(0, None))(x, s)
    assert all(same_bits(nested[i][j], want[i][j]) for i in range(3) for j in range(3))
    in_place = vmap(grad(lambda t, u: case.functional(t * 1, u).sum()), in_dims=(None, 0))(x[1], s)
    assert all(same_bits(in_place[i], want[1][i]) for i in range(3))


@every_case
def test_per_member_tensor_inside_vmap(case: Case) -> None:
    # the tensor broadcasts to what the function sees, which lacks the mapped dimension
    s = torch.tensor([0.1, 0.2, 0.3, 0.4])
    x = torch.full((5, 4), case.kinks[0])
    if case.name == "ReLU6-beta":
        x[:] = 6.0
    got = vmap(grad(lambda t: case.make(s)(t).sum()))(x)
    assert torch.equal(got, s.expand(5, 4))
    with pytest.raises(SubgradientError, match="does not broadcast"):
        vmap(grad(lambda t: case.make(torch.zeros(5, 1))(t).sum()))(x)


def test_read_at_backward_time_after_vmap() -> None:
    module, x = ReLU(0.5), torch.zeros(3, 2, requires_grad=True)
    y = vmap(module)(x)
    for s in (0.25, -1.0):
        module.subgradient = s
        assert torch.autograd.grad(y.sum(), x, retain_graph=True)[0].tolist() == [[s, s]] * 3


# --------------------------------------------------------------------------------------------------------------- ensembles


def _ensemble(activation: Callable[[float], nn.Module]) -> tuple[nn.Module, list[nn.Module]]:
    torch.manual_seed(0)
    nets = []
    for s in (0.0, 0.5, -0.5):
        net = nn.Sequential(nn.Linear(3, 4), activation(s), nn.Linear(4, 2)).double()
        nn.init.zeros_(net[0].bias)
        nets.append(net)
    return copy.deepcopy(nets[0]), nets


@every_case
def test_stacked_members_equal_separate_ones(case: Case) -> None:
    base, nets = _ensemble(case.make)
    if "beta" in case.name:  # there the hit is at 6
        for net in nets:
            nn.init.constant_(net[0].bias, 6.0)
    parameters, buffers = stack_module_state(nets)
    names = [f"1.{name}_tensor" for name in nets[0][1].rule.names]
    assert sorted(buffers) == sorted(names)
    assert all(buffers[name].shape == (3,) for name in names)
    x = torch.zeros(2, 3, dtype=torch.float64)

    def loss(p: Any, b: Any, x: Tensor) -> Tensor:
        return functional_call(base, (p, b), (x,)).pow(2).sum()

    stacked = vmap(grad(loss), in_dims=(0, 0, None))(parameters, buffers, x)
    vmap(loss, in_dims=(0, 0, None))(parameters, buffers, x).sum().backward()  # reverse mode outside, vmap inside
    for member, net in enumerate(nets):
        net(x).pow(2).sum().backward()
        for name, parameter in net.named_parameters():
            for got in (stacked[name][member], parameters[name].grad[member]):
                torch.testing.assert_close(got, parameter.grad, rtol=1e-12, atol=1e-14)
    biases = stacked["0.bias"]
    assert biases[1].any()
    assert biases[0].any() == (case.name == "never")  # member 0 has s = 0: nothing passes


def test_functional_call_swaps_the_subgradient() -> None:
    module, x = ReLU(0.5), torch.zeros(3, requires_grad=True)
    y = functional_call(module, {"subgradient_tensor": torch.tensor(0.25, dtype=torch.float64)}, (x,))
    assert module.subgradient == 0.5
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [0.25] * 3


# ---------------------------------------------------------------------------------------------------------- double backward


@every_case
@pytest.mark.parametrize("few", [True, False])
def test_double_backward(case: Case, few: bool) -> None:
    x = torch.full((64,), 2.5, dtype=torch.float64)
    x[: 2 if few else 40] = case.kinks[-1]
    module = case.make(0.7)
    x.requires_grad_()
    g = cotangents(x.detach()).requires_grad_()
    (first,) = torch.autograd.grad(module(x), x, g, create_graph=True)
    weight = cotangents(x.detach(), 1)
    by_cotangent, by_input = torch.autograd.grad(first, (g, x), weight)
    assert same_bits(by_cotangent, eager(module, x, weight))
    assert not by_input.any()  # piecewise linear


@every_case
def test_hessian_of_a_square(case: Case) -> None:
    x = torch.tensor([-1.0, 0.0, 2.0, 6.0, 7.0])
    module = case.make(0.7)
    d = eager(module, x, torch.ones_like(x))
    # d/dx (2 f f') with f'' = 0; LeakyReLU's slope left of 0 is not dyadic, hence the tolerance
    want = torch.diag(2 * d * d)
    for got in (
        hessian(lambda t: module(t).pow(2).sum())(x),
        torch.autograd.functional.hessian(lambda t: module(t).pow(2).sum(), x),
    ):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=0)


@every_case
def test_gradcheck_away_from_kinks(case: Case) -> None:
    x = torch.tensor([-1.0, 2.0, 7.0, 3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(case.make(0.7), x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(case.make(0.7), x, check_fwd_over_rev=True, check_batched_grad=True)


# ----------------------------------------------------------------------------------------------------------------- autocast


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_name)
def test_autocast(case: Case, dtype: torch.dtype) -> None:
    linear, module = nn.Linear(4, 64), case.make(0.7)
    nn.init.constant_(linear.bias, case.kinks[-1])
    x = torch.zeros(3, 4)
    with torch.autocast("cpu", dtype=dtype):
        z = linear(x)
        y = module(z)
        assert z.dtype == y.dtype == dtype
        assert same_bits(y, case.native()(z), signed_zero=True)
    g = cotangents(y.detach())
    (inside,) = torch.autograd.grad(y, z, g, retain_graph=True)
    assert same_bits(inside, eager(module, z, g))
    with torch.autocast("cpu", dtype=dtype):  # backward inside autocast, too
        assert same_bits(torch.autograd.grad(y, z, g, retain_graph=True)[0], inside)
    y.float().sum().backward()
    s = 0.25 if case.name == "ReLU6-alpha" else 0.7
    torch.testing.assert_close(linear.bias.grad, torch.full((64,), 3 * s), rtol=0.02, atol=0)
