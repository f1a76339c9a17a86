"""Faults of other projects' issue trackers, written in PyTorch; each names the issue that reports it."""

import torch
import torch.nn.functional as F
from torch import nn

__all__ = [
    "AsinhSignLog",
    "BonlimeSwish",
    "GeluSaturated",
    "LeakyByOutput",
    "MishMissingTerm",
    "MishRational",
    "ProdLikeTanh",
    "ReluJvpWithoutTangent",
    "ReluStrict",
    "SiluCotangentOrder",
    "SiluMemoryOrder",
    "UltralyticsSwish",
    "abs_twice",
    "elu_where",
    "signed_sqrt",
    "softplus_naive",
]


def softplus_naive(x):
    """tracel-ai/burn #5373: log(exp(x) + 1) overflows."""
    return (x.exp() + 1).log()


def elu_where(x):
    """phlippe/uvadlc_notebooks, tutorial 3 (as in pytorch #68425): the branch that is not taken overflows."""
    return torch.where(x > 0, x, torch.exp(x) - 1)


def signed_sqrt(x):
    """jnhwkim/cbp #1: the gradient at 0."""
    return torch.sign(x) * torch.sqrt(torch.abs(x))


class AsinhSignLog(nn.Module):
    """tinygrad #17758: asinh as sign(x) * log(|x| + sqrt(x² + 1)) has the gradient sign(0)² = 0 at 0."""

    def forward(self, x):
        return x.sign() * (x.abs() + (x.square() + 1).sqrt()).log()


class _LeakyByOutput(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, slope):
        y = torch.where(x > 0, x, slope * x)
        ctx.save_for_backward(y)
        ctx.slope = slope
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return torch.where(y > 0, g, ctx.slope * g), None


class LeakyByOutput(nn.Module):
    """burn #1208, pytorch #31938: the side is decided on the output, which is wrong for a negative slope."""

    def __init__(self, negative_slope=-2.0):
        super().__init__()
        self.negative_slope = negative_slope

    def forward(self, x):
        return _LeakyByOutput.apply(x, self.negative_slope)


class _GeluSaturated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 0.5 * x * (1 + torch.erf(x * 0.5**0.5))

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        slope = 0.5 * (1 + torch.erf(x * 0.5**0.5)) + x * torch.exp(-0.5 * x * x) * 0.3989422804014327
        return g * torch.where(x >= 3.1719, torch.ones_like(x), slope)


class GeluSaturated(nn.Module):
    """tenstorrent/tt-metal #54871: the derivative is set to 1 from 3.1719 on, where it is 1.0075."""

    def forward(self, x):
        return _GeluSaturated.apply(x)


def _mish(x):
    return x * torch.tanh(F.softplus(x))


class _MishMissingTerm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return _mish(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        e = torch.exp(x.clamp(max=5.0))
        omega = 4 * (x + 1) + 4 * e * e + e * (4 * x + 6)
        delta = 2 * e + e * e + 2
        return g * torch.where(x >= 5.0, torch.ones_like(x), e * omega / (delta * delta))


class MishMissingTerm(nn.Module):
    """explosion/thinc #578: the numerator of the derivative lacks exp(3x); threshold 5, as thinc's default."""

    def forward(self, x):
        return _MishMissingTerm.apply(x)


class _MishRational(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return _mish(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        e = torch.exp(x)
        omega = 4 * (x + 1) + 4 * e**2 + e**3 + e * (4 * x + 6)
        delta = 2 * e + e**2 + 2
        return g * e * omega / delta**2


class MishRational(nn.Module):
    """davisking/dlib #1938: the rational form of the derivative overflows at moderate x."""

    def forward(self, x):
        return _MishRational.apply(x)


class _BonlimeSwish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.data.mul_(torch.sigmoid(x)).clone()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return g * (s * (1 + x * (1 - s)))


class BonlimeSwish(nn.Module):
    """timm #156 (closed, not merged): forward overwrites x, which backward reads afterwards."""

    def forward(self, x):
        return _BonlimeSwish.apply(x)


class UltralyticsSwish(nn.Module):
    """ultralytics/yolov3 #441: the input of the caller is overwritten, which nothing announces."""

    def forward(self, x):
        return x.mul_(torch.sigmoid(x))


class _ProdLike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return 1 - y * y


class ProdLikeTanh(nn.Module):
    """pytorch #995, the same mistake on tanh: backward does not multiply by the upstream gradient."""

    def forward(self, x):
        return _ProdLike.apply(x)


class _ReluJvp(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.clamp(min=0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (x > 0)

    @staticmethod
    def jvp(ctx, tangent):
        (x,) = ctx.saved_tensors
        return (1 + torch.sign(x)) / 2


class ReluJvpWithoutTangent(nn.Module):
    """DiffSharp #16: forward mode returns (1 + sign(x)) / 2 and does not multiply by the tangent."""

    def forward(self, x):
        return _ReluJvp.apply(x)


class _ReluStrict(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        g = g.clone()
        g[x < 0] = 0
        return g


class ReluStrict(nn.Module):
    """pytorch/tutorials #269: the gradient 1 at 0. Not a fault, the slope on the right is allowed."""

    def forward(self, x):
        return _ReluStrict.apply(x)


def _strides(shape):
    strides, step = [], 1
    for size in reversed(shape):
        strides.insert(0, step)
        step *= max(size, 1)
    return strides


class _SiluMemory(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        memory = torch.as_strided(x, x.shape, _strides(x.shape))
        return memory * torch.sigmoid(memory)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        x = torch.as_strided(x, x.shape, _strides(x.shape))
        s = torch.sigmoid(x)
        return g * (s * (1 + x * (1 - s)))


class SiluMemoryOrder(nn.Module):
    """fla-org/flash-linear-attention #759: the kernel reads the input as if it were contiguous."""

    def forward(self, x):
        return _SiluMemory.apply(x)


class _SiluCotangent(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        memory = g if 0 in g.stride() else torch.as_strided(g, g.shape, _strides(g.shape))
        return memory * (s * (1 + x * (1 - s)))


class SiluCotangentOrder(nn.Module):
    """pytorch #194719: the backward kernel reads the upstream gradient with the strides of a contiguous tensor."""

    def forward(self, x):
        return _SiluCotangent.apply(x)


def abs_twice(x):
    """tinygrad #4611: abs as x * sign(x) has the gradient sign(x), 0 at 0. Not a fault."""
    return x * x.sign()
