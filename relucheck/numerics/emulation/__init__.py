"""Emulated arithmetics: layers that round sums as another device might."""

from relucheck.numerics.emulation.convolution import conv2d
from relucheck.numerics.emulation.emulation import Emulation, Override
from relucheck.numerics.emulation.layers import EmulatedConv2d, EmulatedLinear, emulate
from relucheck.numerics.emulation.norm import RoundedBatchNorm, batch_norm
from relucheck.numerics.emulation.rounding import EmulationError, Rounding
from relucheck.numerics.emulation.sums import linear

__all__ = [
    "EmulatedConv2d",
    "EmulatedLinear",
    "Emulation",
    "EmulationError",
    "Override",
    "RoundedBatchNorm",
    "Rounding",
    "batch_norm",
    "conv2d",
    "emulate",
    "linear",
]
