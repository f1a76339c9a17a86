"""Train all members of all seeds as one batched model, for accelerators.

Every parameter has a leading dimension of members, and backward uses each member's subgradient and rule. Linear layers
are batched matrix products, which do not round like those of a module trained by itself. So all members of a comparison
are stacked from the start. Identical members must stay bitwise identical, which the control proves in every run. On a CPU
they need not: the gradients of batched products of odd widths depend on the place in the stack, so only the forking
executor serves there.

On CUDA, 16-bit products are computed member by member instead, by the kernels of ``nn.Linear``, because batched products
ignore the switches for reduced-precision reductions: in ATen's CUDABlas.cpp, ``bgemm_internal_cublas`` sets no math mode
for 16-bit types, while ``gemm_internal_cublas`` and ``gemm_and_bias`` obey the switches.

Nothing is read from the device until an epoch ends: flags, counts and distances stay there. Only where nudges wait for
their first live hit (``relucheck.training.stacked.nudges``), one flag of each is read after every step.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relucheck.errors import SettingsError
from relucheck.networks.network import Network
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.dtypes import bits_dtype
from relucheck.numerics.emulation import linear
from relucheck.training.batches import Batches, DataSplit
from relucheck.training.forking import choice, finite_or_none
from relucheck.training.forking.nudging import end_waiting, probe
from relucheck.training.model import Clock, ExecutorError, Kinked, SharedDropout, Switch, build, layers
from relucheck.training.optimisation.optimisers import Scaled, make
from relucheck.training.results.result import FINISHED, NO_EFFECT, Epoch, MemberResult
from relucheck.training.settings import Settings
from relucheck.training.stacked.layers import StackedKinked, batch_norm, linear_apart
from relucheck.training.stacked.nudges import WaitingNudges, finite, nudge

_ELEMENTS = 2**25  # largest number of one layer's activations in an evaluation forward, over all members
_SERVED = (nn.Flatten, nn.Linear, nn.BatchNorm1d, Kinked, SharedDropout)


def stackable(network: Network) -> bool:
    """Return whether members with this network can be stacked: it must be an MLP with biases."""
    return network.kind == "mlp" and network.bias


def alone_on(arithmetic: Arithmetic, device: str) -> bool:
    """Return whether products are computed one member at a time: 16-bit ones on CUDA.

    The reason is given in the module's docstring.
    """
    narrow = arithmetic.mixed is not None or (arithmetic.dtype.itemsize == 2 and arithmetic.emulated is None)
    return device == "cuda" and narrow


class StackedExecutor:
    """Train all members of some seeds as one batched model.

    Args:
        settings: of the comparison.
        seeds: whose members are trained.
        train: training data, on the device.
        test: test data, on the device.
        device: where to train.
        alone: whether linear layers are computed member by member, by the kernels of ``nn.Linear``; None decides by
            ``alone_on``.

    Raises:
        SettingsError: the network cannot be stacked.
        ExecutorError: the model has a module that cannot be stacked.
    """

    name = "stacked"

    def __init__(
        self,
        settings: Settings,
        seeds: Sequence[int],
        train: DataSplit,
        test: DataSplit,
        device: torch.device,
        *,
        alone: bool | None = None,
    ) -> None:
        if not stackable(settings.network):
            raise SettingsError(
                f"{settings.network} cannot be stacked, only an mlp with biases can; use the forking executor, which runs "
                "any network"
            )
        self.settings, self.train, self.test, self.device = settings, train, test, device
        self.alone = alone_on(settings.arithmetic, device.type) if alone is None else alone
        self.seeds = tuple(seeds)
        indices = [index for index, member in enumerate(settings.members) if member.seed in self.seeds]
        # controls come last, far from their references: a kernel that rounds by place may still treat neighbours alike
        self.indices = sorted(indices, key=lambda index: settings.members[index].control)
        members = [settings.members[index] for index in self.indices]
        self.results = {index: MemberResult(settings.members[index]) for index in self.indices}
        self.void: str | None = None
        self.clocks = {seed: Clock(seed) for seed in self.seeds}
        models = {seed: build(settings, seed, self.clocks[seed], Switch()) for seed in self.seeds}
        self.template = models[self.seeds[0]]
        self.modules = [(name, module) for name, module in self.template.named_modules() if not list(module.children())]
        for name, module in self.modules:
            if not isinstance(module, _SERVED):
                served = ", ".join(one.__name__ for one in _SERVED)
                raise ExecutorError(
                    f"{type(module).__name__} {name!r} cannot be stacked, only {served} can; use the forking executor, "
                    "which runs any model"
                )
        #: of each linear layer in order; empty if products are not emulated
        emulation, products = settings.arithmetic.emulated, [one for _, one in self.modules if isinstance(one, nn.Linear)]
        self.emulations = () if emulation is None else emulation.layers(len(products))
        names = [name for name, _ in self.template.named_parameters()]
        stacked = {
            name: torch.stack([dict(models[m.seed].named_parameters())[name].detach() for m in members]) for name in names
        }
        self.parameters = {name: value.to(device).requires_grad_() for name, value in stacked.items()}
        self.sizes = [value[0].numel() for value in stacked.values()]
        count = len(members)
        self.buffers: dict[str, Tensor] = {}
        for name, module in self.modules:
            if isinstance(module, nn.BatchNorm1d):
                shape, dtype = (count, module.num_features), settings.arithmetic.dtype
                self.buffers[f"{name}.mean"] = torch.zeros(shape, dtype=dtype, device=device)
                self.buffers[f"{name}.var"] = torch.ones(shape, dtype=dtype, device=device)
        place = {seed: position for position, seed in enumerate(self.seeds)}
        self.seed_of = torch.tensor([place[m.seed] for m in members], device=device)
        by_seed = {m.seed: position for position, m in enumerate(members) if m.is_reference}
        self.reference_of = torch.tensor([by_seed[m.seed] for m in members], device=device)
        self.references = torch.tensor([by_seed[seed] for seed in self.seeds], device=device)
        controls = {m.seed: position for position, m in enumerate(members) if m.control}
        self.controls = torch.tensor([controls[seed] for seed in self.seeds], device=device)
        self.optimiser = make(settings, list(self.parameters.values()))
        self.kinked = len(layers(self.template))
        self._epoch, self.batches = 0, Batches(settings, self.seeds, train)
        self._wait_by_results()

    def _wait_by_results(self) -> None:
        self._wait([position for position, index in enumerate(self.indices) if self.results[index].waits])

    def _wait(self, positions: list[int]) -> None:
        """Choose which nudges wait for a live hit, and with that every member's backward."""
        self.waiting = WaitingNudges(positions, self.reference_of)
        members = [self.settings.members[index] for index in self.indices]
        choices = [probe(m) if at in positions else choice(m) for at, m in enumerate(members)]
        # [kinks, members, 1, 1] and [members, 1, 1]
        self.subgradients = torch.tensor([s for s, _ in choices], dtype=torch.float64).T.to(self.device)[..., None, None]
        self.injects = torch.tensor([rule == "injected" for _, rule in choices], device=self.device)[:, None, None]

    def alive(self) -> bool:
        """Return whether there is anything left to train."""
        return self.void is None and any(result.outcome == FINISHED for result in self.results.values())

    def note(self) -> str:
        """The losses of the last finished epoch; reading the current ones would make the host wait."""
        losses = [r.epochs[-1].train_loss for r in self.results.values() if r.epochs and not r.diverged]
        known = [loss for loss in losses if loss is not None]
        return f"{len(self.indices)} members" + (f", loss {min(known):.4f} to {max(known):.4f}" if known else "")

    def begin(self, epoch: int) -> None:
        """Begin an epoch: draw its batch orders and reset its counts."""
        self._epoch = epoch
        self.batches.begin(epoch)
        count = len(self.indices)
        self.loss = torch.zeros(count, dtype=torch.float64, device=self.device)
        self.samples = 0
        self.hits = torch.zeros(self.kinked, len(self.settings.network.kinks), count, dtype=torch.int64, device=self.device)
        self.activations = [0] * self.kinked
        # for each step, int64 [3, members]: is finite, differs from the reference, first place where the control differs
        self.flags: list[Tensor] = []
        self.numbers: list[int] = []
        self.distances: list[tuple[int, Tensor]] = []

    def _forward(self, x: Tensor, *, training: bool) -> Tensor:
        """Logits [members, n, classes] for x [n, inputs] or [members, n, inputs]."""
        count = len(self.indices)
        emulations = iter(self.emulations)
        h = x if x.ndim == 3 else x.expand(count, *x.shape)
        layer = 0
        for name, module in self.modules:
            stacked = {part: self.parameters[f"{name}.{part}"] for part, _ in module.named_parameters()}
            if isinstance(module, nn.Linear):
                if self.emulations:
                    h = linear(next(emulations), h, stacked["weight"], stacked["bias"])
                elif self.alone:
                    h = linear_apart(h, stacked["weight"], stacked["bias"], self.settings.arithmetic.mixed)
                else:
                    h = torch.baddbmm(stacked["bias"].unsqueeze(1), h, stacked["weight"].transpose(1, 2))
            elif isinstance(module, nn.BatchNorm1d):
                # a CPU's kernel rounds the last features differently from the first ones
                apart = self.alone or h.device.type == "cpu"
                statistics = self.buffers[f"{name}.mean"], self.buffers[f"{name}.var"]
                h = batch_norm(h, *statistics, stacked["weight"], stacked["bias"], module, training=training, apart=apart)
            elif isinstance(module, Kinked):
                counts = self.hits[layer] if training else None
                if training:
                    self.activations[layer] += h[0].numel()
                h = StackedKinked.apply(h, module.rule, module.slope, self.subgradients, self.injects, counts)
                layer += 1
            elif isinstance(module, SharedDropout) and training:
                masks = [self.clocks[seed].mask(module.layer, module.keep, h[0]) for seed in self.seeds]
                h = h * torch.stack(masks)[self.seed_of]
        return h

    def _all(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Images [n, ...] or [members, n, ...] and labels [members, n] of a mini-batch."""
        x, y = batch
        return (x[self.seed_of], y[self.seed_of]) if self.settings.shuffle else (x, y.expand(len(self.indices), -1))

    def _gradients(self, x: Tensor, y: Tensor, number: int) -> tuple[Tensor, list[Tensor]]:
        """A training forward and backward of the step ``number``.

        Returns:
            The losses, [members], and the gradients of all parameters, [members, ...] each. They are those of the scaled
            losses if the optimiser has gradient scalers.
        """
        for clock in self.clocks.values():
            clock.tick(number)
        with self.settings.arithmetic.autocast(self.device):
            logits = self._forward(x, training=True)
            losses = (
                F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(len(self.indices), -1).mean(1)
            )
        optimiser = self.optimiser
        weights = optimiser.scale.to(losses.dtype) if isinstance(optimiser, Scaled) else torch.ones_like(losses)
        return losses, list(torch.autograd.grad(losses, list(self.parameters.values()), weights))

    def step(self, start: int, stop: int, number: int) -> None:
        """Train all members on one mini-batch of each seed.

        Args:
            start: first sample of the mini-batch, in the order of the epoch.
            stop: one past its last sample.
            number: number of the step, from 1 on.
        """
        x, y = self._all(self.batches.of(start, stop))
        before = self.hits.clone() if self.waiting.positions else self.hits
        losses, gradients = self._gradients(x, y, number)
        self.loss += losses.detach().double() * y.shape[1]
        self.samples += y.shape[1]
        live: list[int] = []
        if self.waiting.positions:
            live, faulty = self.waiting.probed(gradients, (self.hits - before).sum((0, 1)))
            self._find_faulty(faulty, number)
            gradients = [gradient[self.waiting.source] for gradient in gradients]
        self.optimiser.step(gradients)
        # where the reference has diverged, there is no run that a nudge could change
        live = finite(live, self.reference_of, self.parameters)
        if live:
            self._nudge(live, gradients, number, stop)
        self._compare(number)

    def _find_faulty(self, positions: list[int], number: int) -> None:
        """Make the result void if gradients of a nudge differ from its reference's without a hit."""
        for position in finite(positions, self.reference_of, self.parameters)[:1]:
            member = self.settings.members[self.indices[position]]
            why = f"had other gradients than its reference at step {number}, without a hit"
            self.void = f"nudge {member.nudge} {why} (seed {member.seed})"

    def _nudge(self, live: list[int], gradients: list[Tensor], number: int, stop: int) -> None:
        """Move one parameter of each nudge that has met its first live hit.

        Args:
            live: positions of the nudges.
            gradients: of this step.
            number: number of this step.
            stop: one past the last sample of its mini-batch.
        """
        following = self.batches.after(stop)

        def look_ahead() -> list[Tensor] | None:
            if following is None:
                return None
            with self._without_trace():
                return self._gradients(*self._all(following), number + 1)[1]

        self._wait([position for position in self.waiting.positions if position not in live])
        rows = {self.indices[position]: position for position in live}
        nudge(self.results, rows, self.reference_of, self.parameters, gradients, number, look_ahead)

    @contextlib.contextmanager
    def _without_trace(self) -> Iterator[None]:
        """Give back the counts and the statistics of batch norm as they were."""
        kept = self.hits, self.activations, self.buffers
        self.hits, self.activations = self.hits.clone(), list(self.activations)
        self.buffers = {name: value.clone() for name, value in self.buffers.items()}
        try:
            yield
        finally:
            self.hits, self.activations, self.buffers = kept

    def _compare(self, number: int) -> None:
        """Record on the device which members are finite, which differ, and their distances."""
        flat = torch.cat([value.detach().flatten(1) for value in self.parameters.values()], 1)
        low, high = flat.aminmax(dim=1)
        whole = low.isfinite() & high.isfinite()
        bits = flat.view(bits_dtype(flat.dtype))  # compared as integers, because NaN is not equal to itself
        differs = (bits != bits[self.reference_of]).any(1)
        broken = bits[self.controls] != bits[self.references]
        place = torch.where(broken.any(1), broken.to(torch.uint8).argmax(1), -1)[self.seed_of]
        self.flags.append(torch.stack((whole.long(), differs.long(), place)))
        self.numbers.append(number)
        if number % self.settings.every == 0:
            wide = flat.double()
            difference = wide - wide[self.reference_of]
            norms = [torch.linalg.vector_norm(difference, order, dim=1) for order in (1, 2)]
            self.distances.append((number, torch.stack((*norms, difference.sum(1).abs()), 1)))

    def end(self) -> None:
        """End an epoch: read its records from the device, evaluate, and add its results."""
        flags = torch.stack(self.flags).cpu()
        whole, differs, place = flags.unbind(1)  # [steps, members] each
        self._find_void(place)
        rows = torch.stack([row for _, row in self.distances]).tolist() if self.distances else []
        distances = list(zip([number for number, _ in self.distances], rows, strict=True))
        diverged_at: dict[int, int | None] = {}
        for position, index in enumerate(self.indices):
            result = self.results[index]
            first = self._first(whole[:, position] == 0)
            if first is not None and result.outcome == FINISHED:
                result.outcome = f"diverged: non-finite at step {first}"
            diverged_at[position] = int(result.outcome.rpartition(" ")[2]) if result.diverged else None
        for position, index in enumerate(self.indices):
            result, reference = self.results[index], int(self.reference_of[position])
            if result.outcome == NO_EFFECT:  # its row is a copy of the reference, of which nothing is recorded
                continue
            ends = [end for end in (diverged_at[position], diverged_at[reference]) if end is not None]
            last = min(ends, default=None)
            first = self._first(differs[:, position] != 0)
            # once one of the two has diverged, a difference between them means nothing
            counts = first is not None and (last is None or first <= last)
            if counts and result.first_difference is None and position != reference:
                result.first_difference = first
                self._find_early(result)
            for number, row in distances:
                if last is None or number < last:
                    result.steps.add(number, *row[position])
        if self.void is None:
            self._evaluate()
            if self._epoch + 1 == self.settings.epochs:
                end_waiting(self.results)
        self._wait_by_results()  # those that have diverged wait no longer

    def _first(self, flags: Tensor) -> int | None:
        return self.numbers[int(flags.to(torch.uint8).argmax())] if bool(flags.any()) else None

    def _find_early(self, result: MemberResult) -> None:
        """Make the result void if a nudge differed from its reference before it moved."""
        nudge, first = result.nudge, result.first_difference
        if self.void is None and (result.waits or (nudge is not None and first is not None and first < nudge.step)):
            name = f"nudge {result.member.nudge}"
            self.void = f"{name} differed from its reference at step {first}, before it moved (seed {result.member.seed})"

    def _find_void(self, place: Tensor) -> None:
        for position, index in enumerate(self.indices):
            member = self.settings.members[index]
            first = self._first(place[:, position] >= 0) if member.control else None
            if first is not None and self.void is None:
                at = int(place[self.numbers.index(first), position])
                ends = list(itertools.accumulate(self.sizes))
                name = next(n for n, end in zip(self.parameters, ends, strict=True) if at < end)
                self.void = f"control differed at step {first} in parameter {name} (seed {member.seed})"

    def _evaluate(self) -> None:
        size, count = self.settings.batch_size, len(self.indices)
        block = max(1, min(1024, _ELEMENTS // (count * max(self.settings.network.widths))) // size) * size
        wide = torch.promote_types(self.settings.arithmetic.dtype, torch.float32)
        total = torch.zeros(count, dtype=torch.float64, device=self.device)
        right = []
        with torch.no_grad():
            for start in range(0, len(self.test), block):
                x, y = self.test.images[start : start + block], self.test.labels[start : start + block]
                with self.settings.arithmetic.autocast(self.device):
                    logits = self._forward(x, training=False)
                logits = logits.to(wide)
                each = F.cross_entropy(logits.flatten(0, 1), y.repeat(count), reduction="none")
                total += each.view(count, -1).double().sum(1)
                right.append(logits.argmax(2) == y)
        correct, test_losses = torch.cat(right, 1).cpu(), (total / len(self.test)).tolist()
        # all members at once: a sum for each mini-batch of each member would take as long as an epoch
        batches = [part.sum(1).tolist() for part in correct.split(size, 1)]
        lengths = [part.shape[1] for part in correct.split(size, 1)]
        train_losses, hits = (self.loss / self.samples).tolist(), self.hits.cpu()
        for position, index in enumerate(self.indices):
            result = self.results[index]
            if result.outcome != FINISHED:
                continue
            rights = [batch[position] for batch in batches]
            result.epochs.append(
                Epoch(
                    finite_or_none(train_losses[position]),
                    finite_or_none(test_losses[position]),
                    sum(rights) / len(self.test),
                    [right / length for right, length in zip(rights, lengths, strict=True)],
                )
            )
            result.hits.append(hits[..., position].tolist())
            result.activations.append(list(self.activations))

    def state(self) -> dict[str, Any]:
        """The state between two epochs; tensors are shared, not copied."""
        return {
            "results": {index: result.to_json() for index, result in self.results.items()},
            "parameters": {name: value.detach() for name, value in self.parameters.items()},
            "buffers": self.buffers,
            "optimiser": self.optimiser.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore what ``state`` returned."""
        self.results = {int(index): MemberResult.from_json(content) for index, content in state["results"].items()}
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(state["parameters"][name])
            for name, value in self.buffers.items():
                value.copy_(state["buffers"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        self._wait_by_results()
