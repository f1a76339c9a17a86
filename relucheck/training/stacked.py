"""Train all members of all seeds as one batched model, for accelerators.

Every parameter has a leading dimension of members, and backward uses each member's subgradient and rule. Linear layers
are batched matrix products, which do not round like those of a module trained by itself. So all members of a comparison
are stacked from the start. Identical members must stay bitwise identical, which the control proves in every run. On a CPU
they need not: the gradients of batched products of odd widths depend on the place in the stack, so only the forking
executor serves there.

On CUDA, 16-bit products are computed member by member instead, by the kernels of ``nn.Linear``, because batched products
ignore the switches for reduced-precision reductions: in ATen's CUDABlas.cpp, ``bgemm_internal_cublas`` sets no math mode
for 16-bit types, while ``gemm_internal_cublas`` and ``gemm_and_bias`` obey the switches.

Nothing is read from the device until an epoch ends: flags, counts and distances stay there.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relucheck.errors import SettingsError
from relucheck.networks.network import Network
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.determinism import generator
from relucheck.numerics.dtypes import bits_dtype
from relucheck.numerics.emulation import linear
from relucheck.training.forking import DataSplit, finite_or_none
from relucheck.training.model import Clock, ExecutorError, Kinked, SharedDropout, Switch, build, layers, stream
from relucheck.training.optimisers import Scaled, make
from relucheck.training.result import Epoch, MemberResult
from relucheck.training.settings import Settings
from relucheck.training.stacked_layers import StackedKinked, batch_norm, linear_apart

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
        SettingsError: the network cannot be stacked, or a member is a nudge.
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
        if any(member.nudge is not None for member in settings.members):
            raise SettingsError("members: the stacked executor trains no nudges; use the forking executor")
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
        # [kinks, members, 1, 1] and [members, 1, 1]
        self.subgradients = torch.tensor([m.subgradients for m in members], dtype=torch.float64).T.to(device)[
            ..., None, None
        ]
        self.injects = torch.tensor([m.rule == "injected" for m in members], device=device)[:, None, None]
        place = {seed: position for position, seed in enumerate(self.seeds)}
        self.seed_of = torch.tensor([place[m.seed] for m in members], device=device)
        by_seed = {m.seed: position for position, m in enumerate(members) if m.is_reference}
        self.reference_of = torch.tensor([by_seed[m.seed] for m in members], device=device)
        self.references = torch.tensor([by_seed[seed] for seed in self.seeds], device=device)
        controls = {m.seed: position for position, m in enumerate(members) if m.control}
        self.controls = torch.tensor([controls[seed] for seed in self.seeds], device=device)
        self.optimiser = make(settings, list(self.parameters.values()))
        self.kinked = len(layers(self.template))
        self._order: Tensor | None = None

    def alive(self) -> bool:
        """Return whether there is anything left to train."""
        return self.void is None and not all(result.diverged for result in self.results.values())

    def note(self) -> str:
        """The losses of the last finished epoch; reading the current ones would make the host wait."""
        losses = [r.epochs[-1].train_loss for r in self.results.values() if r.epochs and not r.diverged]
        known = [loss for loss in losses if loss is not None]
        return f"{len(self.indices)} members" + (f", loss {min(known):.4f} to {max(known):.4f}" if known else "")

    def begin(self, epoch: int) -> None:
        """Begin an epoch: draw its batch orders and reset its counts."""
        self._order = None
        if self.settings.shuffle:
            orders = [torch.randperm(len(self.train), generator=generator(stream(s, "order", epoch))) for s in self.seeds]
            self._order = torch.stack(orders).to(self.device)
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

    def step(self, start: int, stop: int, number: int) -> None:
        """Train all members on one mini-batch of each seed.

        Args:
            start: first sample of the mini-batch, in the order of the epoch.
            stop: one past its last sample.
            number: number of the step, from 1 on.
        """
        count = len(self.indices)
        for clock in self.clocks.values():
            clock.tick(number)
        if self._order is None:
            x, y = self.train.images[start:stop], self.train.labels[start:stop].expand(count, -1)
        else:
            where = self._order[:, start:stop]
            x, y = self.train.images[where][self.seed_of], self.train.labels[where][self.seed_of]
        values = list(self.parameters.values())
        with self.settings.arithmetic.autocast(self.device):
            logits = self._forward(x, training=True)
            losses = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(count, -1).mean(1)
        self.loss += losses.detach().double() * y.shape[1]
        self.samples += y.shape[1]
        optimiser = self.optimiser
        weights = optimiser.scale.to(losses.dtype) if isinstance(optimiser, Scaled) else torch.ones_like(losses)
        optimiser.step(torch.autograd.grad(losses, values, weights))
        self._compare(number)

    def _compare(self, number: int) -> None:
        """Record on the device which members are finite, which differ, and their distances."""
        flat = torch.cat([value.detach().flatten(1) for value in self.parameters.values()], 1)
        low, high = flat.aminmax(dim=1)
        finite = low.isfinite() & high.isfinite()
        bits = flat.view(bits_dtype(flat.dtype))  # compared as integers, because NaN is not equal to itself
        differs = (bits != bits[self.reference_of]).any(1)
        broken = bits[self.controls] != bits[self.references]
        place = torch.where(broken.any(1), broken.to(torch.uint8).argmax(1), -1)[self.seed_of]
        self.flags.append(torch.stack((finite.long(), differs.long(), place)))
        self.numbers.append(number)
        if number % self.settings.every == 0:
            wide = flat.double()
            difference = wide - wide[self.reference_of]
            norms = [torch.linalg.vector_norm(difference, order, dim=1) for order in (1, 2)]
            self.distances.append((number, torch.stack((*norms, difference.sum(1).abs()), 1)))

    def end(self) -> None:
        """End an epoch: read its records from the device, evaluate, and add its results."""
        flags = torch.stack(self.flags).cpu()
        finite, differs, place = flags.unbind(1)  # [steps, members] each
        self._find_void(place)
        rows = torch.stack([row for _, row in self.distances]).tolist() if self.distances else []
        distances = list(zip([number for number, _ in self.distances], rows, strict=True))
        diverged_at: dict[int, int | None] = {}
        for position, index in enumerate(self.indices):
            result = self.results[index]
            first = self._first(finite[:, position] == 0)
            if first is not None and not result.diverged:
                result.outcome = f"diverged: non-finite at step {first}"
            diverged_at[position] = int(result.outcome.rpartition(" ")[2]) if result.diverged else None
        for position, index in enumerate(self.indices):
            result, reference = self.results[index], int(self.reference_of[position])
            ends = [end for end in (diverged_at[position], diverged_at[reference]) if end is not None]
            last = min(ends, default=None)
            first = self._first(differs[:, position] != 0)
            # once one of the two has diverged, a difference between them means nothing
            counts = first is not None and (last is None or first <= last)
            if counts and result.first_difference is None and position != reference:
                result.first_difference = first
            for number, row in distances:
                if last is None or number < last:
                    result.steps.add(number, *row[position])
        if self.void is None:
            self._evaluate()

    def _first(self, flags: Tensor) -> int | None:
        return self.numbers[int(flags.to(torch.uint8).argmax())] if bool(flags.any()) else None

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
            if result.diverged:
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
