"""The predicted hit rate of random networks is that of their layers, and follows the arithmetic."""

from __future__ import annotations

import pytest
import torch

from relucheck.hits.drawn import predicted_rate
from relucheck.hits.rates import RateError, predict
from relucheck.networks.network import Network
from relucheck.numerics.arithmetic import Arithmetic

NETWORK = Network("mlp", (32, 16), input_shape=(20,))


def test_the_rate_pools_layers_and_draws() -> None:
    x, arithmetic = torch.rand(200, 20, generator=torch.Generator().manual_seed(0)), Arithmetic.parse("float32")
    layers = [layer for seed in (3, 4) for layer in predict(NETWORK.draw(seed, arithmetic), x, pairs=100, seed=seed)]
    expected = 1e6 * sum(layer.expected for layer in layers) / sum(layer.activations for layer in layers)
    assert predicted_rate(NETWORK, arithmetic, x, (3, 4), pairs=100) == pytest.approx(expected)


def test_coarse_rounding_has_a_higher_rate() -> None:
    x = torch.rand(200, 20, generator=torch.Generator().manual_seed(0))
    once, coarse = (
        predicted_rate(NETWORK, Arithmetic.parse(f"bfloat16 emulated ({name})"), x, range(3), pairs=100)
        for name in ("rounded", "product")
    )
    assert coarse > 20 * once


def test_no_seeds_are_refused() -> None:
    with pytest.raises(RateError, match="there are no seeds"):
        predicted_rate(NETWORK, Arithmetic.parse("float32"), torch.rand(9, 20), ())
