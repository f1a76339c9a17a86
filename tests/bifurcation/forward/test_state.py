"""Determinism as far as torch has it, and models that stay as they were."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from relucheck.bifurcation.compare import compare
from relucheck.bifurcation.explain import explain
from relucheck.bifurcation.forward.state import reproducible, untouched
from relucheck.bifurcation.wiring import check_wiring
from relucheck.errors import ModelError

CPU = torch.device("cpu")


class Unpooled(nn.Module):
    """Torch has no deterministic algorithm for its unpooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(1, 2, 3, padding=1), nn.ReLU()
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        unpooled: Tensor = self.unpool(*self.pool(self.relu(self.conv(x))))
        return unpooled


def test_a_function_without_a_deterministic_algorithm_runs_on_a_cpu() -> None:
    x = torch.rand(1, 1, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compare(Unpooled(), x).outcome == "bifurcate"
        assert explain(Unpooled(), x, limit=1).comparison.outcome == "bifurcate"
        assert [wire.site for wire in check_wiring(Unpooled(), x)] == ["relu"]
    assert not torch.are_deterministic_algorithms_enabled()


def test_determinism_that_the_user_demands_stays() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
            compare(Unpooled(), torch.rand(1, 1, 8, 8))
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_other_devices_refuse_such_a_function() -> None:
    with pytest.raises(ModelError, match=r"scatter_kernel has no deterministic algorithm on cuda.*on a CPU"):  # noqa: SIM117
        with reproducible(torch.device("cuda")):
            raise RuntimeError("scatter_kernel does not have a deterministic implementation, but you set ...")
    with pytest.raises(RuntimeError, match="something else"), reproducible(torch.device("cuda")):
        raise RuntimeError("something else")


def test_buffers_and_random_numbers_are_restored_inside_and_after() -> None:
    model = nn.BatchNorm1d(3)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with untouched(model, CPU) as state:
        model(torch.randn(4, 3))
        assert int(model.num_batches_tracked) == 1
        state.restore()
        assert int(model.num_batches_tracked) == 0
        assert torch.equal(torch.rand(3), expected)
    assert torch.equal(torch.rand(3), expected)


class Growing(nn.Module):
    """A cache of positions that the first forward extends."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.relu = nn.Linear(4, 4), nn.ReLU()
        self.register_buffer("cache", torch.zeros(1, 4))

    def forward(self, x: Tensor) -> Tensor:
        if len(self.cache) < len(x):
            self.cache = torch.ones(len(x), 4)
        return self.relu(self.linear(x) + self.cache[: len(x)])


def test_a_buffer_that_has_grown_stays() -> None:
    model = Growing()
    compare(model, torch.randn(3, 4))
    assert torch.equal(model.cache, torch.ones(3, 4))


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.relu = nn.Embedding(5, 4, max_norm=0.1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.embedding(x))


def test_an_embedding_that_normalises_its_weight_stays() -> None:
    model = Embedded()
    before = model.embedding.weight.detach().clone()
    compare(model, torch.tensor([1, 2]))
    assert torch.equal(model.embedding.weight, before)


class Renormed(Embedded):
    """It changes its weight by a function whose name does not say so."""

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(nn.functional.embedding(x, self.weight, max_norm=0.1))

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5, 4))


def test_a_change_that_cannot_be_taken_back_is_refused() -> None:
    with pytest.raises(ModelError, match="changes the parameter 'weight' by a function whose name does not say so"):
        compare(Renormed(), torch.tensor([1, 2]))
