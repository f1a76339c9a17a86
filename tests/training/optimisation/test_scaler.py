"""Mixed precision in float16: the gradient scaler's state survives forks and resumes, stacked or not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from relucheck.networks import Network
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.training import model as training_model
from relucheck.training.engine import train
from relucheck.training.forking import Branch, ForkingExecutor
from relucheck.training.forking import executor as forking
from relucheck.training.members import members_of
from relucheck.training.model import Clock, Switch
from relucheck.training.objective import Images
from relucheck.training.optimisation import optimisers as training_optimisers
from relucheck.training.optimisation.optimisers import Scaled
from relucheck.training.settings import Optimiser, Settings
from relucheck.training.stacked import executor as training_stacked
from relucheck.training.stacked.executor import StackedExecutor
from tests.helpers.training_case import changed

SETTINGS = Settings(
    "digits",
    Network("mlp", (16, 12)),
    members_of([3], [1.0]),
    optimiser=Optimiser(),
    arithmetic=Arithmetic.parse("mixed float16"),
    epochs=2,
    batch_size=32,
    train_samples=144,
    test_samples=60,
)
CPU = torch.device("cpu")
START = 65536.0


@pytest.fixture
def overflowing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights behind the last activation so large that scaled gradients exceed float16 at first; and dead units."""
    original = training_model.build

    def build(*rest: Any) -> Any:
        model: Any = original(*rest)
        with torch.no_grad():
            model.layers[1].weight[2:4].zero_()
            model.layers[1].bias[2:4] = 0.0
            model.layers[-1].weight.mul_(60)
        return model

    monkeypatch.setattr(forking, "build", build)
    monkeypatch.setattr(training_stacked, "build", build)


@pytest.mark.usefixtures("overflowing")
def test_a_fork_has_its_parents_scaler() -> None:
    images, labels = torch.rand(32, 784, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 10
    clock = Clock(3)
    model = forking.build(SETTINGS, 3, clock, Switch())
    parent = Branch(SETTINGS, CPU, model, [0], lambda built: Images(SETTINGS, built))
    assert parent.scaler is not None

    def step(*branches: Branch) -> None:
        for branch in branches:
            loss = branch.forward(images, labels)
            branch.update(branch.gradients(loss, ((0.0, 0.0), "chain"), keep=False))

    for _ in range(8):
        step(parent)
    state = parent.scaler.state_dict()
    assert state["scale"] < START, "no overflow, so nothing was tested"
    assert state["_growth_tracker"] > 0
    child = parent.fork([1])
    assert child.scaler is not None
    assert child.scaler is not parent.scaler
    assert child.scaler.state_dict() == state
    parent.scaler.set_growth_interval(state["_growth_tracker"] + 2)
    child.scaler.set_growth_interval(state["_growth_tracker"] + 2)
    for _ in range(3):  # grows in the second of them
        step(parent, child)
        assert child.flat.same_bits(parent.flat)
        assert child.scaler.state_dict() == parent.scaler.state_dict()
    assert parent.scaler.get_scale() != state["scale"]


@pytest.mark.usefixtures("overflowing")
@pytest.mark.parametrize("kind", [ForkingExecutor, StackedExecutor])
@pytest.mark.parametrize("optimiser", [Optimiser(), Optimiser(fused=True), Optimiser("sgd", 0.01, momentum=0.9)])
def test_a_resumed_run_has_its_scaler(kind: Any, optimiser: Optimiser, tmp_path: Path) -> None:
    settings = changed(SETTINGS, optimiser=optimiser)
    begin, scales = kind.begin, []

    def noting(self: Any, epoch: int) -> None:
        scales.append(max(_scales(self)))
        begin(self, epoch)

    def broken(self: Any, epoch: int) -> None:
        begin(self, epoch)
        if epoch == 1:
            raise RuntimeError("broken off")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "begin", noting)
        unbroken = train(settings, progress=False, executor=kind.name)
    assert scales[0] == START
    assert scales[1] < START, "no overflow, so nothing was tested"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "begin", broken)
        with pytest.raises(RuntimeError, match="broken off"):
            train(settings, folder=tmp_path, progress=False, executor=kind.name)
    resumed = train(settings, folder=tmp_path, progress=False, executor=kind.name)
    assert dataclasses.replace(resumed, wall_s=0.0) == dataclasses.replace(unbroken, wall_s=0.0)


def _scales(run: Any) -> Iterator[float]:
    if isinstance(run, StackedExecutor):
        assert isinstance(run.optimiser, Scaled)
        yield from run.optimiser.scale.tolist()
    else:
        yield from (branch.scaler.get_scale() for branch in run.branches)


@pytest.mark.parametrize("optimiser", [Optimiser(lr=0.01), Optimiser("sgd", 0.1), Optimiser("sgd", 0.1, momentum=0.9)])
def test_the_stacked_scaler_is_torchs_for_each_member(optimiser: Optimiser) -> None:
    """Two members that overflow at different steps, and grow at others, against two scalers and optimisers of torch."""
    random = torch.Generator().manual_seed(0)
    start = [torch.randn(2, 5, 4, generator=random), torch.randn(2, 5, generator=random)]
    ours = [value.clone() for value in start]
    scaled = Scaled(changed(SETTINGS, optimiser=optimiser), ours, growth=3)
    theirs = []
    for member in range(2):
        values = [value[member].clone().requires_grad_() for value in start]
        made: torch.optim.Optimizer = (
            torch.optim.Adam(values, lr=optimiser.lr, eps=optimiser.eps)
            if optimiser.name == "adam"
            else torch.optim.SGD(values, lr=optimiser.lr, momentum=optimiser.momentum)
        )
        scaler = torch.amp.GradScaler("cpu", growth_interval=3)
        scaler.scale(torch.zeros(()))
        theirs.append((values, made, scaler))
    broken = {0: [(0, float("inf"))], 1: [(1, float("nan"))], 2: [(1, float("-inf"))], 7: [(0, float("inf")), (1, 0.0)]}
    seen, pairs = set(), set()
    for step in range(16):
        gradients = [torch.randn(value.shape, generator=random) for value in start]
        raw = [gradient * training_optimisers._like(scaled.scale, gradient) for gradient in gradients]
        for member, value in broken.get(step, []):
            raw[1][member, 3] = value
        scaled.step(raw)
        for member, (values, made, scaler) in enumerate(theirs):
            for value, gradient in zip(values, raw, strict=True):
                value.grad = gradient[member].clone()
            scaler.step(made)
            scaler.update()
            assert scaled.scale[member].item() == scaler.get_scale()
            assert scaled.clean[member].item() == scaler.state_dict()["_growth_tracker"]
            seen.add(scaler.get_scale())
            for one, other in zip(ours, values, strict=True):
                torch.testing.assert_close(one[member], other.detach(), rtol=2e-5, atol=2e-6)
        pairs.add(tuple(scaled.scale.tolist()))
    assert len(seen) > 4  # shrunk and grown
    assert any(one != other for one, other in pairs)  # each its own
