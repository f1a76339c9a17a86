"""Products describe layers, and compute what ``nn.Module`` and autograd compute."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from relucheck.errors import ModelError
from relucheck.numerics.determinism import generator
from relucheck.numerics.emulation.emulation import DIRECTIONS
from relucheck.numerics.kernels import Operands, Product

LAYERS = [
    (nn.Linear(20, 30), (40, 20)),
    (nn.Conv2d(6, 8, 3, stride=2, padding=1), (5, 6, 9, 8)),
    (nn.Conv2d(6, 8, (3, 1), dilation=2, groups=2, bias=False), (5, 6, 9, 8)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda value: str(value))
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "part"])
def test_a_product_is_what_autograd_computes(layer: nn.Linear | nn.Conv2d, shape: tuple[int, ...], whole: bool) -> None:
    """A part of it is the same part of the whole result."""
    random = generator(0)
    layer = layer.double()
    x = torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_()
    output = layer(x)
    cotangent = torch.randn(output.shape, generator=random, dtype=torch.float64)
    wanted = dict(zip(DIRECTIONS, [output, *torch.autograd.grad(output, [x, layer.weight], cotangent)], strict=True))
    bias = None if layer.bias is None else layer.bias.detach()
    operands = Operands(x.detach(), layer.weight.detach(), bias, cotangent)
    for direction, result in wanted.items():
        product = Product.of(layer, shape, direction)
        assert product.output == output.shape
        if whole:
            assert torch.equal(product.compute(operands), result)
        else:
            part, take = product.part(operands)
            assert take(result).shape == product.compute(part).shape
            torch.testing.assert_close(product.compute(part), take(result), rtol=1e-12, atol=1e-12)


def test_lengths_of_sums() -> None:
    """They count what a sum of ones adds up to, without padding."""
    for layer, shape in LAYERS:
        for direction in DIRECTIONS:
            product = Product.of(layer, shape, direction)
            ones = Operands(torch.ones(shape), torch.ones(product.weight), None, torch.ones(product.output))
            # padding leaves terms out, and so do strides and borders in the gradient of the input
            assert product.compute(ones).max() <= product.terms
            plain = not product.convolution or direction != "input gradient"
            assert not plain or product.padding != (0, 0) or product.compute(ones).max() == product.terms


def test_layers_in_words() -> None:
    words = [Product.of(layer, shape, "forward").layer for layer, shape in LAYERS]
    assert words == [
        "20 → 30",
        "conv 6 → 8 on 9x8 (3x3, stride 2, padding 1)",
        "conv 6 → 8 on 9x8 (3x1, dilation 2, 2 groups, no bias)",
    ]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(3, 4), (2, 5, 3)),
        (nn.Conv2d(3, 4, 3, padding="same"), (2, 3, 5, 5)),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (2, 3, 5, 5)),
    ],
    ids=["sequence", "same", "circular"],
)
def test_other_layers_are_refused(layer: nn.Linear | nn.Conv2d, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"^kernels: .* surveyed$"):
        Product.of(layer, shape, "forward")


def test_fewer_samples() -> None:
    product = Product((128, 20), (30, 20), True, "weight gradient")
    assert product.terms == 128
    assert product.at(96) == dataclasses.replace(product, x=(96, 20))
    assert product.at(96).terms == 96
