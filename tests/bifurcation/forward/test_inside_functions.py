"""Custom autograd Functions: those that hide an activation are named, and others are left alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from relucheck.activations.modules import ReLU
from relucheck.bifurcation.wiring import WiringError, check_wiring
from tests.helpers.written_out import After, Identity, Model


class Between(Identity):
    """Two layers and a ReLU written out: the last call repeats the output, and shows nothing of the ReLU."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        h = x @ torch.eye(4)
        a = h * (h > 0)
        return a @ torch.eye(4) + 1.0


class Gated(Identity):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return x * (x > 0) * x.flip(0)


class Lifted(Identity):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return x * (x > 0) + 0.5


class Layered(Identity):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        h = x @ torch.eye(4)
        return h * (h > 0) - 1.0


def checkpointed(x: Tensor) -> Tensor:
    return checkpoint(lambda h: (h @ torch.eye(4)) * (h @ torch.eye(4) > 0) @ torch.eye(4) + 1, x, use_reentrant=True)


@pytest.mark.parametrize("function", [Between.apply, Gated.apply, Lifted.apply, Layered.apply, checkpointed])
def test_a_function_that_hides_an_activation_is_named(function: Callable[[Tensor], Tensor]) -> None:
    for inputs in (torch.zeros(3, 4), torch.randn(3, 4)):
        with pytest.raises(WiringError, match=r"Backward\): out of reach"):
            check_wiring(Model(function), inputs)


class Product(torch.autograd.Function):
    """A linear layer with a backward of its own, as low-rank and quantised layers have."""

    @staticmethod
    def forward(ctx, x, weight):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx, cotangent):  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        return cotangent @ weight.T, x.T @ cotangent


class Linear(Product):
    @staticmethod
    def forward(ctx, x, weight):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight.T)
        return F.linear(2 * x, weight)


class Softmax(Identity):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return F.softmax(x, -1)


class Normed(Identity):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return F.layer_norm(x, x.shape[-1:])


class Noisy(Identity):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return F.dropout(x) + torch.rand_like(x)


class Attention(Identity):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        scores = x @ x.T
        weights = torch.exp(scores - scores.max(-1, keepdim=True)[0])
        return weights / weights.sum(-1, keepdim=True) @ x


class Twice(Product):
    """The layer is computed a second time for the gate."""

    @staticmethod
    def forward(ctx, x, weight):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight)
        return (x @ weight) * ((x @ weight) > 0)


class Recurrent(Identity):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        with torch.random.fork_rng():
            return nn.RNN(4, 4, nonlinearity="relu", batch_first=True)(x[None])[0][0].detach()


WEIGHT = 1.5 * torch.eye(4)
HEALTHY: dict[str, Callable[[Tensor], Tensor]] = {
    "a product": lambda x: Product.apply(x, WEIGHT),
    "a linear layer": lambda x: Linear.apply(x, WEIGHT),
    "softmax": Softmax.apply,
    "layer norm": Normed.apply,
    "random numbers": Noisy.apply,
    "attention": Attention.apply,
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_function_without_an_activation_passes(name: str) -> None:
    for inputs in (torch.zeros(3, 4), torch.randn(3, 4)):
        (wire,) = check_wiring(After(HEALTHY[name]), inputs)
        assert wire.verdict == "answers"


@pytest.mark.parametrize(
    ("function", "named"),
    [(lambda x: Twice.apply(x, WEIGHT), "ReLU in TwiceBackward"), (Recurrent.apply, "RecurrentBackward")],
)
def test_an_activation_between_products_is_named(function: Callable[[Tensor], Tensor], named: str) -> None:
    for inputs in (torch.zeros(3, 4), torch.randn(3, 4)):
        with pytest.raises(WiringError, match=rf"Model \({named}\): out of reach"):
            check_wiring(Model(function), inputs)


class Checkpointed(nn.Module):
    """A part that is checkpointed with a second backward."""

    def __init__(self, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.relu, self.activation = activation(), activation()

    def part(self, x: Tensor) -> Tensor:
        return F.dropout(self.last(self.activation(self.first(x))))

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.part, self.relu(self.first(x)), use_reentrant=True)


@pytest.mark.parametrize("inputs", [torch.zeros(3, 4), torch.randn(3, 4)])
def test_a_reentrant_checkpoint_is_looked_into(inputs: Tensor) -> None:
    """``compare`` refuses its gradients, but the setting does arrive."""
    assert [wire.site for wire in check_wiring(Checkpointed(nn.ReLU), inputs)] == ["relu", "activation"]
    assert len(check_wiring(lambda s: Checkpointed(lambda: ReLU(s)), inputs)) == 2


class Gate(nn.Module):
    """Two calls of the layer, of which one gates the other."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.relu = nn.Linear(4, 4), nn.ReLU()

    def part(self, x: Tensor) -> Tensor:
        return self.layer(x) * (self.layer(x) > 0)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.part, self.relu(self.layer(x)), use_reentrant=True)


def test_a_mask_in_a_reentrant_checkpoint_is_named() -> None:
    with pytest.raises(WiringError, match=r"ReLU in CheckpointFunctionBackward"):
        check_wiring(Gate(), torch.randn(3, 4))
