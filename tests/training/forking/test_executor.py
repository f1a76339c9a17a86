"""The forking executor against every member trained by itself, and against a plain PyTorch loop: bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from relucheck import data
from relucheck.activations import modules as activations_modules
from relucheck.activations import rules
from relucheck.bifurcation import subgradient as bifurcation_subgradient
from relucheck.networks import Network
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.bits import neighbour
from relucheck.numerics.determinism import deterministic
from relucheck.training import model as training_model
from relucheck.training import objective as training_objective
from relucheck.training.forking import DataSplit, ForkingExecutor
from relucheck.training.forking import executor as training_forking
from relucheck.training.members import members_of
from relucheck.training.model import ExecutorError
from relucheck.training.settings import Optimiser, Settings
from tests.helpers.training_case import changed

SETTINGS = Settings(
    "digits",
    Network("mlp", (16, 12)),
    members_of([3], [-0.5, 1.0]),
    optimiser=Optimiser(eps=1e-4),
    epochs=2,
    batch_size=32,
    train_samples=144,
    test_samples=60,
)
CPU = torch.device("cpu")
VARIATIONS: dict[str, dict[str, Any]] = {
    "float64": {"arithmetic": Arithmetic.parse("float64")},
    "float32": {},
    "bfloat16": {"arithmetic": Arithmetic.parse("bfloat16")},
    "float16": {"arithmetic": Arithmetic.parse("float16")},
    "mixed bfloat16": {"arithmetic": Arithmetic.parse("mixed bfloat16")},
    "mixed float16": {"arithmetic": Arithmetic.parse("mixed float16")},
    "product": {"arithmetic": Arithmetic.parse("bfloat16 emulated (product)")},
    "split-k": {"arithmetic": Arithmetic.parse("bfloat16 emulated (split-k 4)")},
    "product float16": {"arithmetic": Arithmetic.parse("float16 emulated (product)")},
    "tf32": {"arithmetic": Arithmetic.parse("float32 emulated (tf32)")},
    "rounded": {"arithmetic": Arithmetic.parse("bfloat16 emulated (rounded)")},
    "by layer": {"arithmetic": Arithmetic.parse("bfloat16 emulated (rounded; layer 1 forward: split-k 4 wide)")},
    "by length and direction": {
        "arithmetic": Arithmetic.parse("bfloat16 emulated (product; layer 2: split-k 3 in place; K from 20: split-k 2)")
    },
    "sgd": {"optimiser": Optimiser("sgd", lr=0.1)},
    "sgd bfloat16": {"optimiser": Optimiser("sgd", lr=0.1, momentum=0.9), "arithmetic": Arithmetic.parse("bfloat16")},
    "sgd momentum": {"optimiser": Optimiser("sgd", lr=0.1, momentum=0.9)},
    "adam fused": {"optimiser": Optimiser(eps=1e-4, fused=True)},
    "adam fused bfloat16": {"optimiser": Optimiser(fused=True), "arithmetic": Arithmetic.parse("bfloat16")},
    "adam fused float16": {"optimiser": Optimiser(eps=1e-4, fused=True), "arithmetic": Arithmetic.parse("float16")},
    "adam fused mixed": {"optimiser": Optimiser(fused=True), "arithmetic": Arithmetic.parse("mixed float16")},
    "adam float16, diverges": {"optimiser": Optimiser(), "arithmetic": Arithmetic.parse("float16")},
    "sgd mixed float16": {
        "optimiser": Optimiser("sgd", lr=0.1, momentum=0.9),
        "arithmetic": Arithmetic.parse("mixed float16"),
    },
    "sgd fused": {"optimiser": Optimiser("sgd", lr=0.1, momentum=0.9, fused=True)},
    "sgd fused bfloat16": {"optimiser": Optimiser("sgd", lr=0.1, fused=True), "arithmetic": Arithmetic.parse("bfloat16")},
    "batch norm": {"batch_norm": True},
    "batch norm bfloat16": {"batch_norm": True, "arithmetic": Arithmetic.parse("bfloat16 emulated (product)")},
    "dropout": {"dropout": 0.2},
    "shuffle": {"shuffle": True},
    "relu6": {"activation": "relu6", "members": members_of([3], [-0.5, 1.0], second=0.5)},
    "leaky_relu": {"activation": "leaky_relu"},
}


def _splits(settings: Settings) -> tuple[DataSplit, DataSplit]:
    found = []
    for split, count in (("train", settings.train_samples), ("test", settings.test_samples)):
        loaded = data.load("digits", split)
        order = torch.randperm(len(loaded), generator=torch.Generator().manual_seed(0))[:count]
        images = data.scale(loaded.images[order], settings.arithmetic.dtype)
        found.append(DataSplit(images, loaded.labels[order]))
    return found[0], found[1]


def _run(settings: Settings, **options: Any) -> ForkingExecutor:
    train, test = _splits(settings)
    with settings.arithmetic.active(), deterministic():
        run = ForkingExecutor(settings, settings.seeds[0], train, test, CPU, **options)
        steps = -(-len(train) // settings.batch_size)
        for epoch in range(settings.epochs):
            run.begin(epoch)
            for step in range(steps):
                start = step * settings.batch_size
                run.step(start, min(start + settings.batch_size, len(train)), epoch * steps + step + 1)
            run.end()
    return run


@pytest.fixture
def dead_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two units of the first layer that start at exactly 0 on every image: hits in every arithmetic."""
    original = training_model.build

    def build(settings: Settings, *rest: Any) -> nn.Module:
        model = original(settings, *rest)
        first: Any = model.layers[1]
        with torch.no_grad():
            first.weight[2:4].zero_()
            first.bias[2:4] = 6.0 if settings.network.activation == "relu6" else 0.0
            first.bias[3] = 0.0
        return model

    monkeypatch.setattr(training_forking, "build", build)


def _parameters(run: ForkingExecutor) -> dict[int, dict[str, torch.Tensor]]:
    return {index: dict(branch.model.state_dict()) for branch in run.branches for index in branch.members}


def _without_forks(run: ForkingExecutor) -> list[dict[str, Any]]:
    rows = [result.to_json() for result in run.results.values()]
    return [{k: v for k, v in row.items() if k not in ("forked_at", "parent")} for row in rows]


@pytest.mark.usefixtures("dead_units")
@pytest.mark.parametrize("variation", VARIATIONS)
def test_forking_equals_every_member_by_itself(variation: str) -> None:
    settings = changed(SETTINGS, **VARIATIONS[variation])
    forked, apart = _run(settings), _run(settings, apart=True)
    assert forked.void is None
    assert apart.void is None
    assert sum(result.forked_at is not None for result in forked.results.values()) > 1, "no fork, so nothing was tested"
    ours, theirs = _parameters(forked), _parameters(apart)
    assert ours.keys() == theirs.keys() == {i for i, result in forked.results.items() if not result.diverged}
    assert bool(ours) == ("diverges" not in variation)
    for index, parameters in ours.items():
        for name, value in parameters.items():
            assert torch.equal(
                value.contiguous().view(-1).view(torch.uint8), theirs[index][name].contiguous().view(-1).view(torch.uint8)
            )
    assert _without_forks(forked) == _without_forks(apart)


LATE = (
    *("float32", "bfloat16", "rounded", "mixed float16", "sgd momentum", "sgd bfloat16", "adam fused", "adam fused mixed"),
)


@pytest.mark.parametrize("variation", LATE)
def test_members_that_part_late_take_their_moments_along(variation: str) -> None:
    """From step 4 on a unit is exactly 0 on some images: by then an optimiser's state is not empty, and must be copied."""

    def make(settings: Settings, seed: int, clock: training_model.Clock, switch: training_model.Switch) -> nn.Module:
        model: Any = training_model.build(settings, seed, clock, switch)

        def hits(module: nn.Module, inputs: Any, result: torch.Tensor) -> torch.Tensor:
            mask = torch.zeros_like(result)
            mask[::3, 2] = float(module.training and clock.step >= 4)
            return result - (result * mask).detach()

        model.layers[1].register_forward_hook(hits)
        return model

    settings = changed(SETTINGS, **VARIATIONS[variation])
    forked, apart = _run(settings, model=make), _run(settings, model=make, apart=True)
    assert {result.forked_at for result in forked.results.values()} - {None} == {4}
    ours, theirs = _parameters(forked), _parameters(apart)
    for index, parameters in ours.items():
        for name, value in parameters.items():
            assert torch.equal(value.view(-1).view(torch.uint8), theirs[index][name].view(-1).view(torch.uint8))
    assert _without_forks(forked) == _without_forks(apart)


@pytest.mark.usefixtures("dead_units")
@pytest.mark.parametrize("together", [False, True])
def test_one_step_for_all_parameters_is_taken_where_it_is_proved(together: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _run(SETTINGS)
    monkeypatch.setattr(training_objective, "same_as_apart", lambda *_: together)
    run = _run(SETTINGS)
    assert {branch.together for branch in run.branches} == {together}
    assert {len(branch.optimiser.param_groups[0]["params"]) for branch in run.branches} == {1 if together else 6}
    if not together or expected.branches[0].together:
        assert _without_forks(run) == _without_forks(expected)


@pytest.mark.parametrize("together", [False, True])
def test_a_backward_after_the_step_is_refused(together: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parameters have changed; torch tells by their versions, which one step for all must raise, too."""
    monkeypatch.setattr(training_objective, "same_as_apart", lambda *_: together)
    train, _ = _splits(SETTINGS)
    branch = _run(SETTINGS).branches[0]
    loss = branch.forward(train.images[:8], train.labels[:8])
    branch.update(branch.gradients(loss, ((0.0, 0.0), "chain"), keep=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        branch.gradients(loss, ((0.0, 0.0), "chain"), keep=False)


def test_a_frozen_parameter_stays() -> None:
    def make(settings: Settings, seed: int, clock: training_model.Clock, switch: training_model.Switch) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = _Branched(switch)
        model.right.weight.requires_grad_(False)
        return model

    forked, apart = _run(SETTINGS, model=make), _run(SETTINGS, model=make, apart=True)
    with torch.random.fork_rng():
        torch.manual_seed(SETTINGS.seeds[0])
        before = _Branched(training_model.Switch()).right.weight
    for branch in forked.branches:
        assert not branch.together
        assert torch.equal(branch.model.right.weight, before)
        assert not torch.equal(branch.model.left.weight, branch.model.right.weight)
    assert _without_forks(forked) == _without_forks(apart)


def test_runs_that_diverge_as_one_never_differed() -> None:
    """NaN is unequal to itself, the same bits are not: members by themselves must tell what the merged ones tell."""
    settings = changed(SETTINGS, arithmetic=Arithmetic.parse("float16"), optimiser=Optimiser())
    forked, apart = _run(settings), _run(settings, apart=True)
    assert {result.forked_at for result in forked.results.values()} == {None}
    assert {result.outcome for result in forked.results.values()} == {"diverged: non-finite at step 1"}
    assert {result.first_difference for result in apart.results.values()} == {None}
    assert _without_forks(forked) == _without_forks(apart)


@pytest.mark.usefixtures("dead_units")
def test_distances_are_recorded_every_so_often_but_every_step_is_looked_at() -> None:
    often, seldom = _run(SETTINGS), _run(changed(SETTINGS, every=4))
    for one, other in zip(often.results.values(), seldom.results.values(), strict=True):
        assert one.steps.step == list(range(1, 11))
        assert other.steps.step == [4, 8]
        assert other.steps.l1 == [one.steps.l1[3], one.steps.l1[7]]
        assert other.first_difference == one.first_difference
    assert any(result.first_difference not in (None, 4, 8) for result in seldom.results.values())


@pytest.mark.parametrize("buffer", ["running_mean", "running_var", "num_batches_tracked"])
def test_statistics_of_the_control_are_compared_too(buffer: str) -> None:
    """One ulp in a running mean changes no parameter, as training does not read it, but the test error."""
    settings = changed(SETTINGS, batch_norm=True, arithmetic=Arithmetic.parse("bfloat16 emulated (rounded)"))
    splits = _splits(settings)
    with settings.arithmetic.active(), deterministic():
        run = ForkingExecutor(settings, 3, *splits, CPU)
        run.begin(0)
        run.step(0, 32, 1)
        assert run.void is None
        (control,) = (branch for branch in run.branches if settings.members[branch.members[0]].control)
        norm: Any = control.model.layers[2]
        value = getattr(norm, buffer)
        value.copy_(neighbour(value, 1) if value.is_floating_point() else value + 1)
        run.step(32, 64, 2)
        if run.alive():
            run.end()  # a comparison that has not been read yet
    assert run.void is not None
    assert f"in buffer layers.2.{buffer}" in run.void
    assert "control differed at step 2" in run.void


class _Branched(nn.Module):
    """A model that is no sequence: two paths that are added."""

    def __init__(self, switch: training_model.Switch) -> None:
        super().__init__()
        self.left, self.right, self.output = nn.Linear(784, 8), nn.Linear(784, 8), nn.Linear(8, 10)
        self.first, self.second = (training_model.Kinked(rules.RELU, switch) for _ in range(2))
        with torch.no_grad():
            self.left.weight[1].zero_()
            self.left.bias[1] = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(self.first(self.left(x)) + self.second(self.right(x)))


def test_any_model_can_be_forked() -> None:
    def make(settings: Settings, seed: int, clock: training_model.Clock, switch: training_model.Switch) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return _Branched(switch)

    forked, apart = _run(SETTINGS, model=make), _run(SETTINGS, model=make, apart=True)
    assert all(isinstance(branch.model, _Branched) for branch in forked.branches)
    assert sum(result.forked_at is not None for result in forked.results.values()) > 1
    assert [len(epoch) for result in forked.results.values() for epoch in result.hits] == [2] * 12  # two activations each
    assert _without_forks(forked) == _without_forks(apart)
    with pytest.raises(ExecutorError, match=r"Linear has no relucheck.training.model.Kinked"):
        _run(SETTINGS, model=lambda *_: nn.Linear(784, 10))


PLAIN: dict[str, Callable[[], Any]] = {
    "float64": lambda: torch.float64,
    "float32": lambda: torch.float32,
    "bfloat16": lambda: torch.bfloat16,
    "float16": lambda: torch.float16,
}


@pytest.mark.usefixtures("dead_units")
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", PLAIN)
def test_chain_equals_a_plain_loop_with_public_modules(dtype: str, fused: bool) -> None:
    """relucheck's public modules, set_subgradient, torch's own optimiser: the chain rule's member is that run."""
    settings = changed(SETTINGS, arithmetic=dtype, optimiser=Optimiser(eps=1e-4, fused=fused))
    options = {"fused": True} if fused else {}  # as its users write it
    run = _run(settings)
    train, _ = _splits(settings)
    for subgradient in (0.0, -0.5, 1.0):
        index = next(i for i, m in enumerate(settings.members) if m.subgradient == subgradient and m.rule == "chain")
        made = training_forking.build(settings, 3, training_model.Clock(3), training_model.Switch())
        plain = nn.Sequential(
            *[activations_modules.ReLU() if isinstance(m, training_model.Kinked) else m for m in made.layers]
        )
        bifurcation_subgradient.set_subgradient(plain, subgradient)
        optimiser = torch.optim.Adam(plain.parameters(), lr=1e-3, eps=1e-4, **options)
        for _ in range(settings.epochs):
            for x, y in zip(train.images.split(32), train.labels.split(32), strict=True):
                optimiser.zero_grad()
                nn.functional.cross_entropy(plain(x), y).backward()
                optimiser.step()
        ours = [p for b in run.branches if index in b.members for p in b.model.parameters()]
        for a, b in zip(ours, plain.parameters(), strict=True):
            assert torch.equal(a, b)
