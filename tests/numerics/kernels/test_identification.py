"""Each seeded rounding is identified from its results, and a kernel that rounds otherwise equals no emulation."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from relucheck.numerics.arithmetic import STRICT, Arithmetic
from relucheck.numerics.dtypes import compute_dtype
from relucheck.numerics.emulation import Rounding
from relucheck.numerics.emulation.emulation import DIRECTIONS, Direction
from relucheck.numerics.kernels import Operands, Product, candidates, exact, identify
from relucheck.numerics.kernels.identification import Kernel, emulation
from relucheck.numerics.kernels.inputs import SETS, significand

NARROW = (torch.bfloat16, torch.float16)
LINEAR = Product((32, 200), (24, 200), True, "forward")
CONVOLUTION = Product((6, 8, 9, 9), (12, 8, 3, 3), True, "forward", padding=(1, 1))
GROUPED = Product((6, 8, 9, 9), (8, 2, 3, 3), False, "forward", stride=(2, 2), groups=4)
#: Roundings of which no two are alike, with the simplest name of each.
SEEDED = (
    "rounded",
    "product",
    "split-k 2",
    "split-k 4",
    "split-k 4 bias joined",
    "split-k 4 wide",
    "split-k 4 wide bias joined",
    "split-k 4 in place",
    "split-k 3 by 32",
    "split-k 5 by 16 in place bias joined",
)


def seeded(product: Product, dtype: torch.dtype, rounding: Rounding) -> Kernel:
    """A kernel that rounds as an emulated layer does."""
    return lambda operands: product.compute(operands, emulation(product, dtype, rounding))


def same(product: Product, one: str, other: str) -> bool:
    """Whether two names are those of the same rounding for the sums of a product."""
    return _form(product, Rounding.parse(one)) == _form(product, Rounding.parse(other))


def _form(product: Product, rounding: Rounding) -> object:
    ranges, reduction, bias = rounding.ranges(product.terms), rounding.reduction, rounding.bias
    if product.direction != "forward" or not product.bias:
        bias = "after"
    # two rounded parts are added once, so it does not matter in what they are added
    if len(ranges) == 1 or (len(ranges) == 2 and reduction == "wide" and bias == "after"):
        reduction = "narrow"
    return ranges, reduction, bias


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("name", SEEDED)
@pytest.mark.parametrize("product", [LINEAR, CONVOLUTION], ids=["linear", "convolution"])
def test_a_seeded_rounding_of_a_forward_is_identified(product: Product, name: str, dtype: torch.dtype) -> None:
    """The names are those of the same rounding, and the simplest one comes first."""
    rounding = Rounding.parse(name)
    found = identify(product, dtype, seeded(product, dtype, rounding))
    assert found.differs == 0
    assert found.equal
    assert all(same(product, name, one) for one in found.equal)
    assert found.nearest == found.equal[0]


@pytest.mark.parametrize("direction", DIRECTIONS[1:])
@pytest.mark.parametrize("name", ["rounded", "split-k 4", "split-k 4 wide", "split-k 6 in place", "split-k 3 by 32"])
@pytest.mark.parametrize("layer", [LINEAR, CONVOLUTION, GROUPED], ids=["linear", "convolution", "grouped"])
def test_a_seeded_rounding_of_a_gradient_is_identified(layer: Product, name: str, direction: Direction) -> None:
    product = dataclasses.replace(layer, direction=direction)
    rounding = Rounding.parse(name)
    found = identify(product, torch.bfloat16, seeded(product, torch.bfloat16, rounding))
    assert found.equal
    assert all(same(product, name, one) for one in found.equal)


def test_parts_of_a_sample_each_are_identified() -> None:
    """A CPU may add the gradients of a convolution's weight sample by sample; there are more samples than other parts."""
    product = dataclasses.replace(CONVOLUTION, x=(40, 8, 9, 9), direction="weight gradient")
    rounding = Rounding(40, reduction="in place")
    found = identify(product, torch.bfloat16, seeded(product, torch.bfloat16, rounding))
    assert found.equal == ("split-k 40 in place",)


def test_two_names_of_one_rounding_are_both_given() -> None:
    found = identify(LINEAR, torch.bfloat16, seeded(LINEAR, torch.bfloat16, Rounding(2)))
    assert found.equal == ("split-k 2", "split-k 2 wide")
    assert str(found) == "split-k 2 and 1 other"


def accumulated(product: Product, dtype: torch.dtype) -> Kernel:
    """A fault: the running total of a linear layer is rounded after every term."""

    def compute(operands: Operands) -> Tensor:
        total = operands.x.new_zeros(product.output)
        for k in range(product.terms):
            total = total + operands.x[:, k : k + 1] * operands.weight[:, k]
        return total if operands.bias is None else total + operands.bias

    return compute


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("product", [LINEAR, Product((128, 784), (16, 784), False, "forward")], ids=["bias", "no bias"])
def test_a_kernel_that_accumulates_in_16_bits_equals_no_emulation(product: Product, dtype: torch.dtype) -> None:
    found = identify(product, dtype, accumulated(product, dtype))
    assert found.equal == ()
    assert found.differs > 0.2
    assert str(found).startswith("none; nearest: ")


@pytest.mark.parametrize("spoilt", [0, -1])
def test_one_wrong_output_is_noticed(spoilt: int) -> None:
    """Even if it is outside of the part on which many emulations are tried."""
    product = Product((33, 200), (40, 200), True, "forward")

    def compute(operands: Operands) -> Tensor:
        result = product.compute(operands, emulation(product, torch.bfloat16, Rounding(bias="joined")))
        result[17, spoilt] *= 2
        return result

    found = identify(product, torch.bfloat16, compute)
    assert found.equal == ()
    assert found.nearest == "rounded"
    assert 0 < found.differs <= 1 / 33 / 40
    assert str(found) == "none; nearest: rounded, under 1% differ"


def rounded_factors(operands: Operands, bits: int, away: bool) -> Operands:
    """TF32 in another way than the emulation's: by truncation, or with ties away from 0."""

    def change(x: Tensor) -> Tensor:
        mantissa, exponent = torch.frexp(x)
        scaled = mantissa * 2**bits
        return torch.ldexp((scaled.abs() + 0.5).floor() * scaled.sign() if away else scaled.trunc(), exponent - bits)

    return dataclasses.replace(operands, x=change(operands.x), weight=change(operands.weight))


def test_tf32_is_identified_by_long_factors() -> None:
    dtype = torch.float32
    for name, equal in (("tf32", ("tf32", "tf32 bias joined")), ("rounded", ("rounded", "product"))):
        found = identify(LINEAR, dtype, seeded(LINEAR, dtype, Rounding.parse(name)))
        assert found.equal == equal


@pytest.mark.parametrize(("away", "words"), [(False, "factors truncated to TF32"), (True, "ties away from 0")])
def test_another_rounding_of_factors_is_named(away: bool, words: str) -> None:
    found = identify(LINEAR, torch.float32, lambda operands: LINEAR.compute(rounded_factors(operands, 11, away)))
    assert found.equal == ()
    assert words in found.nearest
    assert found.differs == 0
    assert str(found) == f"none; {found.nearest}"


@pytest.mark.parametrize("bits", [8, 12])
def test_factors_of_other_lengths_equal_no_emulation(bits: int) -> None:
    found = identify(LINEAR, torch.float32, lambda operands: LINEAR.compute(rounded_factors(operands, bits, True)))
    assert found.equal == ()
    assert found.differs > 0.5


def test_float64_products_in_float32_are_noticed() -> None:
    right = identify(LINEAR, torch.float64, LINEAR.compute)
    assert right.equal == ("rounded", "product")
    wrong = identify(LINEAR, torch.float64, lambda operands: LINEAR.compute(operands.to(torch.float32)).double())
    assert wrong.equal == ()


@pytest.mark.parametrize("dtype", [*NARROW, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    "layer",
    [LINEAR, CONVOLUTION, GROUPED, Product((128, 6, 14, 14), (16, 6, 5, 5), True, "forward")],
    ids=lambda p: p.layer,
)
def test_sums_are_exact_in_any_order(layer: Product, direction: Direction, dtype: torch.dtype) -> None:
    """The sum of absolute values stays below 2^p units of a common power of two, and operands are the dtype's numbers."""
    product = dataclasses.replace(layer, direction=direction)
    precise = significand(compute_dtype(dtype))
    for number in range(SETS):
        operands = exact(product, dtype, number)
        assert all(one.dtype == dtype for one in (operands.x, operands.weight, operands.cotangent))
        absolute = product.compute(operands.to(torch.float64).map(Tensor.abs))
        unit = 2.0**-9 if dtype == torch.float16 else 1.0
        assert absolute.max() < 2.0**precise * unit
        assert torch.equal(absolute / unit, (absolute / unit).round())
        exact_sum = product.compute(operands.to(torch.float64))
        if dtype in NARROW:  # otherwise nothing would be rounded
            assert (exact_sum != exact_sum.to(dtype).double()).double().mean() > 0.5
            assert exact_sum.to(dtype).isfinite().all()


def test_candidates_have_different_ranges() -> None:
    """The simplest name of each; a sum of 10 terms has few."""
    few = candidates(Product((128, 128), (10, 128), True, "input gradient"), torch.bfloat16)
    assert [one.name for one in few[:4]] == ["rounded", "split-k 2", "split-k 2 by 8", "split-k 2 wide"]
    forms = [(tuple(one.ranges(10)), one.reduction) for one in few]
    assert len(set(forms)) == len(forms) < 30


def test_switches_are_restored_and_do_not_matter() -> None:
    """The emulations that a kernel is compared with have no TF32, whatever is set."""
    switched = Arithmetic(torch.bfloat16, reduction=STRICT)
    with Arithmetic(torch.float32, tf32=True).active():
        before = Arithmetic.current(torch.float32, "cuda")
        assert identify(LINEAR, torch.float32, seeded(LINEAR, torch.float32, Rounding(tf32=True))).equal[0] == "tf32"
        assert Arithmetic.current(torch.float32, "cuda") == before
    with switched.active():
        identify(LINEAR, torch.bfloat16, seeded(LINEAR, torch.bfloat16, Rounding()))
        assert Arithmetic.current(torch.bfloat16, "cuda") == switched
