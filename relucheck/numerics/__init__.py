"""Floating point: dtypes, bits, arithmetics and their emulation, exact dyadic numbers, determinism."""
