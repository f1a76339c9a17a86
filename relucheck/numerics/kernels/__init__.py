"""Kernels: which rounding a device's products have, seen from their results alone."""

from relucheck.numerics.kernels.identification import Identification, candidates, identify
from relucheck.numerics.kernels.inputs import exact
from relucheck.numerics.kernels.product import Operands, Product

__all__ = ["Identification", "Operands", "Product", "candidates", "exact", "identify"]
