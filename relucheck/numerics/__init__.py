"""Floating point: dtypes, bit patterns, arithmetics and their emulation, exact dyadic numbers, determinism."""
