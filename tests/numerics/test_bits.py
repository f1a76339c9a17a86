"""Zero tests, float neighbours and bitwise comparison."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from relucheck.numerics.bits import (
    all_values,
    count_value,
    differs,
    from_ordinals,
    has_value,
    has_zero,
    neighbour,
    ordinals,
    positions_of,
    same_bits,
)
from relucheck.numerics.determinism import generator
from relucheck.numerics.dtypes import DTYPES, UnsupportedDtypeError, bits_dtype, dtype_name
from tests.helpers.ulps import ulp_distance

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
SIXTEEN = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=dtype_name)
NUMPY = {torch.float16: np.float16, torch.float32: np.float32, torch.float64: np.float64}


# ---------------------------------------------------------------------------------------------------- zero tests


def check_zero_test(test: Callable[[Tensor], bool], dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).smallest_normal
    smallest = float(from_ordinals(torch.tensor([1]), dtype).double())
    for others in ([], [1.0], [math.nan], [-math.inf, 2.0], [smallest, -smallest], [tiny, -1.0, math.nan], [-math.nan]):
        rest = torch.tensor(others, dtype=dtype)
        assert not test(rest)
        for zero in (0.0, -0.0):
            for place in {0, len(others)}:
                assert test(torch.tensor([*others[:place], zero, *others[place:]], dtype=dtype))


@every_dtype
def test_has_zero(dtype: torch.dtype) -> None:
    check_zero_test(has_zero, dtype)
    check_zero_test(lambda x: has_value(x, 0.0), dtype)
    check_zero_test(lambda x: has_value(x, -0.0), dtype)
    assert has_zero(torch.zeros((), dtype=dtype))
    assert not has_zero(torch.ones(0, 3, dtype=dtype))


@pytest.mark.parametrize(
    "fault",
    [lambda x: bool(x.numel()) and float(x.abs().min()) == 0,  # NaN hides a zero
     lambda x: bool((x.view(bits_dtype(x.dtype)) == 0).any()),  # -0 is missed
     lambda x: bool((x.abs() < torch.finfo(x.dtype).smallest_normal).any())],  # subnormals
)  # fmt: skip
def test_the_zero_check_fails_faulty_tests(fault: Callable[[Tensor], bool]) -> None:
    with pytest.raises(AssertionError):
        check_zero_test(fault, torch.float32)


@SIXTEEN
def test_has_zero_and_has_value_of_every_single_value(dtype: torch.dtype) -> None:
    x = all_values(dtype)
    for at in (0.0, 6.0, -6.0, 1.5):
        hits = (x.double() == at).nonzero().flatten().tolist()
        # all values but the hits, then each hit alone among the others
        rest = x[x.double() != at]
        assert not has_value(rest, at)
        for hit in hits:
            assert has_value(torch.cat([rest, x[hit : hit + 1]]), at)


@SIXTEEN
def test_count_of_every_value(dtype: torch.dtype) -> None:
    """Against float64; NaN equals nothing, and both zeros count as one value."""
    x = all_values(dtype)
    for at in (0.0, -0.0, 3.0, -3.0, 1 / 3, math.inf, math.nan, 1e300):
        assert count_value(x, at) == int((x.double() == at).sum())
    repeated = x[:, None].expand(-1, 3)
    assert (count_value(repeated, -3.0), count_value(repeated, 0.0)) == (3, 6)
    assert count_value(x[:0], 3.0) == count_value(x[:0], 0.0) == 0


@every_dtype
def test_has_value(dtype: torch.dtype) -> None:
    x = torch.tensor([1.0, math.nan, 6.0, -0.0, math.inf], dtype=dtype)
    assert [has_value(x, at) for at in (1.0, 6.0, 0.0, math.inf)] == [True] * 4
    assert [has_value(x, at) for at in (-6.0, 2.0, -math.inf, math.nan)] == [False] * 4
    assert not has_value(neighbour(x, 1), 6.0)
    assert not has_value(x[:0], 6.0)
    assert has_value(torch.tensor(6.0, dtype=dtype), 6.0)


@pytest.mark.parametrize(
    ("dtype", "value"), [(torch.bfloat16, 0.7), (torch.float16, 0.7), (torch.float32, 0.7), (torch.float16, 1e9)]
)
def test_a_value_that_is_not_representable_is_never_equal(dtype: torch.dtype, value: float) -> None:
    assert not has_value(torch.full((4,), value, dtype=torch.float64).to(dtype), value)


@every_dtype
def test_zero_tests_of_strided_and_lazily_negated_tensors(dtype: torch.dtype) -> None:
    x = torch.ones(8, 6, dtype=dtype)
    x[3, 4] = 0.0
    for view, want in ((x.T, True), (x[:, ::2], True), (x[:, 1::2], False), (x[:1].expand(5, 6), False), (x[3:, 4:], True)):
        assert has_zero(view) == want
        assert has_value(view + 6.0, 6.0) == want
    if dtype == torch.float32:
        negated = torch.tensor([1 + 0j, 2 - 1j]).conj().imag
        assert negated.is_neg()
        assert has_zero(negated)
        assert has_value(negated, 1.0)
        assert not has_value(negated, -1.0)
        assert ordinals(negated).tolist() == ordinals(torch.tensor([0.0, 1.0])).tolist()


def check_find(find_: Callable[[Tensor, float], tuple[Tensor, ...] | None], dtype: torch.dtype) -> None:
    """Coordinates as ``nonzero`` has them, for hits of both zeros, both sixes and none, in every shape and layout."""
    random = torch.Generator().manual_seed(0)
    for shape in ((7,), (5, 3), (2, 3, 4), (2, 3, 4, 5), (1, 67), (67, 1), (0, 3), (3, 0)):
        for count in (0, 1, 3):
            x = torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)
            x[x == 0] = 1.0
            places = torch.randperm(max(1, x.numel()), generator=random)[: count if x.numel() else 0]
            for special in (0.0, -0.0, 6.0, -6.0, math.nan, math.inf):
                y = x.clone()
                y.view(-1)[places] = special
                for view in (y, y.transpose(0, -1), y[..., ::2]):
                    for at in (0.0, 6.0, 0.7):
                        expected = (view.double() == at).nonzero(as_tuple=True)
                        found = find_(view, at)
                        assert (found is None) == (len(expected[0]) == 0)
                        if found is not None:
                            assert torch.equal(torch.stack(found), torch.stack(expected))


@every_dtype
def test_find(dtype: torch.dtype) -> None:
    check_find(positions_of, dtype)
    with pytest.raises(ValueError, match=r"0-dimensional tensor.*compare it with =="):
        positions_of(torch.zeros((), dtype=dtype), 0.0)


def test_the_find_check_fails_a_fault() -> None:
    def first_row_only(x: Tensor, value: float) -> tuple[Tensor, ...] | None:
        return positions_of(x[:1], value) if len(x) else None

    with pytest.raises(AssertionError):
        check_find(first_row_only, torch.float32)


# ---------------------------------------------------------------------------------------------------- neighbours


@SIXTEEN
def test_all_values(dtype: torch.dtype) -> None:
    x = all_values(dtype)
    assert x.shape == (65536,)
    assert x.dtype == dtype
    assert len(set(x.view(torch.int16).tolist())) == 65536
    assert (x == 0).sum() == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_values_of_wide_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(UnsupportedDtypeError, match=rf"{dtype} has too many values.*only float16 and bfloat16"):
        all_values(dtype)
    with pytest.raises(UnsupportedDtypeError, match="not supported"):
        all_values(torch.int16)


@SIXTEEN
def test_ordinals_are_the_order_of_all_floats(dtype: torch.dtype) -> None:
    x = all_values(dtype)
    x = x[~x.isnan()]
    order = ordinals(x)
    ranked = x[order.argsort(stable=True)].double()
    assert (ranked.diff() >= 0).all()
    assert set(order.sort().values.diff().tolist()) == {0, 1}
    assert (order.sort().values.diff() == 0).sum() == 1  # the two zeros
    assert same_bits(from_ordinals(order, dtype), x)
    assert same_bits(neighbour(x, 0), x)


@pytest.mark.parametrize("dtype", list(NUMPY), ids=dtype_name)
def test_neighbour_is_nextafter(dtype: torch.dtype) -> None:
    """numpy's nextafter as the independent oracle; float16 exhaustively."""
    kind = NUMPY[dtype]
    if dtype == torch.float16:
        x = all_values(dtype)
        x = x[x.isfinite()]
    else:
        bits = torch.randint(-(2**30), 2**30, (2000,), generator=generator(3))
        tiny = torch.finfo(dtype).tiny
        x = torch.cat(
            [torch.tensor([0.0, -0.0, 1.0, -1.0, 6.0, tiny, -tiny, torch.finfo(dtype).max], dtype=dtype), bits.to(dtype)]
        )
    for steps, towards in ((1, np.inf), (-1, -np.inf)):
        with np.errstate(all="ignore"):
            want = torch.from_numpy(np.nextafter(x.numpy(), kind(towards)))
        assert same_bits(neighbour(x, steps), want)


@every_dtype
def test_neighbours_around_zero_and_infinity(dtype: torch.dtype) -> None:
    zeros = torch.tensor([0.0, -0.0], dtype=dtype)
    up, down = neighbour(zeros, 1), neighbour(zeros, -1)
    assert (up > 0).all()
    assert same_bits(up[0], up[1])
    assert same_bits(down, -up)
    assert (up.double() == torch.finfo(dtype).eps * torch.finfo(dtype).smallest_normal).all()
    assert not neighbour(up, -1).any()
    assert not neighbour(up, -1).signbit().any()
    largest = torch.tensor([torch.finfo(dtype).max], dtype=dtype)
    assert neighbour(largest).isinf().all()
    assert neighbour(largest, 5).isinf().all()
    assert neighbour(-largest, -5).item() == -math.inf
    assert same_bits(neighbour(neighbour(largest), -1), largest)


@every_dtype
def test_neighbour_keeps_shapes(dtype: torch.dtype) -> None:
    for shape in ((), (0, 2), (2, 3)):
        assert neighbour(torch.ones(shape, dtype=dtype)).shape == shape
    x = torch.rand(2, 3, 4, 5).to(dtype).contiguous(memory_format=torch.channels_last)
    assert same_bits(neighbour(neighbour(x), -1), x)


@every_dtype
def test_ulp_distance(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, 1.0, -1.0, 6.0, torch.finfo(dtype).tiny], dtype=dtype)
    for steps in (-3, -1, 0, 1, 2):
        assert ulp_distance(x, neighbour(x, steps)).tolist() == [abs(steps)] * 5
    assert ulp_distance(torch.tensor(0.0, dtype=dtype), torch.tensor(-0.0, dtype=dtype)) == 0
    assert ulp_distance(-x, x).tolist() == [2 * int(ordinals(v)) if v > 0 and 2 * int(ordinals(v)) < 2**63 else
                                            int(ulp_distance(-v, v)) for v in x]  # fmt: skip


def test_ulp_distance_saturates_where_int64_cannot_count() -> None:
    big = torch.iinfo(torch.int64).max
    a = torch.tensor([-2.0, -3.0, -math.inf, 3.0, -1.0, 1.0], dtype=torch.float64)
    b = torch.tensor([2.0, 3.0, math.inf, -3.0, 1.0, 1.0], dtype=torch.float64)
    one = int(ordinals(torch.tensor(1.0, dtype=torch.float64)))
    assert ulp_distance(a, b).tolist() == [big, big, big, big, 2 * one, 0]


def test_a_default_device_does_not_matter() -> None:
    x = torch.tensor([0.0, 6.0])
    with torch.device("meta"):
        assert neighbour(x).tolist() == neighbour(x).tolist()
        assert has_value(x, 6.0)
        assert has_zero(x)


# ---------------------------------------------------------------------------------------------------- comparison


@every_dtype
def test_same_bits(dtype: torch.dtype) -> None:
    x = torch.tensor([1.0, 0.0, math.nan, math.inf], dtype=dtype)
    assert same_bits(x, x.clone(), signed_zero=True)
    minus = torch.tensor([1.0, -0.0, -math.nan, math.inf], dtype=dtype)
    assert same_bits(x, minus)
    assert not same_bits(x, minus, signed_zero=True)
    assert differs(x, minus, signed_zero=True).tolist() == [False, True, False, False]
    assert not same_bits(x, neighbour(x))
    for index, other in itertools.product(range(4), (2.0, math.nan, -math.inf)):
        y = x.clone()
        y[index] = other
        same = math.isnan(other) and index == 2
        assert same_bits(x, y) == same
        assert differs(x, y).tolist() == [i == index and not same for i in range(4)]
    assert not same_bits(x, x[:3])
    assert not same_bits(x, x.view(2, 2))
    assert same_bits(x[:0], x[:0])
    assert same_bits(x[0], x[0])
    assert same_bits(x.view(2, 2).T, x.view(2, 2).T.contiguous())
    for wider in DTYPES:
        assert same_bits(x, x.to(wider)) == (wider == dtype)


@SIXTEEN
def test_same_bits_tells_every_value_from_its_neighbour(dtype: torch.dtype) -> None:
    x = all_values(dtype)
    finite = x[x.isfinite()]
    assert differs(finite, neighbour(finite)).all()
    bits = x.view(torch.int16)
    strict = differs(x, (bits ^ 1).view(dtype), signed_zero=True)  # flipping the last bit shows, but inside NaN
    assert (strict | x.isnan()).all()


@pytest.mark.parametrize("value", [0.0, 6.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_find_in_several_blocks(dtype: torch.dtype, value: float) -> None:
    """Tensors larger than a block: hits at the borders of blocks and rows, in the tail, of both signs, beside NaN."""
    for rest in (0, 1, 7, 9):
        x = torch.arange(1, 3 * 64 + rest + 1).div(1024).to(dtype)
        for positions in ([0], [7, 8], [63, 64], [191], [len(x) - 1], list(range(0, len(x), 5)), []):
            hit = x.clone()
            hit[positions] = value
            hit[[3, 70]] = torch.tensor([math.nan, -value], dtype=dtype)  # -0 is a zero, -6 is not 6
            expected = (hit == value).nonzero(as_tuple=True)
            found = positions_of(hit, value, block=64, row=8)
            assert (found is None) == (len(expected[0]) == 0)
            assert found is None or torch.equal(found[0], expected[0])
            assert has_value(hit, value, block=64) == (found is not None)
