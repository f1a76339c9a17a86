"""Kink, Activation and the catalogue of torch's own piecewise linear activations."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from relucheck.activations.catalogue import CATALOGUE
from relucheck.activations.kink_search import FoundKink
from relucheck.activations.kinks import Activation, Kink
from relucheck.numerics.bits import neighbour
from relucheck.numerics.dtypes import DTYPES, dtype_name


@pytest.mark.parametrize(
    ("left", "right", "clarke", "minimum"),
    [(0, 1, (0, 1), 0), (1, 0, (0, 1), 0), (0.5, 1, (0.5, 1), 0.5), (-1, -0.25, (-1, -0.25), -0.25), (-1, 2, (-1, 2), 0),
     (1, 1, (1, 1), 1)],
)  # fmt: skip
def test_clarke_interval_and_minimum_norm(left: float, right: float, clarke: tuple[float, float], minimum: float) -> None:
    kink = FoundKink(0.0, left, right)
    assert kink.hull == clarke
    assert kink.minimum_norm == minimum


@pytest.mark.parametrize("field", ["at", "left", "right", "subgradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "0", 1j, [0.0], 10**400], ids=lambda v: str(v)[:9])
def test_kink_refuses_what_is_no_number(field: str, value: Any) -> None:
    with pytest.raises(ValueError) as error:
        Kink(**{"at": 0.0, "left": 0.0, "right": 1.0, field: value})
    for part in (f"Kink({field}={value!r})", "finite real number", "pass a float"):
        assert part in str(error.value)


@pytest.mark.parametrize("field", ["at", "left", "right"])
def test_only_the_subgradient_may_be_undeclared(field: str) -> None:
    assert Kink(0, 0, 1).subgradient is None
    with pytest.raises(ValueError, match=rf"Kink\({field}=None\)"):
        Kink(**{"at": 0.0, "left": 0.0, "right": 1.0, field: None})


def test_kink_holds_floats_and_is_a_value() -> None:
    kink = Kink(0, Fraction(1, 2), np.float32(1), np.float64(0.25))
    numbers = [field.name for field in dataclasses.fields(kink) if field.name != "argument"]
    assert [type(getattr(kink, name)) for name in numbers] == [float] * 4
    assert kink == Kink(0.0, 0.5, 1.0, 0.25)
    assert len({kink, Kink(0.0, 0.5, 1.0, 0.25)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        kink.at = 1.0  # type: ignore[misc]


def test_activation_sorts_its_kinks_and_refuses_two_at_one_place() -> None:
    six, zero = Kink(6, 1, 0), Kink(0, 0, 1)
    assert Activation("a", nn.ReLU6, (six, zero)).kinks == (zero, six)
    assert Activation("a", nn.ReLU6, [six, zero]).kinks == (zero, six)  # type: ignore[arg-type]
    assert Activation("a", torch.tanh).kinks == ()
    for twin in (0.0, -0.0):
        with pytest.raises(ValueError, match=r"Activation\('a'\): two kinks at one position; merge"):
            Activation("a", nn.ReLU, (zero, Kink(twin, 1, 0)))


def check_catalogue(activation: Activation, dtype: torch.dtype) -> None:
    """One-sided derivatives and torch's subgradient at every kink, as torch itself gives them."""
    for kink in activation.kinks:
        at = torch.tensor([kink.at], dtype=dtype)
        x = torch.cat([neighbour(at, -1), at, neighbour(at, 1)]).requires_grad_()
        g = torch.full_like(x, 2.0)
        (got,) = torch.autograd.grad(activation.make()(x), x, g)
        want = torch.tensor([kink.left, kink.subgradient, kink.right], dtype=dtype) * 2
        torch.testing.assert_close(got, want, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("name", CATALOGUE)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_catalogue_tells_what_torch_does(name: str, dtype: torch.dtype) -> None:
    activation = CATALOGUE[name]
    assert activation.name == name
    assert isinstance(activation.make(), getattr(nn, name))
    assert activation.make() is not activation.make()
    check_catalogue(activation, dtype)


@pytest.mark.parametrize("field", ["left", "right", "subgradient", "at"])
def test_the_catalogue_check_fails_a_wrong_entry(field: str) -> None:
    wrong = dataclasses.replace(CATALOGUE["ReLU6"].kinks[1], **{field: 0.5})
    with pytest.raises(AssertionError):
        check_catalogue(dataclasses.replace(CATALOGUE["ReLU6"], kinks=(wrong,)), torch.float32)
