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
