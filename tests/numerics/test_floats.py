"""The float formats by name agree with torch's dtypes and with the functions on tensors."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from relucheck.numerics import bits
from relucheck.numerics.dtypes import DTYPES, dtype_name
from relucheck.numerics.floats import FORMATS, differs

BY_NAME = {dtype_name(dtype): dtype for dtype in DTYPES}


def values(dtype: torch.dtype) -> torch.Tensor:
    """Every value of a 16-bit dtype, and random bit patterns of a wider one, without NaN."""
    if dtype.itemsize == 2:
        every = bits.all_values(dtype)
    else:
        generator = torch.Generator().manual_seed(0)
        kind = bits.bits_dtype(dtype)
        info = torch.iinfo(kind)
        every = torch.randint(info.min, info.max, (20_000,), dtype=kind, generator=generator).view(dtype)
        special = [0.0, -0.0, math.inf, -math.inf, torch.finfo(dtype).max, math.ldexp(1.0, -149)]
        every = torch.cat([every, torch.tensor(special, dtype=dtype)])
    return every[~every.isnan()]


@pytest.mark.parametrize("name", FORMATS)
def test_limits_are_torch_s(name):
    form, info = FORMATS[name], torch.finfo(BY_NAME[name])
    assert (form.eps, form.tiny, form.largest) == (info.eps, info.tiny, info.max)
    assert form.width == info.bits
    assert list(FORMATS) == [dtype_name(dtype) for dtype in DTYPES]


@pytest.mark.parametrize("name", FORMATS)
def test_order_and_neighbours_are_those_of_tensors(name):
    form, x = FORMATS[name], values(BY_NAME[name])
    wide = x.double().numpy()
    assert np.array_equal(form.ordinals(wide), bits.ordinals(x).numpy())
    back = form.from_ordinals(form.ordinals(wide))
    assert np.array_equal(back, wide)
    assert not np.signbit(back[back == 0]).any()
    for steps in (-2, -1, 1, 2):
        assert np.array_equal(form.neighbour(wide, steps), bits.neighbour(x, steps).double().numpy())


@pytest.mark.parametrize("name", FORMATS)
def test_values_round_to_themselves_with_the_sign_of_zero(name):
    wide = values(BY_NAME[name]).double().numpy()
    assert np.array_equal(FORMATS[name].rounded(wide).view(np.int64), wide.view(np.int64))
    assert np.isnan(FORMATS[name].rounded(math.nan))


@pytest.mark.parametrize("name", ["float16", "float32"])
def test_rounding_is_numpy_s(name):
    """NumPy rounds float64 once, as IEEE 754 asks."""
    form, generator = FORMATS[name], np.random.default_rng(0)
    wide = np.ldexp(generator.uniform(-2, 2, 50_000), generator.integers(-170, 140, 50_000))
    with np.errstate(over="ignore"):
        assert np.array_equal(form.rounded(wide), wide.astype(name).astype(float))


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32"])
def test_rounding_takes_the_nearest_and_of_two_the_even_one(name):
    form = FORMATS[name]
    low = form.all_finite_values() if form.width == 16 else np.array([1.0, 1 + form.eps, form.tiny, form.tiny * form.eps])
    low = low[(low >= 0) & (low < form.largest)]
    high = form.neighbour(low)
    middle = (low + high) / 2
    even = np.where(form.ordinals(low) % 2 == 0, low, high)
    assert np.array_equal(form.rounded(middle), even)
    assert np.array_equal(form.rounded(np.nextafter(middle, -np.inf)), low)
    assert np.array_equal(form.rounded(np.nextafter(middle, np.inf)), high)


def test_rounding_beyond_the_range_is_infinite():
    form = FORMATS["bfloat16"]
    ulp = form.largest - float(form.neighbour(np.array([form.largest]), -1)[0])
    assert form.rounded(form.largest + 0.49 * ulp) == form.largest
    assert form.rounded(-form.largest - 0.5 * ulp) == -math.inf


def test_distance_counts_values():
    assert FORMATS["bfloat16"].distance(1.0, 1.01) == 1  # rounds to 1.0078125
    assert FORMATS["float64"].distance(-5e-324, 5e-324) == 2
    assert FORMATS["float64"].distance(-math.pi, math.inf) is None
    assert FORMATS["float16"].distance(1.0, 1e6) is None
    assert FORMATS["float64"].distance(-1.7e308, 1.7e308) > 2**63  # no overflow


def test_all_values_are_those_of_16_bits():
    for name in ("bfloat16", "float16"):
        every = bits.all_values(BY_NAME[name]).double().numpy()
        every = every[np.isfinite(every)]
        assert np.array_equal(FORMATS[name].all_finite_values().view(np.int64), every.view(np.int64))
    with pytest.raises(ValueError, match="too many values"):
        FORMATS["float32"].all_finite_values()


def test_differs_is_that_of_tensors():
    numbers = np.array([0.0, -0.0, 1.0, math.nan, math.inf])
    a, b = (grid.ravel() for grid in np.meshgrid(numbers, numbers))
    for signed in (False, True):
        expected = bits.differs(torch.from_numpy(a), torch.from_numpy(b), signed_zero=signed)
        assert np.array_equal(differs(a, b, signed_zero=signed), expected.numpy())


def test_it_needs_no_torch():
    code = "import sys, relucheck.numerics.floats; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
