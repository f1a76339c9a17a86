"""What the zone engine and a stack refuse, each with one clear error."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from relucheck.activations.modules import LeakyReLU, ReLU
from relucheck.bifurcation.decide import ZoneDataError, decide
from relucheck.errors import ModelError
from relucheck.networks import Network
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.volume.engine import Engine
from tests.helpers.uniform import images, mlp


class TestBadInput:
    def _engine(self, x: Tensor, y: Tensor, **options: object) -> Engine:
        return Engine(mlp(20, 16, 2), Arithmetic(torch.float32), x, y, **options)

    def test_empty(self) -> None:
        with pytest.raises(ZoneDataError, match="the data set is empty"):
            self._engine(torch.zeros(0, 20), torch.zeros(0, dtype=torch.int64))

    def test_lengths(self) -> None:
        with pytest.raises(ZoneDataError, match="3 inputs but 2 targets"):
            self._engine(torch.zeros(3, 20), torch.zeros(2, dtype=torch.int64))

    def test_features(self) -> None:
        with pytest.raises(ZoneDataError, match=r"takes \[n, 20\]"):
            self._engine(torch.zeros(3, 21), torch.zeros(3, dtype=torch.int64))

    @pytest.mark.parametrize("size", [0, -1, 2.0, True])
    def test_batch_size(self, size: object) -> None:
        with pytest.raises(ZoneDataError, match="batch_size"):
            self._engine(torch.zeros(3, 20), torch.zeros(3, dtype=torch.int64), batch_size=size)

    def test_pair_and_watch(self) -> None:
        x, y = torch.zeros(3, 20), torch.zeros(3, dtype=torch.int64)
        with pytest.raises(ModelError, match="subgradients"):
            self._engine(x, y, subgradients=(0.0,))
        with pytest.raises(ModelError, match="watch"):
            self._engine(x, y, watch="first")

    @pytest.mark.parametrize(
        "network",
        [
            *(mlp(20, 16, 2, batch_norm=True), mlp(20, 16, 2, bias=False), mlp(20, 16, 2, dropout=0.1)),
            *(images("convnet"), images("residual")),
        ],
        ids=str,
    )
    def test_what_a_stack_cannot_hold(self, network: Network) -> None:
        x, y = torch.zeros(3, network.features), torch.zeros(3, dtype=torch.int64)
        with pytest.raises(
            ModelError, match=r"stacks hold MLPs.*any other model use relucheck\.bifurcation\.decide"
        ) as error:
            Engine(network, Arithmetic(torch.float32), x, y)
        assert str(network) in str(error.value)

    @pytest.mark.parametrize("seed", [-1, 0.5, True])
    def test_seed(self, seed: object) -> None:
        with pytest.raises(ModelError, match="seed"):
            mlp(20, 16, 2).draw(seed, Arithmetic(torch.float32))

    @pytest.mark.parametrize(
        "model",
        [
            mlp(20, 16, 3).build(),
            mlp(20, 16, 2, batch_norm=True).build(),
            mlp(20, 16, 2, bias=False).build(),
            mlp(20, 16, 2).build().double(),
            mlp(20, 16, 2).build(nn.ReLU),
            mlp(20, 16, 2).build(lambda: ReLU(inplace=True)),
            mlp(20, 16, 2).build().requires_grad_(False),
        ],
        ids=["depth", "batch_norm", "no_bias", "dtype", "torch_relu", "in_place", "frozen"],
    )
    def test_another_model(self, model: nn.Module) -> None:
        engine = self._engine(torch.zeros(3, 20), torch.zeros(3, dtype=torch.int64))
        with pytest.raises(ModelError, match=r"is not 20-16-16-10 in float32"):
            engine.examine([model])

    def test_another_slope(self) -> None:
        x, y = torch.zeros(3, 20), torch.zeros(3, dtype=torch.int64)
        engine = Engine(mlp(20, 16, 2, 10, "leaky_relu"), Arithmetic(torch.float32), x, y)
        engine.examine([mlp(20, 16, 2).build(LeakyReLU)])
        with pytest.raises(ModelError, match=r"slope 0\.01"):
            engine.examine([mlp(20, 16, 2).build(lambda: LeakyReLU(0.25))])

    @pytest.mark.parametrize(
        ("targets", "message"),
        [
            (torch.tensor([0, 1, 10]), "targets from 0 to 10"),
            (torch.tensor([0, -1, 1]), "targets from -1 to 1"),
            (torch.zeros(3), "float32"),
            (torch.zeros(3, 10, dtype=torch.int64), "shape"),
        ],
        ids=["too_large", "negative", "floats", "one_hot"],
    )
    def test_targets(self, targets: Tensor, message: str) -> None:
        for run in (lambda x: self._engine(x, targets), lambda x: decide(mlp(20, 16, 2).build(), x, targets)):
            with pytest.raises(ZoneDataError, match=message):
                run(torch.zeros(3, 20))
