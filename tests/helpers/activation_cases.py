"""The activations with their expected gradients, written out, and the checks that every activation must pass."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relucheck.activations.modules import LeakyReLU, ReLU, ReLU6
from relucheck.numerics.bits import all_values, from_ordinals, neighbour, same_bits
from relucheck.numerics.dtypes import DTYPES, compute_dtype, dtype_name

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
