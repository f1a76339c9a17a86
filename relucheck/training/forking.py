"""Train the members of a seed as one run, and fork it where their gradients first differ.

This is exact, and it costs almost nothing extra where hits are rare.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relucheck.numerics.determinism import generator
from relucheck.training.flat import Flat
from relucheck.training.model import Choice, Clock, ExecutorError, Switch, build, layers, stream
from relucheck.training.optimisers import make_optimiser, same_as_apart
from relucheck.training.result import Epoch, MemberResult
from relucheck.training.settings import Member, Settings

_EVALUATED: Final = 1024  # about the number of test images per forward

#: Builds the model of a seed on the CPU, see ``relucheck.training.model.build``.
Factory = Callable[[Settings, int, Clock, Switch], nn.Module]


@dataclasses.dataclass(frozen=True)
class DataSplit:
    """Images and labels of a data set's split, on the training device.

    Attributes:
        images: [n, ...], floating point, in the input shape of the network.
        labels: class indices, int64 [n].
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


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


class ForkingExecutor:
    """Train the members of one seed as one run (a branch) as long as their gradients are equal.

    At a step whose forward has hits, each rule and subgradient of a branch gets a backward on the same graph. Members
    whose gradients differ in any bit, including the sign of a zero, continue in separate branches. So every member gets,
    bit for bit, the run that it would have by itself. The control never shares a branch: it is computed a second time
    from the start.

    Any model works whose activations are ``relucheck.training.model.Kinked`` with one
    ``relucheck.training.model.Switch``.

    Args:
        settings: of the comparison.
        seed: whose members are trained.
        train: training data, on the device.
        test: test data, on the device.
        device: where to train.
        apart: whether to train every member by itself from the start, to check that forking changes no bit.
        model: builds the model; None means ``relucheck.training.model.build``.

    Raises:
        ExecutorError: the model has no ``Kinked``.
    """

    name = "forking"

    def __init__(
        self,
        settings: Settings,
        seed: int,
        train: DataSplit,
        test: DataSplit,
        device: torch.device,
        *,
        apart: bool = False,
        model: Factory | None = None,
    ) -> None:
        self._factory = model or build
        self.settings, self.seed, self.train, self.test, self.device = settings, seed, train, test, device
        self.clock = Clock(seed)
        self.results = {index: MemberResult(member) for index, member in enumerate(settings.members) if member.seed == seed}
        self.void: str | None = None
        self._order: Tensor | None = None
        indices = sorted(self.results, key=lambda index: not settings.members[index].is_reference)
        self._reference_index = indices[0]
        merged = [index for index in indices if not settings.members[index].control and not apart]
        self.branches = [
            self._branch(members) for members in [merged, *([index] for index in indices if index not in merged)] if members
        ]

    def _branch(self, members: list[int]) -> Branch:
        model = self._factory(self.settings, self.seed, self.clock, Switch()).to(self.device)
        return Branch(self.settings, self.device, model, members)

    def alive(self) -> bool:
        """Return whether there is anything left to train."""
        return bool(self.branches) and self.void is None

    def note(self) -> str:
        """The current losses, for a progress display. Waits for the device."""
        losses = [float(branch.loss) / max(1, branch.samples) for branch in self.branches]
        shown = f"{min(losses):.4f} to {max(losses):.4f}" if losses else "-"
        return f"{len(self.branches)} branches, loss {shown}"

    def begin(self, epoch: int) -> None:
        """Begin an epoch: draw its batch order and reset its counts."""
        self._order = None
        if self.settings.shuffle:
            random = generator(stream(self.seed, "order", epoch))
            self._order = torch.randperm(len(self.train), generator=random).to(self.device)
        for branch in self.branches:
            branch.reset()

    def step(self, start: int, stop: int, number: int) -> None:
        """Train all members on one mini-batch.

        Args:
            start: first sample of the mini-batch, in the order of the epoch.
            stop: one past its last sample.
            number: number of the step, from 1 on.
        """
        where: Any = slice(start, stop) if self._order is None else self._order[start:stop]
        x, y = self.train.images[where], self.train.labels[where]
        self.clock.tick(number)
        for branch in list(self.branches):
            self._advance(branch, x, y, number)
        self._compare(number)

    def _advance(self, branch: Branch, x: Tensor, y: Tensor, number: int) -> None:
        loss, hit = branch.forward(x, y)
        wanted: dict[Choice, list[int]] = {}
        for index in branch.members:
            wanted.setdefault(choice(self.settings.members[index]), []).append(index)
        chosen = list(wanted) if hit else list(wanted)[:1]
        groups: list[tuple[list[Tensor], list[int]]] = []
        for position, one in enumerate(chosen):
            gradients = branch.gradients(loss, one, keep=position < len(chosen) - 1)
            members = wanted[one] if hit else list(branch.members)
            for known, together in groups:
                if same_gradients(known, gradients):
                    together += members
                    break
            else:
                groups.append((gradients, members))
        others = []
        for gradients, members in groups[1:]:
            others.append((branch.fork(members), gradients))
            for index in members:
                self.results[index].forked_at = number
        branch.members = groups[0][1]
        branch.update(groups[0][0])
        for other, gradients in others:
            other.update(gradients)
            self.branches.append(other)

    def _compare(self, number: int) -> None:
        """Check the control, remove diverged branches, and record first differences and distances."""
        members = self.settings.members
        reference = next((branch for branch in self.branches if self._reference_index in branch.members), None)
        control = next((branch for branch in self.branches if members[branch.members[0]].control), None)
        if reference is not None and control is not None and not control.flat.same_bits(reference.flat):
            name = control.flat.first_unequal(reference.flat)
            self.void = f"control differed at step {number} in parameter {name} (seed {self.seed})"
            return
        diverged = [branch for branch in self.branches if not branch.flat.finite()]
        if reference is not None:
            distance = None
            record = number % self.settings.every == 0 and reference not in diverged
            for branch in self.branches:
                same = branch is reference or branch is control
                if not same and not branch.differs and not branch.flat.same_bits(reference.flat):
                    branch.differs = True
                    for index in branch.members:
                        self.results[index].first_difference = number
                if not record or branch in diverged:
                    continue
                if same or not branch.differs:
                    row = (0.0, 0.0, 0.0)
                else:
                    distance = distance or Distance(reference.flat.values)
                    row = distance.of(branch.flat.values)
                for index in branch.members:
                    self.results[index].steps.add(number, *row)
        for branch in diverged:
            for index in branch.members:
                self.results[index].outcome = f"diverged: non-finite at step {number}"
        self.branches = [branch for branch in self.branches if branch not in diverged]

    def end(self) -> None:
        """End an epoch: evaluate every branch and add its results, unless the run is void."""
        if self.void is not None:
            return
        for branch in self.branches:
            row = branch.evaluate(self.test)
            for index in branch.members:
                result = self.results[index]
                result.epochs.append(dataclasses.replace(row, test_batch_accuracies=list(row.test_batch_accuracies)))
                result.hits.append(copy.deepcopy(branch.hits))
                result.activations.append(list(branch.activations))

    def state(self) -> dict[str, Any]:
        """The state between two epochs; tensors are shared, not copied."""
        return {
            "results": {index: result.to_json() for index, result in self.results.items()},
            "branches": [branch.state() for branch in self.branches],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore what ``state`` returned."""
        self.results = {int(index): MemberResult.from_json(content) for index, content in state["results"].items()}
        self.branches = []
        for content in state["branches"]:
            branch = self._branch(list(content["members"]))
            branch.load(content)
            self.branches.append(branch)


class Distance:
    """Distances of parameters to one reference, accumulated in float64.

    Args:
        reference: all parameters of the reference, [n].
    """

    def __init__(self, reference: Tensor) -> None:
        self._reference = _wide(reference)

    def of(self, values: Tensor) -> tuple[float, float, float]:
        """L1 norm, L2 norm and absolute value of the sum of the differences. Waits for the device."""
        difference = _wide(values).sub_(self._reference)
        total, l2 = difference.sum().abs(), torch.dot(difference, difference).sqrt()
        l1 = difference.abs_().sum()  # much faster than torch.linalg.vector_norm(difference, 1)
        first, second, third = torch.stack((l1, l2, total)).tolist()
        return first, second, third


def _wide(values: Tensor) -> Tensor:
    # 16-bit tensors go through float32, as torch's direct conversion to float64 is not vectorised
    return (
        values.float().double()
        if values.element_size() == 2
        else values.double()
        if values.element_size() == 4
        else values.clone()
    )


def same_gradients(a: list[Tensor], b: list[Tensor]) -> bool:
    """Return whether two lists of gradients hold the same bits.

    The sign of a zero counts, because it can change what an optimiser does.
    """
    return all(torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in _contiguous(a, b))


def _contiguous(a: list[Tensor], b: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    return ((x.contiguous(), y.contiguous()) for x, y in zip(a, b, strict=True))
