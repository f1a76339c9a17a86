"""Dyadic tensors: what they hold exactly, and what they refuse."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from relucheck.numerics import dyadics


def test_dyadic_refuses_what_it_could_not_hold() -> None:
    with pytest.raises(ValueError, match="would cut values"):
        dyadics.from_floats(torch.tensor([0.5], dtype=torch.float64), 20, 0)
    wide = dyadics.from_floats(torch.ones(1, 1000, dtype=torch.float64), 26)
    with pytest.raises(ValueError, match="are not exact for 1000 terms"):
        dyadics.linear(wide, torch.ones(1, 1000, dtype=torch.float64), None)


def test_full_digits_are_exact() -> None:
    """The widest sums that digits allow: every digit full, where one bit more would be rounded."""
    for terms in (1, 2, 3, 784, 1000):
        bits = dyadics.digit_bits(terms)
        full = float((1 << 50) - 1)
        x = torch.full((1, terms), full, dtype=torch.float64)
        found = dyadics.linear(dyadics.from_floats(x, bits), x, x[:, 0])
        zero = (torch.zeros(1, dtype=torch.int64),) * 2
        assert found.fractions(zero) == [terms * Fraction(full) ** 2 + Fraction(full)]
