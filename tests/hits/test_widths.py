"""Formats: rounding, spacing and lowest bits, against torch's own dtypes."""

from __future__ import annotations

import pytest
import torch

from relucheck.hits import widths as hits_widths
from relucheck.hits.widths import FORMATS
from tests.oracles.sums import normal

TORCH = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8_e4m3": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
    "float32": torch.float32,
}


@pytest.mark.parametrize("name", TORCH)
def test_formats_round_as_torch_does(name: str) -> None:
    form, dtype = FORMATS[name], TORCH[name]
    values = normal(0, 4000) * torch.ldexp(torch.ones(4000), torch.arange(4000) % 30 - 22).double()
    values = torch.cat(
        [values, torch.tensor([0.0, -0.0, form.flushed, form.flushed * 1.01, 3 * form.flushed, 1.0625, 1.1875])]
    )
    values = values.float().double()  # torch rounds a float64 to 8 or 16 bits by way of float32
    values = values[values.abs() < min(form.largest, 60_000.0)]
    assert torch.equal(form.round(values), values.to(dtype).double())


@pytest.mark.parametrize("name", TORCH)
def test_spacing_is_the_gap_to_the_next_value(name: str) -> None:
    form = FORMATS[name]
    x = form.round(normal(1, 500).abs() + 0.001)
    gap = torch.ldexp(torch.ones_like(x), form.spacing(x))
    assert torch.equal(form.round(x + gap), x + gap)
    assert torch.equal(form.round(x + 0.25 * gap), x)


def test_the_lowest_bit() -> None:
    x = torch.tensor([1.0, -3.0, 0.75, 6.0, 1 + 2.0**-40, 5 * 2.0**-1000], dtype=torch.float64)
    assert hits_widths.lowest_bit(x).tolist() == [0, 0, -2, 1, -40, -1000]
