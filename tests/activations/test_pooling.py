"""Max pooling's gradient at ties, against a reference written out window by window."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from relucheck.activations.pooling import MaxPool2d, PoolingError, Windows, set_pooling, tied_maxima
from relucheck.errors import ModelError
from relucheck.numerics.bits import same_bits
from relucheck.numerics.dtypes import DTYPES

Gradient = Callable[[nn.MaxPool2d, Tensor, Tensor], Tensor]


def gradient(module: nn.MaxPool2d, x: Tensor, cotangent: Tensor) -> Tensor:
    leaf = x.detach().clone().requires_grad_()
    return torch.autograd.grad(module(leaf), leaf, cotangent)[0]


def members(module: nn.MaxPool2d, x: Tensor) -> list[list[tuple[int, int]]]:
    """The tied largest elements (row, column) of every window of one plane [H, W], windows in row-major order."""
    windows = Windows.of(module)
    outputs = module(x[None, None]).shape[-2:]
    found = []
    for out in itertools.product(range(outputs[0]), range(outputs[1])):
        places = [
            (out[0] * windows.stride[0] - windows.padding[0] + i, out[1] * windows.stride[1] - windows.padding[1] + j)
            for i, j in windows.offsets()
        ]
        inside = [(r, c) for r, c in places if 0 <= r < x.shape[0] and 0 <= c < x.shape[1]]
        largest = max(float(x[place]) for place in inside)
        found.append([place for place in inside if float(x[place]) == largest])
    return found


def reference(module: nn.MaxPool2d, x: Tensor, cotangent: Tensor, shares: Callable[[int], list[float]]) -> Tensor:
    """The gradient [H, W] in float64 where a window with n tied elements gives them ``shares(n)`` of its cotangent."""
    result = torch.zeros(x.shape, dtype=torch.float64)
    for group, value in zip(members(module, x), cotangent.flatten().tolist(), strict=True):
        for place, share in zip(group, shares(len(group)), strict=True):
            result[place] += share * value
    return result


@st.composite
def pools(draw: st.DrawFn) -> nn.MaxPool2d:
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    return MaxPool2d(
        kernel,
        stride=draw(st.none() | st.integers(1, 3)),
        padding=draw(st.integers(0, min(kernel) // 2)),
        dilation=draw(st.integers(1, 2)),
        ceil_mode=draw(st.booleans()),
    )


@st.composite
def problems(draw: st.DrawFn) -> tuple[nn.MaxPool2d, Tensor, Tensor]:
    """A pooling, a plane with many ties and an integer cotangent."""
    module = draw(pools())
    values = draw(st.lists(st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 1.0, 2.0, math.inf]), min_size=56, max_size=56))
    x = torch.tensor(values, dtype=draw(st.sampled_from(DTYPES))).view(8, 7)
    shape = module(x[None, None]).shape
    seed = draw(st.integers(0, 2**31))
    whole = torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)) * 16
    return module, x[None, None], (whole * 1.0).to(x.dtype)


def law_torch_own(module: Any, x: Tensor, cotangent: Tensor, found: Gradient) -> None:
    module.choice = "native"
    plain = nn.MaxPool2d(module.kernel_size, module.stride, module.padding, module.dilation, False, module.ceil_mode)
    assert same_bits(found(module, x, cotangent), gradient(plain, x, cotangent), signed_zero=True)
    assert same_bits(module(x), plain(x), signed_zero=True)


def law_equal_shares(module: Any, x: Tensor, cotangent: Tensor, found: Gradient) -> None:
    module.choice = "minimal-norm"
    x = x.double()
    wanted = reference(module, x[0, 0], cotangent, lambda n: [1 / n] * n)
    torch.testing.assert_close(found(module, x, cotangent.double())[0, 0], wanted, rtol=1e-12, atol=1e-12)


def law_sum(module: Any, x: Tensor, cotangent: Tensor, found: Gradient) -> None:
    module.choice = "minimal-norm"
    result = found(module, x.double(), cotangent.double())
    torch.testing.assert_close(result.sum(), cotangent.double().sum(), rtol=1e-12, atol=1e-11)


def law_least_norm(module: Any, x: Tensor, cotangent: Tensor, found: Gradient) -> None:
    """Window by window: no convex weights on the tied elements have a smaller norm, and the result is such weights."""
    single = MaxPool2d(x.shape[-2:], choice="minimal-norm")
    plane = x.double()
    result = found(single, plane, torch.full((1, 1, 1, 1), 3.0, dtype=torch.float64))[0, 0] / 3
    (group,) = members(single, plane[0, 0])
    weights = torch.tensor([float(result[place]) for place in group], dtype=torch.float64)
    assert float(result.abs().sum()) == pytest.approx(float(weights.sum()), abs=1e-12), "an element that is no maximum"
    assert float(weights.sum()) == pytest.approx(1, abs=1e-12)
    for seed in range(5):
        other = torch.rand(len(group), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        assert float(weights.norm()) <= float((other / other.sum()).norm()) + 1e-12


LAWS = (law_torch_own, law_equal_shares, law_sum, law_least_norm)


@pytest.mark.parametrize("law", LAWS)
@given(problem=problems())
def test_laws(law: Any, problem: tuple[nn.MaxPool2d, Tensor, Tensor]) -> None:
    law(*problem, gradient)


def _faulty(shares: Callable[[int, int], list[float]]) -> Gradient:
    """A gradient that gives the n tied elements of a window of a size ``shares(n, size)`` of the cotangent."""

    def found(module: nn.MaxPool2d, x: Tensor, cotangent: Tensor) -> Tensor:
        size = math.prod(Windows.of(module).kernel)
        return reference(module, x[0, 0], cotangent, lambda n: shares(n, size))[None, None].to(x.dtype)

    return found


FAULTS = {
    "divides by the window's size": (_faulty(lambda n, size: [1 / size] * n), law_equal_shares),
    "divides by the window's size, sum": (_faulty(lambda n, size: [1 / size] * n), law_sum),
    "all take the whole": (_faulty(lambda n, size: [1.0] * n), law_sum),
    "all take the whole, norm": (_faulty(lambda n, size: [1.0] * n), law_least_norm),
    "first takes the whole": (_faulty(lambda n, size: [1.0] + [0.0] * (n - 1)), law_least_norm),
    "last takes the whole": (_faulty(lambda n, size: [0.0] * (n - 1) + [1.0]), law_torch_own),
    "drops the cotangent": (
        lambda module, x, cotangent: gradient(module, x, torch.ones_like(cotangent)),
        law_equal_shares,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_seeded_fault_breaks_its_law(fault: str) -> None:
    found, law = FAULTS[fault]
    x = torch.tensor([[1.0, 1.0, 0.0, 3.0], [0.0, 1.0, 3.0, 2.0]])[None, None]
    with pytest.raises(AssertionError):
        law(MaxPool2d(2), x, torch.tensor([[[[12.0, -36.0]]]]), found)
    law(MaxPool2d(2), x, torch.tensor([[[[12.0, -36.0]]]]), gradient)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_windows_without_a_tie_keep_torch_s_bits(dtype: torch.dtype, layout: torch.memory_format) -> None:
    """Also beside tied windows, and where overlapping windows add up in one element."""
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[:, :, :4, :4] = 5.0
    x[1, 1, 9, 9] = torch.nan
    x = x.contiguous(memory_format=layout)
    module = MaxPool2d(3, 1, 1)
    cotangent = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1)).to(dtype)
    native = gradient(module, x, cotangent)
    module.choice = "minimal-norm"
    shared = gradient(module, x, cotangent)
    same = native == shared
    assert not bool(same[:, :, :4, :4].all())
    assert bool(same[:, :, 6:].all())
    assert bool(same[:, :, :, 6:].all())


def test_one_forward_serves_both_choices_and_double_backward() -> None:
    module = MaxPool2d(2)
    x = torch.zeros(1, 1, 2, 2, requires_grad=True)
    pooled = module(x)
    cotangent = torch.full((1, 1, 1, 1), 4.0, requires_grad=True)
    native = torch.autograd.grad(pooled, x, cotangent, retain_graph=True)[0]
    module.choice = "minimal-norm"
    shared = torch.autograd.grad(pooled, x, cotangent, create_graph=True)[0]
    assert native.flatten().tolist() == [4, 0, 0, 0]
    assert shared.flatten().tolist() == [1, 1, 1, 1]
    (second,) = torch.autograd.grad(shared, cotangent, torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]]))
    assert second.item() == 3.0


def test_gradcheck_away_from_ties() -> None:
    x = torch.randperm(50, generator=torch.Generator().manual_seed(0)).double().view(1, 2, 5, 5).requires_grad_()
    module = MaxPool2d(3, 2, 1, choice="minimal-norm")
    assert torch.autograd.gradcheck(module, (x,))
    assert torch.autograd.gradgradcheck(module, (x,))


def test_drop_in() -> None:
    module = MaxPool2d(2, choice="minimal-norm")
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other.choice == "minimal-norm"
        other.choice = "native"
        assert module.choice == "minimal-norm"
    assert module.state_dict() == {}
    assert "choice=minimal-norm" in repr(module)
    with_indices = MaxPool2d(2, return_indices=True)
    x = torch.zeros(1, 4, 4, requires_grad=True)  # no batch
    pooled, indices = with_indices(x)
    assert indices.tolist() == [[[0, 2], [8, 10]]]
    assert not indices.requires_grad
    with_indices.choice = "minimal-norm"
    pooled.sum().backward()
    assert x.grad is not None
    assert x.grad.unique().tolist() == [0.25]
    with torch.autocast("cpu", torch.bfloat16):
        conv = nn.Sequential(nn.Conv2d(1, 1, 1), MaxPool2d(2, choice="minimal-norm"))
        out = conv(torch.zeros(1, 1, 2, 2))
        assert out.dtype == torch.bfloat16
        out.sum().backward()
    with pytest.raises(PoolingError, match="'native' or 'minimal-norm'"):
        module.choice = "mean"  # type: ignore[assignment]


def test_set_pooling_reaches_every_module_in_place() -> None:
    model = nn.Sequential(nn.MaxPool2d(2), nn.Sequential(MaxPool2d(3)))
    first = model[0]
    assert set_pooling(model, "minimal-norm") == ("0", "1.0")
    assert first is model[0]
    assert {module.choice for module in model.modules() if isinstance(module, MaxPool2d)} == {"minimal-norm"}
    with pytest.raises(ModelError, match=r"no nn\.MaxPool2d"):
        set_pooling(nn.Linear(1, 1), "native")
    with pytest.raises(PoolingError):
        set_pooling(model, "none")  # type: ignore[arg-type]


def test_tied_maxima_ignores_padding_and_nan() -> None:
    x = torch.tensor([[-math.inf, -math.inf], [math.nan, 1.0]])[None, None]
    module = MaxPool2d(1, 2, 0)
    assert tied_maxima(x, module(x), Windows.of(module)).tolist() == [[[[1]]]]
    module = MaxPool2d(2, 2, 1)
    counts = tied_maxima(x, module(x), Windows.of(module))
    assert counts.tolist() == [[[[1, 1], [0, 1]]]]
