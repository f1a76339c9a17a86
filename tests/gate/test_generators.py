"""Random generators of Python, NumPy and torch: every change is named, and undone bit for bit."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from relucheck.gate.isolation.generators import Generators

NUMPY = np.random  # the default generator is what a target may change


def drawn() -> tuple[float, ...]:
    """What each generator gives next; of NumPy two normal numbers, of which it keeps the second one."""
    return random.random(), NUMPY.normal(), NUMPY.normal(), NUMPY.random(), torch.rand(1).item()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (random.random, "Python's"),
        (lambda: random.gauss(0, 1), "Python's"),
        (lambda: torch.rand(1), "torch's"),
        (lambda: torch.manual_seed(3), "torch's"),
        (NUMPY.random, "NumPy's"),
        (NUMPY.normal, "NumPy's"),
        (lambda: NUMPY.seed(3), "NumPy's"),
        (lambda: NUMPY.set_bit_generator(NUMPY.PCG64(0)), "NumPy's"),
        (lambda: NUMPY.set_bit_generator(NUMPY.MT19937(0)), "NumPy's"),
    ],
    ids=["random", "gauss", "rand", "manual_seed", "numpy", "numpy normal", "numpy seed", "PCG64", "MT19937"],
)
@pytest.mark.parametrize("kept", [0, 1], ids=["", "a normal number is kept"])
def test_a_change_is_named_and_undone(change, name, kept):
    outer = Generators()
    NUMPY.seed(1)
    for _ in range(kept):
        NUMPY.normal()
    before = Generators()
    expected = drawn()
    before.restore()
    states = Generators()
    change()
    assert states.restore() == [f"{name} random number generator"]
    assert drawn() == expected
    outer.restore()


def test_the_normal_number_that_numpy_keeps_counts():
    """Taking it changes no word of the generator."""
    outer = Generators()
    NUMPY.seed(1)
    NUMPY.normal()
    states = Generators()
    second = NUMPY.normal()
    assert states.restore() == ["NumPy's random number generator"]
    assert NUMPY.normal() == second
    outer.restore()


def test_what_changed_before_a_block_is_not_blamed_on_it():
    outer = Generators()
    assert Generators().restore() == []
    NUMPY.random()
    random.random()
    torch.rand(1)
    assert Generators().restore() == []
    outer.restore()
