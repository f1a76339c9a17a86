"""Branches: one model and one optimiser for members that have been bitwise one run so far."""

from __future__ import annotations

import bisect
import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from relucheck.numerics.dtypes import bits_dtype
from relucheck.training.forking.captured import Copies, Lane, recorded
from relucheck.training.members import Member
from relucheck.training.model import Choice, counters
from relucheck.training.objective import Objective
from relucheck.training.optimisation.flat import Flat, laid_out
from relucheck.training.results.result import Epoch, Unreached
from relucheck.training.settings import Plan

#: Makes the objective of a branch from its model.
MakesObjective = Callable[[nn.Module], Objective]


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
        objective: makes what the branch trains for.
        deferred: whether hits are counted on the device, and read when they are asked for.

    Attributes:
        members: as given.
        differs: whether the parameters have ever differed from the reference's.
        together: whether one optimiser step goes over all parameters in one tensor.

    Raises:
        ExecutorError: the objective cannot serve the model.
    """

    def __init__(
        self,
        settings: Plan,
        device: torch.device,
        model: nn.Module,
        members: list[int],
        objective: MakesObjective,
        *,
        deferred: bool = False,
    ) -> None:
        self.settings, self.device, self.model, self.members = settings, device, model, members
        self.deferred, self._makes = deferred, objective
        self.objective = objective(model)
        self.layers, self.switch = self.objective.layers, self.objective.switch
        self.flat = Flat(model)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.optimiser, self.together = self.objective.optimiser(self.flat, self.parameters)
        self.scaler = torch.amp.GradScaler(device.type) if settings.arithmetic.scaled else None
        self.differs = False
        self.loss = torch.zeros((), dtype=torch.float64, device=self.device)
        shape = (2, len(self.layers), max(len(layer.hits) for layer in self.layers)) if deferred else (0,)
        #: [this step or this epoch, layer, kink]; used if hits are counted on the device
        self._counts = torch.zeros(shape, dtype=torch.int64, device=self.device)
        self.switch.masked = deferred
        for layer, counts in zip(self.layers, self._counts[0] if deferred else (), strict=deferred):
            layer.counts = counts[: len(layer.hits)]
        #: those that no chosen subgradient reaches; they never decide a fork, so what they count is read once an epoch
        self.counters = counters(model)
        most = max((counter.kinds for counter in self.counters), default=0)
        self._tallies = torch.zeros((len(self.counters), most), dtype=torch.int64, device=self.device)
        for counter, tally in zip(self.counters, self._tallies, strict=True):
            counter.counts = tally[: counter.kinds]
        #: by size of the mini-batch and choice, a recorded step and the numbers of pre-activations in it
        self._recorded: dict[tuple[int, Choice], tuple[Callable[[], None] | None, list[int]]] = {}
        self._slots: list[Tensor] = []
        self._buffers: list[Tensor] = []
        self._before: Copies | None = None
        self._lane: Lane | None = None
        self._counted_before = 0, [0]
        self.reset()

    def reset(self) -> None:
        """Reset the counts at the beginning of an epoch."""
        self.loss.zero_()
        self._counts.zero_()
        self._tallies.zero_()
        self.samples = 0
        self._hits = [[0] * len(layer.hits) for layer in self.layers]
        self._hit = False
        #: in the order of ``layers``, followed by ``counters``
        self._elements = [0] * (len(self.layers) + len(self.counters))

    def fork(self, members: list[int]) -> Branch:
        """Copy this branch for some of its members: everything that decides the future, bit for bit.

        The counts of the epoch so far are copied too.
        """
        model = copy.deepcopy(self.model)
        for parameter in model.parameters():
            parameter.grad = None
        other = Branch(self.settings, self.device, model, members, self._makes, deferred=self.deferred)
        other.load(copy.deepcopy(self.state()))
        other.members, other.differs = members, self.differs
        other.loss.copy_(self.loss)
        other._counts.copy_(self._counts)
        other._tallies.copy_(self._tallies)
        other.samples, other._hits, other._elements = self.samples, copy.deepcopy(self._hits), list(self._elements)
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

    def forward(self, x: Any, y: Any) -> Tensor:
        """Run a forward and count its hits.

        Args:
            x: the inputs of a mini-batch, such as images [n, ...].
            y: its targets, such as labels, int64 [n].

        Returns:
            The mean loss, scaled if a gradient scaler is in use.
        """
        loss = self._compute(x, y)
        self._count(self.objective.samples(y), self._last_elements())
        return loss

    def _last_elements(self) -> list[int]:
        return [*(layer.elements for layer in self.layers), *(counter.elements for counter in self.counters)]

    def _compute(self, x: Any, y: Any) -> Tensor:
        """The part of ``forward`` that runs on the device."""
        if self.deferred:
            self._counts[0].zero_()
        with self.settings.arithmetic.autocast(self.device):
            loss = self.objective.loss(x, y)
        self.loss += loss.detach().double() * self.objective.samples(y)
        if self.deferred:
            self._counts[1].add_(self._counts[0])
        return loss if self.scaler is None else self.scaler.scale(loss)

    def _count(self, samples: int, elements: list[int]) -> None:
        self.samples += samples
        self._elements = [before + more for before, more in zip(self._elements, elements, strict=True)]
        if self.deferred:
            return
        self._hit = False
        for index, layer in enumerate(self.layers):
            for kink, count in enumerate(layer.hits):
                self._hits[index][kink] += count
                self._hit = self._hit or count > 0

    def hit(self) -> bool:
        """Whether the last forward had hits. Waits for the device."""
        self.join()
        return bool(self._counts[0].any()) if self.deferred else self._hit

    def hits(self) -> list[list[int]]:
        """The number of hits in this epoch, by layer and kink. Waits for the device."""
        if not self.deferred:
            return copy.deepcopy(self._hits)
        return [row[: len(layer.hits)] for row, layer in zip(self._counts[1].tolist(), self.layers, strict=True)]

    @property
    def activations(self) -> list[int]:
        """The number of pre-activations in this epoch, by layer."""
        return self._elements[: len(self.layers)]

    def unreached(self) -> Unreached | None:
        """What was counted in this epoch where no chosen subgradient reaches. Waits for the device.

        None for a model without a ``Counted``.
        """
        if not self.counters:
            return None
        hits = [row[: one.kinds] for row, one in zip(self._tallies.tolist(), self.counters, strict=True)]
        return Unreached(hits, self._elements[len(self.layers) :])

    def gradients(self, loss: Tensor, chosen: Choice, *, keep: bool) -> list[Tensor]:
        """The gradients of all parameters with one rule and subgradient.

        Args:
            loss: from ``forward``.
            chosen: what backward does at hits.
            keep: whether another backward on the same graph follows.
        """
        return self.objective.gradients(loss, self.parameters, chosen, keep=keep)

    def look_ahead(self, x: Any, y: Any) -> list[Tensor]:
        """The gradients of s = 0 on a mini-batch.

        This changes the state of the branch, so call it on a fork.
        """
        return self.gradients(self.forward(x, y), choice(Member(0, 0.0)), keep=False)

    def replay(self, x: Tensor, y: Tensor, chosen: Choice, *, undoable: bool) -> bool:
        """Replay a recorded forward and backward in the branch's lane.

        ``update(None)`` takes the step there. The first call for a size and choice records them. See
        ``relucheck.training.forking.captured``. Whatever reads or changes the branch elsewhere must ``join`` first.

        Args:
            x: images, at the same address in every call of a size.
            y: labels, likewise.
            chosen: what backward does at hits.
            undoable: whether ``undo`` may follow.

        Returns:
            Whether it was replayed. It is not where a gradient scaler is in use, whose step reads the device, nor where a
            replay has other bits than the work itself.
        """
        if self.scaler is not None:
            return False
        key = len(y), chosen
        if key not in self._recorded:
            if not self.together and not self._slots:
                _, self._slots = laid_out(self.parameters)
            elif self.together and self.flat.whole.grad is None:
                self.flat.collect([torch.zeros_like(parameter) for parameter in self.parameters])
            written = [self.flat.whole.grad] if self.together else self._slots
            changed = [*self._counted(), *(tensor for tensor in written if tensor is not None)]
            self._lane = self._lane or Lane(self.device)
            replay = recorded(lambda: self._work(x, y, chosen), changed, self._lane)
            self._recorded[key] = replay, self._last_elements()
        replay, elements = self._recorded[key]
        if replay is None or self._lane is None:
            return False
        with self._lane.entered():
            if undoable:
                self._before = self._before or Copies(self._counted())
                self._before.take()
                self._counted_before = self.samples, self._elements
            replay()
        self._count(len(y), elements)
        return True

    def join(self) -> None:
        """Let the device wait for the branch's lane before what follows; the host does not wait."""
        if self._lane is not None:
            self._lane.join()

    def undo(self) -> None:
        """Take back the last replay."""
        assert self._before is not None
        self.join()
        self._before.restore()
        self.samples, self._elements = self._counted_before

    def _work(self, x: Tensor, y: Tensor, chosen: Choice) -> None:
        gradients = self.gradients(self._compute(x, y), chosen, keep=False)
        if self.together:
            self.flat.collect(gradients)
        else:
            torch._foreach_copy_(self._slots, gradients)

    def _counted(self) -> list[Tensor]:
        """What a forward changes."""
        return [self.loss, self._counts, self._tallies, *self.model.buffers()]

    def update(self, gradients: Sequence[Tensor] | None) -> None:
        """Take one optimiser step.

        Without gradients it is a step with those of the last replay, in its lane.
        """
        with self._lane.entered() if gradients is None and self._lane else contextlib.nullcontext():
            self._update(gradients)

    def _update(self, gradients: Sequence[Tensor] | None) -> None:
        if not self.together:
            for parameter, gradient in zip(self.parameters, self._slots if gradients is None else gradients, strict=True):
                parameter.grad = gradient.contiguous()  # fused kernels ignore strides
        elif gradients is not None:
            self.flat.collect(gradients)
        if self.scaler is None:
            self.optimiser.step()
        else:
            self.scaler.step(self.optimiser)
            self.scaler.update()
        if self.together:
            self.flat.touched()

    def bits(self) -> Tensor:
        """The bits of all parameters: integers [n], in the order of ``flat.values``."""
        return self.flat.values.view(bits_dtype(self.flat.values.dtype))

    def name_of(self, place: int) -> str:
        """The name of the parameter with an element of ``bits``."""
        start, size = self.flat.values.data_ptr(), self.flat.values.element_size()
        starts = [(parameter.data_ptr() - start) // size for parameter in self.flat.parameters]
        return self.flat.names[bisect.bisect_right(starts, place) - 1]

    def bits_of_buffers(self) -> Tensor:
        """The bytes of all buffers: uint8 [n], in the order of ``flat.buffers``."""
        if not self._buffers:
            self._buffers = [value.view(-1).view(torch.uint8) for value in self.flat.buffers.values()]
        return torch.cat(self._buffers)

    def buffer_of(self, place: int) -> str:
        """The name of the buffer with a byte of ``bits_of_buffers``."""
        ends = list(itertools.accumulate(value.nbytes for value in self.flat.buffers.values()))
        return list(self.flat.buffers)[bisect.bisect_right(ends, place)]

    def evaluate(self) -> Epoch:
        """Test the model, and return the results of the epoch."""
        loss, accuracy, parts = self.objective.tested()
        return Epoch(
            train_loss=finite_or_none(float(self.loss) / self.samples),
            test_loss=None if loss is None else finite_or_none(loss),
            test_accuracy=accuracy,
            test_batch_accuracies=parts,
        )


def same_gradients(a: list[Tensor], b: list[Tensor]) -> bool:
    """Return whether two lists of gradients hold the same bits.

    The sign of a zero counts, because it can change what an optimiser does.
    """
    return all(torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in _contiguous(a, b))


def _contiguous(a: list[Tensor], b: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    return ((x.contiguous(), y.contiguous()) for x, y in zip(a, b, strict=True))
