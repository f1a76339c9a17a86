"""ReLU, ReLU6 and LeakyReLU: values, gradients, layouts, in-place, state and bad input.

The checks are functions that raise AssertionError, used twice: on relucheck's modules, which must pass, and on seeded
mutants, which must not. A check that no fault can fail proves nothing.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import math
import pickle
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import relucheck
from relucheck.activations import functional, rules
from relucheck.activations import modules as activations_modules
from relucheck.activations.kinks import Kink
from relucheck.activations.modules import LeakyReLU, ReLU, ReLU6
from relucheck.activations.rules import SubgradientError, as_subgradient
from relucheck.numerics.bits import all_values, from_ordinals, neighbour, same_bits
from relucheck.numerics.dtypes import DTYPES, compute_dtype, dtype_name
from relucheck.training.model import Kinked, Switch

Subgradients = tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Case:
    """One activation: how relucheck and torch make it, where its kinks are, torch's own subgradients there."""

    name: str
    ours: Callable[..., nn.Module]
    native: Callable[..., nn.Module]
    kinks: tuple[float, ...]
    own: Subgradients

    def __str__(self) -> str:
        return self.name


CASES = (
    Case("ReLU", lambda s, **k: ReLU(s[0], **k), nn.ReLU, (0.0,), (0.0,)),
    Case("ReLU6", lambda s, **k: ReLU6(s[0], s[1], **k), nn.ReLU6, (0.0, 6.0), (0.0, 0.0)),
    Case("LeakyReLU", lambda s, **k: LeakyReLU(0.01, s[0], **k), nn.LeakyReLU, (0.0,), (0.01,)),
    Case("LeakyReLU-0.3", lambda s, **k: LeakyReLU(0.3, s[0], **k), lambda **k: nn.LeakyReLU(0.3, **k), (0.0,), (0.3,)),
    Case(
        "LeakyReLU+negative",
        lambda s, **k: LeakyReLU(-0.5, s[0], **k),
        lambda **k: nn.LeakyReLU(-0.5, **k),
        (0.0,),
        (-0.5,),
    ),
)
IN_PLACE = tuple(case for case in CASES if "negative" not in case.name)
SUBGRADIENTS = (0.0, 1.0, 0.5, -0.5, 0.1, 3.0, 1e-30)

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_in_place = pytest.mark.parametrize("case", IN_PLACE, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
every_subgradient = pytest.mark.parametrize("s", SUBGRADIENTS)


def at_each(case: Case, s: float) -> Subgradients:
    """Different values at different kinks, so that swapping two of them shows."""
    return tuple(s / (index + 1) for index in range(len(case.kinks)))


def inputs(dtype: torch.dtype, *, nan: bool = True) -> Tensor:
    """Every value of a 16-bit dtype; else random bit patterns and all that is special about a kink. A multiple of 64.

    Without NaN where ReLU6's gradient is concerned: torch's vectorised hardtanh backward and its scalar tail disagree
    about NaN, so that the result depends on where in the tensor the NaN is.
    """
    if dtype in (torch.float16, torch.bfloat16):
        x = all_values(dtype)
    else:
        generator = torch.Generator().manual_seed(1)
        special = torch.tensor(
            [0.0, -0.0, 6.0, -6.0, 1.0, 7.0, -1.0, math.inf, -math.inf, math.nan, torch.finfo(dtype).max], dtype=dtype
        )
        beside = [neighbour(special[:6], steps) for steps in (-2, -1, 1, 2)]
        limit = int(torch.finfo(dtype).bits) - 2
        patterns = from_ordinals(torch.randint(-(2**limit), 2**limit, (4000,), generator=generator), dtype)
        x = torch.cat([special, *beside, patterns])
        x = torch.cat([x, x.new_ones(-len(x) % 64)])
    return x if nan else torch.where(x.isnan(), torch.ones_like(x), x)


def cotangents(x: Tensor, seed: int = 0) -> Tensor:
    """Never all ones, never zero: a dropped chain rule must show."""
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.where(g.abs() < 0.01, 0.75, g).to(x.dtype)


def gradient(module: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(module(x), x, g)[0]


def expected(case: Case, x: Tensor, g: Tensor, s: Subgradients) -> Tensor:
    """An independent oracle: torch's gradient, and at the kinks the exact product, rounded as ATen rounds one."""
    result = gradient(case.native(), x, g)
    compute = compute_dtype(x.dtype)
    for at, value in zip(case.kinks, s, strict=True):
        # products of two float32 are exact in float64
        product = (g.double() * torch.tensor(value, dtype=compute).double()).to(compute).to(x.dtype)
        result = torch.where(x.double() == at, product, result)
    return result


# --------------------------------------------------------------------------------------------------------------- checks


def check_forward(module: Callable[[Tensor], Tensor], native: nn.Module, x: Tensor) -> None:
    for needs_grad in (False, True):
        y = module(x.detach().clone().requires_grad_(needs_grad))
        assert same_bits(y.detach(), native(x), signed_zero=True)
        assert y.stride() == native(x).stride()


def check_gradient(make: Callable[[Subgradients], Any], case: Case, x: Tensor, s: Subgradients) -> None:
    """Semantics 3: s times the cotangent at a hit of the input, torch's own gradient elsewhere."""
    for seed in (0, 1):
        g = cotangents(x, seed)
        assert same_bits(gradient(make(s), x, g), expected(case, x, g, s))


def check_own(make: Callable[[Subgradients], Any], case: Case, dtype: torch.dtype) -> None:
    """Semantics 2: bit for bit with the sign of zeros, for cotangents that 0 * cotangent would turn into NaN too."""
    x = inputs(dtype, nan=False)
    assert same_bits(
        gradient(make(case.own), x, cotangents(x)), gradient(case.native(), x, cotangents(x)), signed_zero=True
    )
    for at in case.kinks:
        g = inputs(dtype)
        here = torch.full_like(g, at)
        assert same_bits(gradient(make(case.own), here, g), gradient(case.native(), here, g), signed_zero=True)


def check_shared_forward(make: Callable[[Subgradients], Any], case: Case, x: Tensor) -> None:
    """Semantics 4: backward reads the value when it runs."""
    module, g = make(at_each(case, 1.0)), cotangents(x)
    x = x.detach().requires_grad_()
    y = module(x)
    for value in (0.25, -2.0, 0.25):
        s = at_each(case, value)
        for name, item in zip(module.rule.names, s, strict=True):
            setattr(module, name, item)
        (got,) = torch.autograd.grad(y, x, g, retain_graph=True)
        assert same_bits(got, expected(case, x.detach(), g, s))


# -------------------------------------------------------------------------------------------------------------- mutants


def mutant(backward: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> Callable[[Subgradients], Any]:
    """A ReLU whose backward is ``backward(cotangent, x, result, s)``."""

    class Faulty(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, module: Any) -> Tensor:
            result = torch.relu(x)
            ctx.module = module
            ctx.save_for_backward(x, result)
            return result

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return backward(grads[0], *ctx.saved_tensors, ctx.module.subgradient), None

    class Module(nn.Module):
        rule = rules.RELU

        def __init__(self, s: Subgradients) -> None:
            super().__init__()
            self.subgradient = s[0]

        def forward(self, x: Tensor) -> Tensor:
            return Faulty.apply(x, self)

    return Module


def _native(g: Tensor, x: Tensor) -> Tensor:
    return torch.where(x <= 0, torch.zeros_like(g), g)


MUTANTS = {
    "drops the cotangent": mutant(lambda g, x, y, s: torch.where(x == 0, s, _native(g, x))),
    "mask from the output": mutant(lambda g, x, y, s: torch.where(y == 0, s * g, g)),
    "hits tested with <=": mutant(lambda g, x, y, s: torch.where(x <= 0, s * g, g)),
    "only +0 is a hit": mutant(lambda g, x, y, s: torch.where((x == 0) & ~x.signbit(), s * g, _native(g, x))),
    "subnormals are hits": mutant(
        lambda g, x, y, s: torch.where(x.abs() < torch.finfo(x.dtype).tiny, s * g, _native(g, x))
    ),
    "NaN is cut off": mutant(lambda g, x, y, s: torch.where(x == 0, s * g, torch.where(x > 0, g, 0.0))),
    "s rounded to the dtype": mutant(
        lambda g, x, y, s: torch.where(x == 0, torch.tensor(s, dtype=g.dtype) * g, _native(g, x))
    ),
}
FAITHFUL = mutant(lambda g, x, y, s: torch.where(x == 0, s * g, _native(g, x)))


def test_the_gradient_check_passes_a_correct_relu() -> None:
    check_gradient(FAITHFUL, CASES[0], inputs(torch.float16), (0.1,))


@pytest.mark.parametrize("name", MUTANTS)
def test_the_gradient_check_fails_every_mutant(name: str) -> None:
    with pytest.raises(AssertionError):
        check_gradient(MUTANTS[name], CASES[0], inputs(torch.float16), (0.1,))


def test_the_own_value_check_fails_a_plain_product() -> None:
    with pytest.raises(AssertionError):  # 0 * infinity
        check_own(FAITHFUL, CASES[0], torch.float16)


def test_the_shared_forward_check_fails_a_value_read_in_forward() -> None:
    class Stale(ReLU):
        def forward(self, input: Tensor) -> Tensor:
            return functional.relu(input, self.subgradient_tensor.clone())

    x = inputs(torch.float32)
    check_shared_forward(FAITHFUL, CASES[0], x)
    with pytest.raises(AssertionError):
        check_shared_forward(lambda s: Stale(s[0]), CASES[0], x)


def test_the_forward_check_fails_a_forward_that_loses_the_sign_of_zero() -> None:
    with pytest.raises(AssertionError):
        check_forward(lambda x: torch.relu(x) + 0.0, nn.ReLU(), inputs(torch.float16))


# --------------------------------------------------------------------------------------------------- values and gradients


@every_case
@every_dtype
@every_subgradient
def test_forward_is_torchs_own_and_independent_of_s(case: Case, dtype: torch.dtype, s: float) -> None:
    check_forward(case.ours(at_each(case, s)), case.native(), inputs(dtype))


@every_case
@every_dtype
@every_subgradient
def test_gradient_is_s_times_cotangent_at_hits_and_torchs_own_elsewhere(case: Case, dtype: torch.dtype, s: float) -> None:
    # forward ReLU and LeakyReLU with NaN, which passes the cotangent through
    check_gradient(case.ours, case, inputs(dtype, nan=case.name != "ReLU6"), at_each(case, s))


@every_case
@every_dtype
def test_gradient_at_torchs_own_subgradient_is_torchs_own(case: Case, dtype: torch.dtype) -> None:
    check_own(case.ours, case, dtype)


@every_dtype
@pytest.mark.parametrize("slope", [0.01, 0.3, -0.5, 0.0, 1.0])
def test_leaky_none_is_torchs_own(dtype: torch.dtype, slope: float) -> None:
    case = dataclasses.replace(CASES[2], native=lambda: nn.LeakyReLU(slope), own=(slope,))
    check_own(lambda s: LeakyReLU(slope), case, dtype)
    check_own(lambda s: LeakyReLU(slope, slope), case, dtype)
    assert LeakyReLU(slope).subgradient is None
    assert LeakyReLU(slope, slope).subgradient == slope


@every_dtype
def test_leaky_can_go_back_to_none(dtype: torch.dtype) -> None:
    module, x = LeakyReLU(0.3, 0.5), torch.zeros(3, dtype=dtype)
    assert same_bits(gradient(module, x, torch.ones_like(x)), torch.full_like(x, 0.5))
    module.subgradient = None
    assert same_bits(gradient(module, x, torch.ones_like(x)), torch.full_like(x, 0.3))


@every_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("s", [0.1, -0.5])
def test_every_cotangent_at_a_hit(case: Case, dtype: torch.dtype, s: float) -> None:
    g = all_values(dtype)
    for at in case.kinks:
        x = torch.full_like(g, at)
        assert same_bits(gradient(case.ours(at_each(case, s)), x, g), expected(case, x, g, at_each(case, s)))


@every_case
@every_dtype
def test_several_backwards_share_one_forward(case: Case, dtype: torch.dtype) -> None:
    check_shared_forward(case.ours, case, inputs(dtype, nan=False))
    # few hits (kept as coordinates), no hit, and zero-dimensional
    few = torch.ones(4096, dtype=dtype)
    few[[5, 77]] = torch.tensor([case.kinks[0], case.kinks[-1]], dtype=dtype)
    for x in (few, few[6:20], few[5], few.view(64, 64), few[:0]):
        check_shared_forward(case.ours, case, x)


@every_case
@pytest.mark.parametrize("hits", [0, 1, 3, 15, 16, 17, 100, 128])
def test_coordinates_and_masks_of_hits_agree(case: Case, hits: int) -> None:
    # coordinates take 8 bytes a hit, a mask 128 here: the way hits are kept changes at 16 of them
    x = torch.full((128,), 2.5)
    for index, at in enumerate(case.kinks):
        x[index : hits : len(case.kinks)] = at
    check_gradient(case.ours, case, x, at_each(case, 0.7))
    check_gradient(case.ours, case, x.view(2, 8, 8), at_each(case, 0.7))


def test_a_hit_beside_nan_is_seen() -> None:
    x = torch.ones(512)
    x[3], x[4] = math.nan, -0.0
    check_gradient(CASES[0].ours, CASES[0], x, (0.7,))


def test_zero_subgradient_does_not_turn_an_infinite_cotangent_into_nan() -> None:
    x, g = torch.zeros(2), torch.tensor([math.inf, math.nan])
    assert gradient(ReLU(0.0), x, g).tolist() == [0.0, 0.0]
    assert gradient(ReLU(0.5), x, g)[0] == math.inf
    assert gradient(ReLU6(0.5, 0.0), torch.full((2,), 6.0), g).tolist() == [0.0, 0.0]


@every_dtype
def test_a_kink_is_hit_exactly(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, 6.0], dtype=dtype)
    for steps in (-1, 1):
        beside = neighbour(x, steps)
        got = gradient(ReLU6(0.25, 0.5), beside, torch.ones_like(x))
        assert got.tolist() == [float(steps > 0), float(steps < 0)]
    assert gradient(ReLU6(0.25, 0.5), x, torch.ones_like(x)).tolist() == [0.25, 0.5]


# -------------------------------------------------------------------------------------------------------------- layouts


def _strided(kind: str, x: Tensor) -> Tensor:
    """The values of ``x``, laid out in another way."""
    cube = x[:4032].view(-1, 3, 7, 4)
    return {
        "contiguous": lambda: cube,
        "transposed": lambda: cube.transpose(1, 3),
        "strided": lambda: cube[:, :, ::2],
        "flipped slice": lambda: cube.flip(0)[1:],
        "channels_last": lambda: cube.contiguous(memory_format=torch.channels_last),
        "channels_last slice": lambda: cube.contiguous(memory_format=torch.channels_last)[:, 1:],
        "expanded": lambda: cube[:, :1].expand(-1, 3, -1, -1),
        "zero-dimensional hit": lambda: torch.zeros((), dtype=x.dtype),
        "zero-dimensional": lambda: torch.ones((), dtype=x.dtype),
        "empty": lambda: x[:0].view(0, 3),
        "one element": lambda: x[:1],
    }[kind]()


@every_case
@every_dtype
@pytest.mark.parametrize(
    "kind",
    ["contiguous", "transposed", "strided", "flipped slice", "channels_last", "channels_last slice", "expanded",
     "zero-dimensional hit", "zero-dimensional", "empty", "one element"],
)  # fmt: skip
def test_layouts(case: Case, dtype: torch.dtype, kind: str) -> None:
    x = inputs(dtype, nan=False)
    x[::50] = 0.0  # also where all values are listed, the first few thousand need hits
    x[7::50] = 6.0
    x, s = _strided(kind, x), at_each(case, 0.7)
    g = cotangents(x)
    got, native = gradient(case.ours(s), x, g), gradient(case.native(), x, g)
    assert same_bits(got, expected(case, x, g, s))
    assert got.stride() == native.stride()
    y = case.ours(s)(x.detach().requires_grad_())
    assert same_bits(y, case.native()(x), signed_zero=True)
    assert y.stride() == case.native()(x).stride()


@every_case
def test_expanded_and_transposed_cotangents(case: Case) -> None:
    x = torch.full((64, 32), 2.5)
    x[3, 4], x[60, 1] = case.kinks[0], case.kinks[-1]
    s = at_each(case, 0.7)
    for g in (torch.tensor(0.3).expand(64, 32), torch.rand(1, 32).expand(64, 32), torch.rand(32, 64).T):
        assert same_bits(gradient(case.ours(s), x, g), expected(case, x, g, s))
    x.requires_grad_()
    case.ours(s)(x).sum().backward()
    assert same_bits(x.grad, expected(case, x.detach(), torch.ones_like(x), s))


def test_lazily_negated_input() -> None:
    z = torch.tensor([1 + 0j, 2 - 1j, 3 + 1j], requires_grad=True)
    x = z.conj().imag
    assert x.is_neg()
    ReLU(0.5)(x).sum().backward()
    assert z.grad.imag.tolist() == [-0.5, -1.0, 0.0]


# ------------------------------------------------------------------------------------------------------------- in-place


@every_in_place
@every_dtype
@pytest.mark.parametrize("s", [0.7, -0.5])
def test_in_place_equals_out_of_place(case: Case, dtype: torch.dtype, s: float) -> None:
    x = inputs(dtype, nan=case.name != "ReLU6")
    g, values = cotangents(x), at_each(case, s)
    leaf = x.clone().requires_grad_()
    z = leaf.clone()
    y = case.ours(values, inplace=True)(z)
    assert y is z
    assert same_bits(z.detach(), case.native()(x), signed_zero=True)
    assert same_bits(torch.autograd.grad(y, leaf, g)[0], expected(case, x, g, values))


@every_in_place
def test_in_place_without_a_graph(case: Case) -> None:
    x = inputs(torch.float32)
    z = x.clone()
    assert case.ours(at_each(case, 0.7), inplace=True)(z) is z
    assert same_bits(z, case.native()(x), signed_zero=True)


@every_in_place
@pytest.mark.parametrize("view", [False, True])
def test_in_place_on_a_leaf_is_refused_before_it_is_overwritten(case: Case, view: bool) -> None:
    x = torch.tensor([-1.0, 0.0, 1.0], requires_grad=True)
    message = "leaf Variable that requires grad is being used in an in-place operation"
    with pytest.raises(RuntimeError, match=message):
        case.ours(at_each(case, 0.7), inplace=True)(x.view(3, 1) if view else x)
    assert x.tolist() == [-1.0, 0.0, 1.0]


@every_in_place
def test_in_place_on_a_view_reaches_the_base(case: Case) -> None:
    leaf = torch.full((64, 4), 2.5)
    leaf[1, 0], leaf[2, 0] = case.kinks[0], case.kinks[-1]
    leaf.requires_grad_()
    base, s = leaf * 1, at_each(case, 0.7)
    case.ours(s, inplace=True)(base[:, 0])
    g = cotangents(base.detach())
    (got,) = torch.autograd.grad(base, leaf, g)
    assert same_bits(got[:, 0], expected(case, leaf.detach()[:, 0], g[:, 0], s))
    assert same_bits(got[:, 1:], g[:, 1:])


def test_in_place_leaky_with_a_negative_slope_is_refused() -> None:
    x = torch.tensor([-1.0, 0.0], requires_grad=True)
    with pytest.raises(SubgradientError, match=r"negative_slope=-0\.1, inplace=True.*use inplace=False"):
        LeakyReLU(-0.1, 0.5, inplace=True)(x * 1)
    with torch.no_grad():  # torch refuses in backward only
        assert LeakyReLU(-0.5, 0.5, inplace=True)(x * 1).tolist() == [0.5, -0.0]


@pytest.mark.parametrize("shape", [(), (1,), (512,)])
def test_input_may_be_overwritten_after_relu(shape: tuple[int, ...]) -> None:
    # torch's own ReLU keeps its result, so that residual sums may overwrite the input
    leaf = torch.zeros(shape, requires_grad=True)
    z = leaf * 1
    y = ReLU(0.5)(z)
    z.add_(1)
    y.sum().backward()
    assert same_bits(leaf.grad, torch.full(shape, 0.5))


@pytest.mark.parametrize("make", [nn.ReLU, lambda: ReLU(0.5)], ids=["torch", "ReLU"])
def test_a_result_overwritten_before_backward_is_refused_as_torch_does(make: Callable[[], nn.Module]) -> None:
    x = torch.zeros(3, requires_grad=True)
    y = make()(x)
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


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


# ------------------------------------------------------------------------------------------------------- per-member values


@every_case
@every_dtype
def test_one_value_per_member(case: Case, dtype: torch.dtype) -> None:
    values = torch.tensor([0.0, 0.5, -0.5, case.own[0]], dtype=torch.float64)
    x = torch.full((4, 64, 8), 2.5, dtype=dtype)
    x[:, 1, 2], x[:, 3, 4] = case.kinks[0], case.kinks[-1]
    g = cotangents(x)
    stacked = [values.view(4, 1, 1) / (index + 1) for index in range(len(case.kinks))]
    got = gradient(case.ours(stacked), x, g)
    for member, value in enumerate(values.tolist()):
        alone = gradient(case.ours(at_each(case, value)), x[member], g[member])
        assert same_bits(got[member], alone, signed_zero=True)


@every_case
def test_setting_members_between_two_backwards(case: Case) -> None:
    x = torch.full((3, 64), 2.5)
    x[:, 1] = case.kinks[0]
    for few in (True, False):
        x[:, 2:] = 2.5 if few else case.kinks[0]
        module, leaf, g = case.ours(at_each(case, 0.3)), x.clone().requires_grad_(), cotangents(x)
        name = module.rule.names[0]
        y = module(leaf)
        for value in (torch.tensor([[0.1], [0.2], [0.3]]), torch.tensor([[0.4], [0.5], [0.6]]), -1.0, torch.rand(3, 64)):
            setattr(module, name, value)
            (got,) = torch.autograd.grad(y, leaf, g, retain_graph=True)
            fresh = case.ours(at_each(case, 0.3))
            setattr(fresh, name, value)
            assert same_bits(got, gradient(fresh, x, g))
            s = torch.as_tensor(value, dtype=torch.float32).expand(3, 64)
            assert torch.equal(got[:, 1], (g * s)[:, 1])


def test_reading_members_gives_a_copy() -> None:
    module = ReLU(torch.tensor([0.25, 0.5]))
    before = module.subgradient
    module.subgradient = 0.75
    module.subgradient = before  # put back what was read
    assert module.subgradient.tolist() == [0.25, 0.5]
    given = torch.tensor([0.1, 0.2], dtype=torch.float64)
    module.subgradient = given
    given.zero_()
    module.subgradient.zero_()
    assert module.subgradient.tolist() == [0.1, 0.2]


@pytest.mark.parametrize("shape", [(3,), (2, 1), (1, 1, 2), (2, 2), (1, 2)])
@pytest.mark.parametrize(
    "make", [ReLU, lambda s: LeakyReLU(0.1, s), lambda s: ReLU6(0.0, s)], ids=["ReLU", "LeakyReLU", "ReLU6"]
)
def test_members_that_do_not_fit_the_input(make: Callable[[Any], nn.Module], shape: tuple[int, ...]) -> None:
    module = make(torch.full(shape, 0.5))
    with pytest.raises(SubgradientError) as error:
        module(torch.zeros(2, requires_grad=True))
    for part in (type(module).__name__, str(tuple(shape)), "(2,)", "does not broadcast", "(members, 1, ..., 1)"):
        assert part in str(error.value)


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


# ------------------------------------------------------------------------------------------------------------- bad input

NOT_SUBGRADIENTS = [
    math.nan, math.inf, -math.inf, True, False, "0.5", 1j, [0.5], np.array([0.5]), np.bool_(True), 10**400,
    torch.tensor(math.nan), torch.tensor([0.5, math.inf]), torch.tensor(True), torch.tensor(1j), torch.empty(0),
    torch.zeros(2, device="meta"),
]  # fmt: skip


@pytest.mark.parametrize("value", NOT_SUBGRADIENTS, ids=lambda value: str(value)[:24])
@pytest.mark.parametrize(
    ("make", "owner"),
    [(ReLU, "ReLU(subgradient)"), (ReLU6, "ReLU6(alpha)"), (lambda s: ReLU6(0.0, s), "ReLU6(beta)"),
     (lambda s: LeakyReLU(0.1, s), "LeakyReLU(subgradient)")],
    ids=["ReLU", "ReLU6-alpha", "ReLU6-beta", "LeakyReLU"],
)  # fmt: skip
def test_what_cannot_be_a_subgradient(make: Callable[[Any], nn.Module], owner: str, value: Any) -> None:
    with pytest.raises(SubgradientError) as error:
        make(value)
    for part in (
        f"{owner}={value!r}",
        "finite real number",
        "one per ensemble member",
        "pass a float such as 0.0, 0.5 or -0.5",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("value", NOT_SUBGRADIENTS, ids=lambda value: str(value)[:24])
def test_setting_what_cannot_be_a_subgradient_changes_nothing(value: Any) -> None:
    module = ReLU6(0.5, 0.25)
    with pytest.raises(SubgradientError, match=r"ReLU6\.beta="):
        module.beta = value
    assert (module.alpha, module.beta) == (0.5, 0.25)


def test_none_is_for_leaky_only() -> None:
    for make in (ReLU, ReLU6):
        with pytest.raises(SubgradientError, match="=None: a subgradient is a finite real number"):
            make(None)
    with pytest.raises(SubgradientError, match=r"ReLU\.subgradient=None"):
        ReLU().subgradient = None


@pytest.mark.parametrize(
    "value",
    [1, 0.5, -0.5, 0.0, -0.0, 5e-324, 1e300, Fraction(1, 2), np.float16(0.5), np.float32(0.1), np.float64(0.1), np.int64(2),
     torch.tensor(0.5), torch.tensor(2), torch.tensor(0.1, dtype=torch.bfloat16), torch.tensor(0.5, requires_grad=True)],
    ids=str,
)  # fmt: skip
def test_any_real_number_is_a_subgradient(value: Any) -> None:
    module = ReLU(value)
    assert module.subgradient == float(value.detach() if isinstance(value, Tensor) else value)
    assert type(module.subgradient) is float
    assert not module.subgradient_tensor.requires_grad
    assert as_subgradient(value).dtype == torch.float64


def test_unsupported_input_dtype() -> None:
    x = torch.tensor([1 + 1j], requires_grad=True)
    with pytest.raises(RuntimeError):  # torch's own refusal
        ReLU(0.5)(x)
    from relucheck.numerics.dtypes import UnsupportedDtypeError

    x = torch.zeros(2).to(torch.float8_e4m3fn).requires_grad_()
    with pytest.raises((RuntimeError, UnsupportedDtypeError)):
        ReLU(0.5)(x)


class _Swallows(torch.autograd.Function):
    """Its backward has no gradient for its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return None


@pytest.mark.parametrize("size", [2, 1000])
def test_no_cotangent_at_all(size: int) -> None:
    """What comes from above may be None: then nothing goes on, hits or not."""
    for act in (ReLU(0.5), Kinked(rules.RELU, Switch(((0.5, 0.5), "chain")))):
        x = torch.linspace(-1, 1, size).requires_grad_()
        with torch.no_grad():
            x[0] = 0.0
        (gradient,) = torch.autograd.grad(_Swallows.apply(act(x)).sum(), x, allow_unused=True)
        assert gradient is None or not bool(gradient.any())


def test_a_members_activation_straight_on_data() -> None:
    """Nothing that needs a gradient: no node to put a hook on."""
    act = Kinked(rules.RELU, Switch(((0.5, 0.5), "chain")))
    assert act(torch.zeros(1000)).grad_fn is None
    assert act.hits == [1000]


@pytest.mark.parametrize("make", [lambda x: x.sum(), lambda x: x.clone()[:1]], ids=["no dimensions", "a view, in place"])
def test_a_shape_that_does_not_fit_where_there_is_a_mask(make: Callable[[Tensor], Tensor]) -> None:
    act = ReLU(0.5, inplace=True)
    x = torch.zeros(3, requires_grad=True)
    y = act(make(x))
    act.subgradient = torch.ones(4, 1, 1)
    with pytest.raises(SubgradientError, match="does not broadcast to an input of shape"):
        torch.autograd.grad(y.sum(), x)


@pytest.mark.parametrize(
    ("hits", "node"),
    [
        (0, "ReluBackward0"),
        (1, "ReluBackward0"),
        (3000, "ReluBackward0"),
        (3200, "_EagerBackward"),
        (200_000, "_EagerBackward"),
    ],
)
def test_only_few_hits_hang_on_the_node(hits: int, node: str) -> None:
    """A result may be kept long after its backward, and its node with it: many hits are a saved tensor, which is freed."""
    x = torch.ones(1000, 200)
    x.view(-1)[:hits] = 0.0
    x.requires_grad_()
    y = ReLU(0.5)(x)
    assert type(y.grad_fn).__name__ == node
    (gradient,) = torch.autograd.grad(y, x, torch.full_like(y, 2.0))
    assert torch.equal(gradient.view(-1)[:hits], torch.ones(hits))
    assert bool((gradient.view(-1)[hits:] == 2).all())


@pytest.mark.parametrize("shape", [(4, 1, 1), (4,), (2, 3, 1)])
def test_a_shape_set_between_forward_and_backward_that_does_not_fit(shape: tuple[int, ...]) -> None:
    act = ReLU(0.5)
    x = torch.zeros(2, 3, requires_grad=True)
    y = act(x)
    act.subgradient = torch.ones(shape)
    with pytest.raises(SubgradientError, match=r"does not broadcast to an input of shape \(2, 3\)"):
        torch.autograd.grad(y.sum(), x, retain_graph=True)
    act.subgradient = torch.tensor([[0.25], [0.75]])
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.tolist() == [[0.25] * 3, [0.75] * 3]
