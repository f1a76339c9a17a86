"""Predicted hits against counted ones on digits, and wrong predictions that must be noticed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from relucheck import data
from relucheck.hits import rates
from relucheck.hits import widths as hits_widths
from relucheck.hits.rates import Measured, accumulation, measure, poisson_interval, predict
from relucheck.hits.validation import ValidatedLayer, agreement, validate
from relucheck.networks import Network
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.determinism import generator
from tests.helpers.uniform import mlp

# ----------------------------------------------------------------------------------------------------- whole networks

COARSE = [
    Arithmetic.parse("bfloat16 emulated (product)"),
    Arithmetic.parse("bfloat16 emulated (split-k 4)"),
    Arithmetic.parse("float16 emulated (product)"),
]


def cells_of(arithmetic: Arithmetic) -> tuple[ValidatedLayer, ...]:
    images = data.load("digits").scaled(torch.float32)[::2]
    return validate(arithmetic, 64, 2, images, range(16 if arithmetic.dtype == torch.float16 else 4), pairs=800)


def close(cells: tuple[ValidatedLayer, ...]) -> bool:
    """Whether predicted and counted hits agree within 12 % and the noise of the counts."""
    summary = agreement(cells)
    return summary.hits > 100 and summary.low < 1.12 and summary.high > 1 / 1.12


@pytest.mark.parametrize("arithmetic", COARSE, ids=lambda emulation: emulation.name)
def test_predictions_meet_counts_on_digits(arithmetic: Arithmetic) -> None:
    cells = cells_of(arithmetic)
    assert close(cells), [(cell.layer, cell.expected, cell.hits) for cell in cells]


def _without_density(prediction: rates.Predicted) -> rates.Predicted:
    return dataclasses.replace(prediction, per_million=1e6 * prediction.width)


def _without_width(prediction: rates.Predicted) -> rates.Predicted:
    return dataclasses.replace(prediction, per_million=1e6 * prediction.density * 2.0**-8)


def _half_window(prediction: rates.Predicted) -> rates.Predicted:
    return dataclasses.replace(prediction, per_million=2 * prediction.per_million)


@pytest.mark.parametrize("fault", [_without_density, _without_width, _half_window], ids=lambda fault: fault.__name__)
def test_a_wrong_factor_is_noticed(monkeypatch: pytest.MonkeyPatch, fault: Callable[[Any], Any]) -> None:
    right = rates.predict_layer
    monkeypatch.setattr(rates, "predict_layer", lambda *args, **options: fault(right(*args, **options)))
    assert not close(cells_of(COARSE[0]))


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_spacing_off_by_two_is_noticed(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    right = hits_widths._landing
    monkeypatch.setattr(hits_widths, "_landing", lambda *args: factor * right(*args))
    assert not close(cells_of(COARSE[0]))


def test_another_accumulation_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single rounding predicted where the product is rounded: thousands of times too few."""
    monkeypatch.setattr(rates.Arithmetic, "of", lambda linear: Arithmetic.parse("bfloat16 emulated (rounded)"))
    summary = agreement(cells_of(COARSE[0]))
    assert summary.expected < 0.01 * summary.hits


def test_predictions_are_deterministic_and_take_an_accumulation() -> None:
    model = mlp(width=32, depth=2).draw(3, COARSE[0])
    x = data.load("digits").scaled(torch.bfloat16)[:300]
    first = predict(model, x)
    assert first == predict(model, x)
    assert [prediction.layer for prediction in first] == ["layers.1", "layers.3"]
    ways = [accumulation(Arithmetic.parse("float16 emulated (product)"), inputs, 32) for inputs in (784, 32)]
    other = predict(model, x, ways)
    # 3 more bits of significand: 8 times rarer
    assert sum(t.per_million for t in first) / sum(t.per_million for t in other) == pytest.approx(8, rel=0.1)


def test_the_networks_are_those_of_the_volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rebuilt from their seeds by the one module that does it, which leaves the state of every device alone."""
    seen: list[tuple[Network, int, Any]] = []

    def watched(network: Network, seed: int, arithmetic: Any) -> nn.Module:
        seen.append((network, seed, arithmetic))
        return draw(network, seed, arithmetic)

    def refuse(seed: int) -> None:
        raise AssertionError("every device was seeded")

    draw = Network.draw
    monkeypatch.setattr(Network, "draw", watched)
    monkeypatch.setattr(torch, "manual_seed", refuse)
    validate(COARSE[0], 8, 2, torch.rand(20, 6, generator=generator(0)), [3, 5])
    assert seen == [(mlp(6, 8, 2), seed, COARSE[0]) for seed in (3, 5)]


# ----------------------------------------------------------------------------------------------------- counting


def test_measure_counts_planted_zeros() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.LeakyReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        for module in model:
            if isinstance(module, nn.Linear):
                module.weight.fill_(1.0)
                module.bias.fill_(-1.0)
    x = torch.full((10, 4), 0.5)
    x[3] = 0.25  # 4 * 0.25 - 1 = 0 in three units; the second layer has -1.5 there
    x[7, 0] = math.nan
    model[2].bias.data.fill_(-1.5)
    x[8:] = torch.tensor([1.0, 0.5, 0.0, 0.0])  # 1.5 - 1 three times is 1.5: hits in the second layer
    first, second = measure(model, x, batch_size=4)
    assert (first.hits, first.activations) == (3, 30)
    assert (second.hits, second.activations) == (4, 20)
    assert second.per_million == 200_000
    low, high = second.interval()
    assert low < 200_000 < high


@pytest.mark.parametrize(("count", "low", "high"), [(0, 0.0, 3.6889), (1, 0.0253, 5.5716), (10, 4.7954, 18.3904)])
def test_poisson_intervals(count: int, low: float, high: float) -> None:
    assert poisson_interval(count) == pytest.approx((low, high), abs=1e-4)
    assert Measured("", count, 10).interval() == pytest.approx((1e5 * low, 1e5 * high), abs=10)


def cell_of(expected: float, hits: int) -> ValidatedLayer:
    return ValidatedLayer("a", "grey", 16, 1, 1, 1, expected, hits, 1000)


def test_agreement() -> None:
    cells = [cell_of(100.0, 100), cell_of(30.0, 20), cell_of(5.0, 0)]
    summary = agreement(cells)
    assert (summary.hits, summary.expected, summary.activations) == (120, 135.0, 3000)
    assert (summary.informative, summary.median) == (2, 1.25)
    assert summary.low < summary.ratio < summary.high  # type: ignore[operator]
    assert (summary.testable, summary.surprising) == (2, 0)
    assert (cells[0].ratio, cells[2].ratio) == (1.0, None)
    nothing = agreement(cells[2:])
    assert (nothing.ratio, nothing.median, nothing.high, nothing.testable) == (None, None, math.inf, 0)


def test_cells_are_chosen_by_what_is_predicted() -> None:
    """A choice by counts would keep the lucky ones: the cell with 14 of 10 expected hits, and not that with 6."""
    summary = agreement([cell_of(10.0, 14), cell_of(10.0, 6), cell_of(9.9, 30)])
    assert summary.informative == 2
    assert summary.median == pytest.approx((10 / 14 + 10 / 6) / 2)
    assert (summary.tenth, summary.ninetieth) == pytest.approx((10 / 14 + 0.1 * 20 / 21, 10 / 6 - 0.1 * 20 / 21))
    none = agreement([cell_of(10.0, 10), cell_of(12.0, 0), cell_of(11.0, 11)])
    assert (none.tenth, none.median, none.ninetieth) == (1.0, 1.0, math.inf)


def test_only_cells_with_enough_expected_can_surprise() -> None:
    """No hit where 5 are expected has a p-value of 1.3 %, but so few counts have too few p-values to reckon with."""
    rare, off, right = cell_of(5.0, 0), cell_of(30.0, 12), cell_of(20.0, 20)
    assert rare.probability < 0.05 > off.probability
    summary = agreement([rare, off, right])
    assert (summary.testable, summary.surprising) == (2, 1)


def test_emulated_networks_keep_their_hits_out_of_the_prediction() -> None:
    """No hit is looked at: with the hits taken out of the count, the prediction is the same."""
    model = mlp(width=16, depth=1).draw(0, Arithmetic(torch.bfloat16))
    COARSE[0].apply(model)
    x = data.load("digits").scaled(torch.bfloat16)[:200]
    before = predict(model, x)
    hook = model.get_submodule("layers.1").register_forward_hook(lambda module, given, z: z.add_(z == 0))
    assert measure(model, x)[0].hits == 0
    assert predict(model, x) == before
    hook.remove()
