"""How the members of a comparison are run on an accelerator: stacked, all members of all seeds as one batched model.

Every parameter has a leading dimension of members, linear layers are batched GEMMs, and backward takes each member's own
subgradient and rule. Identical members stay bitwise identical, which the control proves. A stacked run is not bitwise the
run of a module trained by itself (the GEMMs are others), so all members of a comparison run this way from the start.

Nothing is read from the device until an epoch ends: flags, counts and distances are kept there.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relucheck.executors import Split, autocast, finite_or_none
from relucheck.functional import Rule
from relucheck.injected import injected
from relucheck.members import Clock, Kinked, SharedDropout, Switch, build, layers, stream
from relucheck.numerics import bits_dtype, compute_dtype, generator, has_value
from relucheck.training_settings import Epoch, MemberResult, Settings

_ELEMENTS = 2**25  # of one layer's activations when evaluating, over all members
_SERVED = (nn.Linear, nn.BatchNorm1d, Kinked, SharedDropout)
_GROWTH = 2000  # steps without overflow after which a gradient scaler doubles its scale, as torch.amp.GradScaler's


class _StackedKinked(torch.autograd.Function):
    """A piecewise linear activation of x [members, n, width] whose gradient at hits is each member's own."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, rule: Rule, slope: float, subgradients: Tensor, injects: Tensor, counts: Tensor | None
    ) -> Tensor:
        hits = []
        for kink, at in enumerate(rule.kinks):
            # only on the CPU is looking cheaper than comparing
            hit = None if x.device.type == "cpu" and not has_value(x, at) else x == at
            if hit is not None and counts is not None:
                counts[kink] += hit.sum((1, 2))
            hits.append(hit)
        result = rule.forward(x, slope)
        ctx.save_for_backward(result if rule.saves_result else x)
        ctx.rule, ctx.slope, ctx.hits, ctx.subgradients, ctx.injects = rule, slope, hits, subgradients, injects
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (cotangent,) = grad_outputs
        (saved,) = ctx.saved_tensors
        rule, slope = ctx.rule, ctx.slope
        gradient = rule.backward(cotangent, saved, slope, rule.saves_result)
        own = slope if rule.leaky else 0.0
        for hit, subgradient in zip(ctx.hits, ctx.subgradients, strict=False):
            if hit is None:
                continue
            wide = subgradient.to(compute_dtype(cotangent.dtype))
            scaled = (cotangent * wide).to(cotangent.dtype)
            value = torch.where(ctx.injects, injected(cotangent, subgradient), scaled)
            gradient = torch.where(hit & (ctx.injects | (subgradient != own)), value, gradient)
        return gradient, None, None, None, None, None


class _Scaled:
    """Adam or SGD under a gradient scaler of each member's own; a member whose gradients overflow skips its step.

    ``torch.amp.GradScaler`` has one scale and would skip the step of all. Same rules and constants. Parameters are float32
    here, so torch's fused optimisers differ from this by rounding only, and there is one form for both.
    """

    def __init__(self, settings: Settings, parameters: list[Tensor]) -> None:
        self.chosen, self.parameters = settings.optimiser, parameters
        count, device = parameters[0].shape[0], parameters[0].device
        self.scale = torch.full((count,), 65536.0, device=device)
        self.clean = torch.zeros(count, dtype=torch.int64, device=device)
        self.taken = torch.zeros(count, dtype=torch.float64, device=device)
        self.first = [torch.zeros_like(p) for p in parameters]
        self.second = [torch.zeros_like(p) for p in parameters]

    def step(self, gradients: Sequence[Tensor]) -> None:
        gradients = [g / _like(self.scale, g) for g in gradients]
        good = torch.stack([g.flatten(1).isfinite().all(1) for g in gradients]).all(0)
        self.taken += good
        for p, g, m, v in zip(self.parameters, gradients, self.first, self.second, strict=True):
            at = _like(good, p)
            if self.chosen.name == "adam":
                m.copy_(torch.where(at, m + (g - m) * (1 - 0.9), m))
                v.copy_(torch.where(at, v * 0.999 + g * g * (1 - 0.999), v))
                one, two = (_like((1 - b**self.taken).to(p.dtype), p) for b in (0.9, 0.999))
                change = self.chosen.lr * (m / one) / ((v / two).sqrt() + self.chosen.eps)
            else:
                m.copy_(torch.where(at, m * self.chosen.momentum + g, m))
                change = self.chosen.lr * m
            p.copy_(torch.where(at, p - change, p))
        self.clean = torch.where(good, self.clean + 1, 0)
        grown = self.clean >= _GROWTH
        self.scale = torch.where(good, torch.where(grown, self.scale * 2, self.scale), self.scale * 0.5)
        self.clean = torch.where(grown, 0, self.clean)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("scale", "clean", "taken", "first", "second")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.scale.device
        for name, value in state.items():
            setattr(self, name, [t.to(device) for t in value] if isinstance(value, list) else value.to(device))


def _like(values: Tensor, target: Tensor) -> Tensor:
    """[members] shaped to broadcast over the other dimensions of ``target``."""
    return values.view(-1, *[1] * (target.ndim - 1))


class StackedExecutor:
    """All members of some seeds as one batched model; see the module's docstring.

    Args:
        settings: of the comparison.
        seeds: whose members are run.
        train, test: the data, on the device.
        device: where.

    Raises:
        TypeError: for a model with a module that cannot be stacked.
    """

    name = "stacked"

    def __init__(self, settings: Settings, seeds: Sequence[int], train: Split, test: Split, device: torch.device) -> None:
        self.settings, self.train, self.test, self.device = settings, train, test, device
        self.seeds = tuple(seeds)
        self.indices = [index for index, member in enumerate(settings.members) if member.seed in self.seeds]
        members = [settings.members[index] for index in self.indices]
        self.results = {index: MemberResult(settings.members[index]) for index in self.indices}
        self.void: str | None = None
        self.clocks = {seed: Clock(seed) for seed in self.seeds}
        models = {seed: build(settings, seed, self.clocks[seed], Switch()) for seed in self.seeds}
        self.template = models[self.seeds[0]]
        for name, module in self.template.named_children():
            if not isinstance(module, _SERVED):
                served = ", ".join(one.__name__ for one in _SERVED)
                raise TypeError(
                    f"{type(module).__name__} {name!r} cannot be stacked, only {served} can; use the forking executor, "
                    "which runs any model"
                )
        names = [name for name, _ in self.template.named_parameters()]
        stacked = {
            name: torch.stack([dict(models[m.seed].named_parameters())[name].detach() for m in members]) for name in names
        }
        self.parameters = {name: value.to(device).requires_grad_() for name, value in stacked.items()}
        self.sizes = [value[0].numel() for value in stacked.values()]
        count = len(members)
        self.buffers: dict[str, Tensor] = {}
        for name, module in self.template.named_children():
            if isinstance(module, nn.BatchNorm1d):
                shape, dtype = count * module.num_features, settings.precision.torch_dtype
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
        self.optimiser = self._make_optimiser()
        self.kinked = len(layers(self.template))
        self._order: Tensor | None = None

    def _make_optimiser(self) -> torch.optim.Optimizer | _Scaled:
        chosen, values = self.settings.optimiser, list(self.parameters.values())
        if self.settings.precision.mixed == "float16":
            return _Scaled(self.settings, [value.detach() for value in values])  # detached: the same memory
        if chosen.name == "adam":
            return torch.optim.Adam(values, lr=chosen.lr, eps=chosen.eps, fused=chosen.fused or None)
        return torch.optim.SGD(values, lr=chosen.lr, momentum=chosen.momentum, fused=chosen.fused or None)

    def alive(self) -> bool:
        """Whether there is anything left to train."""
        return self.void is None and not all(result.diverged for result in self.results.values())

    def note(self) -> str:
        """The losses of the last finished epoch: the current ones are on the device."""
        losses = [r.epochs[-1].train_loss for r in self.results.values() if r.epochs and not r.diverged]
        known = [loss for loss in losses if loss is not None]
        return f"{len(self.indices)} members" + (f", loss {min(known):.4f} to {max(known):.4f}" if known else "")

    def begin(self, epoch: int) -> None:
        """Draws the batch order of an epoch and resets its counts."""
        self._order = None
        if self.settings.shuffle:
            orders = [torch.randperm(len(self.train), generator=generator(stream(s, "order", epoch))) for s in self.seeds]
            self._order = torch.stack(orders).to(self.device)
        count = len(self.indices)
        self.loss = torch.zeros(count, dtype=torch.float64, device=self.device)
        self.samples = 0
        self.hits = torch.zeros(self.kinked, len(self.settings.kinks), count, dtype=torch.int64, device=self.device)
        self.activations = [0] * self.kinked
        self.flags: list[Tensor] = []  # one row a step: [3, members]: finite, differs from reference, place of difference
        self.numbers: list[int] = []
        self.distances: list[tuple[int, Tensor]] = []

    def _forward(self, x: Tensor, *, training: bool) -> Tensor:
        """Logits [members, n, classes] of x [n, inputs] or [members, n, inputs]."""
        count, emulation = len(self.indices), self.settings.precision.emulated()
        h = x if x.ndim == 3 else x.expand(count, *x.shape)
        layer = 0
        for name, module in self.template.named_children():
            own = {key.split(".")[1]: value for key, value in self.parameters.items() if key.split(".")[0] == name}
            if isinstance(module, nn.Linear):
                if emulation is not None:
                    h = emulation.linear(h, own["weight"], own["bias"])
                else:
                    h = torch.baddbmm(own["bias"].unsqueeze(1), h, own["weight"].transpose(1, 2))
            elif isinstance(module, nn.BatchNorm1d):
                shape = h.shape
                flat = h.transpose(0, 1).reshape(shape[1], -1)  # a feature of a member is a feature
                mean, var = self.buffers[f"{name}.mean"], self.buffers[f"{name}.var"]
                weight, bias = own["weight"].flatten(), own["bias"].flatten()
                flat = F.batch_norm(flat, mean, var, weight, bias, training, module.momentum or 0.0, module.eps)
                h = flat.view(shape[1], shape[0], shape[2]).transpose(0, 1)
            elif isinstance(module, Kinked):
                counts = self.hits[layer] if training else None
                if training:
                    self.activations[layer] += h[0].numel()
                h = _StackedKinked.apply(h, module.rule, module.slope, self.subgradients, self.injects, counts)
                layer += 1
            elif isinstance(module, SharedDropout) and training:
                masks = [self.clocks[seed].mask(module.layer, module.keep, h[0]) for seed in self.seeds]
                h = h * torch.stack(masks)[self.seed_of]
        return h

    def step(self, start: int, stop: int, number: int) -> None:
        """Trains all members on images ``start`` to ``stop`` of the epoch's order; it is step ``number``, from 1 on."""
        count = len(self.indices)
        for clock in self.clocks.values():
            clock.tick(number)
        if self._order is None:
            x, y = self.train.images[start:stop], self.train.labels[start:stop].expand(count, -1)
        else:
            where = self._order[:, start:stop]
            x, y = self.train.images[where][self.seed_of], self.train.labels[where][self.seed_of]
        values = list(self.parameters.values())
        with autocast(self.settings, self.device):
            logits = self._forward(x, training=True)
            losses = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(count, -1).mean(1)
        self.loss += losses.detach().double() * y.shape[1]
        self.samples += y.shape[1]
        if isinstance(self.optimiser, _Scaled):
            gradients = torch.autograd.grad(losses, values, self.optimiser.scale.to(losses.dtype))
            self.optimiser.step(gradients)
        else:
            gradients = torch.autograd.grad(losses, values, torch.ones_like(losses))
            for value, gradient in zip(values, gradients, strict=True):
                value.grad = gradient.contiguous()  # fused kernels go through memory whatever the strides
            self.optimiser.step()
        self._compare(number)

    def _compare(self, number: int) -> None:
        """Notes, on the device, what is finite and what differs from what, and distances."""
        flat = torch.cat([value.detach().flatten(1) for value in self.parameters.values()], 1)
        low, high = flat.aminmax(dim=1)
        finite = low.isfinite() & high.isfinite()
        bits = flat.view(bits_dtype(flat.dtype))  # NaN differs from itself, its bits do not
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
        """Reads what the epoch left on the device, evaluates, and writes the epoch's rows."""
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
            # what one of the two does after the other has ended says nothing
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
        block = max(1, min(1024, _ELEMENTS // (count * max(self.settings.widths))) // size) * size
        wide = torch.promote_types(self.settings.precision.torch_dtype, torch.float32)
        total = torch.zeros(count, dtype=torch.float64, device=self.device)
        right = []
        with torch.no_grad():
            for start in range(0, len(self.test), block):
                x, y = self.test.images[start : start + block], self.test.labels[start : start + block]
                with autocast(self.settings, self.device):
                    logits = self._forward(x, training=False)
                logits = logits.to(wide)
                each = F.cross_entropy(logits.flatten(0, 1), y.repeat(count), reduction="none")
                total += each.view(count, -1).double().sum(1)
                right.append(logits.argmax(2) == y)
        correct, test_losses = torch.cat(right, 1).cpu(), (total / len(self.test)).tolist()
        train_losses, hits = (self.loss / self.samples).tolist(), self.hits.cpu()
        for position, index in enumerate(self.indices):
            result = self.results[index]
            if result.diverged:
                continue
            own = correct[position]
            result.epochs.append(
                Epoch(
                    finite_or_none(train_losses[position]),
                    finite_or_none(test_losses[position]),
                    int(own.sum()) / len(own),
                    [int(part.sum()) / len(part) for part in own.split(size)],
                )
            )
            result.hits.append(hits[..., position].tolist())
            result.activations.append(list(self.activations))

    def state(self) -> dict[str, Any]:
        """Everything between two epochs; tensors are the executor's own, not copies."""
        return {
            "results": {index: result.to_json() for index, result in self.results.items()},
            "parameters": {name: value.detach() for name, value in self.parameters.items()},
            "buffers": self.buffers,
            "optimiser": self.optimiser.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """The reverse of :meth:`state`."""
        self.results = {int(index): MemberResult.from_json(content) for index, content in state["results"].items()}
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(state["parameters"][name])
            for name, value in self.buffers.items():
                value.copy_(state["buffers"][name])
        self.optimiser.load_state_dict(state["optimiser"])
