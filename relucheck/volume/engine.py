"""Decide for many fully connected networks whether backprop_s and backprop_t differ.

The decision is that of ``relucheck.bifurcation.decide``: bit for bit, and at the same mini-batch, the one that two
networks with two forwards and two backwards per mini-batch would reach. It takes little more time than the forward
passes. Networks run in stacks and mini-batches in blocks where a proof shows that this changes no bit
(``relucheck.volume.proof``). Every mini-batch with a hit is computed once more, by its network alone, which also checks
the proof.

Source: Bertoin et al. 2021, "Numerical influence of ReLU'(0) on backpropagation", section 3.1, for the bifurcation zone.
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


class _FusedMismatch(Exception):
    """A fused forward has other hits than the separate one, although a proof said otherwise."""


@dataclasses.dataclass
class _Pending:
    """A network whose decision is pending, with the counts so far."""

    seed: int | None
    model: nn.Module | None = None  # drawn only while the network is being decided
    hits: int = 0
    rows: int = 0
    outcome: Outcome | None = None
    batch: int | None = None


class Engine:
    """Decide fully connected networks of one description on one data set.

    Args:
        network: the description of every network: an MLP with biases, without batch norm and dropout.
        arithmetic: in which every network computes; no mixed precision. The caller sets its switches with
            ``arithmetic.active()``.
        inputs: [n, features], of any floating dtype; converted once.
        targets: class indices, int64 [n].
        batch_size: samples of a mini-batch; the last one may be smaller.
        subgradients: the two subgradients to compare; a pair of numbers each for ReLU6 (at 0, at 6).
        watch: which gradients count: "all", or those of the "first layer" only, as in the published tables.
        device: where the networks run; None means the device of the inputs.
        memory: bytes that a stack may use; None means 1 GiB on a CPU and half of the free memory on an accelerator.
        limits: sizes of stacks and blocks beyond which nothing is gained; None means those of the device.
        note: called with one line for the user, for example when a stack was made smaller or a proof turned out wrong.

    Raises:
        ModelError: the network is not such an MLP, ``watch`` is unknown, there are not two subgradients, or the
            arithmetic is mixed precision.
        ZoneDataError: the data set is empty, the numbers of inputs and targets differ, the width of the inputs is not the
            network's, or the batch size is below 1.
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
                f"arithmetic {arithmetic.name!r}: the networks of a volume have one dtype; choose one that is not mixed"
            )
        self.network, self.arithmetic = _checked_network(network), arithmetic
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
        """How networks and mini-batches were fused, by shape.

        It also lists the fusions that failed their proof, and all notes for the user.
        """
        return "\n".join(part for part in (str(self._prover), *self.notes) if part)

    def decide(self, seeds: Iterable[int]) -> Iterator[Decision]:
        """Decide the networks that ``network.draw`` builds from the seeds, in their order."""
        group: list[int] = []
        for seed in seeds:
            group.append(seed)
            if len(group) >= self._networks:
                yield from self._decide_seeds(group)
                group = []
        if group:
            yield from self._decide_seeds(group)

    def examine(self, models: Sequence[MLP]) -> list[Decision]:
        """Decide given networks of the engine's description and dtype, for example trained ones.

        The subgradients of the models' activations are restored afterwards.

        Raises:
            ModelError: a model is not of that description and dtype.
        """
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
        leaves = [module for module in model.modules() if not list(module.children())]
        linear = [module for module in leaves if isinstance(module, nn.Linear)]
        activations = [module for module in leaves if isinstance(module, activation)]
        right = (
            isinstance(model, MLP)
            and [tuple(layer.weight.shape) for layer in linear] == wanted
            and all(layer.bias is not None for layer in linear)
            and len(activations) == len(self.network.widths)
            and len(leaves) == len(linear) + len(activations) + 1  # and nn.Flatten
            and all(
                parameter.dtype == self.arithmetic.dtype and parameter.requires_grad for parameter in model.parameters()
            )
            and not any(module.inplace for module in activations)
            and all(getattr(module, "negative_slope", slope) == slope for module in activations)
        )
        if not right:
            raise ModelError(
                f"{type(model).__name__} is not {self.network} in {self.arithmetic} as Network.draw builds it "
                f"(with biases, no frozen parameter, relucheck's activations, not in place, slope {slope}); for any other "
                "model use relucheck.bifurcation.decide.decide"
            )

    def _decide_seeds(self, seeds: Sequence[int]) -> list[Decision]:
        return self._run([_Pending(seed) for seed in seeds])

    def _run(self, networks: list[_Pending]) -> list[Decision]:
        """Decide a group of networks.

        Stacks become smaller where memory does not suffice. Everything runs separately once a proof turned out wrong.
        """
        pending, size = networks, len(networks)
        while pending:
            group = pending[:size]
            try:
                with deterministic(), torch.inference_mode(False):
                    self._decide_stack(group)
            except _FusedMismatch as error:
                if self._prover.distrusted:
                    raise AssertionError(
                        f"{error}, although nothing was fused; two separate forwards must not differ"
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
                        "mini-batches, or another device"
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
                torch.cuda.empty_cache()  # frees nothing while the exception and the tensors of its frames are alive
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
            # most networks have a hit in the first mini-batches or none at all, so blocks start small and grow
            batches = min(2 * batches, self._most_batches)
        rest = len(self.inputs) - full * self.batch_size
        if rest and active:
            self._block(active, stack, full, 1, rest, careful)

    def _block(
        self, active: list[_Pending], stack: Stack, first: int, batches: int, rows: int, careful: bool
    ) -> tuple[list[_Pending], Stack]:
        """Run a block of mini-batches; return the undecided networks and their stack."""
        start = first * self.batch_size
        with torch.no_grad():
            counts, finite = self._scan(stack, self.inputs[start : start + batches * rows], batches, rows, careful)
        looked_at = counts > 0 if finite is None else (counts > 0) | ~finite
        interesting = looked_at.any(1).tolist()
        for index, network in enumerate(active):
            if network.outcome is not None:
                continue  # decided, but still in the stack until the stack is rebuilt
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
        # rebuild the stack only when at most half are left, as every new number of networks needs a proof
        if len(left) <= len(active) // 2:
            return [active[index] for index in left], stack.part(left)
        return active, stack

    def _scan(self, stack: Stack, x: Tensor, batches: int, rows: int, careful: bool) -> tuple[Tensor, Tensor | None]:
        """Scan a block in the most fused way that is proved, and move the results to the CPU.

        Returns:
            Hits [n, batches]; and if ``careful``, whether all logits are finite [n, batches], else None.
        """
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
        """Compare the two exact backwards of one mini-batch; None if they agree."""
        counts: list[int] = []
        inputs: list[Tensor] = []
        outputs: list[Tensor] = []

        def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            assert isinstance(module, ChosenSubgradient)
            positions = [positions_of(args[0].detach(), kink) for kink in module.rule.kinks]
            counts.append(sum(len(position[0]) for position in positions if position is not None))
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
        if sum(counts) != hits:
            raise _FusedMismatch(
                f"{self.network} in {self.arithmetic}, samples {rows.start} to {rows.stop - 1}: the "
                f"fused forward has {hits} hits, the separate one {sum(counts)}"
            )
        last = max(layer for layer, count in enumerate(counts) if count)
        return first_difference(loss, inputs[: last + 1], outputs[last], model, self.subgradients, self.watch, careful)


def _checked_network(network: Network) -> Network:
    """Refuse a network that a stack cannot hold."""
    if not is_plain(network):
        raise ModelError(
            f"{network}: stacks hold MLPs with biases, without batch norm and dropout; for any other model use "
            "relucheck.bifurcation.decide.decide"
        )
    return network


def _values(setting: ModelSubgradient) -> tuple[float, ...]:
    if setting is None:
        return (0.0,)
    return setting if isinstance(setting, tuple) else (setting,)


def _out_of_memory(error: BaseException) -> bool:
    # torch's CPU allocator raises a plain RuntimeError
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
