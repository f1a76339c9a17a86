"""What is trained where a user brings the model, and the settings of the comparison."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from relucheck.bifurcation.forward.arguments import tensors_in
from relucheck.errors import SettingsError, whole
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.determinism import generator
from relucheck.training.members import NUDGES, Member, members_of
from relucheck.training.model import stream
from relucheck.training.optimisation.flat import bytes_of
from relucheck.training.settings import Optimiser

#: Version of the identity of a stored run; raise it when the meaning of a field changes.
SCHEMA: Final = 1
#: Number of epochs of a run, between which checkpoints are written. An epoch is a tenth of the steps.
EPOCHS: Final = 10

#: A mini-batch: the inputs of the model, and what the loss compares its output with.
Batch = tuple[Any, Any]
#: A function from the output of the model and the targets of a mini-batch to a scalar.
Loss = Callable[[Any, Any], Tensor]
#: torch's Adam or SGD as data, or a function from the list of parameters to a new optimiser.
OptimiserChoice = Optimiser | Callable[[list[Tensor]], torch.optim.Optimizer]


@dataclasses.dataclass(frozen=True)
class Task:
    """A user's model with everything that its training needs.

    Attributes:
        model: on its device and in the mode in which it is trained. It is copied, and does not change.
        batches: the mini-batches that a pass goes through, on the device of the model.
        loss: the mean loss of a mini-batch.
        optimiser: of every member.
    """

    model: nn.Module
    batches: Sequence[Batch]
    loss: Loss
    optimiser: OptimiserChoice

    def digest(self) -> str:
        """SHA-256, in hex, of parameters, buffers and mini-batches.

        A stored run is recognised by it.
        """
        digest = hashlib.sha256()
        for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers()):
            digest.update(name.encode())
            _add(digest, tensor)
        for batch in self.batches:
            for tensor in tensors_in(batch):
                _add(digest, tensor)
        return digest.hexdigest()


def _add(digest: Any, tensor: Tensor) -> None:
    digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(bytes_of(tensor).cpu().numpy().tobytes())


@dataclasses.dataclass(frozen=True)
class OwnSettings:
    """The settings of a comparison on a user's model.

    It has one seed, with s = 0, its control, s = 1 and nudges of s = 0.

    Attributes:
        seed: of the order of mini-batches, the random numbers of each step and the nudges.
        steps: number of optimiser steps, a multiple of ``EPOCHS``.
        arithmetic: in which members compute. Autocast is switched on for mixed precision; a dtype is that of the model.
        identity: what else decides the numbers, as JSON: names and digests of the model, the mini-batches, the loss and the
            optimiser.

    Raises:
        SettingsError: a value is out of range.
    """

    seed: int
    steps: int
    arithmetic: Arithmetic
    identity: Mapping[str, Any]

    def __post_init__(self) -> None:
        whole("steps", self.steps, EPOCHS)
        if self.steps % EPOCHS:
            raise SettingsError(
                f"steps={self.steps}: must be a multiple of {EPOCHS}, because results are kept after each tenth; use "
                f"{self.steps - self.steps % EPOCHS}"
            )
        Member(self.seed, 0.0)  # refuses what is no seed

    @functools.cached_property
    def members(self) -> tuple[Member, ...]:
        """The reference, its control, s = 1 under the chain rule, and the nudges."""
        return members_of([self.seed], [1.0], ["chain"], nudges=NUDGES)

    @property
    def epochs(self) -> int:
        """``EPOCHS``."""
        return EPOCHS

    @property
    def batch_size(self) -> int:
        """1, because a step takes one of the user's mini-batches, whatever their size."""
        return 1

    @property
    def every(self) -> int:
        """1: distances are recorded at every step."""
        return 1

    @property
    def seeds(self) -> tuple[int, ...]:
        """The one seed."""
        return (self.seed,)

    @property
    def per_epoch(self) -> int:
        """Number of steps in an epoch."""
        return self.steps // EPOCHS

    def steps_of(self, samples: int) -> int:
        """``samples``, because each step takes one mini-batch."""
        return samples

    @property
    def shared(self) -> dict[str, Any]:
        """Everything but the members, as JSON."""
        return {"schema": SCHEMA, "steps": self.steps, "arithmetic": self.arithmetic.name, **self.identity}

    def to_json(self) -> dict[str, Any]:
        """The settings as a JSON object."""
        return {**self.shared, "members": [member.to_json() for member in self.members]}


class OwnBatches:
    """The mini-batches of a run, in passes over all of them.

    Each pass has an order drawn from the seed.

    Args:
        batches: of a pass.
        settings: of the comparison.
    """

    def __init__(self, batches: Sequence[Batch], settings: OwnSettings) -> None:
        self._batches, self._settings, self._epoch = batches, settings, 0

    def begin(self, epoch: int) -> None:
        """Begin an epoch."""
        self._epoch = epoch

    def of(self, start: int, stop: int) -> Batch:
        """The mini-batch of the step with the number ``start`` in this epoch."""
        return self._at(self._epoch * self._settings.per_epoch + start)

    def after(self, stop: int) -> Batch | None:
        """The mini-batch after the one that ends before ``stop``; None at the end of the run."""
        step = self._epoch * self._settings.per_epoch + stop
        return self._at(step) if step < self._settings.steps else None

    def _at(self, step: int) -> Batch:
        one, place = divmod(step, len(self._batches))
        order = torch.randperm(len(self._batches), generator=generator(stream(self._settings.seed, "order", one)))
        return self._batches[int(order[place])]

    def __iter__(self) -> Iterator[Batch]:
        return (self._at(step) for step in range(self._settings.steps))
