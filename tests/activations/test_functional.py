"""ReLU, ReLU6 and LeakyReLU: values and gradients; the checks are shown to fail on seeded mutants."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relucheck.activations import functional, rules
from relucheck.activations.modules import LeakyReLU, ReLU, ReLU6
from relucheck.numerics.bits import all_values, neighbour, same_bits
from relucheck.numerics.dtypes import dtype_name
from relucheck.training.model import Kinked, Switch
from tests.helpers.activation_cases import (
    CASES,
    Case,
    Subgradients,
    at_each,
    check_forward,
    check_gradient,
    check_own,
    check_shared_forward,
    every_case,
    every_dtype,
    every_subgradient,
    expected,
    gradient,
    inputs,
)

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
