"""Properties 1 to 10 on generated networks and mini-batches, for each dtype."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from relucheck.bifurcation.compare import Comparison
from relucheck.networks.aims import AIMS
from relucheck.networks.examples import Example
from relucheck.networks.strategies import examples, subgradients, two_subgradients
from relucheck.results.tally import Tally
from tests.helpers.per_dtype import fewer
from tests.properties import properties
from tests.properties.subjects import Subject

SUBJECT = Subject()

every_dtype = pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])


def check(
    tally: Tally, example: Example, pair: tuple[float, float], holds: Callable[..., Any], *arguments: Any, **options: Any
) -> None:
    """Tries one property on one example: a failure prints a program to paste, a comparison is counted."""
    note(f"paste this:\n\n{example.script(pair)}")
    tally.tried(holds.__name__)
    result = holds(example, SUBJECT, *arguments, **options)
    if isinstance(result, Comparison):
        text = f"{example.script(pair)}\n# " + str(result).replace("\n", "\n# ")
        tally.observe(example.dtype, result, size=result.activation_count, text=text)


@every_dtype
@fewer
@given(data=st.data())
def test_1_forward_is_torchs(data: st.DataObject, dtype: str, relucheck_tally: Tally) -> None:
    example = data.draw(examples(dtype, aims=AIMS), label="example")
    pair = data.draw(two_subgradients(), label="subgradients")
    check(relucheck_tally, example, pair, properties.forward_is_torchs, pair)


@every_dtype
@fewer
@given(data=st.data())
def test_2_native_gradient_is_torchs(data: st.DataObject, dtype: str, relucheck_tally: Tally) -> None:
    example = data.draw(examples(dtype, aims=AIMS), label="example")
    check(relucheck_tally, example, (0.0, 1.0), properties.native_gradient_is_torchs)


@every_dtype
@fewer
@given(data=st.data())
def test_3_no_hit_agrees(data: st.DataObject, dtype: str, relucheck_tally: Tally) -> None:
    certain = examples(dtype, weights=("offset", "positive"))
    as_they_come = examples(dtype, weights=("default",))
    example = data.draw(certain | as_they_come, label="example")
    pair = data.draw(two_subgradients(), label="subgradients")
    check(relucheck_tally, example, pair, properties.no_hit_agrees, pair)


@every_dtype
@fewer
@given(data=st.data())
def test_4_live_hit_bifurcates(data: st.DataObject, dtype: str, relucheck_tally: Tally) -> None:
    example = data.draw(examples(dtype, aims=AIMS), label="example")
    pair = data.draw(two_subgradients(), label="subgradients")
    check(relucheck_tally, example, pair, properties.gradient_is_the_oracles, pair)


@every_dtype
@fewer
@given(data=st.data())
def test_4_dead_unit_differs_in_its_row(data: st.DataObject, dtype: str, relucheck_tally: Tally) -> None:
    dead = examples(dtype, kinds=("mlp",), weights=("default",), aims=("dead unit",), batch_norm=False)
    example = data.draw(dead, label="example")
    pair = data.draw(two_subgradients(), label="subgradients")
    check(relucheck_tally, example, pair, properties.dead_unit_differs_in_its_row, pair)


@every_dtype
@fewer
@given(data=st.data())
def test_5_linear_in_the_cotangent(data: st.DataObject, dtype: str, relucheck_tally: Tally) -> None:
    exact = examples(
        dtype, weights=("integer",), inputs=("integer",), aims=AIMS, batch_norm=False, max_depth=2, max_batch=4
    )
    example = data.draw(exact, label="example")
    s = data.draw(subgradients(dyadic=True), label="subgradient")
    check(relucheck_tally, example, (0.0, s), properties.linear_in_the_cotangent, s)


@given(data=st.data())
def test_6_polynomial_in_the_subgradient(data: st.DataObject, relucheck_tally: Tally) -> None:
    example = data.draw(properties.exact_networks(), label="example")
    check(relucheck_tally, example, (0.0, 1.0), properties.polynomial_in_the_subgradient)


@given(data=st.data())
def test_6_affine_in_the_subgradient(data: st.DataObject, relucheck_tally: Tally) -> None:
    one_layer = examples(
        "float64", kinds=("mlp",), weights=("default",), aims=("dead unit", "saturated unit"), batch_norm=False
    )
    example = data.draw(one_layer, label="example")
    s = data.draw(subgradients(), label="subgradient")
    check(relucheck_tally, example, (0.0, s), properties.affine_in_the_subgradient, s)


@every_dtype
@fewer
@given(data=st.data())
def test_7_scaling_keeps_hits(data: st.DataObject, dtype: str, relucheck_tally: Tally) -> None:
    homogeneous = examples(
        dtype,
        activations=("relu", "leaky_relu"),
        inputs=("normal", "integer", "digits", "ink"),
        aims=("none", "dead unit", "negated twin", "dead input", "cancelled sum"),
        batch_norm=False,
    )
    example = data.draw(homogeneous, label="example")
    power = data.draw(st.integers(-3, 3), label="power of two")
    check(relucheck_tally, example, (0.0, 1.0), properties.scaling_keeps_hits, power)


@every_dtype
@fewer
@given(data=st.data())
def test_8_blocks_cover_the_batch(data: st.DataObject, dtype: str, relucheck_tally: Tally) -> None:
    rows = examples(dtype, kinds=("mlp",), aims=AIMS, batch_norm=False, max_width=16)
    example = data.draw(rows, label="example")
    example = dataclasses.replace(example, batch=16 * data.draw(st.integers(2, 4), label="blocks of 16 rows"))
    pair = data.draw(two_subgradients(dyadic=True) | two_subgradients(), label="subgradients")
    check(relucheck_tally, example, pair, properties.blocks_cover_the_batch, pair)


@every_dtype
@fewer
@given(data=st.data())
def test_9_control_is_identical(data: st.DataObject, dtype: str, relucheck_tally: Tally) -> None:
    example = data.draw(examples(dtype, aims=AIMS), label="example")
    s = data.draw(subgradients(), label="subgradient")
    check(relucheck_tally, example, (s, s), properties.control_is_identical, s)


@every_dtype
@fewer
@given(data=st.data())
def test_10_hits_are_where_kinks_are(data: st.DataObject, dtype: str, relucheck_tally: Tally) -> None:
    example = data.draw(examples(dtype, aims=AIMS), label="example")
    check(relucheck_tally, example, (0.0, 1.0), properties.hits_are_where_kinks_are)
