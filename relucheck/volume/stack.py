"""Run the forward passes of many networks at once, and count their hits.

A stack holds the parameters of n networks of one description. There are three ways to run it. *separate*: network by
network, with the ``F.linear`` calls that a single network makes. *batched*: as batched matrix products. *joined*: like
batched, but the first layers of all networks, which share their input, are one product. Several mini-batches can also run
as one block of rows.

Whether a fused way rounds as the separate one does depends on the device, the dtype and the shape. So
``relucheck.volume.proof`` compares them, bit for bit, before a fused way is used for a shape.
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
from relucheck.numerics.emulation import Emulation
from relucheck.numerics.emulation.sums import forward as emulated_linear

Way = Literal["joined", "batched", "separate"]


class Stack:
    """The parameters of n networks of one description, and their forward passes.

    Args:
        models: MLPs as ``Network.draw`` builds them, all of one description and dtype.
        arithmetic: in which the linear layers compute.

    Attributes:
        arithmetic: as given.
        layers: for each network, the weight [outputs, inputs] and bias [outputs] of each of its linear layers.
        activation: the activation module of the first network, which stands for all.
    """

    def __init__(self, models: Sequence[nn.Module], arithmetic: Arithmetic) -> None:
        self.arithmetic, emulation = arithmetic, arithmetic.emulated
        # an emulation converts its factors to a wider dtype for every product; here the parameters are converted once
        wide = compute_dtype(arithmetic.dtype) if emulation else arithmetic.dtype
        # the tensors of each network, not slices of the stacked ones, as kernels for few rows depend on the alignment
        self.layers = [
            [
                (module.weight.detach().to(wide), module.bias.detach().to(wide))
                for module in model.modules()
                if isinstance(module, nn.Linear)
            ]
            for model in models
        ]
        self.activation = next(module for module in models[0].modules() if isinstance(module, ChosenSubgradient))
        count = len(self.layers[0])
        self._emulations: Sequence[Emulation | None] = [None] * count if emulation is None else emulation.layers(count)

    @functools.cached_property
    def weights(self) -> list[Tensor]:
        """The weights of each layer, [n, outputs, inputs]."""
        return [torch.stack([weight for weight, _ in layers]) for layers in zip(*self.layers, strict=True)]

    @functools.cached_property
    def biases(self) -> list[Tensor]:
        """The biases of each layer, [n, outputs]."""
        return [torch.stack([bias for _, bias in layers]) for layers in zip(*self.layers, strict=True)]

    @property
    def kinks(self) -> tuple[float, ...]:
        """The kinks of the activation."""
        return self.activation.rule.kinks

    @property
    def _slope(self) -> float:
        return float(self.activation.negative_slope) if isinstance(self.activation, LeakyReLU) else 0.0

    def __len__(self) -> int:
        return len(self.layers)

    def part(self, chosen: Sequence[int]) -> Stack:
        """A stack of some of the networks, given by their indices."""
        other = object.__new__(Stack)
        other.arithmetic, other._emulations, other.activation = self.arithmetic, self._emulations, self.activation
        other.layers = [self.layers[index] for index in chosen]
        return other

    def bounded(self, largest: float, steepest: float) -> bool:
        """Return whether no activation and no gradient can overflow, for a mean cross-entropy loss.

        Layer by layer, |z| <= |W|_inf |x| + |b|. In backward, the absolute cotangents of one logit add up to at most 2
        over the mini-batch, and so do those of one sample. Those of a hidden unit add up to at most ``steepest`` * |W|_1
        times the bound of the next layer. A weight's gradient is at most that bound times the largest input of its layer.

        Args:
            largest: largest absolute value of an input.
            steepest: largest absolute slope or subgradient of the activation, at least 1.
        """
        limit = torch.finfo(self.arithmetic.dtype).max
        wide = torch.promote_types(self.layers[0][0][0].dtype, torch.float32)
        slack = 1.1  # covers the rounding errors of these sums and of the bounded computation
        inputs = [torch.full((len(self),), largest, dtype=torch.float64)]
        for weight, bias in zip(self.weights, self.biases, strict=True):
            rows = weight.abs().sum(-1, dtype=wide).amax(-1).double().cpu()
            inputs.append(slack * (rows * inputs[-1] + bias.abs().amax(-1).double().cpu()))
        bounds, cotangents = inputs[1:], torch.full((len(self),), 2.0, dtype=torch.float64)
        for weight, at in zip(reversed(self.weights), reversed(inputs[:-1]), strict=True):
            bounds += [cotangents, cotangents * at * slack]
            cotangents = cotangents * slack * steepest * weight.abs().sum(-2, dtype=wide).amax(-1).double().cpu()
        return bool((torch.stack(bounds) < limit).all())  # False for NaN, as it must be

    def _affine(self, layer: int, x: Tensor, way: Way) -> Tensor:
        """Pre-activations [n, rows, units] of one layer, for x [rows, inputs] or [n, rows, inputs]."""
        emulation = self._emulations[layer]
        if len(self) == 1:
            weight, bias = self.layers[0][layer]
            return _linear(emulation, x if x.ndim == 2 else x[0], weight, bias).unsqueeze(0)
        weight, bias = self.weights[layer], self.biases[layer]
        if way == "joined" and x.ndim == 2:
            joined = _linear(emulation, x, weight.flatten(0, 1), bias.flatten())
            return joined.view(len(x), len(self), -1).transpose(0, 1)
        x = x.expand(len(self), -1, -1) if x.ndim == 2 else x
        if emulation is not None:
            return emulated_linear(emulation, x, weight, bias)
        return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))

    def pre_activations(self, x: Tensor, way: Way, *, logits: bool = False) -> Iterator[Tensor]:
        """Yield the pre-activations [n, rows, units] of each hidden layer in turn.

        A yielded tensor is overwritten when the next one is requested.

        Args:
            x: [rows, inputs], the inputs of all networks.
            way: how the networks are run.
            logits: whether the logits [n, rows, classes] follow.
        """
        last, rule = len(self.layers[0]) - 1, self.activation.rule
        h = x
        for layer in range(last + logits):
            z = self._affine(layer, h, way)
            yield z
            if layer < last:
                h = rule.forward_(z, self._slope)

    def _hit(self, x: Tensor) -> bool:
        """Return whether the only network of this stack has a hit.

        A CPU mostly meets this case with a large network that has no hit, so it takes as few calls as possible. On other
        devices the answer is always True, because looking at values would make the host wait for the device.
        """
        if x.device.type != "cpu":
            return True
        forward, slope, kinks = self.activation.rule.forward_, self._slope, self.kinks
        for (weight, bias), emulation in zip(self.layers[0][:-1], self._emulations, strict=False):
            x = _linear(emulation, x, weight, bias)
            for kink in kinks:
                if has_value(x, kink):
                    return True
            x = forward(x, slope)
        return False

    def scan(self, x: Tensor, batch_size: int, way: Way, *, logits: bool = False) -> tuple[Tensor, Tensor | None]:
        """Count the hits of a block of mini-batches in one forward pass without a graph.

        Args:
            x: [r * batch_size, inputs], r mini-batches one after another.
            batch_size: rows of a mini-batch.
            way: how the networks are run.
            logits: whether to compute the logits too, and check that they are finite.

        Returns:
            The numbers of hits, int64 [n, r]; and with ``logits``, which mini-batches have finite logits only, bool [n,
            r], else None. Both are on the stack's device, so that the host need not wait for an accelerator.
        """
        if len(self) == 1 and not logits and not self._hit(x):
            return torch.zeros(1, len(x) // batch_size, dtype=torch.int64), None
        batches = len(x) // batch_size
        counts = torch.zeros(len(self), batches, dtype=torch.int64, device=x.device)
        finite = None
        for index, z in enumerate(self.pre_activations(x, way, logits=logits)):
            if index == len(self.layers[0]) - 1:
                finite = z.isfinite().all(-1).unflatten(1, (batches, -1)).all(-1)
                break
            for kink in self.kinks:
                _count(z, kink, batches, batch_size, counts)
        return counts, finite


def _linear(emulation: Emulation | None, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute the pre-activations of one layer of one network as the network itself does."""
    return F.linear(x, weight, bias) if emulation is None else emulated_linear(emulation, x, weight, bias)


def _count(z: Tensor, kink: float, batches: int, batch_size: int, counts: Tensor) -> None:
    """Add the hits of z [n, batches * batch_size, units] at one kink to counts [n, batches]."""
    if z.device.type != "cpu":
        _count_unseen(z, kink, batches, counts)
    elif has_value(z, kink):
        network, row, _ = (z == kink).nonzero(as_tuple=True)
        counts.index_put_((network, row // batch_size), torch.ones((), dtype=torch.int64), accumulate=True)


def _count_unseen(z: Tensor, kink: float, batches: int, counts: Tensor) -> None:
    """Like ``_count``, for accelerators, where looking at values would make the host wait."""
    counts += (z == kink).sum(-1).unflatten(1, (batches, -1)).sum(-1)
