"""Activations without a fault, smooth and not, from torch, from relucheck, and as people write them. No law may fail one.

``KNOWN`` holds torch's own defects, each verified by hand (``reports/gate/findings.md``): expected failures, strictly.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relucheck import Activation, Kink, LeakyReLU, ReLU, ReLU6
from relucheck.gate.config import ExpectedFailure
from relucheck.gate.frameworks.of_torch.activations import modules
from tests.faults.wrong_modules import ChannelSlopes
from tests.faults.wrong_second_order import FusedLeaky, FusedSwish


def hardswish_by_relu6(x: Tensor) -> Tensor:
    return x * F.relu6(x + 3) / 6


def hardsigmoid_by_clamp(x: Tensor) -> Tensor:
    return torch.clamp(x / 6 + 0.5, 0, 1)


def relu_by_clamp(x: Tensor) -> Tensor:
    return x.clamp(min=0)


def relu_by_maximum(x: Tensor) -> Tensor:
    return torch.maximum(x, torch.zeros_like(x))


def relu_by_absolute(x: Tensor) -> Tensor:
    return (x + x.abs()) / 2


def relu_by_mask(x: Tensor) -> Tensor:
    return torch.where(x <= 0, torch.zeros_like(x), x)


def leaky_by_maximum(x: Tensor) -> Tensor:
    return torch.maximum(x, 0.1 * x)


def leaky_by_where(x: Tensor) -> Tensor:
    return torch.where(x >= 0, x, 0.3 * x)


def squared_relu(x: Tensor) -> Tensor:
    return F.relu(x) ** 2


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def mish(x: Tensor) -> Tensor:
    return x * torch.tanh(F.softplus(x))


def softplus_stable(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


def gelu_by_erf(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def elu_by_where(x: Tensor) -> Tensor:
    # clamp(max=0) in place of the inner where would lose the slope 1 at 0: its subgradient there is 0 since torch 2.14
    return torch.where(x > 0, x, torch.expm1(torch.where(x > 0, torch.zeros_like(x), x)))


def selu_by_hand(x: Tensor) -> Tensor:
    return 1.0507009873554805 * torch.where(x > 0, x, 1.6732632423543772 * elu_by_where(x))


def snake(x: Tensor) -> Tensor:
    return x + torch.sin(x) ** 2


def growing_cosine(x: Tensor) -> Tensor:
    return x * torch.cos(x)


def sine(x: Tensor) -> Tensor:
    return torch.sin(x)


def gaussian(x: Tensor) -> Tensor:
    return torch.exp(-x * x)


def bent_identity(x: Tensor) -> Tensor:
    return (torch.hypot(x, torch.ones_like(x)) - 1) / 2 + x


def softsign_by_hand(x: Tensor) -> Tensor:
    return x / (1 + x.abs())


def arctangent(x: Tensor) -> Tensor:
    return torch.atan(x)


def signed_square(x: Tensor) -> Tensor:
    return x * x.abs()


def tanh_exp(x: Tensor) -> Tensor:
    return x * torch.tanh(torch.exp(x.clamp(max=5)))


def log_cosh(x: Tensor) -> Tensor:
    return x.abs() + torch.log1p(torch.exp(-2 * x.abs())) - math.log(2)


def hard_elish(x: Tensor) -> Tensor:
    gate = torch.clamp((x + 1) / 2, 0, 1)
    return torch.where(x >= 0, x * gate, torch.expm1(x.clamp(max=0)) * gate)


def gated_by_minimum(x: Tensor) -> Tensor:
    # just above 1 the quotient rounds to 1, and minimum splits the gradient as at the kink
    one = torch.ones_like(x)
    return x * torch.minimum(one, (x + 1) / 2)


def clipped_by_difference(x: Tensor) -> Tensor:
    # 6 cancels where neighbouring numbers are further apart, in every dtype
    return F.relu(x) - F.relu(x - 6)


def three_kinks(x: Tensor) -> Tensor:
    return F.relu(x + 1) - 2 * F.relu(x) + F.relu(x - 1)


def odd_bounds(x: Tensor) -> Tensor:
    return F.hardtanh(x, -0.3, 1.1)


def soft_threshold(x: Tensor) -> Tensor:
    return torch.sign(x) * F.relu(x.abs() - 0.1)


def absolute(x: Tensor) -> Tensor:
    return x.abs()


def identity(x: Tensor) -> Tensor:
    return x * 1


def straight_through_round(x: Tensor) -> Tensor:
    return x + (x.round() - x).detach()


class _Swish(torch.autograd.Function):
    """Saves the input only; no forward mode, no vmap rule."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, v: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return v * s * (1 + x * (1 - s))


def swish_custom_function(x: Tensor) -> Tensor:
    return _Swish.apply(x)


class LearnableSwish(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(1.3))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.beta * x)


class LearnableThreshold(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x - self.threshold)


class ChannelScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.5, 1.5, 2.5]))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) * self.scale.reshape(1, -1, 1)


class MaxOfLines(nn.Module):
    """Learnable, two pieces, kink where the lines meet."""

    def __init__(self) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.tensor([0.25, 1.25]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(self.slopes[0] * x, self.slopes[1] * x)


def quintic_step(x: Tensor) -> Tensor:
    t = torch.clamp(x, -1, 1)
    return t * (15 - 10 * t * t + 3 * t**4) / 8


def indexed(x: Tensor) -> Tensor:
    y, negative = x.clone(), x < 0
    y[negative] = 0.2 * x[negative]
    return y


def masked(x: Tensor) -> Tensor:
    return x.masked_fill(x < 0, 0.0)


def jump_where_rounding_decides(x: Tensor) -> Tensor:
    """FTSwish as ESPnet writes it: the vector body and the tail of torch's sigmoid round differently beside the jump."""
    y = x * torch.sigmoid(x) - 0.2
    return torch.where(y < 0, torch.full_like(x, -0.2), y)


# -- structure near 0 that is meant
def huber(x: Tensor) -> Tensor:
    return F.huber_loss(x, torch.zeros_like(x), reduction="none", delta=1e-6)


def shrink_softly(x: Tensor) -> Tensor:
    # its two sides do not meet
    return F.softshrink(x, 1e-6)


def narrow_hardtanh(x: Tensor) -> Tensor:
    return F.hardtanh(x, -1e-6, 1e-6)


def relu_with_mean_in_band(x: Tensor) -> Tensor:
    # between the slopes 0 and 1
    return torch.where(x.abs() < 1e-6, 0.5 * x, F.relu(x))


def shrink_hard(x: Tensor) -> Tensor:
    return F.hardshrink(x, 1e-6)


def with_keywords(x: Tensor, *, slope: float = 0.1, bound: float = 2.0) -> Tensor:
    return F.leaky_relu(x, slope).clamp(max=bound)


class _EluByOutput(torch.autograd.Function):
    """Saves its output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = F.elu(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.where(y > 0, v, v * (y + 1))


def elu_by_output(x: Tensor) -> Tensor:
    return _EluByOutput.apply(x)


class _SquaredReLU(torch.autograd.Function):
    """Every mode by hand."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clamp(min=0).square()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:
        return v * 2 * ctx.saved_tensors[0].clamp(min=0)

    @staticmethod
    def jvp(ctx: Any, u: Tensor) -> Tensor:
        return u * 2 * ctx.saved_tensors[0].clamp(min=0)


def squared_relu_custom_function(x: Tensor) -> Tensor:
    return _SquaredReLU.apply(x)


class Buffered(nn.Module):
    """Bounds in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bounds", torch.tensor([-0.75, 1.5]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(x, self.bounds[0]), self.bounds[1])


class InFloat32(nn.Module):
    """16-bit inputs are computed in float32; a loop of pieces."""

    def forward(self, x: Tensor) -> Tensor:
        y = wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        for k in range(1, 4):
            y = y + F.relu(wide - k) / k
        return y.to(x.dtype)


class ScaleOfOne(nn.Module):
    """A parameter of shape (1,), which makes a vector of a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * torch.tanh(x)


class InPlaceByHand(nn.Module):
    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(0.5).clamp_(min=-1.0) if self.inplace else (x * 0.5).clamp(min=-1.0)


class Snake(nn.Module):
    """A parameter per channel, and a reciprocal that is kept from 0."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.alpha + 1e-9).reciprocal() * (self.alpha * x).sin().pow(2)


class PACT(nn.Module):
    """A learnable bound, which is clamped at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.bound = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (x.abs() - (x - self.bound).abs() + self.bound)


HAND_WRITTEN = [
    hardswish_by_relu6, hardsigmoid_by_clamp, relu_by_clamp, relu_by_maximum, relu_by_absolute, relu_by_mask,
    leaky_by_maximum, leaky_by_where, squared_relu, swish, mish, softplus_stable, gelu_by_erf, quick_gelu, elu_by_where,
    selu_by_hand, snake, growing_cosine, sine, gaussian, bent_identity, softsign_by_hand, arctangent, signed_square,
    tanh_exp, log_cosh, hard_elish, gated_by_minimum, clipped_by_difference, three_kinks, odd_bounds, soft_threshold,
    absolute, identity, swish_custom_function, LearnableSwish, LearnableThreshold, ChannelScale, MaxOfLines, quintic_step,
    indexed, masked, with_keywords, elu_by_output, squared_relu_custom_function, Buffered, InFloat32, ScaleOfOne,
    InPlaceByHand, FusedLeaky, FusedSwish, ChannelSlopes, PACT, jump_where_rounding_decides,
    huber, shrink_softly, narrow_hardtanh, relu_with_mean_in_band,
]  # fmt: skip
OURS = [
    Activation("ours_relu", ReLU),
    Activation("ours_relu_one", lambda: ReLU(1.0)),
    Activation("ours_relu6", lambda: ReLU6(0.5, 0.25)),
    Activation("ours_leaky", lambda: LeakyReLU(0.1, 0.7)),
    Activation("ours_relu_as_torch", ReLU, reference=nn.ReLU()),
    Activation("shrinks_as_declared", lambda: shrink_hard, kinks=[Kink(-1e-6, 1.0, 0.0), Kink(1e-6, 0.0, 1.0)]),
    Activation("shrinks_by_argument", lambda: nn.Hardshrink(1e-6)),
    Activation("shrinks_by_keyword", lambda: functools.partial(F.hardshrink, lambd=1e-6)),
    Activation("straight_through", lambda: straight_through_round, surrogate=True),
]
HEALTHY: list[Any] = [*modules(), *HAND_WRITTEN, *OURS]

#: The oneDNN kernel that torch takes for gelu where the processor has AVX-512; its own AVX2 kernel keeps subnormals. Asked
#: of the value itself, without the gate: the law must fail where this is so, and nowhere else.
GELU_FLUSHES = bool((torch.nn.functional.gelu(torch.full((83,), 2.0**-128, dtype=torch.bfloat16)) == 0).any())

_THREES = torch.full((83,), 3.0, requires_grad=True)
F.hardswish(_THREES).sum().backward()
#: In torch 2.4 the vector loop of hardswish's backward takes the left slope at 3, and the loop of the rest the right one.
HARDSWISH_BY_POSITION = bool((_THREES.grad != _THREES.grad[0]).any())  # type: ignore[index]
#: In torch 2.4 softshrink turns NaN into 0.
SOFTSHRINK_LOSES_NAN = not F.softshrink(torch.tensor([math.nan])).isnan().item()

KNOWN = (
    ExpectedFailure(
        "PReLU*/forward_mode/*",
        "torch: forward-mode AD of prelu takes the right slope at 0, reverse mode the left one",
        message="forward mode and reverse mode differ[^/]*on the kink at 0",
    ),
    ExpectedFailure(
        "PReLU*/double_backward_cotangent/*",
        "torch: double backward of prelu takes the right slope at 0, backward the left one",
        message="the derivative of the gradient by the cotangent is wrong[^/]*on the kink at 0",
    ),
    ExpectedFailure(
        "Threshold/decomposition/bfloat16",
        "torch: decomposed threshold compares bfloat16 inputs with the rounded bound",
        message="the gradient by decomposed operations differs[^/]*0.10009765625",
    ),
    # right in float16, whose cubes overflow to where the tanh is flat
    *[
        ExpectedFailure(
            f"GELU-tanh/finite_gradient/{dtype}",
            "torch: gelu(approximate='tanh') has a NaN gradient at inputs beyond the cube root of the largest number",
            message="the value is finite and the gradient is nan",
        )
        for dtype in ("bfloat16", "float32", "float64")
    ],
    *[
        ExpectedFailure(
            "GELU/subnormals/bfloat16",
            "torch: gelu flushes bfloat16 subnormals to zero",
            message="forward flushes a subnormal input to zero",
        )
    ][: int(GELU_FLUSHES)],
    *[
        ExpectedFailure(f"Hardswish/{law}/*", "torch: hardswish's gradient at 3 depends on the position", message=message)
        for law, message in (
            ("position", r"equal inputs \(3\.0\) have different gradients"),
            ("strides", "differs from that for a contiguous input"),
        )
        if HARDSWISH_BY_POSITION
    ],
    *[
        ExpectedFailure(
            "Softshrink/nan_propagates/*",
            "torch: softshrink turns NaN into 0",
            message="forward turns NaN into a number",
        )
    ][: int(SOFTSHRINK_LOSES_NAN)],
)
