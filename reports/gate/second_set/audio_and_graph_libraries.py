"""From libraries of which each gives a few activations; the line above each names library, version and file."""

import torch
import torch.nn.functional as F
from torch import nn

__all__ = [
    "AsteroidSwish",
    "BigVGANSnakeBeta",
    "E3nnSoftUnitStep",
    "EfficientNetSwish",
    "EspnetFTSwish",
    "EspnetSmish",
    "FastaiMishJit",
    "NemoClamp",
    "NemoSnake",
    "NormflowsSwish",
    "PygShiftedSoftplus",
    "SirenSine",
    "SoLU",
    "SpeechbrainSwish",
    "TsaiSmeLU",
    "TsaiSwishBeta",
    "XTReluSquared",
    "XTSoftclampGelu",
    "XTSoftclampSilu",
    "fastai_swish",
]


# e3nn 0.6.0, e3nn/math/_soft_unit_step.py, MIT
class _SoftUnitStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        mask = x > 0.0
        safe_x = torch.where(mask, x, torch.ones_like(x))
        return torch.where(mask, torch.exp(-1.0 / safe_x), torch.zeros_like(x))

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        mask = x > 0.0
        safe_x = torch.where(mask, x, torch.ones_like(x))
        dx = torch.where(mask, torch.exp(-1.0 / safe_x) / (safe_x * safe_x), torch.zeros_like(x))
        return dx * dy


class E3nnSoftUnitStep(nn.Module):
    """exp(-1 / x) for x > 0, else 0."""

    def forward(self, x):
        return _SoftUnitStep.apply(x)


# tsai 1.0.1, tsai/models/layers.py, Apache-2.0
class TsaiSwishBeta(nn.Module):
    def __init__(self, beta=1.0):
        super().__init__()
        self.beta = nn.Parameter(torch.Tensor(1).fill_(beta))

    def forward(self, x):
        return x.mul(torch.sigmoid(x * self.beta))


class TsaiSmeLU(nn.Module):
    def __init__(self, beta=2.0):
        super().__init__()
        self.beta = abs(beta)

    def forward(self, x):
        return torch.where(torch.abs(x) <= self.beta, ((x + self.beta) ** 2) / (4.0 * self.beta), F.relu(x))


# torch_geometric 2.8.1, torch_geometric/nn/models/schnet.py, MIT
class PygShiftedSoftplus(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = torch.log(torch.tensor(2.0)).item()

    def forward(self, x):
        return F.softplus(x) - self.shift


# espnet 202511, espnet2/asr_transducer/activation.py, Apache-2.0
class EspnetFTSwish(nn.Module):
    """x sigmoid(x) + threshold, and threshold where that is below 0."""

    def __init__(self, threshold=-0.2):
        super().__init__()
        self.threshold = threshold

    def forward(self, x):
        x = (x * torch.sigmoid(x)) + self.threshold
        return torch.where(x >= 0, x, torch.tensor([self.threshold], device=x.device))


class EspnetSmish(nn.Module):
    def __init__(self, alpha=1.0, beta=1.0):
        super().__init__()
        self.tanh = torch.nn.Tanh()
        self.alpha, self.beta = alpha, beta

    def forward(self, x):
        return (self.alpha * x) * self.tanh(torch.log(1 + torch.sigmoid(self.beta * x)))


# nemo_toolkit 3.0.0, nemo/collections/common/parts/utils.py, Apache-2.0
class NemoClamp(nn.Module):
    def __init__(self, min_value=-1.0, max_value=1.0, clamp_training=True):
        super().__init__()
        self.min_value, self.max_value, self.clamp_training = min_value, max_value, clamp_training

    def forward(self, input):
        if self.training and not self.clamp_training:
            return input
        return torch.clamp(input, min=self.min_value, max=self.max_value)


# the same file; three channels of [batch, channels, time]
class NemoSnake(nn.Module):
    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, 3, 1))

    def forward(self, x):
        shape = x.shape
        x = x.reshape(shape[0], shape[1], -1)
        x = x + (self.alpha + 1e-9).reciprocal() * torch.sin(self.alpha * x).pow(2)
        return x.reshape(shape)


# bigvgan 2.4.1, bigvgan/activations.py, MIT; with alpha_logscale, three channels of [batch, channels, time]
class BigVGANSnakeBeta(nn.Module):
    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(3))
        self.beta = nn.Parameter(torch.zeros(3))
        self.no_div_by_zero = 0.000000001

    def forward(self, x):
        alpha = torch.exp(self.alpha.unsqueeze(0).unsqueeze(-1))
        beta = torch.exp(self.beta.unsqueeze(0).unsqueeze(-1))
        return x + (1.0 / (beta + self.no_div_by_zero)) * torch.pow(torch.sin(x * alpha), 2)


# fastai 2.8.12, fastai/layers.py, Apache-2.0; without torch.jit.script
class _MishJitAutoFn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.mul(torch.tanh(F.softplus(x)))

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        x_sigmoid = torch.sigmoid(x)
        x_tanh_sp = F.softplus(x).tanh()
        return grad_output.mul(x_tanh_sp + x * x_sigmoid * (1 - x_tanh_sp * x_tanh_sp))


class FastaiMishJit(nn.Module):
    def forward(self, x):
        return _MishJitAutoFn.apply(x)


def fastai_swish(x, inplace=False):
    F.silu(x, inplace=inplace)


# efficientnet_pytorch 0.7.1, efficientnet_pytorch/utils.py, Apache-2.0 (monai 1.6.1 has the same)
class _SwishImplementation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, i):
        result = i * torch.sigmoid(i)
        ctx.save_for_backward(i)
        return result

    @staticmethod
    def backward(ctx, grad_output):
        i = ctx.saved_tensors[0]
        sigmoid_i = torch.sigmoid(i)
        return grad_output * (sigmoid_i * (1 + i * (1 - sigmoid_i)))


class EfficientNetSwish(nn.Module):
    def forward(self, x):
        return _SwishImplementation.apply(x)


# normflows 1.7.3, normflows/nets/lipschitz.py, MIT
class NormflowsSwish(nn.Module):
    def __init__(self):
        super().__init__()
        self.beta = nn.Parameter(torch.tensor([0.5]))

    def forward(self, x):
        return (x * torch.sigmoid_(x * F.softplus(self.beta))).div_(1.1)


# asteroid 0.7.0, asteroid/masknn/activations.py, MIT
class AsteroidSwish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


# siren_pytorch 0.1.7, siren_pytorch/siren_pytorch.py, MIT
class SirenSine(nn.Module):
    """With w0 = 30, the value of the paper."""

    def __init__(self):
        super().__init__()
        self.w0 = 30.0

    def forward(self, x):
        return torch.sin(self.w0 * x)


# x_transformers 2.31.10, x_transformers/x_transformers.py, MIT
class XTReluSquared(nn.Module):
    def forward(self, x):
        return F.relu(x) ** 2


class XTSoftclampGelu(nn.Module):
    """softclamp_gelu(t, 10)"""

    def forward(self, t):
        return (t / 10.0).tanh() * 10.0 * torch.special.ndtr(t)


class XTSoftclampSilu(nn.Module):
    """softclamp_silu(t, 10)"""

    def forward(self, t):
        return (t / 10.0).tanh() * 10.0 * t.sigmoid()


class SoLU(nn.Module):
    """SoLU without its norm."""

    def forward(self, x):
        return x.softmax(dim=-1) * x


# speechbrain 1.1.2, speechbrain/nnet/activations.py, Apache-2.0
class SpeechbrainSwish(nn.Module):
    """With beta = 1, the default."""

    def __init__(self, beta=1.0):
        super().__init__()
        self.beta = beta
        self.silu = torch.nn.SiLU()

    def forward(self, x):
        if self.beta != 1:
            x = x * self.beta
        return self.silu(x)
