"""Roundings of one sum: names and their inverse, ranges, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relucheck.numerics.emulation import EmulationError, Rounding
from tests.helpers.emulations import roundings


@given(roundings(), st.booleans())
def test_parse_is_the_inverse_of_the_name(rounding: Rounding, wide: bool) -> None:
    assert Rounding.parse(rounding.name) == rounding == Rounding.parse(rounding.name.upper())
    tf32 = Rounding(rounding.parts, rounding.cut, rounding.reduction, rounding.bias, tf32=True)
    assert Rounding.parse(tf32.name) == tf32
    assert tf32.name != rounding.name


def test_names() -> None:
    names = {
        "rounded": Rounding(bias="joined"),
        "product": Rounding(),
        "split-k 4": Rounding(4),
        "split-k 4 by 32 in place bias joined": Rounding(4, 32, "in place", "joined"),
        "tf32": Rounding(tf32=True),
        "tf32 bias joined": Rounding(bias="joined", tf32=True),
        "tf32 split-k 2 by 8": Rounding(2, 8, tf32=True),
    }
    assert {rounding.name: rounding for rounding in names.values()} == names
    assert Rounding.parse("split-k 04") == Rounding(4)


@given(roundings(12), st.integers(0, 60))
def test_ranges_are_all_terms_once_and_no_more_than_there_are_parts(rounding: Rounding, terms: int) -> None:
    ranges = rounding.ranges(terms)
    assert [term for start, stop in ranges for term in range(start, stop)] == list(range(terms))
    assert len(ranges) <= rounding.parts
    lengths = [stop - start for start, stop in ranges]
    assert lengths[:-1] == lengths[:1] * (len(lengths) - 1)
    if rounding.cut:
        assert all(length % rounding.cut == 0 for length in lengths[:-1])


def test_ranges_by_hand() -> None:
    assert Rounding(4).ranges(784) == [(0, 196), (196, 392), (392, 588), (588, 784)]
    assert Rounding(4, 32).ranges(784) == [(0, 224), (224, 448), (448, 672), (672, 784)]
    assert Rounding(4).ranges(5) == [(0, 2), (2, 4), (4, 5)]
    assert Rounding(4, 32).ranges(20) == [(0, 20)]
    assert Rounding(4).ranges(0) == [(0, 0)]


def test_without_a_bias_its_place_is_no_difference() -> None:
    assert Rounding().without_bias == Rounding(bias="joined").without_bias == Rounding(bias="joined")
    assert Rounding(4, bias="joined").without_bias == Rounding(4).without_bias == Rounding(4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "rounding '': must be rounded, product"),
        (None, "rounding None: must be rounded"),
        ("bias joined", "rounding 'bias joined': must be rounded"),
        ("split-k 4 wide in place", "must be rounded"),
        ("split-k 4 tf32", "must be rounded"),
        ("rounded bias joined", "rounding 'rounded bias joined': rounded stands alone; leave the rest out"),
        ("product split-k 4", "product stands alone"),
        ("split-k 1", "split-k takes at least 2 parts; use product"),
        ("split-k 4 by 1", "by takes at least 2 terms; leave it out"),
        ("split-k 4 by 0 wide", "by takes at least 2 terms; leave it out"),
    ],
)
def test_texts_of_no_rounding_are_refused(text: Any, message: str) -> None:
    with pytest.raises(EmulationError) as caught:
        Rounding.parse(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parts": 0}, "rounding: parts=0: must be a whole number of at least 1"),
        ({"parts": True}, "rounding: parts=True"),
        ({"parts": 4, "cut": -1}, "rounding: cut=-1"),
        ({"parts": 4, "cut": 1}, "every range is a multiple of 1 term; use 0"),
        ({"cut": 32}, "one part is neither cut nor reduced"),
        ({"reduction": "wide"}, "one part is neither cut nor reduced"),
        ({"parts": 4, "reduction": "broad"}, "must be one of narrow, wide, in place"),
        ({"bias": "before"}, "must be one of joined, after"),
        ({"tf32": 1}, "must be True or False"),
    ],
)
def test_settings_of_no_rounding_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(EmulationError) as caught:
        Rounding(**fields)
    assert message in str(caught.value)


def test_roundings_that_change_nothing_in_a_dtype_are_refused() -> None:
    for dtype in (torch.float32, torch.float64):
        for text in ("split-k 4 wide", "split-k 4 in place", "split-k 4 bias joined"):
            with pytest.raises(EmulationError, match=r"itself, where this is 'split-k 4'; use that name"):
                Rounding.parse(text).check(dtype)
        for text in ("rounded", "product", "split-k 4"):
            Rounding.parse(text).check(dtype)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        with pytest.raises(EmulationError, match="TF32 rounds float32 factors; use float32"):
            Rounding(tf32=True).check(dtype)
