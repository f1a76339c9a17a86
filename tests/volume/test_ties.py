"""The zone that ties of max pooling make: decisions against two networks, orders of pooling and ReLU, volumes."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from relucheck import data
from relucheck.activations import pooling
from relucheck.activations.pooling import MaxPool2d, PoolingError, set_pooling
from relucheck.bifurcation.decide import ZoneDataError
from relucheck.errors import ModelError
from relucheck.networks.lenet import LENETS
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.bits import same_bits
from relucheck.numerics.determinism import deterministic
from relucheck.numerics.dtypes import DTYPES
from relucheck.reproduction.experiments import ties as experiments_ties
from relucheck.volume.ties import decide, different_inputs, equal_in_float64, ties

LENET = LENETS["relu-pool"]
COMMITTED = Path(__file__).parents[2] / "reports" / "volume" / "ties.md"


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
    *_, line = experiments_ties.table([found]).markdown()
    assert line.startswith("| bfloat16 | relu-pool | 2 | 2 (0.158 to 1.000) |")


@pytest.mark.skipif(not COMMITTED.exists(), reason="an sdist holds no committed results")
def test_the_committed_table_has_these_columns() -> None:
    header, rule = experiments_ties.table([]).markdown()
    assert f"\n{header}\n{rule}\n" in COMMITTED.read_text()


def test_compiled_minimal_norm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with pytest.raises(PoolingError, match="eagerly"):
        MaxPool2d(2, choice="minimal-norm")(torch.zeros(1, 1, 2, 2))
    assert pooling.CHOICES == ("native", "minimal-norm")
