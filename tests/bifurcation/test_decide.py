"""The decision of any one model through interception, against the zone engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from relucheck.activations.modules import ChosenSubgradient
from relucheck.bifurcation import compare
from relucheck.bifurcation.decide import Watch, decide
from relucheck.errors import ModelError
from relucheck.networks import Network
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.determinism import generator
from relucheck.volume.engine import Engine
from tests.helpers.uniform import mlp
from tests.helpers.zone import coarsen, drawn_data


class TestAnyModel:
    """The decision of one model through interception."""

    @pytest.fixture
    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = drawn_data(64, 20, 3, 64)
        return x.float(), y

    @pytest.mark.parametrize("watch", ["all", "first layer"])
    def test_agrees_with_the_engine(self, batches: tuple[Tensor, Tensor], watch: Watch) -> None:
        network = mlp(20, 16, 2)
        engine = Engine(network, Arithmetic(torch.float32), *batches, batch_size=16, watch=watch)
        models = [coarsen(network.draw(seed, Arithmetic(torch.float32)), 64, 1.0) for seed in range(3, 9)]
        found = engine.examine(models)
        assert found == [decide(model, *batches, batch_size=16, watch=watch) for model in models]
        assert {one.outcome for one in found} == {"agree", "bifurcate"}

    def test_convolutions_and_functions(self) -> None:
        numbers = generator(1)
        x = (torch.rand(40, 1, 8, 8, generator=numbers) * 4).round() / 4
        y = torch.randint(0, 10, (40,), generator=numbers)
        model = Network("convnet", (8,)).build(nn.ReLU)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_((parameter * 8).round() / 8)
        found = decide(model, x, y, batch_size=16)
        assert found.outcome == "bifurcate"
        assert compare.compare(model, x[found.batch * 16 :][:16], y[found.batch * 16 :][:16]).outcome == "bifurcate"

    def test_model_and_random_state_stay(self, batches: tuple[Tensor, Tensor]) -> None:
        model = mlp(20, 16, 2, batch_norm=True).build(nn.ReLU)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        state = torch.get_rng_state()
        decide(model, *batches, batch_size=16)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), state)
        assert not any(isinstance(module, ChosenSubgradient) for module in model.modules())

    def test_a_frozen_first_layer(self, batches: tuple[Tensor, Tensor]) -> None:
        model = mlp(20, 16, 2).build()
        model.layers[1].requires_grad_(False)
        decide(model, *batches)
        with pytest.raises(ModelError, match="no parameter of the first layer"):
            decide(model, *batches, watch="first layer")

    def test_what_is_out_of_reach_is_named(self, batches: tuple[Tensor, Tensor]) -> None:
        class Masked(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x * (x > 0)

        layers = nn.Linear(20, 16), Masked(), nn.Linear(16, 10)
        found = decide(nn.Sequential(*layers, nn.ReLU()), *batches)
        assert [str(item) for item in found.out_of_reach] == ["1.mul() (ReLU written out)"]
        with pytest.raises(ModelError, match=r"nothing to decide.*out of reach: 1\.mul\(\) \(ReLU written out\)"):
            decide(nn.Sequential(*layers), *batches)

    def test_no_activation(self, batches: tuple[Tensor, Tensor]) -> None:
        with pytest.raises(ModelError, match="nothing to decide"):
            decide(nn.Linear(20, 10), *batches)

    def test_no_parameter(self, batches: tuple[Tensor, Tensor]) -> None:
        with pytest.raises(ModelError, match="no parameter requires a gradient"):
            decide(nn.ReLU(), *batches)
