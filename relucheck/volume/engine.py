"""The zone decision for many fully connected networks, at the speed of their forward products.

The decision is that of :mod:`relucheck.bifurcation.decide`: the one that two networks, two forwards and two backwards per
mini-batch would reach, at the same mini-batch, bit for bit. Networks run in stacks and mini-batches in blocks where that is
proved to change no bit (:mod:`relucheck.volume.proof`); every mini-batch with a hit is computed once more separately,
which also watches the proof.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from relucheck.activations.modules import ChosenSubgradient
from relucheck.activations.rules import ModelSubgradient
from relucheck.bifurcation.compare import Outcome
from relucheck.bifurcation.decide import (
    Decision,
    Watch,
    ZoneDataError,
    checked_data,
    checked_subgradients,
    checked_targets,
    checked_watch,
)
from relucheck.errors import MISSING, ModelError, RelucheckError
from relucheck.networks.mlp import MLP, is_plain, shapes
from relucheck.networks.network import ACTIVATIONS, Network
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.bits import positions_of
from relucheck.numerics.determinism import deterministic
from relucheck.volume.difference import first_difference
from relucheck.volume.proof import Prover, Shape, offset_of
from relucheck.volume.sizes import Limits, Sizes
from relucheck.volume.stack import Stack


class ZoneMemoryError(RelucheckError, MemoryError):
    """Not even one network and one mini-batch fit into the device's memory."""

    exit_code = MISSING


class _Unproved(Exception):
    """A fused forward missed or invented hits of the separate one."""


@dataclasses.dataclass
class _Pending:
    """A network whose decision is pending."""

    seed: int | None
    model: nn.Module | None = None  # made when its turn comes, and dropped again
    hits: int = 0
    rows: int = 0
    outcome: Outcome | None = None
    batch: int | None = None


class Engine:
    """Decides fully connected networks of one description on one data set.

    Args:
        network: an MLP with biases, without batch norm and dropout: what every one is.
        arithmetic: of every network; its switches are the caller's to set (``arithmetic.active()``). No mixed precision.
        inputs: [n, features], any floating dtype; converted once.
        targets: class indices, int64 [n].
        batch_size: mini-batches are taken in file order; the last one holds what is left.
        subgradients: the two subgradients; for ReLU6 also pairs (at 0, at 6).
        watch: which gradients count: of every parameter, or of the first layer alone (as in the published tables).
        device: where it runs; the inputs' by default.
        memory: bytes that a stack may take; by default 1 GiB on a CPU and half of what is free on an accelerator.
        limits: sizes of stacks and blocks beyond which nothing is gained; by default those of the device.
        note: is called with one line on what a user should know: a stack that shrank, a proof that did not hold.

    Raises:
        ModelError: for a network that is no such MLP, an unknown ``watch``, no two subgradients, and mixed precision.
        ZoneDataError: for an empty data set, targets of another length, inputs of another width, a batch size below 1.
    """

    def __init__(
        self,
        network: Network,
        arithmetic: Arithmetic,
        inputs: Tensor,
        targets: Tensor,
        *,
        batch_size: int = 256,
        subgradients: tuple[ModelSubgradient, ModelSubgradient] = (0.0, 1.0),
        watch: Watch = "all",
        device: torch.device | str | None = None,
        memory: int | None = None,
        limits: Limits | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        if arithmetic.mixed:
            raise ModelError(
                f"arithmetic {arithmetic.name!r}: networks of volumes have one dtype; choose one that is not mixed"
            )
        self.network, self.arithmetic = _plain(network), arithmetic
        self.subgradients, self.watch = checked_subgradients(subgradients), checked_watch(watch)
        self.batch_size = checked_data(inputs, targets, batch_size)
        if inputs.ndim != 2 or inputs.shape[1] != network.features:
            raise ZoneDataError(
                f"inputs of shape {tuple(inputs.shape)}: {network} takes [n, {network.features}]; flatten or reshape them"
            )
        self.device = torch.device(device) if device is not None else inputs.device
        self.inputs = inputs.to(self.device, arithmetic.dtype).contiguous()
        checked_targets(targets, network.classes)
        self.targets = targets.to(self.device)
        self.notes: list[str] = []
        self._note = note
        self._prover = Prover()
        sizes = Sizes(network, arithmetic, self.batch_size, self.device, memory, limits)
        self._networks = sizes.networks()
        self._most_batches = sizes.batches(self._networks)
        self._largest = float(self.inputs.abs().max())

    @property
    def plan(self) -> str:
        """What runs at once, shape by shape, as far as it was needed; and what the proofs refused."""
        return "\n".join(part for part in (str(self._prover), *self.notes) if part)

    def decide(self, seeds: Iterable[int]) -> Iterator[Decision]:
        """Decisions of the networks that ``network.draw`` makes from the seeds, in order."""
        group: list[int] = []
        for seed in seeds:
            group.append(seed)
            if len(group) >= self._networks:
                yield from self._decide_seeds(group)
                group = []
        if group:
            yield from self._decide_seeds(group)

    def examine(self, models: Sequence[MLP]) -> list[Decision]:
        """The decisions of given networks of the engine's description and dtype (trained ones, for example)."""
        for model in models:
            self._refuse_other(model)
        before = [
            (module, name, getattr(module, name))
            for model in models
            for module in model.modules()
            if isinstance(module, ChosenSubgradient)
            for name in module.rule.names
        ]
        decisions: list[Decision] = []
        try:
            while len(decisions) < len(models):
                group = models[len(decisions) : len(decisions) + self._networks]
                decisions += self._run([_Pending(None, model) for model in group])
        finally:
            for module, name, value in before:
                setattr(module, name, value)
        return decisions

    def _refuse_other(self, model: nn.Module) -> None:
        wanted, activation = shapes(self.network), ACTIVATIONS[self.network.activation]
        slope = self.network.negative_slope
        kinds = [module for module in model.modules() if not list(module.children())]
        linear = [module for module in kinds if isinstance(module, nn.Linear)]
        own = [module for module in kinds if isinstance(module, activation)]
        right = (
            isinstance(model, MLP)
            and [tuple(layer.weight.shape) for layer in linear] == wanted
            and all(layer.bias is not None for layer in linear)
            and len(own) == len(self.network.widths)
            and len(kinds) == len(linear) + len(own) + 1  # and nn.Flatten
            and all(
                parameter.dtype == self.arithmetic.dtype and parameter.requires_grad for parameter in model.parameters()
            )
            and not any(module.inplace for module in own)
            and all(getattr(module, "negative_slope", slope) == slope for module in own)
        )
        if not right:
            raise ModelError(
                f"{type(model).__name__} is no {self.network} in {self.arithmetic} as Network.draw makes "
                f"them (biases, no frozen parameter, relucheck's activations, not in place, slope {slope}); "
                "relucheck.bifurcation.decide.decide takes any model"
            )

    def _decide_seeds(self, seeds: Sequence[int]) -> list[Decision]:
        return self._run([_Pending(seed) for seed in seeds])

    def _run(self, networks: list[_Pending]) -> list[Decision]:
        """Decides a group, in smaller stacks where memory does not suffice and separately where a proof does not hold."""
        pending, size = networks, len(networks)
        while pending:
            group = pending[:size]
            try:
                with deterministic(), torch.inference_mode(False):
                    self._decide_stack(group)
            except _Unproved as error:
                if self._prover.distrusted:
                    raise AssertionError(
                        f"{error}, though nothing was fused: two separate forwards never differ"
                    ) from error
                self._prover.distrust()
                self._say(f"{error}; every network and mini-batch runs separately from here on")
                self._reset(group)
                continue
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                self._release(group)
                if size == 1 and self._most_batches == 1:
                    raise ZoneMemoryError(
                        f"{self.network} in {self.arithmetic}, mini-batches of {self.batch_size}: "
                        f"one network and one mini-batch do not fit into the memory of {self.device}; use smaller "
                        "mini-batches or another device"
                    ) from error
                size, self._most_batches = max(1, size // 2), max(1, self._most_batches // 2)
                self._networks = min(self._networks, size)
                self._say(
                    f"out of memory on {self.device}: stacks of {size} network(s) and blocks of {self._most_batches} "
                    "mini-batch(es) from here on"
                )
                self._reset(group)
                short_of_memory = True
            else:
                self._release(group)
                pending = pending[len(group) :]
                short_of_memory = False
            if short_of_memory and self.device.type == "cuda":
                torch.cuda.empty_cache()  # not before the exception and the tensors of its frames are gone
        units = sum(self.network.widths)
        return [
            Decision(network.seed, network.outcome or "agree", network.batch, network.hits, network.rows * units)
            for network in networks
        ]

    @staticmethod
    def _reset(networks: Sequence[_Pending]) -> None:
        for network in networks:
            network.hits, network.rows, network.outcome, network.batch = 0, 0, None, None

    @staticmethod
    def _release(networks: Sequence[_Pending]) -> None:
        for network in networks:
            if network.seed is not None:
                network.model = None

    def _say(self, text: str) -> None:
        self.notes.append(text)
        if self._note is not None:
            self._note(text)

    def _decide_stack(self, networks: list[_Pending]) -> None:
        for network in networks:
            if network.model is None:
                assert network.seed is not None
                network.model = self.network.draw(network.seed, self.arithmetic, self.device)
        stack = Stack([network.model for network in networks if network.model is not None], self.arithmetic)
        steepest = max(1.0, *(abs(value) for setting in self.subgradients for value in _values(setting)))
        careful = not stack.bounded(self._largest, steepest)
        active = list(networks)
        full, first, batches = len(self.inputs) // self.batch_size, 0, 1
        while first < full and active:
            batches = min(batches, full - first)
            active, stack = self._block(active, stack, first, batches, self.batch_size, careful)
            first += batches
            # hits mostly come early or not at all
            batches = min(2 * batches, self._most_batches)
        rest = len(self.inputs) - full * self.batch_size
        if rest and active:
            self._block(active, stack, full, 1, rest, careful)

    def _block(
        self, active: list[_Pending], stack: Stack, first: int, batches: int, rows: int, careful: bool
    ) -> tuple[list[_Pending], Stack]:
        """Runs a block of mini-batches; returns the networks that are still undecided, and their stack."""
        start = first * self.batch_size
        with torch.no_grad():
            counts, finite = self._scan(stack, self.inputs[start : start + batches * rows], batches, rows, careful)
        looked_at = counts > 0 if finite is None else (counts > 0) | ~finite
        interesting = looked_at.any(1).tolist()
        for index, network in enumerate(active):
            if network.outcome is not None:
                continue  # it rides along until the stack is made anew
            if not interesting[index]:
                network.rows += batches * rows
                continue
            for batch in range(batches):
                network.rows += rows
                hits = int(counts[index, batch])
                network.hits += hits
                if finite is not None and not finite[index, batch]:
                    network.outcome = "non-finite"
                elif hits:
                    at = start + batch * rows
                    assert network.model is not None
                    network.outcome = self._pair(network.model, slice(at, at + rows), hits, careful)
                if network.outcome is not None:
                    network.batch = first + batch
                    break
        left = [index for index, network in enumerate(active) if network.outcome is None]
        if not left:
            return [], stack
        # halve only: every new number of networks is a shape to be proved
        if len(left) <= len(active) // 2:
            return [active[index] for index in left], stack.part(left)
        return active, stack

    def _scan(self, stack: Stack, x: Tensor, batches: int, rows: int, careful: bool) -> tuple[Tensor, Tensor | None]:
        """Hits [n, batches] and, for a careful scan, finiteness [n, batches], in the most fused way that is proved."""
        way, blocks = self._prover.way(stack, Shape(len(stack), batches, rows, offset_of(x)))
        if way == "separate" and len(stack) > 1:
            parts = [self._scan_rows(stack.part([index]), x, rows, way, blocks, careful) for index in range(len(stack))]
            counts, finite = torch.cat([part[0] for part in parts]), [part[1] for part in parts if part[1] is not None]
            both = counts, torch.cat(finite) if finite else None
        else:
            both = self._scan_rows(stack, x, rows, way, blocks, careful)
        return both[0].cpu(), None if both[1] is None else both[1].cpu()

    @staticmethod
    def _scan_rows(
        stack: Stack, x: Tensor, rows: int, way: Any, blocks: bool, careful: bool
    ) -> tuple[Tensor, Tensor | None]:
        if blocks or len(x) == rows:
            return stack.scan(x, rows, way, logits=careful)
        parts = [stack.scan(part, rows, way, logits=careful) for part in x.split(rows)]
        finite = [part[1] for part in parts if part[1] is not None]
        return torch.cat([part[0] for part in parts], 1), torch.cat(finite, 1) if finite else None

    def _pair(self, model: nn.Module, rows: slice, hits: int, careful: bool) -> Outcome | None:
        """The exact two backwards of one mini-batch, None where they agree."""
        found: list[int] = []
        inputs: list[Tensor] = []
        outputs: list[Tensor] = []

        def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            assert isinstance(module, ChosenSubgradient)
            positions = [positions_of(args[0].detach(), kink) for kink in module.rule.kinks]
            found.append(sum(len(position[0]) for position in positions if position is not None))
            inputs.append(args[0])
            outputs.append(output)

        activations = [module for module in model.modules() if isinstance(module, ChosenSubgradient)]
        hooks = [module.register_forward_hook(record) for module in activations]
        try:
            with torch.enable_grad():
                loss = nn.functional.cross_entropy(model(self.inputs[rows]), self.targets[rows])
        finally:
            for hook in hooks:
                hook.remove()
        if sum(found) != hits:
            raise _Unproved(
                f"{self.network} in {self.arithmetic}, samples {rows.start} to {rows.stop - 1}: the "
                f"fused forward has {hits} hits, the separate one {sum(found)}"
            )
        last = max(layer for layer, count in enumerate(found) if count)
        return first_difference(loss, inputs[: last + 1], outputs[last], model, self.subgradients, self.watch, careful)


def _plain(network: Network) -> Network:
    """Refuses what a stack cannot hold."""
    if not is_plain(network):
        raise ModelError(
            f"{network}: stacks hold MLPs with biases, without batch norm and dropout; relucheck.bifurcation.decide.decide "
            "takes any model"
        )
    return network


def _values(setting: ModelSubgradient) -> tuple[float, ...]:
    if setting is None:
        return (0.0,)
    return setting if isinstance(setting, tuple) else (setting,)


def _out_of_memory(error: BaseException) -> bool:
    # the CPU allocator raises a plain RuntimeError
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
