"""Max pooling's gradient at ties, against a reference written out window by window, and the zone that it makes."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from relucheck import data
from relucheck.activations import pooling
from relucheck.activations.pooling import MaxPool2d, PoolingError, Windows, set_pooling, tied_maxima
from relucheck.bifurcation.decide import ZoneDataError
from relucheck.errors import ModelError
from relucheck.networks.lenet import LENETS
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.bits import same_bits
from relucheck.numerics.determinism import deterministic
from relucheck.numerics.dtypes import DTYPES
from relucheck.reproduction.experiments import ties as experiments_ties
from relucheck.volume.ties import decide, different_inputs, equal_in_float64, ties

Gradient = Callable[[nn.MaxPool2d, Tensor, Tensor], Tensor]

LENET = LENETS["relu-pool"]


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


# The zone.


def two_networks(model: nn.Module, inputs: Tensor, targets: Tensor, batch_size: int) -> tuple[str, int | None]:
    """The plain method: two networks, two forwards, two backwards over the data."""
    native, shared = copy.deepcopy(model), copy.deepcopy(model)
    set_pooling(native, "native")
    set_pooling(shared, "minimal-norm")
    for batch, (x, y) in enumerate(zip(inputs.split(batch_size), targets.split(batch_size), strict=True)):
        gradients = []
        with deterministic():
            for network in (native, shared):
                loss = nn.functional.cross_entropy(network(x), y)
                gradients.append(torch.autograd.grad(loss, list(network.parameters())))
        if not all(bool(g.isfinite().all()) for pair in gradients for g in pair):
            return "non-finite", batch
        if not all(same_bits(a, b) for a, b in zip(*gradients, strict=True)):
            return "bifurcate", batch
    return "agree", None


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, Tensor, Tensor, int]:
    """Small convolutional networks, ReLU before, behind or without the pooling, on images that may tie late in the data."""
    dtype, seed = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 2**20))
    width, depth = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        layers: list[nn.Module] = []
        for level in range(depth):
            layers.append(nn.Conv2d(width if level else 1, width, 3, padding=1))
            order = draw(st.sampled_from(["relu-pool", "pool-relu", "pool"]))
            pool = nn.MaxPool2d(2, draw(st.sampled_from([1, 2]))) if draw(st.booleans()) else MaxPool2d(3, 2, 1)
            layers += {"relu-pool": [nn.ReLU(), pool], "pool-relu": [pool, nn.ReLU()], "pool": [pool]}[order]
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)]
        model = nn.Sequential(*layers).to(dtype)
        inputs = torch.randn(9, 1, 8, 8)
        flat = draw(st.integers(0, 9))
        inputs[flat:, :, :5, :5] = draw(st.sampled_from([0.0, 1.0, 1e30]))
    targets = torch.arange(9) % 3
    return model, inputs.to(dtype), targets, draw(st.integers(1, 10))


@settings(max_examples=15)
@given(problem=networks())
def test_same_decision_as_two_networks(problem: tuple[nn.Module, Tensor, Tensor, int]) -> None:
    model, inputs, targets, batch_size = problem
    classes = [type(module) for module in model.modules()]
    found = decide(model, inputs, targets, batch_size=batch_size)
    assert [type(module) for module in model.modules()] == classes
    outcome, batch = two_networks(model, inputs, targets, min(batch_size, 9))
    if outcome == "non-finite" and found.matter == 0 and found.outcome == "agree":
        return  # a gradient that overflows where no tie matters is one computation, and is not looked at
    assert (found.outcome, found.batch) == (outcome, batch)


def test_a_tie_test_that_takes_every_layer_for_a_relu_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties below zero in front of no ReLU matter: the seeded fault skips them, and the two-network method tells."""
    model = nn.Sequential(nn.Conv2d(1, 1, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(9, 3)).double()
    model[0].weight.data.zero_()
    model[0].bias.data.fill_(-1.0)
    inputs = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.arange(4) % 3
    assert two_networks(model, inputs, targets, 4) == ("bifurcate", 0)
    assert decide(model, inputs, targets).outcome == "bifurcate"
    monkeypatch.setattr("relucheck.volume.ties._kills_zero", lambda module: module is not None)
    assert decide(model, inputs, targets).outcome == "agree"


def digits(dtype: torch.dtype, count: int = 96) -> tuple[Tensor, Tensor]:
    sample = data.load("digits")
    return data.scale(sample.images[:count], dtype, "image"), sample.labels[:count]


@pytest.mark.parametrize("dtype", DTYPES)
def test_lenet_decides_as_two_networks_in_both_orders(dtype: torch.dtype) -> None:
    inputs, targets = digits(dtype)
    for seed, order in itertools.product(range(2), LENETS):
        model, again = (LENETS[order].draw(seed, Arithmetic(dtype)) for _ in range(2))
        found = decide(model, inputs, targets, batch_size=32)
        assert (found.outcome, found.batch) == two_networks(again, inputs, targets, 32)


@pytest.mark.parametrize("choice", ["native", "minimal-norm"])
def test_the_orders_have_the_same_gradients_while_relu_s_subgradient_is_zero(choice: Any) -> None:
    """Ties at zero or below die in the ReLU on either side of the pooling; with ReLU'(0) = 1 those before it live."""
    inputs, targets = digits(torch.float32, 16)

    def gradients(order: Any, subgradient: float) -> list[Tensor]:
        model = LENETS[order].draw(3, Arithmetic(torch.float32))
        set_pooling(model, choice)
        for module in model.modules():
            if hasattr(module, "subgradient"):
                module.subgradient = subgradient
        model.conv1.bias.data.zero_()  # the background's pre-activations are exactly zero
        return list(torch.autograd.grad(nn.functional.cross_entropy(model(inputs), targets), list(model.parameters())))

    assert all(same_bits(a, b) for a, b in zip(gradients("relu-pool", 0.0), gradients("pool-relu", 0.0), strict=True))
    if choice == "native":
        pairs = zip(gradients("relu-pool", 1.0), gradients("pool-relu", 1.0), strict=True)
        assert not all(same_bits(a, b) for a, b in pairs)


def test_the_orders_have_the_same_ties_that_matter() -> None:
    inputs, _ = digits(torch.float32, 16)
    counts = {}
    for order in LENETS:
        model = LENETS[order].draw(0, Arithmetic(torch.float32))
        with torch.no_grad(), ties(model) as calls:
            model(inputs)
        counts[order] = [(int((call.tied > 1).sum()), call.matters) for call in calls]
    for (before, here), (behind, there) in zip(counts["relu-pool"], counts["pool-relu"], strict=True):
        assert before > behind
        assert torch.equal(here, there)


def test_a_relu_with_another_subgradient_kills_no_tie() -> None:
    model = LENET.draw(0, Arithmetic(torch.float32))
    model.relu1.subgradient = 1.0
    inputs, _ = digits(torch.float32, 8)
    with torch.no_grad(), ties(model) as calls:
        model(inputs)
    assert int(calls[0].matters.sum()) == int((calls[0].tied > 1).sum())
    assert int(calls[1].matters.sum()) < int((calls[1].tied > 1).sum())


def test_identical_and_different_inputs() -> None:
    """A blank image ties everywhere over the reals; one that ties by weights of zero, between different inputs."""
    model = LENET.draw(0, Arithmetic(torch.float64))
    blank = torch.zeros(1, 1, 28, 28, dtype=torch.float64)
    with torch.no_grad(), ties(model) as calls:
        model(blank)
    fields = model.fields(blank)
    assert not any(bool(different_inputs(call, fields[call.name]).any()) for call in calls)
    model.conv1.weight.data.zero_()
    model.conv1.bias.data.fill_(1.0)
    image = torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad(), ties(model) as calls:
        model(image)
    assert bool(different_inputs(calls[0], model.fields(image)["pool1"]).all())
    again, total = equal_in_float64(model, image)
    assert again == total >= 6 * 196


class Unpooled(nn.Module):
    """Pools no row of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pool(x[:0].reshape(0, 1, 2, 5)).sum()


def test_bad_input() -> None:
    inputs, targets = digits(torch.float32, 4)
    with pytest.raises(ModelError, match=r"no nn\.MaxPool2d"):
        decide(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), inputs, targets)
    with pytest.raises(ModelError, match="LeNet only"):
        decide(nn.Sequential(nn.Conv2d(1, 1, 1), nn.MaxPool2d(2)), inputs, targets, kind="different inputs")
    with pytest.raises(PoolingError, match="kind="):
        decide(LENET.build(), inputs, targets, kind="rounding")  # type: ignore[arg-type]
    with pytest.raises(ZoneDataError, match="empty"):
        decide(LENET.build(), inputs[:0], targets[:0])
    with pytest.raises(ZoneDataError, match="inputs is of class dict: must be one tensor of samples"):
        decide(LENET.build(), {"x": inputs}, targets)  # type: ignore[arg-type]
    none = nn.Sequential(nn.Conv2d(1, 10, 28), nn.Flatten(), Unpooled())
    with pytest.raises(ModelError, match="every max pooling was called on an empty tensor"):
        decide(none, inputs, targets)
    with pytest.raises(ZoneDataError, match="draws=0"):
        experiments_ties.volume(inputs, targets, draws=0)
    broken = LENET.build()
    broken.conv1.weight.data.fill_(torch.nan)
    assert decide(broken, inputs, targets).outcome == "non-finite"


def test_decide_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), MaxPool2d(2, choice="minimal-norm"), nn.Flatten(), nn.LazyLinear(3)
    )
    inputs, targets = digits(torch.float32, 8)
    model(inputs)
    decide(model, inputs, targets % 3)
    assert type(model[1]) is nn.MaxPool2d
    assert not hasattr(model[1], "setting")
    assert model[2].choice == "minimal-norm"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_network_without_a_tie_needs_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(9, 3)).double()
    inputs = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    monkeypatch.setattr("relucheck.volume.ties.gradients", None)
    found = decide(model, inputs, torch.zeros(8, dtype=torch.int64), batch_size=3)
    assert (found.outcome, found.batch, found.tied, found.windows) == ("agree", None, 0, 72)


def test_volume_and_its_table() -> None:
    inputs, targets = digits(torch.bfloat16, 32)
    found = experiments_ties.volume(inputs, targets, draws=2, batch_size=16)
    assert (found.draws, found.inside, found.windows) == (2, 2, 2 * 16 * (6 * 196 + 16 * 25))
    assert 0 < found.different < found.matter <= found.tied
    header, rule, line = experiments_ties.table([found]).markdown()
    assert line.startswith("| bfloat16 | relu-pool | 2 | 2 (0.158 to 1.000) |")
    assert f"\n{header}\n{rule}\n" in (Path(__file__).parents[2] / "reports" / "volume" / "ties.md").read_text()


def test_compiled_minimal_norm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with pytest.raises(PoolingError, match="eagerly"):
        MaxPool2d(2, choice="minimal-norm")(torch.zeros(1, 1, 2, 2))
    assert pooling.CHOICES == ("native", "minimal-norm")
