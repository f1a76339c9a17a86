"""The predicted hit rate of random networks, pooled over layers and draws."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from relucheck.hits.rates import RateError, predict
from relucheck.networks.network import Network
from relucheck.numerics.arithmetic import Arithmetic


def predicted_rate(
    network: Network,
    arithmetic: Arithmetic,
    inputs: Tensor,
    seeds: Iterable[int],
    *,
    pairs: int = 1000,
    batch_size: int = 256,
) -> float:
    """The predicted hits per million activations of random networks, without counting.

    Args:
        network: fully connected.
        arithmetic: in which the networks compute.
        inputs: [n, features], of any float dtype.
        seeds: one network is drawn from each.
        pairs: as for ``relucheck.hits.rates.predict``.
        batch_size: samples of a mini-batch in the run that the prediction is for.

    Raises:
        RateError: there are no seeds, or the prediction fails.
    """
    x = inputs.to(arithmetic.dtype)
    expected, seen = 0.0, 0
    for seed in seeds:
        for layer in predict(network.draw(seed, arithmetic), x, pairs=pairs, batch_size=batch_size, seed=seed):
            expected, seen = expected + layer.expected, seen + layer.activations
    if not seen:
        raise RateError("predicted_rate: there are no seeds, so no network was drawn; give at least one seed")
    return 1e6 * expected / seen
