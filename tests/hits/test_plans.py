"""Planned hits of published architectures against brute force."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from relucheck.hits import architectures, validation
from relucheck.hits import plans as hits_plans
from relucheck.hits.plans import Activations, Rounding
from relucheck.hits.widths import FORMATS, Accumulation, Format
from tests.oracles.sums import BF16, F32, normal, summed


def test_resnet50_has_its_activations() -> None:
    """Against the shapes of He et al. 2015, table 1: three activations a bottleneck."""
    network = architectures.resnet50(batch=2)
    by_kind = {part.kind: part.count for part in network.parts}
    ends = {"projection": 0, "residual": 0}
    inner = 64 * 112**2
    for index, blocks in enumerate((3, 4, 6, 3)):
        width, side = 64 * 2**index, 56 // 2**index
        before = side if index == 0 else 2 * side  # torchvision strides in the 3 x 3 convolution
        inner += width * (before**2 + side**2) + (blocks - 1) * 2 * width * side**2
        ends["projection"] += 4 * width * side**2
        ends["residual"] += (blocks - 1) * 4 * width * side**2
    assert by_kind == {"normalised": 2 * inner, **{kind: 2 * count for kind, count in ends.items()}}
    assert network.activations == 2 * 9_608_704


def test_the_transformer_has_its_activations() -> None:
    network = architectures.relu_transformer(0.0, tokens=3, sequences=5)
    assert network.activations == 32 * 16_384 * 15
    assert "biases 0" in network.name
    assert "4,096" in network.assumptions


E4M3, E5M2 = FORMATS["float8_e4m3"], FORMATS["float8_e5m2"]


@pytest.mark.parametrize("kind", ["single", "product", "split-k"])
@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_planned_linear_layers_meet_brute_force(kind: Any, bias: float) -> None:
    part = Activations("x", 1, "linear", fan_in=32, spread=1.0, offset=bias)
    form = Format("narrow", 4, -3, 30.0)  # few exponents: underflow is frequent
    predicted = hits_plans.rate(part, Rounding("", form, form, kind), pairs=4096).value
    forms = [hits_plans.scaled(form, spread) for spread in (1.0, 32**-0.5, math.hypot(1.0, bias))]
    blocks = (8, 8, 8, 8) if kind == "split-k" else (32,)
    inner = F32 if kind == "single" else forms[2]
    how = Accumulation("", forms[1], F32, inner, inner, forms[2], blocks)
    counted, seen = 0, 0
    for seed in range(4):
        x, weight = forms[0].round(normal(seed, 400, 32)), forms[1].round(normal(50 + seed, 200, 32) / 32**0.5)
        offset = forms[2].round(normal(99 + seed, 200) * bias)
        counted += int((summed(x, weight, offset, how) == 0).sum())
        seen += 400 * 200
    assert counted > 100
    assert predicted * seen / counted == pytest.approx(1, abs=0.1 + 2.5 / math.sqrt(counted))


@pytest.mark.parametrize("form", [E5M2, BF16], ids=lambda form: form.name)
def test_planned_normalisations_and_residuals_meet_brute_force(form: Format) -> None:
    count = 1_500_000
    how, coarse = Rounding("", form, form, "operator"), Rounding("", form, form, "product")
    scaled = hits_plans.scaled(form, math.hypot(1.0, 2**0.5))
    branch = scaled.round(normal(0, count))
    skip = scaled.round((normal(1, count) * 2**0.5).clamp(min=0))
    counted = float((branch + skip == 0).double().mean())
    predicted = hits_plans.rate(Activations("x", 1, "residual", offset=2**0.5), how).value
    assert predicted / counted == pytest.approx(1, abs=0.15)
    scaled = hits_plans.scaled(form, 2**0.5)
    branch, skip = scaled.round(normal(2, count)), scaled.round(normal(3, count))
    predicted = hits_plans.rate(Activations("x", 1, "projection", offset=1.0), how).value
    assert predicted / float((branch + skip == 0).double().mean()) == pytest.approx(1, abs=0.15)
    scaled = hits_plans.scaled(form, math.hypot(1.0, 0.7))
    value, mean = normal(4, count), normal(5, count) * 0.7
    counted = float((scaled.round(value + mean) == scaled.round(mean)).double().mean())
    predicted = hits_plans.rate(Activations("x", 1, "normalised", offset=0.7), coarse).value
    assert predicted / counted == pytest.approx(1, abs=0.15)


def test_the_resnet_plan_meets_a_forward_on_this_machine() -> None:
    """Batch norm with float32 statistics makes no hits; additions of bfloat16 terms do, as many as planned."""
    counts = validation.resnet50_hits(torch.bfloat16, mixed=True, batch=1)
    how = next(r for r in hits_plans.roundings() if (r.kind, r.factors, r.output) == ("operator", BF16, BF16))
    for part in architectures.resnet50().parts:
        hits, seen = counts[part.kind]
        predicted = hits_plans.rate(part, how).value * seen
        if part.kind == "normalised":
            assert hits < 5 > predicted
        else:
            assert hits > 100
            assert predicted / hits == pytest.approx(1, abs=0.25)


def test_plans_add_up() -> None:
    network = architectures.resnet50(batch=1)
    names = [(how.factors.name, how.output.name, how.kind) for how in hits_plans.roundings_of(network)]
    assert len(set(names)) == len(names) == 18
    single, operator, product = (hits_plans.plan(network, how) for how in hits_plans.roundings_of(network)[:3])
    assert single.per_step < operator.per_step < product.per_step
    assert single.per_million == pytest.approx(1e6 * single.per_step / network.activations)
    # float8 tensors are scaled, 16-bit ones are not
    assert hits_plans.scaled(BF16, 1e-3) is BF16
    assert hits_plans.scaled(E4M3, 1.0).largest == 448 / 2**6
    assert hits_plans.scaled(E4M3, 1.0).least == -12


@pytest.mark.parametrize("kind", ["product", "split-k"])
def test_the_stated_error_covers_more_pairs(kind: Any) -> None:
    """Of 40 plans with few pairs, at least 34 have the plan with many within their error; and it is not far too wide."""
    part = Activations("x", 1, "linear", fan_in=16, offset=0.2)
    how = Rounding("", BF16, BF16, kind)
    many = hits_plans.rate(part, how, pairs=65_536, seed=99)
    few = [hits_plans.rate(part, how, pairs=2048, seed=seed) for seed in range(40)]
    assert sum(abs(one.value - many.value) <= one.error + many.error for one in few) >= 34
    spread = float(torch.tensor([one.value for one in few]).std())
    assert sum(one.error for one in few) / 40 < 4 * spread
