"""Floating point: dtypes, bits, arithmetics, their emulation, exact numbers, determinism."""
