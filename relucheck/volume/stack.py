"""Forward passes of many networks at once, and the proof that they are bitwise the separate ones.

A stack holds the parameters of n networks of one description. It can run them one by one (*separate*: what
``F.linear`` does for one network and one mini-batch), as batched products (*batched*), or with the first layers joined to
one product, as all networks share its input (*joined*); and several mini-batches as one block of rows. Whether a fused
way rounds as the separate one does depends on the device, the dtype and the shape, so every shape is proved where it is
first used: all pre-activations of both ways, bit for bit, on dense random rows. Where the proof fails the next less
fused way is tried; the last one is the separate one itself.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relucheck.activations.modules import ChosenSubgradient, LeakyReLU
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.bits import has_value
from relucheck.numerics.dtypes import compute_dtype

Way = Literal["joined", "batched", "separate"]


class Stack:
    """The parameters of n networks of one description, and their forward passes.

    Args:
        models: as :func:`draw` makes them.
        arithmetic: what the linear layers compute in.
    """

    def __init__(self, models: Sequence[nn.Module], arithmetic: Arithmetic) -> None:
        self.arithmetic, self._emulation = arithmetic, arithmetic.emulated
        # an emulation widens its factors for every product: widen parameters once
        wide = compute_dtype(arithmetic.dtype) if self._emulation else arithmetic.dtype
        # Each network's own tensors, not slices of the stacked ones: kernels for few rows depend on the alignment.
        self.own = [
            [
                (module.weight.detach().to(wide), module.bias.detach().to(wide))
                for module in model.modules()
                if isinstance(module, nn.Linear)
            ]
            for model in models
        ]
        self.activation = next(module for module in models[0].modules() if isinstance(module, ChosenSubgradient))

    @functools.cached_property
    def weights(self) -> list[Tensor]:
        """Of each layer, [n, outputs, inputs]."""
        return [torch.stack([weight for weight, _ in layers]) for layers in zip(*self.own, strict=True)]

    @functools.cached_property
    def biases(self) -> list[Tensor]:
        """Of each layer, [n, outputs]."""
        return [torch.stack([bias for _, bias in layers]) for layers in zip(*self.own, strict=True)]

    @property
    def kinks(self) -> tuple[float, ...]:
        """Of the activation."""
        return self.activation.rule.kinks

    @property
    def _slope(self) -> float:
        return float(self.activation.negative_slope) if isinstance(self.activation, LeakyReLU) else 0.0

    def __len__(self) -> int:
        return len(self.own)

    def part(self, chosen: Sequence[int]) -> Stack:
        """A stack of some of the networks."""
        other = object.__new__(Stack)
        other.arithmetic, other._emulation, other.activation = self.arithmetic, self._emulation, self.activation
        other.own = [self.own[index] for index in chosen]
        return other

    def bounded(self, largest: float, steepest: float) -> bool:
        """Whether no value of a forward and no gradient can overflow, for a mean cross-entropy loss.

        Layer by layer |z| <= |W|_inf |x| + |b|. Backwards, the absolute cotangents of any one logit add up to at most 2
        over the mini-batch, and so do all of a sample's; those of a unit to at most ``steepest`` |W|_1 times
        the next layer's; and a weight's gradient to at most that times the largest input of its layer.

        Args:
            largest: absolute value of an input.
            steepest: absolute slope or subgradient of the activation, at least 1.
        """
        limit = torch.finfo(self.arithmetic.dtype).max
        wide = torch.promote_types(self.own[0][0][0].dtype, torch.float32)
        slack = 1.1  # for the rounding of these sums and of the computation itself
        inputs = [torch.full((len(self),), largest, dtype=torch.float64)]
        for weight, bias in zip(self.weights, self.biases, strict=True):
            rows = weight.abs().sum(-1, dtype=wide).amax(-1).double().cpu()
            inputs.append(slack * (rows * inputs[-1] + bias.abs().amax(-1).double().cpu()))
        bounds, cotangents = inputs[1:], torch.full((len(self),), 2.0, dtype=torch.float64)
        for weight, at in zip(reversed(self.weights), reversed(inputs[:-1]), strict=True):
            bounds += [cotangents, cotangents * at * slack]
            cotangents = cotangents * slack * steepest * weight.abs().sum(-2, dtype=wide).amax(-1).double().cpu()
        return bool((torch.stack(bounds) < limit).all())  # a NaN is not below the limit

    def _affine(self, layer: int, x: Tensor, way: Way) -> Tensor:
        """Pre-activations [n, rows, units] of one layer for x [rows, inputs] or [n, rows, inputs]."""
        emulation = self._emulation
        if len(self) == 1:
            weight, bias = self.own[0][layer]
            rows = x if x.ndim == 2 else x[0]
            one = F.linear(rows, weight, bias) if emulation is None else emulation.forward(rows, weight, bias)
            return one.unsqueeze(0)
        weight, bias = self.weights[layer], self.biases[layer]
        if way == "joined" and x.ndim == 2:
            flat, ends = weight.flatten(0, 1), bias.flatten()
            joined = F.linear(x, flat, ends) if emulation is None else emulation.forward(x, flat, ends)
            return joined.view(len(x), len(self), -1).transpose(0, 1)
        x = x.expand(len(self), -1, -1) if x.ndim == 2 else x
        if emulation is not None:
            return emulation.forward(x, weight, bias)
        return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))

    def pre_activations(self, x: Tensor, way: Way, *, logits: bool = False) -> Iterator[Tensor]:
        """The pre-activations [n, rows, units] of each hidden layer in turn (then the logits), for rows x [rows, inputs].

        A yielded tensor is overwritten when the next one is asked for.
        """
        last, rule = len(self.own[0]) - 1, self.activation.rule
        h = x
        for layer in range(last + logits):
            z = self._affine(layer, h, way)
            yield z
            if layer < last:
                h = rule.forward_(z, self._slope)

    def _hit(self, x: Tensor) -> bool:
        """Whether the one network of this stack has a hit, or may have one (not looked at: that would synchronise).

        The common case on a CPU, a large network without a hit, in as few calls as it takes.
        """
        if x.device.type != "cpu":
            return True
        emulation = self._emulation
        affine = F.linear if emulation is None else emulation.forward
        forward, slope, kinks = self.activation.rule.forward_, self._slope, self.kinks
        for weight, bias in self.own[0][:-1]:
            x = affine(x, weight, bias)
            for kink in kinks:
                if has_value(x, kink):
                    return True
            x = forward(x, slope)
        return False

    def scan(self, x: Tensor, batch_size: int, way: Way, *, logits: bool = False) -> tuple[Tensor, Tensor | None]:
        """Hits of a block of mini-batches x [r * batch_size, inputs], in one pass and without a graph.

        Returns:
            the number of hits, int64 [n, r] (on the CPU for CPU stacks, else on the device: nothing synchronises), and
            with ``logits`` which mini-batches have finite logits, bool [n, r].
        """
        if len(self) == 1 and not logits and not self._hit(x):
            return torch.zeros(1, len(x) // batch_size, dtype=torch.int64), None
        batches = len(x) // batch_size
        counts = torch.zeros(len(self), batches, dtype=torch.int64, device=x.device)
        finite = None
        for index, z in enumerate(self.pre_activations(x, way, logits=logits)):
            if index == len(self.own[0]) - 1:
                finite = z.isfinite().all(-1).unflatten(1, (batches, -1)).all(-1)
                break
            for kink in self.kinks:
                _count(z, kink, batches, batch_size, counts)
        return counts, finite


def _count(z: Tensor, kink: float, batches: int, batch_size: int, counts: Tensor) -> None:
    """Adds the hits of z [n, batches * batch_size, units] at one kink to counts [n, batches]."""
    if z.device.type != "cpu":
        _count_unseen(z, kink, batches, counts)
    elif has_value(z, kink):
        network, row, _ = (z == kink).nonzero(as_tuple=True)
        counts.index_put_((network, row // batch_size), torch.ones((), dtype=torch.int64), accumulate=True)


def _count_unseen(z: Tensor, kink: float, batches: int, counts: Tensor) -> None:
    """:func:`_count` for accelerators, where looking at values would synchronise."""
    counts += (z == kink).sum(-1).unflatten(1, (batches, -1)).sum(-1)
