"""What a branch trains for: loss, gradients at hits, optimiser and test.

The objective here is that of the published experiments. ``relucheck.training.own`` has the one of a user's model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relucheck.training.batches import DataSplit
from relucheck.training.model import Choice, ExecutorError, Switch, layers
from relucheck.training.optimisation.flat import Flat
from relucheck.training.optimisation.optimisers import make_optimiser, same_as_apart
from relucheck.training.settings import Optimiser, Settings

_EVALUATED: Final = 1024  # about the number of test images per forward


class Counting(Protocol):
    """Where the hits of the last training forward are counted: a layer, or a whole model.

    ``Kinked`` describes the attributes.
    """

    hits: list[int]
    counts: Tensor | None
    elements: int


class Tested(NamedTuple):
    """The results of a test, see ``relucheck.training.results.result.Epoch``."""

    loss: float | None
    accuracy: float
    batch_accuracies: list[float]


class Objective(Protocol):
    """What a branch asks of its objective, which serves one model.

    Attributes:
        layers: where hits are counted.
        switch: what backward does at hits.
    """

    layers: Sequence[Counting]
    switch: Switch

    def loss(self, x: Any, y: Any) -> Tensor:
        """The mean loss of a mini-batch, in a forward that counts its hits."""

    def samples(self, y: Any) -> int:
        """How many samples of a mini-batch its loss is the mean of."""

    def gradients(self, loss: Tensor, parameters: Sequence[Tensor], chosen: Choice, *, keep: bool) -> list[Tensor]:
        """The gradients of the parameters.

        ``keep`` says that another backward on the same graph follows.
        """

    def optimiser(self, flat: Flat, parameters: Sequence[Tensor]) -> tuple[torch.optim.Optimizer, bool]:
        """A new optimiser, and whether it steps over ``Flat.whole``, not over each parameter."""

    def tested(self) -> Tested:
        """Test the model as it is now."""


def usual_optimiser(chosen: Optimiser, flat: Flat, parameters: Sequence[Tensor]) -> tuple[torch.optim.Optimizer, bool]:
    """One of torch's optimisers, over all parameters at once where that changes no bit.

    ``Objective.optimiser`` describes the result.
    """
    together = len(parameters) == len(flat.parameters) and same_as_apart(chosen, flat)
    return make_optimiser(chosen, [flat.whole] if together else parameters), together


class Images:
    """The objective of the published experiments.

    It is the mean cross-entropy of a model whose activations are ``Kinked``, with the optimiser of the settings.

    Args:
        settings: of the comparison.
        model: with one ``Switch`` for all of its ``Kinked``.
        test: the test set; None for a branch that is never tested.

    Raises:
        ExecutorError: the model has no ``Kinked``.
    """

    def __init__(self, settings: Settings, model: nn.Module, test: DataSplit | None = None) -> None:
        self.settings, self.model, self.test = settings, model, test
        kinked = layers(model)
        if not kinked:
            raise ExecutorError(
                f"{type(model).__name__} has no relucheck.training.model.Kinked, the activation in which members differ; "
                "add one"
            )
        self.layers: Sequence[Counting] = kinked
        self.switch = kinked[0].switch

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        self.model.train()
        return F.cross_entropy(self.model(x), y)

    def samples(self, y: Tensor) -> int:
        return len(y)

    def gradients(self, loss: Tensor, parameters: Sequence[Tensor], chosen: Choice, *, keep: bool) -> list[Tensor]:
        self.switch.choice = chosen
        return list(torch.autograd.grad(loss, parameters, retain_graph=keep))

    def optimiser(self, flat: Flat, parameters: Sequence[Tensor]) -> tuple[torch.optim.Optimizer, bool]:
        return usual_optimiser(self.settings.optimiser, flat, parameters)

    def tested(self) -> Tested:
        """Test on the test set, with logits in float32 or wider."""
        assert self.test is not None
        self.model.eval()
        arithmetic, size, device = self.settings.arithmetic, self.settings.batch_size, self.test.labels.device
        block = max(1, _EVALUATED // size) * size
        wide = torch.promote_types(arithmetic.dtype, torch.float32)
        loss = torch.zeros((), dtype=torch.float64, device=device)
        right = []
        with torch.no_grad():
            for start in range(0, len(self.test), block):
                x, y = self.test.images[start : start + block], self.test.labels[start : start + block]
                with arithmetic.autocast(device):
                    logits = self.model(x)
                logits = logits.to(wide)
                loss += F.cross_entropy(logits, y, reduction="sum").double()
                right.append(logits.argmax(1) == y)
        correct = torch.cat(right).cpu()
        parts = [int(part.sum()) / len(part) for part in correct.split(size)]
        return Tested(float(loss) / len(self.test), int(correct.sum()) / len(self.test), parts)
