"""Activations for which a careful user would declare something: surrogate gradients, or a reference.

snnTorch 1.0.0 (snntorch/surrogate.py; Sigmoid: 0.9.4), MIT. brevitas 0.13.4 (brevitas/ops/autograd_ste_ops.py), BSD-3.
speechbrain 1.1.2 (speechbrain/nnet/activations.py), Apache-2.0. jax before #1446 (selu), Apache-2.0, written in PyTorch.
"""

import torch
import torch.nn.functional as F

from relucheck import Activation, Kink

__all__ = ["BrevitasRoundSTE", "JaxSelu1446", "SnnATan", "SnnFastSigmoid", "SnnSigmoid094", "SpeechbrainSwish2"]


class _ATan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input_, alpha):
        ctx.save_for_backward(input_)
        ctx.alpha = alpha
        return (input_ > 0).float()

    @staticmethod
    def backward(ctx, grad_output):
        (input_,) = ctx.saved_tensors
        grad_input = grad_output.clone()
        return ctx.alpha / 2 / (1 + (torch.pi / 2 * ctx.alpha * input_).pow_(2)) * grad_input, None


class _FastSigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input_, slope):
        ctx.save_for_backward(input_)
        ctx.slope = slope
        return (input_ > 0).float()

    @staticmethod
    def backward(ctx, grad_output):
        (input_,) = ctx.saved_tensors
        grad_input = grad_output.clone()
        return grad_input / (ctx.slope * torch.abs(input_) + 1.0) ** 2, None


class _Sigmoid094(torch.autograd.Function):
    """snntorch #427: NaN from x = -3.55 down."""

    @staticmethod
    def forward(ctx, input_, slope):
        ctx.save_for_backward(input_)
        ctx.slope = slope
        return (input_ > 0).float()

    @staticmethod
    def backward(ctx, grad_output):
        (input_,) = ctx.saved_tensors
        grad_input = grad_output.clone()
        grad = grad_input * ctx.slope * torch.exp(-ctx.slope * input_) / ((torch.exp(-ctx.slope * input_) + 1) ** 2)
        return grad, None


class _RoundSte(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.round(x)

    @staticmethod
    def backward(ctx, grad_y):
        return grad_y


def _atan():
    return lambda x: _ATan.apply(x, 2.0)


def _fast_sigmoid():
    return lambda x: _FastSigmoid.apply(x, 25)


def _sigmoid094():
    return lambda x: _Sigmoid094.apply(x, 25)


def _round_ste():
    return _RoundSte.apply


def _swish2():
    """speechbrain's Swish(beta=2): silu(beta * x)."""
    return lambda x: F.silu(x * 2.0)


def _selu1446():
    """scale * leaky_relu(x, alpha), where selu is scale * elu(x, alpha)."""
    return lambda x: 1.0507009873554805 * torch.where(x > 0, x, 1.6732632423543772 * x)


def _documented_swish2(x):
    return x * torch.sigmoid(2.0 * x)


SnnATan = Activation("SnnATan", _atan, surrogate=True)
SnnFastSigmoid = Activation("SnnFastSigmoid", _fast_sigmoid, surrogate=True)
SnnSigmoid094 = Activation("SnnSigmoid094", _sigmoid094, surrogate=True)
BrevitasRoundSTE = Activation("BrevitasRoundSTE", _round_ste, surrogate=True)
SpeechbrainSwish2 = Activation("SpeechbrainSwish2", _swish2, reference=_documented_swish2)
JaxSelu1446 = Activation(
    "JaxSelu1446",
    _selu1446,
    reference=F.selu,
    kinks=[Kink(0, left=1.7580993408473766, right=1.0507009873554805)],
)
