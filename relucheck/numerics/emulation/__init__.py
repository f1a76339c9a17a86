"""Emulated arithmetics: layers that round sums as another device might."""

from relucheck.numerics.emulation.convolution import conv2d
from relucheck.numerics.emulation.layers import EmulatedConv2d, EmulatedLinear, emulate
from relucheck.numerics.emulation.sums import KINDS, Emulation, EmulationError

__all__ = ["KINDS", "EmulatedConv2d", "EmulatedLinear", "Emulation", "EmulationError", "conv2d", "emulate"]
