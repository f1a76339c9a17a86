"""Exact forward passes: regions and error bounds against fractions, and faults that are caught."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from relucheck.activations import modules
from relucheck.bifurcation import exact_forward
from relucheck.bifurcation.exact_forward import Layer, RealLayer, forward, layers_of, real_inputs
from relucheck.bifurcation.exact_gradients import over_the_reals
from relucheck.networks.strategies import examples
from relucheck.numerics import dyadics
from relucheck.numerics.dtypes import DTYPES, dtype_name
from tests.helpers.per_dtype import fewer
from tests.oracles.rationals import brute_force, fractions, permuted_twins, wild

Forward = Callable[[tuple[Layer, ...], Tensor], tuple[RealLayer, ...]]


def check_forward(model: nn.Module, inputs: Tensor, evaluate: Forward = forward) -> None:
    layers = layers_of(model)
    x = real_inputs(layers, inputs)
    states = evaluate(layers, x)
    regions, values = brute_force(layers, x)
    found = [state.region.tolist() for state, layer in zip(states, layers, strict=True) if layer.rule is not None]
    assert found == regions
    for state, true in zip(states, values[1:], strict=True):
        if bool(state.error.isfinite().all() and state.value.isfinite().all()):
            for value, error, want in zip(fractions(state.value), fractions(state.error), true, strict=True):
                assert all(abs(v - w) <= e for v, e, w in zip(value, error, want, strict=True))


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "ReLU6": modules.ReLU6,
    "LeakyReLU": lambda: nn.LeakyReLU(0.01),
    "rising left": lambda: modules.LeakyReLU(-3.0),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@fewer
@given(data=st.data())
def test_forward_is_that_of_fractions(dtype: torch.dtype, data: st.DataObject) -> None:
    aims = ("none", "dead unit", "saturated unit", "negated twin", "shifted bias", "dead input")
    drawn = examples(dtype, kinds=["mlp"], aims=aims, inputs=("normal", "integer", "tiny"), batch_norm=False)
    model, inputs, _ = data.draw(drawn).build()
    check_forward(model, inputs)


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_forward_with_any_exponents(dtype: torch.dtype, maker: str) -> None:
    for seed in range(4):
        check_forward(*wild(dtype, MAKERS[maker], seed))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_twins_are_exactly_equal_over_the_reals(dtype: torch.dtype) -> None:
    for seed in range(10):
        model, inputs = permuted_twins(dtype, seed)
        check_forward(model, inputs)
        reals = over_the_reals(model, inputs, torch.tensor([0]))
        assert [[len(p) for p in call] for call in reals.hits] == [[0], [2]]
        assert reals.exact == 2


def unpropagated(x: Tensor, error: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    return exact_forward.OUTWARD * (x.abs() * exact_forward._gamma(len(matrix))) @ matrix.abs()


FAULTS: dict[str, Callable[..., Tensor]] = {
    "no propagated error": unpropagated,
    "float64 decides": lambda x, error, matrix, bias: torch.zeros(len(x), matrix.shape[1], dtype=torch.float64),
}


def check_regions(networks: list[tuple[nn.Module, Tensor]]) -> None:
    """Regions only: whether a fault changes a decision, not just a bound."""
    for model, inputs in networks:
        layers = layers_of(model)
        x = real_inputs(layers, inputs)
        assert [state.region.tolist() for state in forward(layers, x)[:-1]] == brute_force(layers, x)[0]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_bound_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = [permuted_twins(torch.float64, seed) for seed in range(10)]
    for model, inputs in networks:
        check_forward(model, inputs)
    monkeypatch.setattr(exact_forward, "linear_bound", FAULTS[fault])
    with pytest.raises(AssertionError):
        check_regions(networks)


def test_an_open_unit_left_to_float64_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dyadics, "compare", lambda x, number: torch.ones(x.digits.shape[1:], dtype=torch.int64))
    with pytest.raises(AssertionError):
        check_forward(*permuted_twins(torch.float32, 0))
