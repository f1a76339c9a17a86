"""Hits as masks, in plain operations and in Triton kernels, against the rule that defines the gradient at a hit."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from relucheck.activations import rules
from relucheck.numerics.bits import all_values
from relucheck.training.masks import masked
from relucheck.training.model import Kinked, Switch
from tests.helpers import forked

RULES = {"relu": rules.RELU, "relu6": rules.RELU6, "leaky_relu": rules.LEAKY_RELU}
CPU = torch.device("cpu")
# Triton reads this variable when it is imported, and the server of the tests has imported it
_INTERPRETED = """
import os, sys
os.environ["TRITON_INTERPRET"] = "1"
for name in list(sys.modules):
    if name.split(".")[0] == "triton" and not name.startswith("triton._C"):  # native code loads once
        del sys.modules[name]
import warnings
warnings.simplefilter("ignore")
"""
_TRIAL = """
import torch
from relucheck.training.masks import kernels, masked
assert masked.passes(kernels, torch.device("cpu"), torch.{dtype})
print("passed")
"""


def _inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Every input with some cotangents, and every cotangent at some inputs."""
    every = all_values(dtype)
    special = torch.tensor([0.0, -0.0, 1.0, -2.5, 6.0, math.inf, -math.inf, math.nan], dtype=dtype)
    grids = [torch.meshgrid(*pair, indexing="ij") for pair in ((special, every), (every, special))]
    x, cotangent = (torch.cat([grid[place].flatten() for grid in grids]) for place in (0, 1))
    return x, cotangent


def _by_coordinates(rule: rules.Rule, x: torch.Tensor, cotangent: torch.Tensor, switch: Switch) -> torch.Tensor:
    """What a member's activation does on a CPU."""
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(Kinked(rule, switch)(leaf), leaf, cotangent)
    return gradient


@pytest.mark.parametrize("injects", [False, True])
@pytest.mark.parametrize("subgradients", [(0.0, 0.0), (0.1, -1 / 3), (0.01, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradient_has_the_bits_of_the_one_by_coordinates(
    dtype: torch.dtype, name: str, subgradients: tuple[float, float], injects: bool
) -> None:
    x, cotangent = _inputs(dtype)
    rule, switch = RULES[name], Switch((subgradients, "injected" if injects else "chain"))
    expected = _by_coordinates(rule, x, cotangent, switch)
    found = masked.gradient(rule, x, cotangent, 0.01, subgradients, injects)
    assert torch.equal(found.view(torch.int16), expected.view(torch.int16))


@pytest.mark.parametrize("name", RULES)
def test_an_activation_with_masks_is_the_one_with_coordinates(name: str) -> None:
    x = torch.randn(3, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    x[0, ::2], x[1, 1] = 0.0, 6.0
    results = []
    for which in (False, True):
        module = Kinked(RULES[name], Switch(((0.5, -2.0), "chain"), masked=which))
        module.counts = torch.zeros(len(module.rule.kinks), dtype=torch.int64)
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        module(leaf)  # counts add up
        # two backwards share the forward, and the choice is read when each runs
        first, second = (torch.autograd.grad(y, leaf, 3 * x, retain_graph=True)[0] for _ in (0, 1))
        module.switch.choice = ((0.25, 0.25), "injected")
        (third,) = torch.autograd.grad(y, leaf, 3 * x)
        results.append((y, first, second, third))
        assert (module.counts.tolist() if which else [2 * count for count in module.hits]) == [96, 32][: len(module.counts)]
        assert module.elements == x.numel()
        module.eval()(leaf)
        assert module.counts.tolist() == ([96, 32][: len(module.counts)] if which else [0] * len(module.counts))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_other_strides_give_the_same() -> None:
    x = torch.randn(2, 3, 4, 5).relu()
    cotangent = torch.randn(5, 4, 3, 2).permute(3, 2, 1, 0)
    expected = masked.gradient(rules.RELU, x, cotangent.contiguous(), 0.0, (0.5, 0.5), False)
    assert torch.equal(masked.gradient(rules.RELU, x, cotangent, 0.0, (0.5, 0.5), False), expected)
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(masked.gradient(rules.RELU, last, cotangent, 0.0, (0.5, 0.5), False), expected)


def _plain(**changes: Any) -> Any:
    """A stand-in for the module of kernels, in plain operations."""

    def gradient(x: Any, cotangent: Any, own: Any, kinks: Any, subgradients: Any, modes: Any) -> torch.Tensor:
        result = torch.where(x <= 0, 0.0, cotangent) if own is None else own
        for at, s, mode in zip(kinks, subgradients, modes, strict=True):
            if mode:
                result = torch.where(x == at, rules.at_hits(result, cotangent, s, 0.0, mode == 2), result)
        return result

    def count(x: Any, kinks: Any, counts: Any) -> None:
        counts += torch.stack([(x == at).sum() for at in kinks])

    return SimpleNamespace(**{"KEEP": 0, "CHAIN": 1, "INJECTED": 2, "gradient": gradient, "count": count, **changes})


def _rounds_toward_zero(x: Any, cotangent: Any, own: Any, kinks: Any, subgradients: Any, modes: Any) -> torch.Tensor:
    result = _plain().gradient(x, cotangent, own, kinks, subgradients, modes)
    exact = cotangent.double() * subgradients[0]
    cut = (x == kinks[0]) & (modes[0] == 1) & (result.double().abs() > exact.abs())
    return torch.where(cut, (result.view(torch.int16) - 1).view(result.dtype), result)


def _misses_negative_zero(x: Any, *rest: Any) -> torch.Tensor:
    return _plain().gradient(torch.where((x == 0) & x.signbit(), -1.0, x), *rest)


def _stops_nan(x: Any, *rest: Any) -> torch.Tensor:
    return _plain().gradient(torch.where(x.isnan(), -1.0, x), *rest)


def test_a_trial_sees_faults() -> None:
    assert masked.passes(_plain(), CPU, torch.bfloat16)
    for fault in (_rounds_toward_zero, _misses_negative_zero, _stops_nan):
        assert not masked.passes(_plain(gradient=fault), CPU, torch.bfloat16), fault.__name__
    assert not masked.passes(_plain(count=lambda x, kinks, counts: counts.fill_(int((x >= 0).sum()))), CPU, torch.bfloat16)
    below = _plain(count=lambda x, kinks, counts: _plain().count(x.abs() if kinks[0] < 0 else x, kinks, counts))
    assert not masked.passes(below, CPU, torch.bfloat16), "hits at -3 are not seen"
    swapped = _plain(CHAIN=2, INJECTED=1)
    assert not masked.passes(swapped, CPU, torch.bfloat16)


def _interpretable() -> bool:
    triton = pytest.importorskip("triton", reason="runs kernels in Triton's interpreter, and Triton is not installed")
    return tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_kernels_give_the_bits_of_the_rule(dtype: str) -> None:
    """In Triton's interpreter, which has to be chosen before Triton is imported, at every bit pattern of 16-bit dtypes."""
    if not _interpretable():
        pytest.skip("Triton's interpreter before 3.6 stores nothing in tensors on a CPU")
    done = forked.python("-c", _INTERPRETED + _TRIAL.format(dtype=dtype))
    assert done.stdout == "passed\n", done.stderr


_FLOW = """
import torch
from relucheck.activations import rules
from relucheck.training.masks import kernels, masked
plain = masked.fused
asked = []
def gradients():
    for rule in (rules.RELU, rules.RELU6, rules.LEAKY_RELU):
        for s in ((0.5, 0.0), (0.01, 1.0), (0.0, 0.0)):
            for injects in (False, True):
                for x in (values, values.contiguous(memory_format=torch.channels_last), values.transpose(1, 2)):
                    counts = torch.zeros(len(rule.kinks), dtype=torch.int64)
                    masked.count(x, rule.kinks, counts)
                    yield masked.gradient(rule, x, x * 3, 0.01, s, injects), counts
values = torch.randn(2, 3, 4, 5).bfloat16()
values[0, 0], values[0, 1], values[1, 0, 0] = 0.0, 6.0, float("nan")
expected = list(gradients())
masked.fused = lambda *where: asked.append(where) or kernels
for (one, counts), (other, wanted) in zip(gradients(), expected, strict=True):
    assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0)) and one.stride() == other.stride()
    assert torch.equal(counts, wanted), (counts, wanted)
assert len(asked) > 54, "the kernels were not used for gradients"
print("passed")
"""


@pytest.mark.slow
def test_kernels_are_called_as_the_plain_form_is() -> None:
    """For every activation, subgradient, rule and memory format, also of strides that no kernel takes."""
    if not _interpretable():
        pytest.skip("Triton's interpreter before 3.6 stores nothing in tensors on a CPU")
    done = forked.python("-c", _INTERPRETED + _FLOW)
    assert done.stdout == "passed\n", done.stderr
