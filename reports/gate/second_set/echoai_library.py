"""From echoAI 0.1.3 (echoAI/Activation/Torch/functional.py, and the classes beside it), MIT."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import Function

__all__ = [
    "APLModule",
    "BReLU",
    "MishInplace",
    "SReLU",
    "SiLUInplace",
    "SoftExponentialHalf",
    "SoftExponentialZero",
    "WeightedTanhInplace",
    "apl",
    "aria2",
    "bent_id",
    "beta_mish",
    "elish",
    "eswish",
    "fts",
    "hard_elish",
    "isrlu",
    "isru",
    "mila",
    "sine_relu",
    "soft_clipping",
    "sqnl",
    "swish",
    "weighted_tanh",
]


def weighted_tanh(input, weight=1):
    return torch.tanh(weight * input)


class WeightedTanhInplace(nn.Module):
    """weighted_tanh(inplace=True)"""

    def __init__(self):
        super().__init__()
        self.inplace, self.weight = True, 1

    def forward(self, input):
        input *= self.weight
        torch.tanh_(input)
        return input


class MishInplace(nn.Module):
    """mish(inplace=True)"""

    def __init__(self):
        super().__init__()
        self.inplace = True

    def forward(self, input):
        inp = input.clone()
        torch.exp_(input)
        input += 1
        torch.tanh_(torch.log_(input))
        input *= inp
        return input


class SiLUInplace(nn.Module):
    """silu(inplace=True)"""

    def __init__(self):
        super().__init__()
        self.inplace = True

    def forward(self, input):
        result = input.clone()
        torch.sigmoid_(input)
        input *= result


def aria2(input, beta=1, alpha=1.5):
    return torch.pow((1 + torch.exp(-beta * input)), -alpha)


def beta_mish(input, beta=1.5):
    return input * torch.tanh(torch.log(torch.pow((1 + torch.exp(input)), beta)))


def eswish(input, beta=1.75):
    return beta * input * torch.sigmoid(input)


def swish(input, beta=1.25):
    return input * torch.sigmoid(beta * input)


def elish(input):
    return (input >= 0).float() * input * torch.sigmoid(input) + (input < 0).float() * (torch.exp(input) - 1) / (
        torch.exp(-input) + 1
    )


def hard_elish(input):
    """Documented: x * max(0, min(1, (x + 1) / 2)) for x >= 0, (exp(x) - 1) * max(0, min(1, (x + 1) / 2)) for x < 0."""
    return (input >= 0).float() * input * torch.max(
        torch.tensor(0.0), torch.min(torch.tensor(1.0), (input + 1.0) / 2.0)
    ) + (input < 0).float() * (
        torch.exp(input - 1) * torch.max(torch.tensor(0.0), torch.min(torch.tensor(1.0), (input + 1.0) / 2.0))
    )


def mila(input, beta=-0.25):
    return input * torch.tanh(F.softplus(input + beta))


def sine_relu(input, eps=0.01):
    """Documented: x for x > 0, eps * (sin(x) - cos(x)) for x <= 0."""
    return (input > 0).float() * input + (input <= 0).float() * eps * (torch.sin(input) - torch.cos(input))


def fts(input):
    return torch.clamp(input / (1 + torch.exp(-input)), min=0)


def sqnl(input):
    """Documented: 1 above 2, x - x²/4 in [0, 2], x + x²/4 in [-2, 0), -1 below -2."""
    return (
        (input > 2).float()
        + (input - torch.pow(input, 2) / 4) * (input >= 0).float() * (input <= 2).float()
        + (input + torch.pow(input, 2) / 4) * (input < 0).float() * (input >= -2).float()
        - (input < -2).float()
    )


def isru(input, alpha=1.0):
    """Documented: x / sqrt(1 + alpha x²)."""
    return input / (torch.sqrt(1 + alpha * torch.pow(input, 2)))


def bent_id(input):
    """Documented: x + (sqrt(x² + 1) - 1) / 2."""
    return input + ((torch.sqrt(torch.pow(input, 2) + 1) - 1) / 2)


def isrlu(input, alpha=1.0):
    return (input < 0).float() * isru(input, alpha) + (input >= 0).float() * input


def soft_clipping(input, alpha=0.5):
    return (1 / alpha) * torch.log((1 + torch.exp(alpha * input)) / (1 + torch.exp(alpha * (input - 1))))


class SReLU(nn.Module):
    """Documented: tr + ar (x - tr) for x >= tr, x between tl and tr, tl + al (x - tl) for x <= tl."""

    def __init__(self):
        super().__init__()
        self.tr = nn.Parameter(torch.tensor([1.0]))
        self.tl = nn.Parameter(torch.tensor([-1.0]))
        self.ar = nn.Parameter(torch.tensor([0.5]))
        self.al = nn.Parameter(torch.tensor([0.1]))

    def forward(self, x):
        return (
            (x >= self.tr).float() * (self.tr + self.ar * (x + self.tr))
            + (x < self.tr).float() * (x > self.tl).float() * x
            + (x <= self.tl).float() * (self.tl + self.al * (x + self.tl))
        )


class _APLFunction(Function):
    @staticmethod
    def forward(ctx, input, a, b):
        ctx.save_for_backward(input, a, b)
        output = input.clamp(min=0)
        for s in range(a.shape[0]):
            t = -input + b[s]
            output += a[s] * t.clamp(min=0)
        return output

    @staticmethod
    def backward(ctx, grad_output):
        input, a, _b = ctx.saved_tensors
        grad_input = (input >= 0).float() * grad_output
        for s in range(a.shape[0]):
            grad_input += (input >= 0).float() * (-a[s]) * grad_output
        return grad_input, None, None  # the library's gradients of a and b are left out: a and b are constants here


def apl(x):
    """apl_function.apply(x, a, b) with one hinge, a = 0.5 and b = 1."""
    return _APLFunction.apply(x, torch.tensor([0.5], dtype=x.dtype), torch.tensor([1.0], dtype=x.dtype))


class APLModule(nn.Module):
    """APL(1, S=1, a=0.5, b=1): the module does not use the function above."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([[0.5]]))
        self.b = nn.Parameter(torch.tensor([[1.0]]))

    def forward(self, x):
        output = x.clamp(min=0)
        for s in range(1):
            t = -x + self.b[s]
            output += self.a[s] * t.clamp(min=0)
        return output


class _BReLUFunction(Function):
    @staticmethod
    def forward(ctx, input):
        ctx.save_for_backward(input)
        even, odd = list(range(0, input.shape[0], 2)), list(range(1, input.shape[0], 2))
        output = input.clone()
        output[even] = output[even].clamp(min=0)
        output[odd] = 0 - output[odd]
        output[odd] = -output[odd].clamp(min=0)
        return output

    @staticmethod
    def backward(ctx, grad_output):
        (input,) = ctx.saved_tensors
        grad_input = grad_output.clone()
        even, odd = list(range(0, input.shape[0], 2)), list(range(1, input.shape[0], 2))
        grad_input[even] = (input[even] >= 0).float() * grad_input[even]
        grad_input[odd] = (input[odd] < 0).float() * grad_input[odd]
        return grad_input


class BReLU(nn.Module):
    """f(x_i) for even i, -f(-x_i) for odd i."""

    def forward(self, x):
        return _BReLUFunction.apply(x)


class _SoftExponential(nn.Module):
    initial = 0.0

    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(self.initial))

    def forward(self, x):
        if self.alpha == 0.0:
            return x
        if self.alpha < 0.0:
            return -torch.log(1 - self.alpha * (x + self.alpha)) / self.alpha
        return (torch.exp(self.alpha * x) - 1) / self.alpha + self.alpha


class SoftExponentialZero(_SoftExponential):
    """SoftExponential with the library's initial value, alpha = 0."""


class SoftExponentialHalf(_SoftExponential):
    """SoftExponential with alpha = 0.5."""

    initial = 0.5
