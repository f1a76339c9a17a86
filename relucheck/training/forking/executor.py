"""Train the members of a seed as one run, and fork it where their gradients first differ.

This is exact, and it costs almost nothing extra where hits are rare.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from relucheck.training.batches import DataSplit, OfOneSeed
from relucheck.training.forking import comparing
from relucheck.training.forking.branch import Branch, MakesObjective, choice, same_gradients
from relucheck.training.forking.captured import Inputs
from relucheck.training.forking.nudging import drawn, end_waiting, move, probe, record
from relucheck.training.model import Choice, Clock, Switch, build
from relucheck.training.objective import Images
from relucheck.training.results.result import MemberResult
from relucheck.training.settings import Plan, Settings

#: Builds the model of a seed on the CPU, see ``relucheck.training.model.build``.
Factory = Callable[[Settings, int, Clock, Switch], nn.Module]


class Source(Protocol):
    """The mini-batches of one seed: inputs and targets.

    ``relucheck.training.batches.Batches`` describes the methods.
    """

    def begin(self, epoch: int) -> None: ...
    def of(self, start: int, stop: int) -> tuple[Any, Any]: ...
    def after(self, stop: int) -> tuple[Any, Any] | None: ...


class Forking:
    """Train the members of one seed as one run (a branch) as long as their gradients are equal.

    At a step whose forward has hits, each rule and subgradient of a branch gets a backward on the same graph. Members
    whose gradients differ in any bit, including the sign of a zero, continue in separate branches. So every member gets,
    bit for bit, the run that it would have by itself. The control never shares a branch: it is computed a second time
    from the start.

    Nudges share the branch of the reference until the first step with a live hit. A hit is live if s = 1 under the chain
    rule would give another gradient than s = 0, which a backward more decides as for any other member. A nudge then gets a
    branch of its own, with one parameter moved, see ``relucheck.training.forking.nudging``.

    On CUDA the host does not wait for the device within a step. Hits are counted on the device, forward and backward are
    replayed from a recording (``relucheck.training.forking.captured``), and what is compared after a step is read at the
    end of the epoch, or before a branch forks. A branch with several choices reads one number in every step, which says
    whether there was a hit. If there was, its step is computed again with all choices. The forward of a model must not
    depend on anything that changes between steps, other than its parameters, its buffers and the dropout masks.

    Args:
        settings: of the comparison.
        seed: whose members are trained.
        batches: the mini-batches of the seed.
        device: where to train.
        model: builds the model of a branch.
        objective: makes what a branch trains for, from its model.
        clock: the clock that the models and objectives share.
        apart: whether to train every member by itself from the start, to check that forking changes no bit.
        deferred: whether to work as described for CUDA.

    Raises:
        ExecutorError: the objective cannot serve the model.
    """

    name = "forking"

    def __init__(
        self,
        settings: Plan,
        seed: int,
        batches: Source,
        device: torch.device,
        model: Callable[[], nn.Module],
        objective: MakesObjective,
        clock: Clock,
        *,
        apart: bool = False,
        deferred: bool = False,
    ) -> None:
        self.settings, self.seed, self.batches, self.device = settings, seed, batches, device
        self._model, self._objective, self.clock, self.deferred = model, objective, clock, deferred
        self._inputs, self._unread = Inputs(), list[comparing.Unread]()
        self.results = {index: MemberResult(member) for index, member in enumerate(settings.members) if member.seed == seed}
        self.void: str | None = None
        self._epoch = 0
        indices = sorted(self.results, key=lambda index: not settings.members[index].is_reference)
        self._reference_index = indices[0]
        merged = [index for index in indices if not settings.members[index].control and not apart]
        self.branches = [
            self._branch(members) for members in [merged, *([index] for index in indices if index not in merged)] if members
        ]

    def _branch(self, members: list[int]) -> Branch:
        model = self._model().to(self.device)
        return Branch(self.settings, self.device, model, members, self._objective, deferred=self.deferred)

    def alive(self) -> bool:
        """Return whether there is anything left to train."""
        return bool(self.branches) and self.void is None

    def note(self) -> str:
        """The current losses, for a progress display.

        They are those of the last epoch where reading the current ones would make the host wait.
        """
        if self.deferred:
            last = [r.epochs[-1].train_loss for r in self.results.values() if r.epochs and not r.diverged]
            losses = [loss for loss in last if loss is not None]
        else:
            losses = [float(branch.loss) / max(1, branch.samples) for branch in self.branches]
        shown = f"{min(losses):.4f} to {max(losses):.4f}" if losses else "-"
        return f"{len(self.branches)} branches, loss {shown}"

    def begin(self, epoch: int) -> None:
        """Begin an epoch: draw its batch order and reset its counts."""
        self._epoch = epoch
        self.batches.begin(epoch)
        for branch in self.branches:
            branch.reset()

    def step(self, start: int, stop: int, number: int) -> None:
        """Train all members on one mini-batch.

        Args:
            start: first sample of the mini-batch, in the order of the epoch.
            stop: one past its last sample.
            number: number of the step, from 1 on.
        """
        x, y = self.batches.of(start, stop)
        self._tick(number, y)
        if self.deferred:
            x, y = self._inputs.place(x, y)
        replayed = {branch: self.deferred and self._replay(branch, x, y) for branch in self.branches}
        for branch in list(self.branches):
            if branch not in self.branches:  # it has diverged, as was read since
                continue
            gradients, live = self._advance(branch, x, y, number, replayed[branch])
            if live:
                self._nudge(branch, live, gradients, number, self.batches.after(stop))
                self._tick(number, y)
            if self.void is not None:
                return
        self._compare(number)

    def _tick(self, number: int, y: Any) -> None:
        self.clock.tick(number)
        if self.deferred:  # replays read masks without asking the clock
            self.clock.refresh(len(y))

    def _choices(self, branch: Branch) -> dict[Choice, list[int]]:
        """What backward does at hits for the members of a branch, with these members, the leading one first.

        A choice that only shows whether a hit is live for a nudge has none.
        """
        wanted: dict[Choice, list[int]] = {}
        for index in branch.members:
            wanted.setdefault(choice(self.settings.members[index]), []).append(index)
        for index in branch.members:
            if self.results[index].waits:
                wanted.setdefault(probe(self.settings.members[index]), [])
        return wanted

    def _replay(self, branch: Branch, x: Tensor, y: Tensor) -> bool:
        """Replay the step of a branch beside those of the others; whether it was replayed."""
        wanted = self._choices(branch)
        return branch.replay(x, y, next(iter(wanted)), undoable=len(wanted) > 1)

    def _advance(self, branch: Branch, x: Any, y: Any, number: int, replayed: bool) -> tuple[list[Tensor], list[int]]:
        """Train a branch on a mini-batch, and fork it where gradients differ.

        Returns:
            The gradients with which the branch was updated, and those of its nudges that have met their first live hit.
        """
        wanted = self._choices(branch)
        if replayed:
            if len(wanted) == 1 or not branch.hit():
                branch.update(None)
                return [], []
            branch.undo()
        probes = {index: probe(self.settings.members[index]) for index in branch.members if self.results[index].waits}
        loss = branch.forward(x, y)
        hit = len(wanted) > 1 and branch.hit()
        if hit and self._unread:
            self._read()
            if self.void is not None or branch not in self.branches:
                return [], []
        chosen = list(wanted) if hit else list(wanted)[:1]
        groups: list[tuple[list[Tensor], list[Choice]]] = []
        for position, one in enumerate(chosen):
            gradients = branch.gradients(loss, one, keep=position < len(chosen) - 1)
            for known, together in groups:
                if same_gradients(known, gradients):
                    together.append(one)
                    break
            else:
                groups.append((gradients, [one]))
        others = []
        for gradients, choices in groups[1:]:
            members = [index for one in choices for index in wanted[one]]
            if not members:
                continue
            others.append((branch.fork(members), gradients))
            for index in members:
                self.results[index].forked_at = number
        leading, kept = groups[0]
        if hit:
            branch.members = [index for one in kept for index in wanted[one]]
        branch.update(leading)
        for other, gradients in others:
            other.update(gradients)
            self.branches.append(other)
        return leading, [index for index, one in probes.items() if hit and one not in kept]

    def _nudge(
        self, branch: Branch, live: list[int], gradients: list[Tensor], number: int, batch: tuple[Any, Any] | None
    ) -> None:
        """Give nudges branches of their own, in which one parameter has moved.

        Args:
            branch: shared by the nudges so far, after the update of this step.
            live: the nudges.
            gradients: of this step.
            number: number of this step.
            batch: the mini-batch of the next step; None if this step is the last one.
        """
        if not branch.flat.finite():  # then there is no run that a nudge could change
            return
        for other in self.branches:  # their replays read the masks of this step
            other.join()
        self.clock.tick(number + 1)
        # one copy serves all draws: what looking ahead leaves in it decides no gradient
        trial = branch.fork([])
        usual = None if batch is None else trial.look_ahead(*batch)

        def has_effect(parameter: int, element: int) -> bool:
            if batch is None or usual is None:
                return True
            place = trial.parameters[parameter].detach().view(-1)[element]
            before = place.clone()
            move(trial.parameters[parameter], element)
            gradients = trial.look_ahead(*batch)
            place.copy_(before)
            return not same_gradients(usual, gradients)

        def effective(elements: Mapping[int, tuple[int, int]]) -> list[int]:
            moved = [index for index, place in elements.items() if has_effect(*place)]
            for index in moved:
                other = branch.fork([index])
                move(other.parameters[elements[index][0]], elements[index][1])
                self.branches.append(other)
            return moved

        nudges = {index: self.settings.members[index] for index in live}
        record(self.results, drawn(nudges, lambda _: gradients, number, branch.names, effective))
        branch.members = [index for index in branch.members if index not in live]
        if not branch.members:  # where every member is trained by itself
            self.branches.remove(branch)

    def _compare(self, number: int) -> None:
        """Check the control, remove diverged branches, and record first differences and distances."""
        members = self.settings.members
        for branch in self.branches:
            branch.join()
        reference = next((branch for branch in self.branches if self._reference_index in branch.members), None)
        control = next((branch for branch in self.branches if members[branch.members[0]].control), None)
        group = comparing.Group(number, list(self.branches), reference, control, number % self.settings.every == 0)
        if not self.deferred:
            self._record(comparing.now(group))
        elif group.branches:
            self._unread.append(comparing.later(group))

    def _read(self) -> None:
        """Read from the device what was compared since the last time."""
        seen, self._unread = comparing.read(self._unread), []
        for one in seen:
            if self.void is None:
                self._record(one)

    def _record(self, seen: comparing.Seen) -> None:
        """Record what was seen after a step of branches that have not diverged before it."""
        group, alive = seen.group, list(self.branches)
        compared = group.reference in alive
        if seen.unequal is not None and group.control is not None and compared and group.control in alive:
            kind = "parameter" if seen.unequal in group.control.flat.names else "buffer"
            self.void = f"control differed at step {group.number} in {kind} {seen.unequal} (seed {self.seed})"
            return
        finite = dict(zip(group.branches, seen.finite, strict=True))
        for branch, differs in zip(group.branches, seen.differs, strict=True):
            if compared and differs and branch in alive and not branch.differs:
                branch.differs = True
                for index in branch.members:
                    self.results[index].first_difference = group.number
        if seen.rows and group.reference is not None and compared and finite[group.reference]:
            for branch, row in zip(group.branches, seen.rows, strict=True):
                for index in branch.members if branch in alive and finite[branch] else ():
                    self.results[index].steps.add(group.number, *row)
        for branch in alive:
            if not finite.get(branch, True):
                branch.join()  # its lane may still use memory that is about to be freed
                self.branches.remove(branch)
                for index in branch.members:
                    self.results[index].outcome = f"diverged: non-finite at step {group.number}"

    def end(self) -> None:
        """End an epoch: evaluate every branch and add its results, unless the run is void."""
        self._read()
        if self.void is not None:
            return
        for branch in self.branches:
            row = branch.evaluate()
            for index in branch.members:
                result = self.results[index]
                result.epochs.append(dataclasses.replace(row, test_batch_accuracies=list(row.test_batch_accuracies)))
                result.hits.append(branch.hits())
                result.activations.append(branch.activations)
                result.add_unreached(branch.unreached())
        if self._epoch + 1 == self.settings.epochs:
            end_waiting(self.results)

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


class ForkingExecutor(Forking):
    """The forking executor of the published experiments.

    Any model works whose activations are ``relucheck.training.model.Kinked`` with one
    ``relucheck.training.model.Switch``.

    Args:
        settings: of the comparison.
        seed: whose members are trained.
        train: training data, on the device.
        test: test data, on the device.
        device: where to train.
        apart: as for ``Forking``.
        model: builds the model; None means ``relucheck.training.model.build``.
        deferred: as for ``Forking``; None means on CUDA only.

    Raises:
        ExecutorError: the model has no ``Kinked``.
    """

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
        deferred: bool | None = None,
    ) -> None:
        later = device.type == "cuda" if deferred is None else deferred
        factory, clock = model or build, Clock(seed, fixed=later)
        super().__init__(
            settings,
            seed,
            OfOneSeed(settings, (seed,), train),
            device,
            lambda: factory(settings, seed, clock, Switch()),
            lambda built: Images(settings, built, test),
            clock,
            apart=apart,
            deferred=later,
        )
