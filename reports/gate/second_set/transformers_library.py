"""From transformers 5.24.0 (transformers/activations.py; BloomGelu: models/bloom/modeling_bloom.py), Apache-2.0."""

import math

import torch
from torch import nn

__all__ = [
    "XIELU",
    "AccurateGELU",
    "BloomGelu",
    "ClippedGELU",
    "FastGELU",
    "GELUPython",
    "LaplaceActivation",
    "MishPython",
    "NewGELU",
    "QuickGELU",
    "SqrtSoftplus",
]


class NewGELU(nn.Module):
    def forward(self, input):
        return 0.5 * input * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (input + 0.044715 * torch.pow(input, 3.0))))


class AccurateGELU(nn.Module):
    def __init__(self):
        super().__init__()
        self.precomputed_constant = math.sqrt(2 / math.pi)

    def forward(self, input):
        return 0.5 * input * (1 + torch.tanh(self.precomputed_constant * (input + 0.044715 * torch.pow(input, 3))))


class FastGELU(nn.Module):
    def forward(self, input):
        return 0.5 * input * (1.0 + torch.tanh(input * 0.7978845608 * (1.0 + 0.044715 * input * input)))


class GELUPython(nn.Module):
    def forward(self, input):
        return input * 0.5 * (1.0 + torch.erf(input / math.sqrt(2.0)))


class QuickGELU(nn.Module):
    def forward(self, input):
        return input * torch.sigmoid(1.702 * input)


class ClippedGELU(nn.Module):
    """With the bounds of ACT2CLS["gelu_10"]."""

    def __init__(self):
        super().__init__()
        self.min, self.max = -10, 10

    def forward(self, x):
        return torch.clip(nn.functional.gelu(x), self.min, self.max)


class LaplaceActivation(nn.Module):
    def forward(self, input, mu=0.707107, sigma=0.282095):
        input = (input - mu).div(sigma * math.sqrt(2.0))
        return 0.5 * (1.0 + torch.erf(input))


class MishPython(nn.Module):
    def forward(self, input):
        return input * torch.tanh(nn.functional.softplus(input))


class SqrtSoftplus(nn.Module):
    """sqrt(softplus(x)), the router scoring function of DeepSeek V4."""

    def forward(self, input):
        return nn.functional.softplus(input).sqrt()


class XIELU(nn.Module):
    """The Python form; the CUDA form and its warnings are left out."""

    def __init__(self, alpha_p_init=0.8, alpha_n_init=0.8, beta=0.5, eps=-1e-6, dtype=torch.bfloat16):
        super().__init__()
        self.alpha_p = nn.Parameter(torch.log(torch.expm1(torch.tensor(alpha_p_init, dtype=dtype))).unsqueeze(0))
        self.alpha_n = nn.Parameter(torch.log(torch.expm1(torch.tensor(alpha_n_init - beta, dtype=dtype))).unsqueeze(0))
        self.register_buffer("beta", torch.tensor(beta, dtype=dtype))
        self.register_buffer("eps", torch.tensor(eps, dtype=dtype))

    def forward(self, x):
        alpha_p = nn.functional.softplus(self.alpha_p)
        alpha_n = self.beta + nn.functional.softplus(self.alpha_n)
        return torch.where(
            x > 0,
            alpha_p * x * x + self.beta * x,
            (torch.expm1(torch.min(x, self.eps)) - x) * alpha_n + self.beta * x,
        )


class _GeLUFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input):
        ctx.save_for_backward(input)
        return input * 0.5 * (1.0 + torch.tanh(0.79788456 * input * (1 + 0.044715 * input * input)))

    @staticmethod
    def backward(ctx, grad_output):
        x = ctx.saved_tensors[0]
        tanh_out = torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x))
        # sqrt(2/pi) * 3 * 0.044715 -> 0.1070322243
        ff = 0.5 * x * ((1 - tanh_out * tanh_out) * (0.79788456 + 0.1070322243 * x * x)) + 0.5 * (1 + tanh_out)
        return ff * grad_output


class BloomGelu(nn.Module):
    def forward(self, x):
        return _GeLUFunction.apply(x)
