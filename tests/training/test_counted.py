"""Hits and ties that no chosen subgradient reaches: counted in every epoch, and training is the same, bit for bit."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relucheck.networks import Network
from relucheck.networks.sites import sites, unreached
from relucheck.numerics.determinism import deterministic
from relucheck.training import model as training_model
from relucheck.training.forking import Branch, ForkingExecutor
from relucheck.training.members import Member, members_of
from relucheck.training.model import Clock, Counted, Kinked, Switch, counters, layers
from relucheck.training.results import seed_store
from relucheck.training.results.result import MemberResult, SeedResult, Unreached
from relucheck.training.settings import Settings
from relucheck.training.splits import split_of

CPU = torch.device("cpu")
STEPS, BATCH = 4, 16
NETWORKS = {
    "max pooling": Network("lenet", (2, 3, 8, 6)),
    "Hardswish and Hardsigmoid": Network("inverted-residual", (2, 3), "relu6", batch_norm=True, dropout=0.2),
    "torch's ReLU": Network("resnet-convolved-skips-stem-only", (2, 3), batch_norm=True),
}
#: Behind which layer each is, and how many kinds of counts it has.
WHERE = {
    "max pooling": {("MaxPool2d", "activation", 1): 2},
    "Hardswish and Hardsigmoid": {
        ("Hardswish", "batch norm", 2): 4,
        ("Hardswish", "linear layer", 2): 1,
        ("Hardsigmoid", "convolution", 2): 2,
    },
    "torch's ReLU": {("ReLU", "batch norm", 1): 2, ("ReLU", "residual sum", 1): 2},
}


def settings_of(name: str, arithmetic: str = "bfloat16 emulated (rounded)") -> Settings:
    return Settings(
        *("digits", NETWORKS[name], members_of([3], [1.0])),
        arithmetic=arithmetic,  # type: ignore[arg-type]
        epochs=2,
        batch_size=BATCH,
        train_samples=STEPS * BATCH,
        test_samples=20,
    )


def run_of(settings: Settings, **options: Any) -> ForkingExecutor:
    """The executor after all epochs."""
    train, test = (split_of(settings, split, None, CPU) for split in ("train", "test"))
    run = ForkingExecutor(settings, 3, train, test, CPU, **options)
    with deterministic(), settings.arithmetic.active():
        for epoch in range(settings.epochs):
            run.begin(epoch)
            for step in range(STEPS):
                run.step(step * BATCH, (step + 1) * BATCH, epoch * STEPS + step + 1)
            run.end()
    assert run.void is None
    return run


def rows(run: ForkingExecutor) -> list[dict[str, Any]]:
    return [result.to_json() for result in run.results.values()]


# ---------------------------------------------------------------- what is counted


def tied_windows(x: Tensor, kernel: int, stride: int, padding: int) -> int:
    """The number of windows with several maxima, one window after another."""
    found = 0
    for plane in x.flatten(0, 1).double().tolist():
        size = len(plane)
        ends = range(-padding, size + padding - kernel + 1, stride)
        for top in ends:
            for left in ends:
                inside = [
                    plane[row][column]
                    for row in range(max(0, top), min(size, top + kernel))
                    for column in range(max(0, left), min(size, left + kernel))
                ]
                found += inside.count(max(inside)) > 1
    return found


def at_kinks(dtype: torch.dtype) -> Tensor:
    """Numbers of which 5 are -3 and 3 are 3; Hardswish takes other inputs to -3 and 3 than these."""
    x = torch.linspace(-8, 8, 240).to(dtype)
    x[x.abs() == 3] = 1.0
    x[:5], x[7:10] = -3.0, 3.0
    return x.view(2, 3, 5, 8)


def check_kinks(make: Callable[[nn.Module, tuple[float, ...]], Counted], module: nn.Module, dtype: torch.dtype) -> None:
    counted = make(module, (-3.0, 3.0))
    counted.counts = torch.zeros(2, dtype=torch.int64)
    for times in (1, 2):  # counts add up
        leaf = at_kinks(dtype).requires_grad_()
        result = counted(leaf * 1)  # torchvision's modules write over their input
        assert counted.counts.tolist() == [5 * times, 3 * times]
        assert counted.elements == 240
    other = at_kinks(dtype).requires_grad_()
    expected = module(other * 1)
    assert torch.equal(result, expected)
    (mine,), (wanted,) = torch.autograd.grad(result.sum(), leaf), torch.autograd.grad(expected.sum(), other)
    assert torch.equal(mine, wanted)
    with torch.no_grad():
        counted(at_kinks(dtype))
    counted.eval()(at_kinks(dtype))
    assert counted.counts.tolist() == [10, 6], "only training forwards count"


MODULES = [nn.Hardswish(), nn.Hardswish(inplace=True), nn.Hardsigmoid(), nn.Hardsigmoid(inplace=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("module", MODULES, ids=str)
def test_hits_are_inputs_at_the_kinks(module: nn.Module, dtype: torch.dtype) -> None:
    check_kinks(Counted, module, dtype)


class CountsOutputs(Counted):
    """The seeded fault: it counts results that equal a kink."""

    def forward(self, x: Tensor) -> Tensor:
        counts, self.counts = self.counts, None
        result = super().forward(x)
        self.counts, self.elements = counts, x.numel()
        if counts is not None and self.training and torch.is_grad_enabled():
            counts += torch.stack([(result == at).sum() for at in self.kinks])
        return result


class CountsOneKink(Counted):
    """The seeded fault: it counts both kinks at the first one."""

    def __init__(self, module: nn.Module, kinks: tuple[float, ...]) -> None:
        super().__init__(module, kinks[:1] * 2)


class CountsAlways(Counted):
    """The seeded fault: it counts the forwards of an evaluation, too."""

    def forward(self, x: Tensor) -> Tensor:
        was = self.training
        with torch.enable_grad():
            result = Counted.forward(self.train(), x)
        self.train(was)
        return result


class ChangesGradient(Counted):
    """The seeded fault: hits have another gradient than torch's."""

    def forward(self, x: Tensor) -> Tensor:
        hit, copied = (x.detach() == 3).to(x.dtype), x * 1
        return super().forward(x) + hit * (copied - copied.detach())


@pytest.mark.parametrize("fault", [CountsOutputs, CountsOneKink, CountsAlways, ChangesGradient])
def test_faults_of_a_counter_are_seen(fault: type[Counted]) -> None:
    for module in MODULES:
        with pytest.raises(AssertionError):
            check_kinks(fault, module, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1)])
def test_ties_are_windows_with_several_maxima(kernel: int, stride: int, padding: int, dtype: torch.dtype) -> None:
    module = nn.MaxPool2d(kernel, stride, padding)
    counted = Counted(module, ())
    counted.counts = torch.zeros(1, dtype=torch.int64)
    x = torch.randint(-2, 6, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    result = counted(x)
    assert torch.equal(result, module(x))
    assert (counted.counts.tolist(), counted.elements) == ([tied_windows(x, kernel, stride, padding)], result.numel())
    assert 0 < int(counted.counts) < result.numel()


def test_without_a_place_for_counts_nothing_is_counted() -> None:
    counted = Counted(nn.Hardswish(), (-3.0, 3.0))
    counted(at_kinks(torch.float32).requires_grad_())
    assert (counted.counts, counted.elements) == (None, 0)


# ---------------------------------------------------------------- in training


@pytest.mark.parametrize("name", NETWORKS)
def test_every_place_that_no_subgradient_reaches_is_counted(name: str) -> None:
    """In the order of the sites, and nothing is counted twice."""
    settings = settings_of(name)
    model = training_model.build(settings, 3, Clock(3), Switch())
    places = unreached(settings.network)
    found: dict[tuple[str, str, int], int] = {}
    for site in places:
        key = (site.activation, site.before, len(site.kinds))
        found[key] = found.get(key, 0) + 1
    assert found == WHERE[name]
    assert [model.get_submodule(site.module) for site in places] == counters(model)
    assert [tuple(one.kinks) for one in counters(model)] == [site.kinks for site in places]
    assert len(layers(model)) + len(places) == len(sites(settings.network))
    assert not any(isinstance(one.module, Kinked) for one in counters(model))


def _watched(name: str, seen: list[dict[str, list[int]]]) -> Any:
    """Builds the model with hooks of torch on torch's own modules, which count the reference's hits and ties by epoch."""

    def build(settings: Settings, seed: int, clock: Clock, switch: Switch) -> nn.Module:
        model = training_model.build(settings, seed, clock, switch)
        if seen:
            return model
        seen.append({})

        def hook(site: Any, module: Any, inputs: Any) -> None:
            if not module.training:
                return
            epoch = (clock.step - 1) // STEPS
            while len(seen) <= epoch:
                seen.append({})
            x = inputs[0].detach()
            counts = [int((x.double() == at).sum()) for at in site.kinks]
            if not counts:
                windows = x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
                counts = [int(((windows == windows.amax(-1, keepdim=True)).sum(-1) > 1).sum())]
            before = seen[epoch].get(site.module, [0] * len(counts))
            seen[epoch][site.module] = [one + more for one, more in zip(before, counts, strict=True)]

        for site in unreached(settings.network):
            counted = model.get_submodule(site.module)
            assert isinstance(counted, Counted)
            counted.module.register_forward_pre_hook(functools.partial(hook, site))
        return model

    return build


@pytest.mark.parametrize("name", NETWORKS)
def test_counts_are_those_of_the_forwards_of_each_epoch(name: str) -> None:
    """Of the reference, which is trained by itself, beside counts in torch's own hooks."""
    settings = settings_of(name)
    seen: list[dict[str, list[int]]] = []
    run = run_of(settings, apart=True, model=_watched(name, seen))
    (reference,) = (result for result in run.results.values() if result.member.is_reference)
    places = unreached(settings.network)
    assert [epoch.hits for epoch in reference.unreached] == [[seen[at][site.module] for site in places] for at in (0, 1)]
    assert sum(count for epoch in reference.unreached for place in epoch.hits for count in place) > 0
    forwards = [epoch.elements for epoch in reference.unreached]
    assert forwards[0] == forwards[1]
    assert all(number % (STEPS * BATCH) == 0 for number in forwards[0])


def test_elements_are_pre_activations_or_windows() -> None:
    run = run_of(settings_of("max pooling"))
    assert [epoch.elements for epoch in run.results[0].unreached] == [[64 * 2 * 14 * 14, 64 * 3 * 5 * 5]] * 2
    run = run_of(settings_of("torch's ReLU"))
    assert [epoch.elements for epoch in run.results[0].unreached] == [[64 * 2 * 28 * 28] * 2 + [64 * 3 * 14 * 14] * 2] * 2


def _uncounted(settings: Settings, seed: int, clock: Clock, switch: Switch) -> nn.Module:
    """The same model with torch's own modules alone."""
    model = training_model.build(settings, seed, clock, switch)
    for site in unreached(settings.network):
        counted: Any = model.get_submodule(site.module)
        model.set_submodule(site.module, counted.module)
    assert not counters(model)
    return model


def check_same_training(name: str, model: Any = None, deferred: bool = False) -> None:
    """Parameters, buffers and results with counts are those without, bit for bit."""
    settings = settings_of(name)
    counted, plain = run_of(settings, model=model, deferred=deferred), run_of(settings, model=_uncounted)
    mine = rows(counted)
    assert [len(row.pop("unreached")) for row in mine] == [2] * len(mine)
    assert mine == rows(plain), "results differ"
    for one, other in zip(counted.branches, plain.branches, strict=True):
        assert one.members == other.members
        ours, theirs = one.model.state_dict(), other.model.state_dict()
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert torch.equal(value.view(-1).view(torch.uint8), theirs[key].view(-1).view(torch.uint8)), f"{key} differs"


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_counting_changes_no_bit_of_a_training(name: str, deferred: bool) -> None:
    check_same_training(name, deferred=deferred)


def test_a_counter_that_changes_training_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_model, "Counted", ChangesGradient)
    monkeypatch.setattr(ChangesGradient, "forward", lambda self, x: Counted.forward(self, x) * (1 + 2**-7))
    with pytest.raises(AssertionError, match="differ"):
        check_same_training("Hardswish and Hardsigmoid")


def check_forks(**options: Any) -> None:
    """Members that part within an epoch have the counts that they have by themselves."""
    settings = settings_of("max pooling", "bfloat16 emulated (product)")
    forked, apart = run_of(settings, model=_late, **options), run_of(settings, model=_late, apart=True)
    assert any(result.forked_at not in (None, 1) for result in forked.results.values()), "no fork within an epoch"
    ours, theirs = ([result.unreached for result in run.results.values()] for run in (forked, apart))
    assert ours == theirs
    assert ours[0] != ours[-1], "all members have equal counts, so nothing was tested"


def _late(settings: Settings, seed: int, clock: Clock, switch: Switch) -> nn.Module:
    """A model whose units of one layer are above 0 in steps 1 and 2, so that members part in the middle of an epoch."""
    model = training_model.build(settings, seed, clock, switch)

    def raised(module: nn.Module, inputs: Any) -> Any:
        late = clock.step > 2
        return None if late or not module.training else (inputs[0].abs() + 1,)

    for layer in layers(model):
        layer.register_forward_pre_hook(raised)
    return model


@pytest.mark.parametrize("deferred", [False, True])
def test_a_fork_takes_the_counts_along(deferred: bool) -> None:
    check_forks(deferred=deferred)


def test_a_fork_without_the_counts_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeded fault."""
    fork = Branch.fork

    def faulty(self: Branch, members: list[int]) -> Branch:
        other = fork(self, members)
        other._tallies.zero_()
        return other

    monkeypatch.setattr(Branch, "fork", faulty)
    with pytest.raises(AssertionError, match=r"ours == theirs|Unreached"):
        check_forks()


@pytest.mark.parametrize("name", NETWORKS)
def test_counts_of_recorded_steps_are_the_usual_ones(name: str) -> None:
    """Also where a replay is taken back, because it had hits and several choices."""
    settings = settings_of(name, "bfloat16 emulated (product)")
    assert rows(run_of(settings, deferred=True)) == rows(run_of(settings, deferred=False))


def test_a_replay_whose_counts_are_not_taken_back_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeded fault."""
    counted = Branch._counted
    monkeypatch.setattr(Branch, "_counted", lambda self: [one for one in counted(self) if one is not self._tallies])
    settings = settings_of("max pooling", "bfloat16 emulated (product)")
    assert rows(run_of(settings, deferred=True)) != rows(run_of(settings, deferred=False))


# ---------------------------------------------------------------- in results


def _result(epochs: int, unreached: list[Unreached]) -> MemberResult:
    run = run_of(settings_of("max pooling"))
    return dataclasses.replace(run.results[0], epochs=run.results[0].epochs[:epochs], unreached=unreached)


def test_results_hold_counts_only_where_there_are_any() -> None:
    counted, old = (
        MemberResult(Member(0, 0.0), unreached=[Unreached([[1, 2], [3]], [10, 20])]),
        MemberResult(Member(0, 0.0)),
    )
    assert "unreached" not in old.to_json()
    for one in (counted, old):
        assert MemberResult.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_an_old_result_has_the_same_reference_as_a_new_one() -> None:
    """What an old one lacks is not compared; other counts are another run."""
    new = _result(2, [Unreached([[1], [2]], [10, 20])] * 2)
    old, other = (
        dataclasses.replace(new, unreached=counts) for counts in ([], [*new.unreached[:1], Unreached([[1], [3]], [10, 20])])
    )
    parts = {name: SeedResult([one], None, 0.0, {}) for name, one in (("new", new), ("old", old), ("other", other))}
    assert seed_store.same_reference(parts["old"], parts["new"])
    assert seed_store.same_reference(parts["new"], parts["old"])
    assert seed_store.same_reference(parts["new"], parts["new"])
    assert not seed_store.same_reference(parts["new"], parts["other"])


def test_a_run_that_goes_on_from_an_old_checkpoint_has_no_counts() -> None:
    """Those of the later epochs alone would be read as those of the first ones."""
    counts = Unreached([[1], [2]], [10, 20])
    first, resumed = _result(1, []), _result(2, [])
    first.add_unreached(counts)
    assert first.unreached == [counts]
    resumed.add_unreached(counts)
    assert resumed.unreached == []


def test_networks_without_such_places_are_stored_as_before() -> None:
    settings = dataclasses.replace(settings_of("max pooling"), network=Network("convnet", (2,), batch_norm=True))
    assert unreached(settings.network) == ()
    assert all("unreached" not in row for row in rows(run_of(settings)))
