"""Training of a user's model against a plain loop, forks and nudges included; interruptions; what is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from relucheck.errors import ModelError, SettingsError
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.results.store import StoreError
from relucheck.training.forking import Forking
from relucheck.training.own import objective as own_objective
from relucheck.training.own.run import train_own
from relucheck.training.own.task import OwnSettings, Task
from relucheck.training.results.result import NO_LIVE_HIT, MemberResult, SeedResult
from relucheck.training.settings import Optimiser
from relucheck.training.sitting import Interrupted
from tests.helpers.own_models import Convolutional, Drifting, Functional, Penalised, digits, drawn, mlp
from tests.oracles.plain_training import distance, trained

STEPS = 10
BATCHES = digits()
ADAM: Callable[[list[Tensor]], torch.optim.Optimizer] = functools.partial(torch.optim.Adam, lr=1e-3, eps=1e-8)


def run(model: nn.Module, folder: Path | None = None, *, steps: int = STEPS, **changes: Any) -> SeedResult:
    model.train()
    task = Task(model, **{"batches": BATCHES, "loss": F.cross_entropy, "optimiser": Optimiser(), **changes})
    settings = OwnSettings(0, steps, Arithmetic.of(model), {"digest": task.digest()})
    return train_own(task, settings, lambda count, line: None, folder)


def member(result: SeedResult, subgradient: float) -> MemberResult:
    return next(
        one
        for one in result.members
        if one.member.subgradient == subgradient and not one.member.control and one.member.nudge is None
    )


def nudges(result: SeedResult) -> list[MemberResult]:
    return [one for one in result.members if one.member.nudge is not None]


def check_equals_plain(
    result: SeedResult,
    model: nn.Module,
    *,
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
    batches: list[tuple[Any, Any]] = BATCHES,
    optimiser: Callable[[list[Tensor]], torch.optim.Optimizer] = ADAM,
) -> None:
    """Losses and distances of s = 0 and s = 1 are those of two plain loops."""
    assert result.void is None
    loops = {s: trained(model, batches, loss, optimiser, STEPS, s) for s in (0.0, 1.0)}
    for s, (_, losses) in loops.items():
        ours = [epoch.train_loss for epoch in member(result, s).epochs]
        assert ours == losses, s
    assert member(result, 1.0).steps.l2[-1] == pytest.approx(distance(loops[0.0][0], loops[1.0][0]), rel=1e-9)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_members_are_those_of_a_plain_loop(dropout: float) -> None:
    """Bit for bit, with random numbers in the forward, too."""
    model = mlp(dead=4, dropout=dropout)
    result = run(model)
    check_equals_plain(result, model)
    assert member(result, 1.0).first_difference == 1
    assert all(one.nudge is not None and one.nudge.step == 1 for one in nudges(result))
    assert sum(sum(layer) for epoch in member(result, 0.0).hits for layer in epoch) >= STEPS * 16 * 4


def test_a_model_without_hits_has_one_run() -> None:
    model = mlp()
    result = run(model)
    check_equals_plain(result, model)
    assert member(result, 1.0).first_difference is None
    assert {one.outcome for one in nudges(result)} == {NO_LIVE_HIT}


def test_functions_are_reached_as_modules_are() -> None:
    layers = mlp(dead=4)
    one, other = run(layers), run(Functional(layers))
    for left, right in zip(one.members, other.members, strict=True):
        assert (left.epochs, left.hits, left.steps) == (right.epochs, right.hits, right.steps)


def test_buffers_and_an_optimiser_of_the_user() -> None:
    images = digits(image=True)
    model = drawn(Convolutional)
    with torch.no_grad():
        model.get_parameter("norm.weight")[0] = 0  # with beta 0, a channel of exact zeros
    sgd = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-3)
    result = run(model, batches=images, optimiser=sgd)
    check_equals_plain(result, model, batches=images, optimiser=sgd)
    assert member(result, 1.0).first_difference is not None


class Checkpointed(nn.Module):
    """The network of ``mlp`` of which a part is computed again in backward."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.layers, x, use_reentrant=False)


def test_checkpointed_parts_keep_the_subgradient() -> None:
    layers = mlp(dead=4)
    one, other = run(layers), run(Checkpointed(layers))
    for left, right in zip(one.members, other.members, strict=True):
        assert (left.epochs, left.hits, left.steps) == (right.epochs, right.hits, right.steps)


class Partly(nn.Module):
    """A model with a frozen layer, and with parameters that the loss does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = mlp(dead=4), nn.Linear(2, 2)
        self.used.get_submodule("3").requires_grad_(False)

    def forward(self, x: Tensor) -> Any:
        return self.used(x)


def test_frozen_and_unused_parameters_stay_as_they_are() -> None:
    model = Partly()
    check_equals_plain(run(model), model)


def test_a_copy_that_ignores_the_subgradient_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeded fault: members get the subgradient of s = 0."""
    monkeypatch.setattr(own_objective.Interception, "choose", lambda self, setting: None)
    model = mlp(dead=4)
    with pytest.raises(AssertionError):
        check_equals_plain(run(model), model)


def test_random_numbers_that_differ_between_members_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeded fault: the control draws other dropout masks than the reference."""
    monkeypatch.setattr(own_objective, "seed_all", lambda seed, device: torch.default_generator.seed())
    assert "control differed at step 1" in str(run(mlp(dropout=0.5)).void)


def test_a_model_that_is_not_deterministic_is_void() -> None:
    result = run(drawn(Drifting))
    assert "control differed at step 1 in parameter" in str(result.void)


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp(dead=4, dropout=0.2)
    unbroken = run(model, steps=20)
    original = Forking.step
    taken: list[int] = []

    def step(self: Forking, start: int, stop: int, number: int) -> None:
        if number == 14:
            raise KeyboardInterrupt
        original(self, start, stop, number)

    def counted(self: Forking, start: int, stop: int, number: int) -> None:
        taken.append(number)
        original(self, start, stop, number)

    monkeypatch.setattr(Forking, "step", step)
    with pytest.raises(Interrupted, match="run the same again to resume there"):
        run(model, tmp_path, steps=20)
    monkeypatch.setattr(Forking, "step", counted)
    resumed = run(model, tmp_path, steps=20)
    assert taken == list(range(13, 21))
    assert [one.to_json() for one in resumed.members] == [one.to_json() for one in unbroken.members]
    assert [path.name for path in tmp_path.iterdir()] == ["seed-0.json.gz"]
    taken.clear()
    assert run(model, tmp_path, steps=20).members == resumed.members  # read, not run
    assert not taken


def test_results_of_another_model_are_refused(tmp_path: Path) -> None:
    run(mlp(), tmp_path)
    with pytest.raises(StoreError, match="belongs to another run: its settings digest"):
        run(mlp(dead=1), tmp_path)


def test_a_model_that_differentiates_in_its_forward_is_refused() -> None:
    with pytest.raises(ModelError, match="differentiates in its forward or its loss"):
        run(drawn(Penalised))


@pytest.mark.parametrize(("steps", "message"), [(0, "at least 10"), (25, "multiple of 10.*use 20"), (True, "whole number")])
def test_steps_that_are_refused(steps: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        OwnSettings(0, steps, Arithmetic(torch.float32), {})


def test_losses_are_means_over_tenths() -> None:
    model = mlp()
    losses = trained(model, BATCHES, F.cross_entropy, ADAM, 20, 0.0)[1]
    ours = [epoch.train_loss for epoch in member(run(model, steps=20), 0.0).epochs]
    assert ours == [(one + other) / 2 for one, other in zip(losses[::2], losses[1::2], strict=True)]
