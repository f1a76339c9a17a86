"""What the gradients and hits must be, computed without relucheck's activations and without its interception."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from relucheck.activations.rules import ModelSubgradient
from relucheck.networks.examples import Example, torch_activation
from relucheck.networks.network import ActivationName

KINKS: dict[ActivationName, tuple[float, ...]] = {"relu": (0.0,), "relu6": (0.0, 6.0), "leaky_relu": (0.0,)}
Gradients = dict[str, Tensor]


class Composite(nn.Module):
    """torch's own activation, with a linear function of slope s put in at the hits: autograd's own rules do the rest.

    ``(x - x.detach()) * s`` is exactly 0 at a finite hit and has the derivative s; elsewhere ``where`` masks it out.
    """

    def __init__(self, name: ActivationName, negative_slope: float, setting: ModelSubgradient) -> None:
        super().__init__()
        self.native = torch_activation(name, negative_slope)
        lower, upper = setting if isinstance(setting, tuple) else (setting, setting)
        assert lower is not None
        assert upper is not None
        self.pieces = list(zip(KINKS[name], (lower, upper), strict=False))

    def forward(self, x: Tensor) -> Tensor:
        y = self.native(x)
        for at, s in self.pieces:
            y = torch.where(x == at, (x - x.detach()) * s + y.detach(), y)
        return y


def gradients(example: Example, setting: ModelSubgradient, cotangent: Tensor, *, rows: slice = slice(None)) -> Gradients:
    """Gradients of every parameter with the composite activation, for (a block of rows of) the example's mini-batch."""
    model, inputs, _ = example.build(lambda name, slope: Composite(name, slope, setting))
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(model(inputs[rows]), list(parameters.values()), cotangent)
    return dict(zip(parameters, found, strict=True))


def preactivations(example: Example, *, model: nn.Module | None = None, inputs: Tensor | None = None) -> dict[str, Tensor]:
    """The inputs of torch's own activations, by module name, in the order of the calls."""
    if model is None:
        model, inputs, _ = example.build(torch_activation)
    assert inputs is not None
    seen: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ReLU | nn.ReLU6 | nn.LeakyReLU):

            def hook(module: nn.Module, args: tuple[Tensor], name: str = name) -> None:
                assert name not in seen, "an example's activation runs once a forward"
                seen[name] = args[0].detach().clone()

            module.register_forward_pre_hook(hook)
    with torch.no_grad():
        model(inputs)
    return seen


def hits(z: Tensor, at: float) -> set[tuple[int, ...]]:
    """Positions at which a tensor equals a kink, decided on bit patterns: no comparison of floats is involved."""
    integers = {
        torch.float16: torch.int16,
        torch.bfloat16: torch.int16,
        torch.float32: torch.int32,
        torch.float64: torch.int64,
    }
    bits = z.contiguous().view(integers[z.dtype])
    pattern = torch.tensor(at, dtype=z.dtype).view(integers[z.dtype])
    equal = (bits << 1 == 0) if at == 0 else (bits == pattern)  # the shift drops the sign of zero
    return {tuple(position) for position in equal.nonzero().tolist()}
