"""Prove, shape by shape, that a fused way of running a stack gives the separate way's bits.

A proof is an experiment: both ways run on dense random rows, and all pre-activations and logits are compared bit for bit.
It holds for the device, the dtype and the shape at hand. If it fails, the next less fused way is tried; the last one is
the separate way, which needs no proof.
"""

from __future__ import annotations

import dataclasses
from typing import Final

import torch
from torch import Tensor

from relucheck.numerics.bits import same_bits
from relucheck.numerics.determinism import generator
from relucheck.volume.stack import Stack, Way

_ORDER: Final[tuple[Way, ...]] = ("joined", "batched", "separate")  # from the most to the least fused

# A kernel treats the last rows of a block differently unless their number is a multiple of this (measured on x86).
_FUSIBLE_ROWS: Final = 16

_ALIGNMENT: Final = 64  # bytes of a cache line, to which torch's allocators align and on which CPU kernels depend


@dataclasses.dataclass(frozen=True)
class Shape:
    """How much a stack runs at once, as far as it can decide which kernels run.

    Attributes:
        networks: number of networks in the stack.
        batches: number of mini-batches in the block.
        batch_size: rows of a mini-batch.
        offset: address of the first row in bytes, modulo 64, as kernels for few rows depend on the alignment.
    """

    networks: int
    batches: int
    batch_size: int
    offset: int = 0


class Prover:
    """Choose the way of running a stack, with one proof for each shape at its first use.

    Args:
        order: the ways that are tried, from the most to the least fused; the last one is "separate".

    Attributes:
        proved: for each shape so far, the way in use and whether several mini-batches run as one block of rows.
        refuted: for each shape, the ways that were tried and give other bits.
        distrusted: whether everything runs separately because a proved way gave other bits after all.
    """

    def __init__(self, order: tuple[Way, ...] = _ORDER) -> None:
        self.order = order
        self.proved: dict[Shape, tuple[Way, bool]] = {}
        self.refuted: dict[Shape, list[tuple[Way, bool]]] = {}
        self.distrusted = False

    def way(self, stack: Stack, shape: Shape) -> tuple[Way, bool]:
        """The most fused way proved for a shape, and whether its mini-batches may run as one block."""
        if self.distrusted:
            return "separate", False
        if shape not in self.proved:
            proved = self._prove(stack, shape)
            if proved is None:
                return "separate", False
            self.proved[shape] = proved
        return self.proved[shape]

    def distrust(self) -> None:
        """Run everything separately from now on, because a proved way gave other bits after all."""
        self.distrusted = True
        self.proved = dict.fromkeys(self.proved, ("separate", False))

    def _prove(self, stack: Stack, shape: Shape) -> tuple[Way, bool] | None:
        """The first way that gives the separate way's bits; None if these networks prove nothing."""
        stacked: tuple[Way, ...] = self.order if shape.networks > 1 else ("separate",)
        size = stack.layers[0][0][0].shape[1] * stack.arithmetic.dtype.itemsize
        # every mini-batch of a block must begin at an address where a block can begin
        whole = shape.batches > 1 and shape.batch_size % _FUSIBLE_ROWS == 0 and shape.batch_size * size % _ALIGNMENT == 0
        for blocks in (True, False) if whole else (False,):
            for way in stacked:
                if way == "separate" and not blocks:
                    return way, blocks
                holds = _holds(stack, shape, way, blocks)
                if holds is None:
                    return None
                if holds:
                    return way, blocks
                self.refuted.setdefault(shape, []).append((way, blocks))
        raise AssertionError("the separate way needs no proof")

    def __str__(self) -> str:
        lines = []
        for shape, (way, blocks) in self.proved.items():
            text = f"{shape.networks} network(s) x {shape.batches} mini-batch(es) of {shape.batch_size}: {way}"
            lines.append(text + (", rows in one block" if blocks else ""))
            for refuted, rows in self.refuted.get(shape, []):
                lines[-1] += f"; {refuted}{' with rows in one block' if rows else ''} is not bitwise equal to separate"
        return "\n".join(lines)


def _holds(stack: Stack, shape: Shape, way: Way, blocks: bool) -> bool | None:
    """Return whether a way gives the bits of the separate way on dense random rows.

    All pre-activations and logits are compared. None if these networks overflow on the random rows or hold a NaN:
    infinities and NaN hide differences in how a sum was computed.
    """
    weight = stack.layers[0][0][0]
    dtype = stack.arithmetic.dtype
    rows = shape.batches * shape.batch_size if blocks else shape.batch_size
    drawn = torch.rand(rows, weight.shape[-1], generator=generator(0), dtype=torch.float64).to(weight.device, dtype)
    x = _at_offset(drawn, shape.offset)
    networks = [[index] for index in range(len(stack))] if way == "separate" else [list(range(len(stack)))]
    for group in networks:
        fused = stack.part(group).pre_activations(x, way, logits=True)
        plain = [
            [stack.part([index]).pre_activations(part, "separate", logits=True) for part in x.split(shape.batch_size)]
            for index in group
        ]
        for z in fused:
            for block, network in zip(z, plain, strict=True):
                separate = torch.cat([next(part)[0] for part in network])
                if not bool(separate.isfinite().all()):
                    return None
                if not same_bits(block, separate, signed_zero=True):
                    return False
    return True


def _at_offset(x: Tensor, offset: int) -> Tensor:
    """A copy of x that begins ``offset`` bytes after a multiple of 64."""
    room = torch.empty(x.numel() + _ALIGNMENT, dtype=x.dtype, device=x.device)
    first = (offset - room.data_ptr()) % _ALIGNMENT // x.element_size()
    return room[first : first + x.numel()].view(x.shape).copy_(x)


def offset_of(x: Tensor) -> int:
    """The address of x in bytes, modulo 64."""
    return x.data_ptr() % _ALIGNMENT
