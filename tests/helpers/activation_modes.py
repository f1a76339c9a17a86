"""The activations, their inputs, and one Jacobian by every mode of torch.func and autograd."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.func import grad, jvp, vjp, vmap

from relucheck.activations.functional import leaky_relu, relu, relu6
from relucheck.activations.modules import LeakyReLU, ReLU, ReLU6
from relucheck.numerics.bits import all_values
from relucheck.numerics.dtypes import DTYPES, dtype_name

pytestmark = [
    # torch's forward-mode AD imports its own scripted decompositions
    pytest.mark.filterwarnings(r"ignore:.*torch\.jit\.script.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings(r"ignore:.*torch\.jit\.script.*is deprecated:DeprecationWarning"),
    # torch 2.11 makes an instance of its own base class when it traces a custom function
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*should not be instantiated:DeprecationWarning"),
]


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    make: Callable[..., nn.Module]
    functional: Callable[[Tensor, Tensor], Tensor]
    native: Callable[[], nn.Module]
    kinks: tuple[float, ...]

    def __str__(self) -> str:
        return self.name


CASES = (
    Case("ReLU", lambda s, **k: ReLU(s, **k), relu, nn.ReLU, (0.0,)),
    Case(
        "ReLU6-alpha",
        lambda s, **k: ReLU6(s, 0.25, **k),
        lambda x, s: relu6(x, s, torch.full((), 0.25, dtype=x.dtype)),
        nn.ReLU6,
        (0.0, 6.0),
    ),
    Case(
        "ReLU6-beta",
        lambda s, **k: ReLU6(0.25, s, **k),
        lambda x, s: relu6(x, torch.full((), 0.25, dtype=x.dtype), s),
        nn.ReLU6,
        (0.0, 6.0),
    ),
    Case("LeakyReLU", lambda s, **k: LeakyReLU(0.01, s, **k), lambda x, s: leaky_relu(x, s), nn.LeakyReLU, (0.0,)),
)
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)


def inputs(dtype: torch.dtype) -> Tensor:
    """Hits of both kinks, both zeros, neighbours, infinities. No NaN, see test_activations.inputs."""
    if dtype in (torch.float16, torch.bfloat16):
        x = all_values(dtype)
        return torch.where(x.isnan(), torch.zeros_like(x), x)
    tiny = torch.finfo(dtype).tiny
    special = [0.0, -0.0, 6.0, -6.0, tiny, -tiny, tiny / 2, 5.999999, 7.0, math.inf, -math.inf, 1.0, -1.0, 2.0, -2.0, 6.0]
    return torch.tensor(special * 8, dtype=dtype)


def cotangents(x: Tensor, seed: int = 0) -> Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(x.dtype)


def eager(module: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(module(x), x, g)[0]


def by_grad(f: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Tensor:
    return vmap(grad(lambda t, c: f(t) * c))(x, g)


def by_vjp(f: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Tensor:
    return vjp(f, x)[1](g)[0]


def by_jvp(f: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Tensor:
    return jvp(f, (x,), (g,))[1]


def by_dual_numbers(f: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, g))).tangent


def by_vmap(f: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Tensor:
    return eager(vmap(f), x, g)


def by_batched_cotangents(f: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(f(x), x, torch.stack([g, -g]), is_grads_batched=True)[0][0]


def by_nested_vmap(f: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Tensor:
    return vmap(vmap(grad(lambda t, c: f(t) * c)))(x.view(2, -1), g.view(2, -1)).view(-1)


MODES = (by_grad, by_vjp, by_jvp, by_dual_numbers, by_vmap, by_batched_cotangents, by_nested_vmap)
