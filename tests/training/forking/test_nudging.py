"""Nudges against plain loops that train every draw from the start, bit for bit; and faults that must be seen."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from relucheck.errors import SettingsError
from relucheck.networks import Network
from relucheck.training import engine
from relucheck.training import model as training_model
from relucheck.training.batches import Batches
from relucheck.training.engine import Interrupted, train
from relucheck.training.forking import Branch, ForkingExecutor, nudging
from relucheck.training.forking import executor as forking
from relucheck.training.members import NUDGES, Member, members_of
from relucheck.training.model import Clock, Switch
from relucheck.training.results.result import NO_EFFECT, NO_LIVE_HIT, MemberResult, Nudge
from relucheck.training.settings import Optimiser, Settings, nudged
from tests.helpers.training_case import changed, numbers
from tests.helpers.ulps import ulp_distance
from tests.oracles.nudged_training import PlainNudge, PlainRun, plain_nudge
from tests.training.forking.test_executor import _parameters, _run, _splits, _without_forks

#: So few pre-activations that the first live hit comes late, or never.
SETTINGS = Settings(
    "digits",
    Network("mlp", (4, 3)),
    members_of([7], [1.0], nudges=NUDGES),
    optimiser=Optimiser(lr=0.01),
    arithmetic="bfloat16 emulated (product)",
    epochs=6,
    batch_size=16,
    train_samples=16,
    test_samples=60,
)
#: By case: the seed, changed settings, and the step of the first live hit, which says what the case is for.
CASES: dict[str, tuple[int, dict[str, Any], int]] = {
    "late": (38, {}, 5),
    "another seed": (41, {}, 4),
    "first step": (3, {}, 1),
    "last step": (54, {}, 6),
    # an update takes nearly every parameter to another binade, where an ulp is another number
    "large steps": (3, {"optimiser": Optimiser(lr=0.3)}, 1),
    "several steps an epoch": (5, {"train_samples": 72, "epochs": 2}, 2),
    "shuffled, last step of an epoch": (2, {"train_samples": 32, "epochs": 4, "shuffle": True}, 4),
    "sgd": (10, {"train_samples": 72, "optimiser": Optimiser("sgd", lr=0.5, momentum=0.9), "epochs": 2}, 8),
}
#: Cases with units that are dead from the start, because hits are rare in these arithmetics.
DEAD: dict[str, tuple[int, dict[str, Any], int]] = {
    name: (5, {"arithmetic": name, "optimiser": Optimiser(eps=1e-4), "epochs": 3}, 1)
    for name in ("float64", "float32", "bfloat16", "float16", "bfloat16 emulated (split-k 4)")
}


def _settings(case: str) -> Settings:
    seed, changes, _ = {**CASES, **DEAD, **IDLE}[case]
    return changed(SETTINGS, members=members_of([seed], [1.0], nudges=NUDGES), **changes)


#: A case with hits from the first step on whose cotangents are zero.
IDLE: dict[str, tuple[int, dict[str, Any], int]] = {"hits without cotangents": (4, {}, 4)}


def _dead(original: Callable[..., Any], *rest: Any) -> Any:
    model = original(*rest)
    with torch.no_grad():
        model.layers[1].weight[1:3].zero_()
        model.layers[1].bias[1:3] = 0.0
    return model


def _idle(original: Callable[..., Any], *rest: Any) -> Any:
    """A unit that is 0 on every image, and that no unit of the next layer reads."""
    model = original(*rest)
    with torch.no_grad():
        model.layers[1].weight[1].zero_()
        model.layers[1].bias[1] = 0.0
        model.layers[3].weight[:, 1] = 0.0
    return model


@pytest.fixture
def idle_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forking, "build", functools.partial(_idle, training_model.build))


@pytest.fixture
def dead_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forking, "build", functools.partial(_dead, training_model.build))


@functools.cache
def _expected(case: str) -> tuple[PlainRun, dict[int, PlainNudge]]:
    settings = _settings(case)
    (seed,) = settings.seeds
    change = {**dict.fromkeys(DEAD, _dead), **dict.fromkeys(IDLE, _idle)}.get(case)
    build = training_model.build if change is None else functools.partial(change, training_model.build)
    model = build(settings, seed, Clock(seed), Switch())
    nudges = {}
    for number in range(1, NUDGES + 1):
        reference, found = plain_nudge(model, settings, seed, number, _splits(settings))
        assert found is not None, "no live hit, so nothing was tested"
        nudges[number] = found
    return reference, nudges


def _check(run: ForkingExecutor, case: str) -> None:
    """Every nudge is the oracle's: the step, the number of draws, the element, and the run, bit for bit."""
    reference, nudges = _expected(case)
    names = [name for name, _ in run.branches[0].model.named_parameters()]
    found = _parameters(run)
    seen = set()
    for index, result in run.results.items():
        if result.member.nudge is None:
            continue
        plain = nudges[result.member.nudge]
        parameter, element = plain.draws[-1]
        assert result.nudge == Nudge(plain.step, len(plain.draws), names[parameter], element)
        seen.add((parameter, element))
        assert result.outcome == "finished"
        assert result.first_difference == plain.step
        for name, value in zip(names, plain.run.parameters[-1], strict=True):
            assert found[index][name].view(torch.uint8).equal(value.view(torch.uint8)), f"{result.member.name}: {name}"
        assert [epoch.test_accuracy for epoch in result.epochs] == plain.run.accuracies
        pairs = zip(plain.run.parameters, reference.parameters, strict=True)
        distances = [
            sum(float((a.double() - b.double()).abs().sum()) for a, b in zip(*pair, strict=True)) for pair in pairs
        ]
        assert result.steps.l1 == pytest.approx(distances, rel=1e-12)
    assert len(seen) == NUDGES, "two nudges moved the same element"


@pytest.mark.parametrize("case", CASES)
def test_a_nudge_is_the_plain_loops(case: str) -> None:
    _check(_run(_settings(case)), case)
    step = CASES[case][2]
    assert _expected(case)[1][1].step == step


@pytest.mark.usefixtures("dead_units")
@pytest.mark.parametrize("case", DEAD)
def test_a_nudge_is_the_plain_loops_in_every_dtype(case: str) -> None:
    _check(_run(_settings(case)), case)


@pytest.mark.usefixtures("idle_unit")
@pytest.mark.parametrize("case", IDLE)
def test_a_hit_whose_cotangent_is_zero_is_not_live(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _run(_settings(case))
    assert run.results[0].hits[0][0][0] >= SETTINGS.batch_size
    _check(run, case)
    assert _expected(case)[1][1].step == IDLE[case][2]
    monkeypatch.setattr(forking, "probe", lambda member: ((1.0, 1.0), "injected"))  # differs at any hit
    with pytest.raises(AssertionError):
        _check(_run(_settings(case)), case)


def test_the_cases_redraw() -> None:
    """Otherwise they would not test that a draw without an effect is taken back."""
    assert max(len(nudge.draws) for nudge in _expected("late")[1].values()) > 5


# ---------------------------------------------------------------- seeded faults


def _before_the_update(patch: pytest.MonkeyPatch) -> None:
    """The element moves first, and is updated then."""
    update, nudge = Branch.update, ForkingExecutor._nudge
    kept: dict[str, Any] = {}

    def keeping(self: Branch, gradients: Any) -> None:
        kept["state"] = copy.deepcopy(self.state())
        update(self, gradients)

    def early(self: ForkingExecutor, branch: Branch, live: list[int], gradients: Any, *rest: Any) -> None:
        state, count = kept["state"], len(self.branches)
        nudge(self, branch, live, gradients, *rest)
        for other in self.branches[count:]:
            found = self.results[other.members[0]].nudge
            assert found is not None
            other.load({**copy.deepcopy(state), "members": other.members})
            nudging.move(other.parameters[other.names.index(str(found.parameter))], int(found.index or 0))
            update(other, gradients)

    patch.setattr(Branch, "update", keeping)
    patch.setattr(ForkingExecutor, "_nudge", early)


def _zero_gradients(patch: pytest.MonkeyPatch) -> None:
    places = nudging.places
    patch.setattr(nudging, "places", lambda member, gradients: places(member, [(g == 0).to(g.dtype) for g in gradients]))


def _towards_zero(patch: pytest.MonkeyPatch) -> None:
    def move(parameter: torch.Tensor, element: int) -> None:
        values = parameter.detach().view(-1)
        values[element] = torch.nextafter(values[element], torch.zeros_like(values[element]))

    patch.setattr(forking, "move", move)


def _one_step_late(patch: pytest.MonkeyPatch) -> None:
    advance, ignored = ForkingExecutor._advance, set[int]()

    def late(self: ForkingExecutor, branch: Branch, x: Any, y: Any, number: int, *rest: Any) -> tuple[Any, list[int]]:
        gradients, live = advance(self, branch, x, y, number, *rest)
        late = [index for index in live if index in ignored]
        ignored.update(live)
        return gradients, late

    patch.setattr(ForkingExecutor, "_advance", late)


def _same_element(patch: pytest.MonkeyPatch) -> None:
    places = nudging.places
    patch.setattr(nudging, "places", lambda member, gradients: places(Member(member.seed, 0.0, nudge=1), gradients))


def _not_counted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(nudging, "Nudge", lambda step, attempts, *rest: Nudge(step, 1, *rest))


def _first_draw_stands(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Batches, "after", lambda self, stop: None)


def _looks_at_this_step(patch: pytest.MonkeyPatch) -> None:
    """Whether a draw has an effect is tried on the mini-batch that is past."""
    size = SETTINGS.batch_size
    patch.setattr(Batches, "after", lambda self, stop: self.of(max(0, stop - size), stop))


FAULTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "before the update": (_before_the_update, "large steps"),
    "a zero gradient": (_zero_gradients, "late"),
    "towards zero": (_towards_zero, "late"),
    "one step late": (_one_step_late, "first step"),
    "the same element twice": (_same_element, "late"),
    "attempts not counted": (_not_counted, "late"),
    "no second draw": (_first_draw_stands, "late"),
    "a look at the wrong mini-batch": (_looks_at_this_step, "several steps an epoch"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, case = FAULTS[fault]
    _expected(case)
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        _check(_run(_settings(case)), case)


# ---------------------------------------------------------------- beside other members, and by itself


@pytest.mark.usefixtures("dead_units")
@pytest.mark.parametrize(
    "changes",
    [
        {"batch_norm": True},
        {"dropout": 0.3, "shuffle": True},
        {"activation": "relu6", "members": members_of([5], [1.0], second=0.0, nudges=2)},
        {"activation": "leaky_relu"},
        {"optimiser": Optimiser(fused=True)},
    ],
    ids=["batch norm", "dropout, shuffled", "relu6", "leaky relu", "fused"],
)
def test_nudges_that_share_a_run_are_those_by_themselves(changes: dict[str, Any]) -> None:
    members = members_of([5], [1.0], nudges=2)
    settings = changed(SETTINGS, **{"members": members, "train_samples": 72, "epochs": 2, **changes})
    forked, apart = _run(settings), _run(settings, apart=True)
    ours, theirs = _parameters(forked), _parameters(apart)
    assert ours.keys() == theirs.keys()
    assert all(ours[index][name].equal(theirs[index][name]) for index in ours for name in ours[index])
    assert _without_forks(forked) == _without_forks(apart)
    assert sum(result.nudge is not None for result in forked.results.values()) == 2


def test_a_nudge_does_not_depend_on_the_members_beside_it() -> None:
    """Nor do they on it: nudges can be added to a seed, and reference, control and s = 1 keep every bit."""
    everything = train(SETTINGS, progress=False)
    assert everything.find(7, 0.0, nudge=3).outcome == "finished"
    without = train(changed(SETTINGS, members=members_of([7], [1.0])), progress=False)
    alone = train(changed(SETTINGS, members=(*members_of([7], []), Member(7, 0.0, nudge=3))), progress=False)
    for result in (*without.members, *alone.members):
        assert result == next(other for other in everything.members if other.member == result.member)


def test_a_result_lists_the_nudges_of_a_seed() -> None:
    result = train(changed(SETTINGS, members=members_of([7], [1.0], nudges=2)[::-1]), progress=False)
    nudges = result.nudges(7)
    assert nudges is not None
    assert [nudge.member.nudge for nudge in nudges] == [1, 2]
    with pytest.raises(SettingsError, match="no nudges of seed 8"):
        result.nudges(8)


def test_the_reference_of_the_nudges_is_that_of_the_comparison() -> None:
    settings = changed(SETTINGS, members=members_of([7, 6], [0.5, 1.0]))
    comparison, nudges = train(settings, progress=False), train(nudged(settings), progress=False)
    for seed in settings.seeds:
        assert nudges.find(seed, 0.0) == comparison.find(seed, 0.0)
        assert nudges.find(seed, 0.0, control=True) == comparison.find(seed, 0.0, control=True)
        # s = 1 parts from the reference at the step after which the nudges do
        live = comparison.find(seed, 1.0).forked_at
        assert live is not None
        assert {nudges.find(seed, 0.0, nudge=n).nudge.step for n in range(1, 6)} == {live}


def test_a_seed_without_a_live_hit_has_no_nudges() -> None:
    settings = changed(SETTINGS, members=members_of([0], [1.0], nudges=2))
    result = train(settings, progress=False)
    assert result.find(0, 1.0).first_difference is None, "s has an effect, so nothing was tested"
    for number in (1, 2):
        nudge = result.find(0, 0.0, nudge=number)
        assert nudge == MemberResult(nudge.member, NO_LIVE_HIT)
    assert result.nudges(0) is None
    assert len(result.find(0, 0.0).epochs) == settings.epochs


@pytest.mark.usefixtures("dead_units")
def test_a_nudge_that_changes_no_gradient_ends_after_so_many_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """In mixed precision, products round the ulp away."""
    monkeypatch.setattr(nudging, "places", functools.partial(nudging.places, most=7))
    settings = changed(SETTINGS, arithmetic="mixed bfloat16", members=members_of([5], [], nudges=1), epochs=2)
    result = train(settings, progress=False)
    nudge = result.find(5, 0.0, nudge=1)
    assert nudge == MemberResult(nudge.member, NO_EFFECT, nudge=Nudge(1, 7, None, None))
    assert len(result.find(5, 0.0).epochs) == 2


def _at_0_then_at_6(settings: Settings, seed: int, clock: Clock, switch: Switch) -> Any:
    """A model of ReLU6 in which a unit is exactly 0 from step 1 on, and another one exactly 6 from step 3 on."""
    model: Any = training_model.build(settings, seed, clock, switch)

    def hits(module: torch.nn.Module, inputs: Any, result: torch.Tensor) -> torch.Tensor:
        wanted = result.detach().clone()
        wanted[::3, 1] = 0.0
        if clock.step >= 3:
            wanted[::3, 2] = 6.0
        return result - result.detach() + wanted if module.training else result

    model.layers[1].register_forward_hook(hits)
    return model


#: Members at both kinks, at 0 alone, at 6 alone; and the first step with a hit that is live for their nudges.
FORMS = {
    "(s, s)": ({}, 1),
    "(s, 0)": ({"second": 0.0}, 1),
    "(0, s)": ({"upper": True}, 3),
}


def _check_form(form: str, **options: Any) -> None:
    """Nudges begin at the step at which the members of their comparison depart from s = 0."""
    kinks, first = FORMS[form]
    settings = changed(
        SETTINGS,
        activation="relu6",
        arithmetic="float32",
        train_samples=72,
        epochs=1,
        members=members_of([5], [1.0], ["chain"], **kinks),
    )
    beside, alone = (_run(each, model=_at_0_then_at_6, **options) for each in (settings, nudged(settings)))
    (member,) = (one for one in beside.results.values() if one.member.s)
    assert sum(kink[0] for epoch in member.hits for kink in epoch) > 0
    steps = [result.nudge and result.nudge.step for result in alone.results.values() if result.member.nudge]
    assert steps == [first] * NUDGES
    assert member.first_difference == first


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_only_hits_at_a_kink_that_members_vary_are_live(form: str, deferred: bool) -> None:
    _check_form(form, deferred=deferred)


def test_a_probe_at_both_kinks_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeded fault: nudges of (0, s) begin at a hit at 0."""
    monkeypatch.setattr(forking, "probe", lambda nudge: ((1.0, 1.0), "chain"))
    with pytest.raises(AssertionError):
        _check_form("(0, s)")


@pytest.mark.usefixtures("dead_units")
def test_hits_at_an_upper_kink_that_is_not_varied_are_not_live(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(settings: Settings, *rest: Any) -> Any:
        model = training_model.build(settings, *rest)
        first: Any = model.layers[1]
        with torch.no_grad():
            first.weight[1].zero_()
            first.bias[1] = 6.0
        return model

    monkeypatch.setattr(forking, "build", build)
    settings = changed(
        SETTINGS, activation="relu6", arithmetic="float32", epochs=1, members=members_of([5], [1.0], second=0.0)
    )
    apart = train(nudged(settings), progress=False)
    both = train(nudged(changed(settings, members=members_of([5], [1.0]))), progress=False)
    assert sum(map(sum, apart.find(5, 0.0).hits[0])) > 0
    assert apart.find(5, 0.0, nudge=1).outcome == NO_LIVE_HIT
    assert both.find(5, 0.0, nudge=1).nudge is not None


# ---------------------------------------------------------------- interruption


@pytest.mark.parametrize("stop", [5, 6], ids=["before the live hit", "after it"])
def test_nudges_resume_bit_for_bit(stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first live hit is at step 5; each epoch is a step, with a checkpoint before it."""
    settings = SETTINGS
    unbroken = train(settings, progress=False)
    assert unbroken.find(7, 0.0, nudge=1).nudge.step == 5
    original = ForkingExecutor.step

    def interrupted(self: ForkingExecutor, start: int, end: int, number: int) -> None:
        if number == stop:
            raise KeyboardInterrupt
        original(self, start, end, number)

    with monkeypatch.context() as patch:
        patch.setattr(ForkingExecutor, "step", interrupted)
        patch.setattr(engine, "Sitting", functools.partial(engine.Sitting, expensive_s=float("inf")))
        with pytest.raises(Interrupted, match=r"are kept in .*to resume there"):
            train(settings, folder=tmp_path, progress=False)
    steps = []

    def counted(self: ForkingExecutor, start: int, end: int, number: int) -> None:
        steps.append(number)
        original(self, start, end, number)

    monkeypatch.setattr(ForkingExecutor, "step", counted)
    assert numbers(train(settings, folder=tmp_path, progress=False)) == numbers(unbroken)
    assert steps == list(range(stop, 7))


# ---------------------------------------------------------------- the parts


def test_draws_are_elements_with_a_gradient_and_none_is_drawn_twice() -> None:
    gradients = [torch.tensor([[0.0, 1.0, -2.0], [0.0, 0.0, 3.0]]), torch.tensor([-0.0, 4.0]), torch.ones(50)]
    drawn = [list(nudging.places(Member(3, 0.0, nudge=n), gradients)) for n in range(1, NUDGES + 1)]
    every = [place for places in drawn for place in places]
    assert sorted(every) == [(0, 1), (0, 2), (0, 5), (1, 1), *((2, i) for i in range(50))]
    assert drawn[0] == list(nudging.places(Member(3, 0.0, nudge=1), gradients))
    assert drawn[0] != list(nudging.places(Member(4, 0.0, nudge=1), gradients))
    assert len(list(nudging.places(Member(3, 0.0, nudge=1), gradients, most=3))) == 3
    assert not list(nudging.places(Member(3, 0.0, nudge=1), [torch.zeros(9)]))
    assert not list(nudging.places(Member(3, 0.0, nudge=5), [torch.ones(4)])), "fewer elements than nudges"


def test_draws_are_uniform() -> None:
    """The first draw of nudge 1 over 4,000 seeds, among 4 elements: each within 5 standard deviations of 1,000."""
    counts = [0] * 4
    for seed in range(4000):
        counts[next(nudging.places(Member(seed, 0.0, nudge=1), [torch.ones(4)]))[1]] += 1
    assert all(abs(count - 1000) < 137 for count in counts)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_an_element_moves_by_one_ulp_away_from_zero(dtype: torch.dtype) -> None:
    values = torch.tensor([[1.0, -1.0], [0.0, -0.0], [1e-3, -255.0]], dtype=dtype)
    for element, before in enumerate(values.flatten()):
        moved = values.clone()
        nudging.move(moved, element)
        after = moved.flatten()[element]
        assert int(ulp_distance(before, after)) == 1
        assert after.abs() > before.abs()
        assert before == 0 or after.signbit() == before.signbit()
        assert int((moved != values).sum()) == 1
    assert float(after) < -255.0
