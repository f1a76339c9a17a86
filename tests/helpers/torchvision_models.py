"""Models of torchvision, as the measure of ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from relucheck.activations.modules import ChosenSubgradient
from relucheck.networks import Network
from relucheck.numerics.bits import same_bits
from relucheck.numerics.determinism import deterministic


def same_as_torchvision(network: Network, theirs: nn.Module, *, activations: int) -> None:
    """Asserts that a network computes what a model with the same weights computes: training and eval, forward and backward.

    Grey images go to a model for 3 channels three times over.

    Args:
        network: with ReLU, whose subgradient is that of torch.
        theirs: a model of torchvision.
        activations: how many activations are ours.
    """
    ours = network.build()
    assert sum(isinstance(module, ChosenSubgradient) for module in ours.modules()) == activations
    assert not any(type(module) in (nn.ReLU, nn.ReLU6) for module in ours.modules())
    inner: Any = getattr(ours, "model", ours)
    inner.load_state_dict(theirs.state_dict())
    random = torch.Generator().manual_seed(0)
    x = torch.randn(3, *network.input_shape, generator=random)
    cotangent = torch.randn(3, network.classes, generator=random)
    grey = network.input_shape[0] == 1 and inner is not ours
    for training in (True, False):
        found: list[tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]] = []
        for model, images in ((ours, x), (theirs, x.expand(-1, 3, -1, -1) if grey else x)):
            model.train(training)
            with torch.random.fork_rng(devices=[]), deterministic():
                torch.manual_seed(1)  # of dropout
                output = model(images)
                gradients = torch.autograd.grad(output, list(model.parameters()), cotangent)
            names = [name.removeprefix("model.") for name, _ in model.named_parameters()]
            state = {name.removeprefix("model."): value for name, value in model.state_dict().items()}
            found.append((output, dict(zip(names, gradients, strict=True)), state))
        (output, gradients_of, statistics), (their_output, their_gradients, their_statistics) = found
        assert output.shape == (3, network.classes)
        assert same_bits(output, their_output, signed_zero=True), f"forward, training={training}"
        for one, other in ((gradients_of, their_gradients), (statistics, their_statistics)):
            assert one.keys() == other.keys()
            for name, value in one.items():
                assert torch.equal(value, other[name]), f"{name}, training={training}"
        assert any(bool(gradient.any()) for gradient in gradients_of.values())
