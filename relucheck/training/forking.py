"""How the members of a comparison are run: by forking, exact and free where hits are rare."""

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

_EVALUATED: Final = 1024  # about so many images at once

#: Makes the model of a seed on the CPU: of settings, seed, the clock of its dropout masks, the switch of its activations.
Factory = Callable[[Settings, int, Clock, Switch], nn.Module]


@dataclasses.dataclass(frozen=True)
class DataSplit:
    """Images as floats [n, ...], in the input shape of the network, and labels, int64 [n], on the device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def choice(member: Member) -> Choice:
    """What the backward of a member does at hits. For s = 0 of ReLU and ReLU6 both rules are one."""
    return member.subgradients, member.rule


def finite_or_none(value: float) -> float | None:
    """JSON has no infinities and no NaN."""
    return value if abs(value) < float("inf") else None


class Branch:
    """Members that have been bitwise one run so far: one model, one optimiser.

    Attributes:
        members: indices in ``Settings.members``, the leading one first.
        differs: whether the parameters have differed from the reference's.
    """

    def __init__(self, settings: Settings, device: torch.device, model: nn.Module, members: list[int]) -> None:
        self.settings, self.device, self.model, self.members = settings, device, model, members
        self.layers = layers(model)
        if not self.layers:
            raise ExecutorError(
                f"{type(model).__name__} has no relucheck.training.model.Kinked, at which members differ; add one"
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
        """Begins the counts of an epoch."""
        self.loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self.samples = 0
        self.hits = [[0] * len(layer.hits) for layer in self.layers]
        self.activations = [0] * len(self.layers)

    def fork(self, members: list[int]) -> Branch:
        """A copy for some of its members, in every bit that decides the future, with the epoch's counts so far."""
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
        """What decides the future of the branch; tensors are its own, not copies."""
        return {
            "members": self.members,
            "differs": self.differs,
            "model": dict(self.model.state_dict()),
            "optimiser": self.optimiser.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """The reverse of :meth:`state`."""
        self.members, self.differs = list(state["members"]), state["differs"]
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
            self.scaler.scale(self.loss)  # it makes its tensors at the first use

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, bool]:
        """The loss, scaled where a scaler is used, and whether there were hits; counts."""
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
        """The gradients of one rule and subgradient."""
        self.switch.choice = chosen
        return list(torch.autograd.grad(loss, self.parameters, retain_graph=keep))

    def update(self, gradients: Sequence[Tensor]) -> None:
        """One step of the optimiser."""
        if self.together:
            self.flat.collect(gradients)
        else:
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient.contiguous()  # fused kernels go through memory whatever the strides
        if self.scaler is None:
            self.optimiser.step()
        else:
            self.scaler.step(self.optimiser)
            self.scaler.update()
        if self.together:
            self.flat.touched()

    def evaluate(self, test: DataSplit) -> Epoch:
        """The epoch's row, with the test set gone through."""
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
    """Members of one seed, trained as one run (a branch) for as long as their gradients are the same bits.

    At a step whose forward has hits, each rule and subgradient of a branch gets its own backward on the same graph, and
    members whose gradients differ in any bit, the sign of a zero included, go separate ways. So every member's run is the
    one that it would have by itself, bit for bit. The control is never merged: it is computed again from the start.

    Serves any model whose activations are :class:`relucheck.training.model.Kinked` on one
    :class:`relucheck.training.model.Switch`.

    Args:
        settings: of the comparison.
        seed: whose members are run.
        train, test: the data, on the device.
        device: where.
        apart: run every member by itself from the start, to prove the above.
        model: makes the model; unless given that of the settings, :func:`relucheck.training.model.build`.

    Raises:
        TypeError: for a model without a Kinked.
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
        own = sorted(self.results, key=lambda index: not settings.members[index].is_reference)
        self._reference_index = own[0]
        merged = [index for index in own if not settings.members[index].control and not apart]
        self.branches = [
            self._branch(members) for members in [merged, *([index] for index in own if index not in merged)] if members
        ]

    def _branch(self, members: list[int]) -> Branch:
        model = self._factory(self.settings, self.seed, self.clock, Switch()).to(self.device)
        return Branch(self.settings, self.device, model, members)

    def alive(self) -> bool:
        """Whether there is anything left to train."""
        return bool(self.branches) and self.void is None

    def note(self) -> str:
        """The current losses, for a progress display. Waits for the device."""
        losses = [float(branch.loss) / max(1, branch.samples) for branch in self.branches]
        shown = f"{min(losses):.4f} to {max(losses):.4f}" if losses else "-"
        return f"{len(self.branches)} branches, loss {shown}"

    def begin(self, epoch: int) -> None:
        """Draws the batch order of an epoch and resets its counts."""
        self._order = None
        if self.settings.shuffle:
            random = generator(stream(self.seed, "order", epoch))
            self._order = torch.randperm(len(self.train), generator=random).to(self.device)
        for branch in self.branches:
            branch.reset()

    def step(self, start: int, stop: int, number: int) -> None:
        """Trains all members on images ``start`` to ``stop`` of the epoch's order; it is step ``number``, from 1 on."""
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
        """Checks the control, finds what diverged and what differs, records distances."""
        members = self.settings.members
        reference = next((branch for branch in self.branches if self._reference_index in branch.members), None)
        control = next((branch for branch in self.branches if members[branch.members[0]].control), None)
        if reference is not None and control is not None and not control.flat.same_bits(reference.flat):
            name = control.flat.first_unequal(reference.flat)
            self.void = f"control differed at step {number} in parameter {name} (seed {self.seed})"
            return
        diverged = [branch for branch in self.branches if not branch.flat.finite()]
        if reference is not None:
            ruler = None
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
                    ruler = ruler or Ruler(reference.flat.values)
                    row = ruler.measure(branch.flat.values)
                for index in branch.members:
                    self.results[index].steps.add(number, *row)
        for branch in diverged:
            for index in branch.members:
                self.results[index].outcome = f"diverged: non-finite at step {number}"
        self.branches = [branch for branch in self.branches if branch not in diverged]

    def end(self) -> None:
        """Evaluates, and writes the epoch's row of every member that is left; a void run has no more rows."""
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
        """Everything between two epochs; tensors are the executor's own, not copies."""
        return {
            "results": {index: result.to_json() for index, result in self.results.items()},
            "branches": [branch.state() for branch in self.branches],
        }

    def load(self, state: dict[str, Any]) -> None:
        """The reverse of :meth:`state`."""
        self.results = {int(index): MemberResult.from_json(content) for index, content in state["results"].items()}
        self.branches = []
        for content in state["branches"]:
            branch = self._branch(list(content["members"]))
            branch.load(content)
            self.branches.append(branch)


class Ruler:
    """L1 and L2 norm and sum of differences to one reference, accumulated in float64."""

    def __init__(self, reference: Tensor) -> None:
        self._reference = _wide(reference)

    def measure(self, values: Tensor) -> tuple[float, float, float]:
        """(L1, L2, absolute value of the summed difference). Reads the values."""
        difference = _wide(values).sub_(self._reference)
        total, l2 = difference.sum().abs(), torch.dot(difference, difference).sqrt()
        l1 = difference.abs_().sum()  # a sixth of the time of torch.linalg.vector_norm(difference, 1)
        first, second, third = torch.stack((l1, l2, total)).tolist()
        return first, second, third


def _wide(values: Tensor) -> Tensor:
    # by way of float32: torch converts 16-bit tensors to float64 one by one
    return (
        values.float().double()
        if values.element_size() == 2
        else values.double()
        if values.element_size() == 4
        else values.clone()
    )


def same_gradients(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether two lists of gradients hold the same bits, signs of zeros included: an optimiser could tell them apart."""
    return all(torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in _contiguous(a, b))


def _contiguous(a: list[Tensor], b: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    return ((x.contiguous(), y.contiguous()) for x, y in zip(a, b, strict=True))
