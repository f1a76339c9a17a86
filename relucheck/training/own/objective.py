"""What a user's model trains for: its loss, with the chosen subgradient.

The subgradient is that of every activation call which an interception serves.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from relucheck.bifurcation.forward.arguments import arguments_of
from relucheck.bifurcation.gradients import gradients, root_of
from relucheck.bifurcation.interception import Interception
from relucheck.errors import ModelError
from relucheck.training.model import Choice, Clock, Switch, stream
from relucheck.training.objective import Counting, Tested, usual_optimiser
from relucheck.training.optimisation.flat import Flat
from relucheck.training.own.task import Task
from relucheck.training.settings import Optimiser


def seed_all(seed: int, device: torch.device) -> None:
    """Seed torch's generators of the CPU and of a device.

    ``torch.manual_seed`` seeds those of all devices, which takes as long as the step of a small model.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


class Seen:
    """The hits of all activation calls of the last forward.

    Attributes:
        hits: their number at the lower and at the upper kink.
        counts: None, because hits are not counted on the device.
        elements: the number of scalar activations.
    """

    def __init__(self) -> None:
        self.hits, self.elements = [0, 0], 0
        self.counts: Tensor | None = None


class OwnObjective:
    """The objective of one copy of a user's model.

    ``relucheck.bifurcation.interception`` chooses the subgradient, as in ``relucheck.compare``: of modules and of functions
    alike. Random numbers of a forward, such as those of dropout, are drawn from the seed and the step, so all members have
    the same.

    Args:
        task: what is trained.
        model: the copy.
        clock: has the seed and the step.
    """

    def __init__(self, task: Task, model: nn.Module, clock: Clock) -> None:
        self.task, self.model, self.clock = task, model, clock
        self.seen, self.switch = Seen(), Switch()
        self.layers: Sequence[Counting] = [self.seen]
        self.device = next(model.parameters()).device
        self._names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._interception: Interception | None = None

    def loss(self, x: Any, y: Any) -> Tensor:
        """The loss of a mini-batch as a scalar without dimensions.

        Raises:
            ModelError: as ``relucheck.compare``, and for a model that differentiates in its forward, so that its values
                depend on the subgradient.
        """
        interception = Interception(self.model, self.device)
        calling = functools.partial(interception.call, lambda output: self.task.loss(output, y))
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), interception:
            seed_all(stream(self.clock.seed, "forward", self.clock.step), self.device)
            interception.choose(self.switch.choice[0])
            root, _ = root_of(arguments_of(self.model, x).call(self.model), None, calling, None)
        interception.recording = False
        if interception.derives:
            raise ModelError(
                f"{type(self.model).__name__} differentiates in its forward or its loss, so their values depend on the "
                "subgradient, and members cannot share a forward; use relucheck.compare, which serves it"
            )
        self.seen.hits = [
            sum(len(call.hits[kink]) for call in interception.calls if kink < len(call.hits)) for kink in (0, 1)
        ]
        self.seen.elements = sum(call.elements for call in interception.calls)
        self._interception = interception
        return root.reshape(())

    def samples(self, y: Any) -> int:
        """1: each mini-batch counts once in the mean loss of an epoch."""
        return 1

    def gradients(self, loss: Tensor, parameters: Sequence[Tensor], chosen: Choice, *, keep: bool) -> list[Tensor]:
        """The gradients of the last forward; zeros for a parameter that the loss does not depend on."""
        interception = self._interception
        assert interception is not None
        self.switch.choice = chosen
        interception.choose(chosen[0])
        with interception:  # parts that are checkpointed run again
            found = gradients(loss, dict(zip(self._names, parameters, strict=True)), None, interception.running())
        if not keep:
            self._interception = None
        return [
            torch.zeros_like(parameter) if gradient is None else gradient
            for parameter, gradient in zip(parameters, found.values(), strict=True)
        ]

    def optimiser(self, flat: Flat, parameters: Sequence[Tensor]) -> tuple[torch.optim.Optimizer, bool]:
        """The optimiser of the task."""
        if isinstance(self.task.optimiser, Optimiser):
            return usual_optimiser(self.task.optimiser, flat, parameters)
        return self.task.optimiser(list(parameters)), False

    def tested(self) -> Tested:
        """Nothing is tested: there is no test set."""
        return Tested(None, 0.0, [])
