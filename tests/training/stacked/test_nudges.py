"""Nudges in the stacked executor against those of the forking one; and faults that must be seen.

On a CPU the two executors compute the same bits where products are computed member by member.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from relucheck.networks import Network
from relucheck.numerics.determinism import deterministic
from relucheck.training import engine
from relucheck.training import model as training_model
from relucheck.training.batches import Batches
from relucheck.training.engine import Interrupted, train
from relucheck.training.forking import ForkingExecutor, nudging
from relucheck.training.forking import executor as forking
from relucheck.training.members import members_of
from relucheck.training.results.result import NO_EFFECT, NO_LIVE_HIT, MemberResult, Nudge
from relucheck.training.settings import Optimiser, Settings, nudged
from relucheck.training.splits import split_of
from relucheck.training.stacked import executor as training_stacked
from relucheck.training.stacked import nudges as stacked_nudges
from relucheck.training.stacked.executor import StackedExecutor
from tests.helpers.training_case import changed, numbers
from tests.helpers.ulps import ulp_distance

CPU = torch.device("cpu")
SEEDS = (3, 4)
SETTINGS = Settings(
    "digits",
    Network("mlp", (16, 12)),
    members_of(SEEDS, [1.0], nudges=5),
    optimiser=Optimiser(eps=1e-4),
    epochs=2,
    batch_size=32,
    train_samples=144,
    test_samples=60,
)
#: A pixel that is white in images 66, 83 and 137 only. The first one is in step 3 of file order.
PIXEL = 380


def _late(model: Any) -> Any:
    """A unit that is 0 where a pixel is white and negative elsewhere: nothing moves it before the first live hit."""
    with torch.no_grad():
        model.layers[1].weight[1].zero_()
        model.layers[1].weight[1, PIXEL] = 1.0
        model.layers[1].bias[1] = -1.0
    return model


def _dead(model: Any) -> Any:
    """Units that are 0 on every image: the first step has a live hit."""
    with torch.no_grad():
        model.layers[1].weight[1:3].zero_()
        model.layers[1].bias[1:3] = 0.0
    return model


def _idle(model: Any) -> Any:
    """A dead unit that no unit of the next layer reads: all its hits have the cotangent 0."""
    with torch.no_grad():
        model.layers[1].weight[1].zero_()
        model.layers[1].bias[1] = 0.0
        model.layers[3].weight[:, 1] = 0.0
    return model


def _use(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    def build(*rest: Any) -> Any:
        return change(training_model.build(*rest))

    monkeypatch.setattr(forking, "build", build)
    monkeypatch.setattr(training_stacked, "build", build)


def _splits(settings: Settings) -> list[Any]:
    return [split_of(settings, split, None, CPU) for split in ("train", "test")]


def _run(settings: Settings, run: Any) -> Any:
    with settings.arithmetic.active(), deterministic():
        count = len(split_of(settings, "train", None, CPU).images)
        steps = settings.steps_of(count)
        for epoch in range(settings.epochs):
            run.begin(epoch)
            for step in range(steps):
                start = step * settings.batch_size
                run.step(start, min(start + settings.batch_size, count), epoch * steps + step + 1)
            run.end()
            if run.void:
                break
    return run


def _stacked(settings: Settings) -> StackedExecutor:
    return _run(settings, StackedExecutor(settings, settings.seeds, *_splits(settings), CPU, alone=True))


def _check(settings: Settings) -> list[MemberResult]:
    """Every member is that of the forking executor: its result, and its parameters, bit for bit.

    Returns:
        The results of the nudges.
    """
    stacked = _stacked(settings)
    assert stacked.void is None
    for seed in settings.seeds:
        alone = _run(settings, ForkingExecutor(settings, seed, *_splits(settings), CPU))
        assert alone.void is None
        trained = {index: branch for branch in alone.branches for index in branch.members}
        for index, theirs in alone.results.items():
            ours, name = stacked.results[index], theirs.member.name
            assert ours.nudge == theirs.nudge, name
            assert ours.outcome == theirs.outcome, name
            assert ours.first_difference == theirs.first_difference, name
            assert (ours.hits, ours.activations) == (theirs.hits, theirs.activations), name
            assert ours.steps.step == theirs.steps.step, name
            assert ours.steps.l1 == pytest.approx(theirs.steps.l1, rel=1e-9), name
            for one, other in zip(ours.epochs, theirs.epochs, strict=True):
                assert one.test_batch_accuracies == other.test_batch_accuracies, name
                assert one.train_loss == pytest.approx(other.train_loss, rel=0.01), name  # the sums round differently
            if index in trained:
                state, row = trained[index].model.state_dict(), stacked.indices.index(index)
                for part, value in stacked.parameters.items():
                    assert value[row].view(torch.uint8).equal(state[part].view(torch.uint8)), f"{name}: {part}"
    return [result for result in stacked.results.values() if result.member.nudge is not None]


#: By case: the units of the model, changed settings, and the steps of the first live hits by seed.
CASES: dict[str, tuple[Callable[[Any], Any], dict[str, Any], tuple[int, int]]] = {
    "late": (_late, {}, (3, 3)),
    "first step": (_dead, {}, (1, 1)),
    "another step of each seed": (_late, {"shuffle": True, "members": members_of([5, 6], [1.0], nudges=5)}, (2, 3)),
    "last step": (_late, {"epochs": 1, "train_samples": 90}, (3, 3)),
    "last step of an epoch": (_late, {"train_samples": 90}, (3, 3)),
    "float64": (_late, {"arithmetic": "float64"}, (3, 3)),
    "bfloat16": (_late, {"arithmetic": "bfloat16"}, (3, 3)),
    "float16": (_late, {"arithmetic": "float16"}, (3, 3)),
    "fused": (_late, {"optimiser": Optimiser(eps=1e-4, fused=True)}, (3, 3)),
    "sgd": (_late, {"optimiser": Optimiser("sgd", lr=0.1, momentum=0.9)}, (3, 3)),
    "sgd fused": (_late, {"optimiser": Optimiser("sgd", lr=0.1, momentum=0.9, fused=True)}, (3, 3)),
    "sgd in bfloat16": (_late, {"arithmetic": "bfloat16", "optimiser": Optimiser("sgd", lr=0.1)}, (3, 3)),
    "batch norm": (_dead, {"batch_norm": True}, (1, 1)),
    "dropout": (_dead, {"dropout": 0.2, "shuffle": True}, (1, 1)),
    "leaky_relu": (_dead, {"activation": "leaky_relu"}, (1, 1)),
    "relu6": (_late, {"activation": "relu6"}, (3, 3)),
}


def _settings(case: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    change, changes, _ = CASES[case]
    _use(monkeypatch, change)
    return changed(SETTINGS, **changes)


@pytest.mark.parametrize("case", CASES)
def test_a_nudge_is_that_of_the_forking_executor(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nudges = _check(_settings(case, monkeypatch))
    assert [nudge.nudge.step for nudge in nudges if nudge.nudge] == [step for step in CASES[case][2] for _ in range(5)]
    assert len({(n.member.seed, n.nudge.parameter, n.nudge.index) for n in nudges if n.nudge}) == 10


def test_the_cases_redraw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise they would not test that a move without an effect is taken back."""
    run = _stacked(_settings("late", monkeypatch))
    assert max(result.nudge.attempts for result in run.results.values() if result.nudge) > 2


def test_hits_without_a_cotangent_are_not_live(monkeypatch: pytest.MonkeyPatch) -> None:
    _use(monkeypatch, _idle)
    nudges = _check(SETTINGS)
    assert nudges == [MemberResult(nudge.member, NO_LIVE_HIT) for nudge in nudges]
    monkeypatch.setattr(training_stacked, "probe", lambda member: ((1.0, 1.0), "injected"))  # differs at any hit
    with pytest.raises(AssertionError):
        _check(SETTINGS)


def test_a_seed_without_hits_has_no_nudges() -> None:
    nudges = _check(SETTINGS)
    assert len(nudges) == 10
    assert nudges == [MemberResult(nudge.member, NO_LIVE_HIT) for nudge in nudges]


def test_hits_at_an_upper_kink_that_is_not_varied_are_not_live(monkeypatch: pytest.MonkeyPatch) -> None:
    def upper(model: Any) -> Any:
        with torch.no_grad():
            model.layers[1].weight[1].zero_()
            model.layers[1].bias[1] = 6.0
        return model

    _use(monkeypatch, upper)
    settings = changed(SETTINGS, activation="relu6", epochs=1, members=members_of([3], [1.0], second=0.0, nudges=5))
    assert {nudge.outcome for nudge in _check(settings)} == {NO_LIVE_HIT}
    for options in ({}, {"upper": True}):
        nudges = _check(changed(settings, members=members_of([3], [1.0], nudges=5, **options)))  # type: ignore[arg-type]
        assert {nudge.nudge.step for nudge in nudges if nudge.nudge} == {1}


def test_hits_at_0_are_not_live_where_only_the_upper_kink_is_varied(monkeypatch: pytest.MonkeyPatch) -> None:
    _use(monkeypatch, _dead)
    settings = changed(SETTINGS, activation="relu6", arithmetic="float32", epochs=1)
    for upper, outcomes in ((False, {"finished"}), (True, {NO_LIVE_HIT})):
        members = members_of([3], [1.0], upper=upper, nudges=5)
        assert {nudge.outcome for nudge in _check(changed(settings, members=members))} == outcomes


def test_nudges_without_an_effect_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """In mixed precision, products round the ulp away."""
    monkeypatch.setattr(nudging, "places", functools.partial(nudging.places, most=3))
    _use(monkeypatch, _late)
    nudges = _check(changed(SETTINGS, arithmetic="mixed bfloat16"))
    ended = [nudge for nudge in nudges if nudge.outcome == NO_EFFECT]
    assert ended
    assert ended == [MemberResult(nudge.member, NO_EFFECT, nudge=Nudge(3, 3, None, None)) for nudge in ended]


def test_a_run_that_diverges_has_no_nudges(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float16 Adam's eps rounds to 0, and the first step ends in NaN."""
    _use(monkeypatch, _dead)
    settings = changed(SETTINGS, arithmetic="float16", optimiser=Optimiser())
    nudges = _check(settings)
    assert {(nudge.outcome, nudge.nudge) for nudge in nudges} == {("diverged: non-finite at step 1", None)}
    assert not _stacked(settings).waiting.positions


@pytest.mark.parametrize("optimiser", [Optimiser(), Optimiser("sgd", lr=0.1, momentum=0.9)], ids=["adam", "sgd"])
def test_scaled_nudges_are_references_but_for_one_ulp(optimiser: Optimiser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixed float16, where the executors' optimisers round differently: the state after the step of the live hit."""
    _use(monkeypatch, _late)
    # nearly no ulp has an effect, so the first draw stands
    monkeypatch.setattr(training_stacked, "Batches", _None)
    settings = changed(SETTINGS, arithmetic="mixed float16", optimiser=optimiser)
    run = StackedExecutor(settings, settings.seeds, *_splits(settings), CPU, alone=True)
    run.begin(0)
    for step in range(3):
        assert len(run.waiting.positions) == 10
        run.step(32 * step, 32 * step + 32, step + 1)
    assert not run.waiting.positions
    for row, index in enumerate(run.indices):
        result, reference = run.results[index], int(run.reference_of[row])
        if result.member.nudge is None:
            continue
        found = result.nudge
        assert found is not None
        assert (found.step, found.attempts) == (3, 1)
        for name, value in run.parameters.items():
            distance = ulp_distance(value[row].detach(), value[reference].detach()).flatten()
            moved = [found.index] if name == found.parameter else []
            assert distance.nonzero().flatten().tolist() == moved
            assert int(distance.sum()) == len(moved)
        for values in (run.optimiser.first, run.optimiser.second):  # type: ignore[union-attr]
            assert all(value[row].equal(value[reference]) for value in values)


def test_nudges_change_no_other_member(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the look ahead either, in the arithmetic whose products are batched."""
    _use(monkeypatch, _dead)
    settings = changed(
        SETTINGS,
        arithmetic="bfloat16 emulated (product)",
        batch_norm=True,
        dropout=0.1,
        members=members_of(SEEDS, [0.5, 1.0]),
    )
    comparison, nudges = (train(one, progress=False, executor="stacked") for one in (settings, nudged(settings)))
    assert comparison.void is nudges.void is None
    for seed in SEEDS:
        for control in (False, True):
            assert nudges.find(seed, 0.0, control=control) == comparison.find(seed, 0.0, control=control)
        assert {nudge.nudge.step for nudge in nudges.nudges(seed) or ()} == {1}


# ---------------------------------------------------------------- interruption


#: A network with so few units that live hits come late: at step 5 with seed 7, and at step 4 with seed 13.
NATURAL = changed(
    SETTINGS,
    widths=(4, 3),
    members=members_of([7, 13], [1.0], nudges=5),
    optimiser=Optimiser(lr=0.01),
    arithmetic="bfloat16 emulated (product)",
    epochs=6,
    batch_size=16,
    train_samples=16,
)


@pytest.mark.parametrize("stop", [3, 5, 6], ids=["before the live hits", "between them", "after them"])
def test_nudges_resume_bit_for_bit(stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each epoch is a step, with a checkpoint before it."""
    unbroken = train(NATURAL, progress=False, executor="stacked")
    assert unbroken.void is None
    assert [unbroken.find(seed, 0.0, nudge=1).nudge.step for seed in (7, 13)] == [5, 4]
    assert max(result.nudge.attempts for result in unbroken.members if result.nudge) > 5
    original, steps = StackedExecutor.step, []

    def broken(self: StackedExecutor, start: int, end: int, number: int) -> None:
        if number == stop:
            raise KeyboardInterrupt
        original(self, start, end, number)

    with monkeypatch.context() as patch:
        patch.setattr(StackedExecutor, "step", broken)
        patch.setattr(engine, "Sitting", functools.partial(engine.Sitting, expensive_s=float("inf")))
        with pytest.raises(Interrupted, match=r"are kept in .*to resume there"):
            train(NATURAL, folder=tmp_path, progress=False, executor="stacked")

    def counted(self: StackedExecutor, start: int, end: int, number: int) -> None:
        steps.append(number)
        original(self, start, end, number)

    monkeypatch.setattr(StackedExecutor, "step", counted)
    assert numbers(train(NATURAL, folder=tmp_path, progress=False, executor="stacked")) == numbers(unbroken)
    assert steps == list(range(stop, 7))


# ---------------------------------------------------------------- seeded faults


def _moves_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(stacked_nudges, "move", lambda parameter, element: None)


def _leaves_a_trace(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StackedExecutor, "_without_trace", lambda self: contextlib.nullcontext())


class _Past(Batches):
    def after(self, stop: int) -> tuple[Tensor, Tensor]:
        return self.of(max(0, stop - SETTINGS.batch_size), stop)


class _None(Batches):
    def after(self, stop: int) -> None:
        return None


def _looks_at_this_step(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(training_stacked, "Batches", _Past)


def _first_draw_stands(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(training_stacked, "Batches", _None)


def _probe_updates(patch: pytest.MonkeyPatch) -> None:
    """A nudge takes the step of the live hit with the gradient of s = 1."""

    def probed(self: stacked_nudges.WaitingNudges, *rest: Any) -> Any:
        self.source = torch.arange(len(self.source))
        return original(self, *rest)

    original = stacked_nudges.WaitingNudges.probed
    patch.setattr(stacked_nudges.WaitingNudges, "probed", probed)


def _of_another_seed(patch: pytest.MonkeyPatch) -> None:
    """Elements are drawn from the gradients of the other seed's reference."""

    def nudge(results: Any, live: Any, reference_of: Tensor, *rest: Any) -> None:
        first, second = reference_of.unique()
        original(results, live, torch.where(reference_of == first, second, first), *rest)

    original = training_stacked.nudge
    patch.setattr(training_stacked, "nudge", nudge)


FAULTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "a move that moves nothing": (_moves_nothing, "late"),
    "a move that moves nothing at the end": (_moves_nothing, "last step"),
    "hits counted in the look ahead": (_leaves_a_trace, "first step"),
    "statistics from the look ahead": (_leaves_a_trace, "batch norm"),
    "a look at the wrong mini-batch": (_looks_at_this_step, "late"),
    "no second draw": (_first_draw_stands, "late"),
    "an update by the probe": (_probe_updates, "late"),
    "another seed's reference": (_of_another_seed, "late"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, case = FAULTS[fault]
    settings = _settings(case, monkeypatch)
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        _check(settings)


def test_a_product_that_rounds_by_place_makes_the_result_void(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients of a nudge that waits are those of its reference, unless there is a hit."""
    original = StackedExecutor._gradients

    def gradients(self: StackedExecutor, *rest: Any) -> Any:
        losses, found = original(self, *rest)
        if rest[-1] == 2:
            found[1][self.waiting.positions[6]] *= 1 + 2**-20
        return losses, found

    monkeypatch.setattr(StackedExecutor, "_gradients", gradients)
    _use(monkeypatch, _late)
    run = _stacked(SETTINGS)
    assert run.void == "nudge 2 had other gradients than its reference at step 2, without a hit (seed 4)"
    assert not run.alive()


@pytest.mark.parametrize(("change", "step"), [(_late, 2), (lambda model: model, 10)], ids=["live hit", "no live hit"])
def test_an_optimiser_that_rounds_by_place_makes_the_result_void(
    change: Callable[[Any], Any], step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parameters of a nudge are those of its reference until it moves, at step 3, or to the end of the run."""
    original = StackedExecutor._compare

    def compare(self: StackedExecutor, number: int) -> None:
        if number == step:
            with torch.no_grad():
                self.parameters["layers.5.bias"][self.waiting.positions[6]] *= 1 + 2**-20
        original(self, number)

    monkeypatch.setattr(StackedExecutor, "_compare", compare)
    _use(monkeypatch, change)
    name = "nudge 2 differed from its reference"
    assert _stacked(SETTINGS).void == f"{name} at step {step}, before it moved (seed 4)"
