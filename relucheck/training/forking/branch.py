"""Branches: one model and one optimiser for members that have been bitwise one run so far."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relucheck.training.batches import DataSplit
from relucheck.training.flat import Flat
from relucheck.training.model import Choice, ExecutorError, layers
from relucheck.training.optimisers import make_optimiser, same_as_apart
from relucheck.training.result import Epoch
from relucheck.training.settings import Member, Settings

_EVALUATED: Final = 1024  # about the number of test images per forward


def choice(member: Member) -> Choice:
    """What the backward of a member does at hits: its subgradients and its rule."""
    return member.subgradients, member.rule


def finite_or_none(value: float) -> float | None:
    """The value, or None for infinities and NaN, which JSON does not have."""
    return value if abs(value) < float("inf") else None


class Branch:
    """One model and one optimiser for members that have been bitwise one run so far.

    Args:
        settings: of the comparison.
        device: where to train.
        model: on that device.
        members: indices in ``settings.members``, the leading one first.

    Attributes:
        members: as given.
        differs: whether the parameters have ever differed from the reference's.
        together: whether one optimiser step goes over all parameters in one tensor.

    Raises:
        ExecutorError: the model has no ``Kinked``.
    """

    def __init__(self, settings: Settings, device: torch.device, model: nn.Module, members: list[int]) -> None:
        self.settings, self.device, self.model, self.members = settings, device, model, members
        self.layers = layers(model)
        if not self.layers:
            raise ExecutorError(
                f"{type(model).__name__} has no relucheck.training.model.Kinked, the activation in which members differ; "
                "add one"
            )
        self.switch = self.layers[0].switch
        self.flat = Flat(model)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.together = len(self.parameters) == len(self.flat.parameters) and same_as_apart(settings.optimiser, self.flat)
        self.optimiser = make_optimiser(settings.optimiser, [self.flat.whole] if self.together else self.parameters)
        self.scaler = torch.amp.GradScaler(device.type) if settings.arithmetic.scaled else None
        self.differs = False
        self.reset()

    def reset(self) -> None:
        """Reset the counts at the beginning of an epoch."""
        self.loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self.samples = 0
        self.hits = [[0] * len(layer.hits) for layer in self.layers]
        self.activations = [0] * len(self.layers)

    def fork(self, members: list[int]) -> Branch:
        """Copy this branch for some of its members: everything that decides the future, bit for bit.

        The counts of the epoch so far are copied too.
        """
        model = copy.deepcopy(self.model)
        for parameter in model.parameters():
            parameter.grad = None
        other = Branch(self.settings, self.device, model, members)
        other.load(copy.deepcopy(self.state()))
        other.members, other.differs = members, self.differs
        other.loss, other.samples = self.loss.clone(), self.samples
        other.hits, other.activations = copy.deepcopy(self.hits), list(self.activations)
        return other

    def state(self) -> dict[str, Any]:
        """What decides the future of the branch; tensors are shared, not copied."""
        return {
            "members": self.members,
            "differs": self.differs,
            "model": dict(self.model.state_dict()),
            "optimiser": self.optimiser.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore what ``state`` returned."""
        self.members, self.differs = list(state["members"]), state["differs"]
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
            self.scaler.scale(self.loss)  # a scaler creates its tensors at the first use

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, bool]:
        """Run a forward and count its hits.

        Args:
            x: images [n, ...].
            y: labels, int64 [n].

        Returns:
            The mean loss, scaled if a gradient scaler is in use; and whether there were hits.
        """
        self.model.train()
        with self.settings.arithmetic.autocast(self.device):
            loss = F.cross_entropy(self.model(x), y)
        self.loss += loss.detach().double() * len(y)
        self.samples += len(y)
        hit = False
        for index, layer in enumerate(self.layers):
            self.activations[index] += layer.elements
            for kink, count in enumerate(layer.hits):
                self.hits[index][kink] += count
                hit = hit or count > 0
        return loss if self.scaler is None else self.scaler.scale(loss), hit

    def gradients(self, loss: Tensor, chosen: Choice, *, keep: bool) -> list[Tensor]:
        """The gradients of all parameters with one rule and subgradient.

        Args:
            loss: from ``forward``.
            chosen: what backward does at hits.
            keep: whether another backward on the same graph follows.
        """
        self.switch.choice = chosen
        return list(torch.autograd.grad(loss, self.parameters, retain_graph=keep))

    def look_ahead(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """The gradients of s = 0 on a mini-batch.

        This changes the state of the branch, so call it on a fork.
        """
        loss, _ = self.forward(x, y)
        return self.gradients(loss, choice(Member(0, 0.0)), keep=False)

    def update(self, gradients: Sequence[Tensor]) -> None:
        """Take one optimiser step."""
        if self.together:
            self.flat.collect(gradients)
        else:
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient.contiguous()  # fused kernels ignore strides
        if self.scaler is None:
            self.optimiser.step()
        else:
            self.scaler.step(self.optimiser)
            self.scaler.update()
        if self.together:
            self.flat.touched()

    def evaluate(self, test: DataSplit) -> Epoch:
        """Evaluate on the test set, and return the results of the epoch."""
        self.model.eval()
        size = self.settings.batch_size
        block = max(1, _EVALUATED // size) * size
        wide = torch.promote_types(self.settings.arithmetic.dtype, torch.float32)
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        right = []
        with torch.no_grad():
            for start in range(0, len(test), block):
                x, y = test.images[start : start + block], test.labels[start : start + block]
                with self.settings.arithmetic.autocast(self.device):
                    logits = self.model(x)
                logits = logits.to(wide)
                loss += F.cross_entropy(logits, y, reduction="sum").double()
                right.append(logits.argmax(1) == y)
        correct = torch.cat(right).cpu()
        return Epoch(
            train_loss=finite_or_none(float(self.loss) / self.samples),
            test_loss=finite_or_none(float(loss) / len(test)),
            test_accuracy=int(correct.sum()) / len(test),
            test_batch_accuracies=[int(part.sum()) / len(part) for part in correct.split(size)],
        )


def same_gradients(a: list[Tensor], b: list[Tensor]) -> bool:
    """Return whether two lists of gradients hold the same bits.

    The sign of a zero counts, because it can change what an optimiser does.
    """
    return all(torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in _contiguous(a, b))


def _contiguous(a: list[Tensor], b: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    return ((x.contiguous(), y.contiguous()) for x, y in zip(a, b, strict=True))
