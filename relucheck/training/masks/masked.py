"""Hits of an activation as masks on the device, so that the host never waits for it.

Looking up coordinates of hits, as ``relucheck.training.model.Kinked`` does on a CPU, makes the host wait for an accelerator
in every layer. Here hits are counted on the device, and every element of the gradient is compared. The gradient at a hit is
that of ``relucheck.activations.rules.at_hits``, bit for bit.

Where Triton is installed, one kernel does this (``relucheck.training.masks.kernels``). Before a kernel is used on a device,
a trial compares its bits there with those of the plain form, for every bit pattern of a 16-bit cotangent and input.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Sequence
from types import ModuleType
from typing import Final

import torch
from torch import Tensor

from relucheck.activations.rules import RELU, Rule, at_hits
from relucheck.numerics.bits import all_values, count_value, same_bits
from relucheck.numerics.determinism import generator

_SAMPLED: Final = 2**16  # number of float32 values in a trial


def count(x: Tensor, kinks: Sequence[float], counts: Tensor) -> None:
    """Add the number of hits at each kink to ``counts``, without waiting for the device.

    Args:
        x: pre-activations, of any shape and floating dtype.
        kinks: positions of the kinks, in increasing order.
        counts: int64 [kinks], changed in place.
    """
    kernels = fused(x.device, x.dtype)
    if kernels is not None and _dense(x):
        kernels.count(x, kinks, counts)
        return
    for kink, at in enumerate(kinks):
        counts[kink].add_(count_value(x, at) if x.device.type == "cpu" else (x == at).sum())


def gradient(
    rule: Rule, x: Tensor, cotangent: Tensor, slope: float, subgradients: Sequence[float], injects: bool
) -> Tensor:
    """The gradient of an activation with chosen subgradients at its kinks.

    Args:
        rule: backward and kinks of the activation.
        x: pre-activations, of any shape.
        cotangent: the upstream gradient, of the same shape and dtype.
        slope: negative slope of LeakyReLU.
        subgradients: at the kinks; further ones are ignored. NaN keeps torch's gradient.
        injects: whether the injected rule holds, rather than the chain rule.
    """
    default = slope if rule.leaky else 0.0
    subgradients = subgradients[: len(rule.kinks)]
    changes = [not math.isnan(s) and (injects or s != default) for s in subgradients]
    kernels = fused(x.device, x.dtype) if any(changes) else None
    if kernels is not None and _dense(x) and x.stride() == cotangent.stride():
        own = None if rule is RELU else rule.backward(cotangent, x, slope, False)
        if own is None or own.stride() == x.stride():
            chosen = kernels.INJECTED if injects else kernels.CHAIN
            modes = [chosen if changed else kernels.KEEP for changed in changes]
            corrected: Tensor = kernels.gradient(x, cotangent, own, rule.kinks, subgradients, modes)
            return corrected
    result = rule.backward(cotangent, x, slope, False)
    for at, subgradient, changed in zip(rule.kinks, subgradients, changes, strict=True):
        if changed:
            result = torch.where(x == at, at_hits(result, cotangent, subgradient, default, injects), result)
    return result


def _dense(x: Tensor) -> bool:
    return x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))


@functools.lru_cache(maxsize=32)
def fused(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    """The module of Triton kernels, or None where the plain form is used instead.

    The plain form is used in float64, on devices other than CUDA, without Triton, where Triton cannot compile (it needs a C
    compiler), and where its kernels fail the trial.
    """
    if device.type != "cuda" or dtype == torch.float64:
        return None
    try:
        kernels = importlib.import_module("relucheck.training.masks.kernels")
        return kernels if passes(kernels, device, dtype) else None
    except Exception:  # compilers and drivers raise anything
        return None


def passes(kernels: ModuleType, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether kernels give the bits of the plain form; any NaN counts as any other.

    Every bit pattern of a 16-bit dtype is an input and a cotangent; of float32, random ones are.

    Args:
        kernels: has ``count`` and ``gradient`` as in ``relucheck.training.masks.kernels``.
        device: where they run.
        dtype: float32 or a 16-bit one.
    """
    every = _values(dtype)
    edges, cotangents = (
        torch.tensor(values).to(dtype) for values in ((0.0, -0.0, 6.0, -3.0, 3.0, 1.0, math.nan), (1.0, math.inf, math.nan))
    )
    grids = [torch.meshgrid(*pair, indexing="ij") for pair in ((edges, every), (every, cotangents))]
    x, cotangent = (torch.cat([grid[place].flatten() for grid in grids]).to(device) for place in (0, 1))
    for kinks in ((0.0,), (0.0, 6.0), (-3.0, 3.0)):
        counts = torch.zeros(len(kinks), dtype=torch.int64, device=device)
        kernels.count(x, kinks, counts)
        if counts.tolist() != [int((x == at).sum()) for at in kinks]:
            return False
    for kinks in ((0.0,), (0.0, 6.0)):
        own = torch.where(x <= 0, 0.0, cotangent)  # torch's gradient of ReLU
        for subgradient, (mode, injects) in ((0.1, (kernels.CHAIN, False)), (-1 / 3, (kernels.INJECTED, True))):
            subgradients, modes = (subgradient, 1.0)[: len(kinks)], (mode, mode)[: len(kinks)]
            given = None if len(kinks) == 1 else own.clone()
            found = kernels.gradient(x, cotangent, given, kinks, subgradients, modes)
            expected = own
            for at, s in zip(kinks, subgradients, strict=True):
                expected = torch.where(x == at, at_hits(expected, cotangent, s, 0.0, injects), expected)
            if not same_bits(found, expected, signed_zero=True):
                return False
    return True


def _values(dtype: torch.dtype) -> Tensor:
    if dtype.itemsize == 2:
        return all_values(dtype)
    bits = torch.randint(-(2**31), 2**31, (_SAMPLED,), generator=generator(0), dtype=torch.int64)
    return bits.to(torch.int32).view(dtype)
