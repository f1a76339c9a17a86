"""The stacked executor, on the CPU: its control, and its agreement with the forking one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from relucheck.networks import Network
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.training import model as training_model
from relucheck.training.engine import train
from relucheck.training.forking import executor as training_forking
from relucheck.training.members import members_of
from relucheck.training.model import ExecutorError
from relucheck.training.optimisation import optimisers as training_optimisers
from relucheck.training.settings import Optimiser, Settings
from relucheck.training.splits import split_of
from relucheck.training.stacked import executor as training_stacked
from relucheck.training.stacked import layers as stacked_layers
from relucheck.training.stacked.executor import StackedExecutor, alone_on
from tests.helpers.training_case import changed

SETTINGS = Settings(
    "digits",
    Network("mlp", (16, 12)),
    members_of([3, 4], [-0.5, 1.0]),
    arithmetic=Arithmetic.parse("float64"),
    optimiser=Optimiser(eps=1e-4),
    epochs=2,
    batch_size=32,
    train_samples=144,
    test_samples=60,
)
VARIATIONS: dict[str, dict[str, Any]] = {
    "float64": {},
    "fused": {"optimiser": Optimiser(eps=1e-4, fused=True)},
    "sgd": {"optimiser": Optimiser("sgd", lr=0.1, momentum=0.9)},
    "sgd fused": {"optimiser": Optimiser("sgd", lr=0.1, momentum=0.9, fused=True)},
    "every third step": {"every": 3},
    "batch norm": {"batch_norm": True},
    "dropout, shuffle": {"dropout": 0.2, "shuffle": True},
    "relu6": {"activation": "relu6", "members": members_of([3, 4], [-0.5, 1.0], second=0.5)},
    "leaky_relu": {"activation": "leaky_relu"},
    "float32": {"arithmetic": Arithmetic.parse("float32")},
    "tf32": {"arithmetic": Arithmetic.parse("float32 emulated (tf32)")},
    "rounded": {"arithmetic": Arithmetic.parse("bfloat16 emulated (rounded)")},
    "by layer": {"arithmetic": Arithmetic.parse("bfloat16 emulated (rounded; layer 1 forward: split-k 4)")},
    "mixed float16": {"arithmetic": Arithmetic.parse("mixed float16")},
    "mixed float16 sgd": {"arithmetic": Arithmetic.parse("mixed float16"), "optimiser": Optimiser("sgd", lr=0.1)},
}


@pytest.mark.parametrize("variation", VARIATIONS)
def test_stacked_is_the_forking_run_but_for_rounding(variation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = changed(SETTINGS, **VARIATIONS[variation])
    _dead_units(monkeypatch)
    stacked, forked = (train(settings, progress=False, executor=name) for name in ("stacked", "forking"))
    assert stacked.void is forked.void is None
    wide = settings.arithmetic.dtype == torch.float64
    for ours, theirs in zip(stacked.members, forked.members, strict=True):
        assert ours.activations == theirs.activations
        assert ours.first_difference == theirs.first_difference
        assert ours.steps.step == theirs.steps.step
        if wide:
            assert ours.hits == theirs.hits
            assert ours.steps.l1 == pytest.approx(theirs.steps.l1, rel=1e-6, abs=1e-9)
            assert ours.steps.l2 == pytest.approx(theirs.steps.l2, rel=1e-6, abs=1e-9)
            assert ours.steps.sum_difference == pytest.approx(theirs.steps.sum_difference, rel=1e-6, abs=1e-9)
        for one, other in zip(ours.epochs, theirs.epochs, strict=True):
            assert one.train_loss == pytest.approx(other.train_loss, rel=1e-9 if wide else 0.02)
            assert one.test_loss == pytest.approx(other.test_loss, rel=1e-9 if wide else 0.02)
            assert not wide or one.test_batch_accuracies == other.test_batch_accuracies
    assert any(member.first_difference is not None for member in stacked.members)


def _dead_units(monkeypatch: pytest.MonkeyPatch) -> None:
    original = training_model.build

    def build(settings: Settings, *rest: Any) -> Any:
        model: Any = original(settings, *rest)
        with torch.no_grad():
            model.layers[1].weight[2:4].zero_()
            model.layers[1].bias[2] = 6.0 if settings.network.activation == "relu6" else 0.0
            model.layers[1].bias[3] = 0.0
        return model

    monkeypatch.setattr(training_forking, "build", build)
    monkeypatch.setattr(training_stacked, "build", build)


RESUMED: dict[str, dict[str, Any]] = {
    "bfloat16": {"arithmetic": Arithmetic.parse("bfloat16 emulated (product)")},
    "float16": {"arithmetic": Arithmetic.parse("float16 emulated (product)")},
    "float32 batch norm": {"arithmetic": Arithmetic.parse("float32"), "batch_norm": True},
    "mixed float16": {"arithmetic": Arithmetic.parse("mixed float16")},
    "mixed float16 sgd": {
        "arithmetic": Arithmetic.parse("mixed float16"),
        "optimiser": Optimiser("sgd", lr=0.1, momentum=0.9),
        "batch_norm": True,
    },
}


@pytest.mark.parametrize("variation", RESUMED)
def test_control_is_zero_and_a_broken_run_resumes(variation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = changed(SETTINGS, dropout=0.1, shuffle=True, **RESUMED[variation])
    _dead_units(monkeypatch)
    unbroken = train(settings, progress=False, executor="stacked")
    assert unbroken.void is None
    for seed in (3, 4):
        assert set(unbroken.find(seed, 0.0, control=True).steps.l1) == {0.0}
        assert unbroken.find(seed, 1.0).first_difference is not None
    original, count = StackedExecutor.step, 0

    def broken(self: StackedExecutor, start: int, stop: int, number: int) -> None:
        nonlocal count
        count += 1
        if count == 8:
            raise RuntimeError("broken off")
        original(self, start, stop, number)

    with monkeypatch.context() as patch:
        patch.setattr(StackedExecutor, "step", broken)
        with pytest.raises(RuntimeError, match="broken off"):
            train(settings, folder=tmp_path, progress=False, executor="stacked")
    resumed = train(settings, folder=tmp_path, progress=False, executor="stacked")
    assert dataclasses.replace(resumed, wall_s=0.0) == dataclasses.replace(unbroken, wall_s=0.0)


BITWISE: dict[str, dict[str, Any]] = {
    "float64": {},
    "float32": {"arithmetic": Arithmetic.parse("float32")},
    "bfloat16": {"arithmetic": Arithmetic.parse("bfloat16")},
    "float16": {"arithmetic": Arithmetic.parse("float16")},
    "mixed bfloat16": {"arithmetic": Arithmetic.parse("mixed bfloat16")},
    "sgd in bfloat16": {"arithmetic": Arithmetic.parse("bfloat16"), "optimiser": Optimiser("sgd", lr=0.1, momentum=0.9)},
    "fused": {"optimiser": Optimiser(eps=1e-4, fused=True)},
    "batch norm": {"arithmetic": Arithmetic.parse("float32"), "batch_norm": True},
    "dropout, shuffle": {"arithmetic": Arithmetic.parse("float32"), "dropout": 0.2, "shuffle": True},
    "relu6": {"arithmetic": Arithmetic.parse("float32"), "activation": "relu6"},
    "leaky_relu": {"arithmetic": Arithmetic.parse("float32"), "activation": "leaky_relu"},
}


@pytest.mark.parametrize("variation", BITWISE)
def test_products_made_member_by_member_are_those_of_the_forking_run(
    variation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, parameters and hits, in every step: what 16-bit products on CUDA are made with."""
    settings = changed(SETTINGS, **BITWISE[variation])
    _dead_units(monkeypatch)
    device = torch.device("cpu")
    data = [split_of(settings, split, None, device) for split in ("train", "test")]
    stacked = StackedExecutor(settings, (3,), *data, device, alone=True)
    forking = training_forking.ForkingExecutor(settings, 3, *data, device)
    for epoch in range(2):
        stacked.begin(epoch)
        forking.begin(epoch)
        for step in range(5):
            for run in (stacked, forking):
                run.step(32 * step, min(144, 32 * step + 32), 5 * epoch + step + 1)
            for branch in forking.branches:
                theirs = dict(branch.model.named_parameters())
                for position in map(stacked.indices.index, branch.members):
                    for name, ours in stacked.parameters.items():
                        assert torch.equal(ours[position], theirs[name]), (epoch, step, name, position)
                    assert stacked.hits[:, :, position].tolist() == branch.hits()
    assert len(forking.branches) > 2, "nothing was compared"


def test_16_bit_products_on_cuda_are_made_member_by_member() -> None:
    """Where batched ones heed no switch; decided by what is multiplied."""
    alone = {
        *(Arithmetic.parse("bfloat16"), Arithmetic.parse("float16 strict")),
        *(Arithmetic.parse("mixed bfloat16"), Arithmetic.parse("mixed float16 strict")),
    }
    batched = {
        *(Arithmetic.parse("float32"), Arithmetic.parse("float32 TF32"), Arithmetic.parse("float64")),
        *(Arithmetic.parse("bfloat16 emulated (product)"), Arithmetic.parse("float16 emulated (split-k 4)")),
    }
    assert all(alone_on(one, "cuda") for one in alone)
    assert not any(alone_on(one, "cuda") for one in batched)
    assert not any(alone_on(one, "cpu") for one in alone | batched)


def test_the_executor_asks_what_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """And makes every product member by member where it says so."""
    device = torch.device("cpu")
    data = [split_of(SETTINGS, split, None, device) for split in ("train", "test")]
    asked: list[str] = []
    calls: list[str] = []

    def alone(_: Arithmetic, kind: str) -> bool:
        asked.append(kind)
        return True

    def counted(name: str, original: Any) -> Any:
        return lambda *rest: calls.append(name) or original(*rest)

    monkeypatch.setattr(training_stacked, "alone_on", alone)
    monkeypatch.setattr(F, "linear", counted("linear", F.linear))
    monkeypatch.setattr(torch, "baddbmm", counted("baddbmm", torch.baddbmm))
    run = StackedExecutor(SETTINGS, (3,), *data, device)
    run.begin(0)
    run.step(0, 32, 1)
    assert asked == ["cpu"]
    assert calls == ["linear"] * 3 * len(run.indices)


@pytest.mark.parametrize("mixed", [None, "bfloat16"])
def test_members_parts_are_aligned_alike(mixed: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """cuBLASLt chooses its kernel by the alignment of what it is given."""
    places: list[tuple[int, ...]] = []
    original = F.linear

    def linear(*given: torch.Tensor) -> torch.Tensor:
        places.append(tuple(tensor.data_ptr() % 256 for tensor in given))
        return original(*given)

    monkeypatch.setattr(stacked_layers.F, "linear", linear)
    random = torch.Generator().manual_seed(0)
    shapes = ((7, 3, 5), (7, 10, 5), (7, 10))
    x, weight, bias = (torch.randn(shape, generator=random, requires_grad=True) for shape in shapes)
    result = stacked_layers.linear_apart(x, weight, bias, mixed)
    assert len(set(places)) == 1, "every member's parts lie alike"
    dtype = torch.bfloat16 if mixed else torch.float32
    # copies begin where memory is allocated, as modules' own parameters do; on some CPUs, too, the bits depend on it
    apart = [[part.to(dtype).clone() for part in own] for own in zip(x, weight, bias, strict=True)]
    expected = torch.stack([original(*own) for own in apart])
    assert torch.equal(result, expected)
    cotangent = torch.randn(result.shape, generator=random).to(dtype)
    ours, theirs = (torch.autograd.grad(y, (x, weight, bias), cotangent) for y in (result, expected))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_scaled_gradients_are_the_forking_ones() -> None:
    """Mixed float16, where the optimisers differ by rounding: the gradients of one step, bit for bit."""
    settings = changed(SETTINGS, arithmetic=Arithmetic.parse("mixed float16"))
    device = torch.device("cpu")
    data = [split_of(settings, split, None, device) for split in ("train", "test")]
    stacked = StackedExecutor(settings, (3,), *data, device, alone=True)
    forking = training_forking.ForkingExecutor(settings, 3, *data, device, apart=True)
    taken: list[Any] = []
    stacked.optimiser.step = taken.extend  # type: ignore[method-assign]
    for branch in forking.branches:
        branch.update = lambda gradients, own=branch: taken.append((own.members[0], gradients))  # type: ignore[method-assign]
    for run in (stacked, forking):
        run.begin(0)
        run.step(0, 32, 1)
    ours, theirs = taken[: len(stacked.parameters)], taken[len(stacked.parameters) :]
    assert len(theirs) == len(stacked.indices)
    for index, gradients in theirs:
        for one, other in zip(ours, gradients, strict=True):
            assert torch.equal(one[stacked.indices.index(index)], other)


def test_controls_come_last() -> None:
    device = torch.device("cpu")
    data = [split_of(SETTINGS, split, None, device) for split in ("train", "test")]
    run = StackedExecutor(SETTINGS, (3, 4), *data, device)
    assert sorted(run.indices) == list(range(len(SETTINGS.members)))
    assert [SETTINGS.members[index].control for index in run.indices] == [False] * (len(run.indices) - 2) + [True] * 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize(
    "optimiser",
    [
        Optimiser(kind, 0.1 if kind == "sgd" else 1e-3, eps=1e-4, momentum=momentum, fused=fused)
        for kind, momentum in (("adam", 0.0), ("sgd", 0.0), ("sgd", 0.9))
        for fused in (False, True)
    ],
    ids=lambda optimiser: optimiser.label,
)
def test_members_take_the_same_steps_wherever_they_are(optimiser: Optimiser, dtype: str) -> None:
    """In 16 bits torch's SGD, and in 32 and 64 its fused Adam, round the tail of a tensor by itself on a CPU."""
    settings = changed(SETTINGS, optimiser=optimiser, arithmetic=dtype)
    random = torch.Generator().manual_seed(0)

    def drawn() -> list[torch.Tensor]:
        shapes = ((10, 50), (13, 9), (10,), (7,))
        made = [torch.randn(shape, generator=random, dtype=torch.float32) for shape in shapes]
        return [value.to(settings.arithmetic.dtype).expand(5, *value.shape).contiguous() for value in made]

    parameters = drawn()
    made = training_optimisers.make(settings, parameters)
    for _ in range(200):
        made.step(drawn())
    for value in parameters:
        assert torch.equal(value, value[:1].expand_as(value))


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_scaled_members_take_the_same_steps_wherever_they_are(kind: str) -> None:
    optimiser = Optimiser(kind, momentum=0.9 if kind == "sgd" else 0.0)
    settings = changed(SETTINGS, optimiser=optimiser, arithmetic=Arithmetic.parse("mixed float16"))
    random = torch.Generator().manual_seed(0)
    parameters = [torch.randn(shape, generator=random).expand(11, *shape).contiguous() for shape in ((13, 9), (7,))]
    made = training_optimisers.make(settings, parameters)
    for _ in range(100):
        made.step([1e5 * torch.randn(p.shape[1:], generator=random).expand_as(p) for p in parameters])
    for value in parameters:
        assert torch.equal(value, value[:1].expand_as(value))


def test_a_default_device_is_no_place_for_the_trial() -> None:
    """There optimisers would make their counts of steps, which have no values on the meta device."""
    training_optimisers._tried.cache_clear()
    parameters = [torch.zeros(2, 3)]
    with torch.device("meta"):
        assert training_optimisers._passes(training_optimisers._stacked_trial, Optimiser(), parameters)
    training_optimisers._tried.cache_clear()


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_fused_optimisers_step_member_by_member_untried(kind: str) -> None:
    """float16's first moment, for one, differs by place only after a hundred steps, which no trial waits for."""
    parameters = [torch.zeros(3, 5, dtype=torch.float16)]
    settings = changed(SETTINGS, optimiser=Optimiser(kind, fused=True), arithmetic=Arithmetic.parse("float16"))
    made = training_optimisers.make(settings, parameters)
    assert isinstance(made, training_optimisers.Stacked)
    assert made.apart
    assert [tuple(parameter.shape) for parameter in made.parameters] == [(5,)] * 3


class _Faulty(torch.optim.SGD):
    """Steps the last element of every tensor a little further."""

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.view(-1)[-1] += 1e-6


def test_an_optimiser_that_goes_by_place_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = [torch.zeros(shape, dtype=torch.float64) for shape in ((4, 3, 2), (4, 3))]

    def alike() -> bool:
        training_optimisers._tried.cache_clear()
        return training_optimisers._passes(training_optimisers._stacked_trial, Optimiser("sgd", 0.1), parameters)

    assert alike()
    monkeypatch.setattr(training_optimisers, "make_optimiser", lambda chosen, parameters: _Faulty(parameters, lr=chosen.lr))
    assert not alike()
    training_optimisers._tried.cache_clear()


def test_fault_in_the_control_makes_the_comparison_void(monkeypatch: pytest.MonkeyPatch) -> None:
    original = StackedExecutor._compare

    def faulty(self: StackedExecutor, number: int) -> None:
        if number == 7:
            control = int(self.controls[1])  # of seed 4
            self.parameters["layers.3.bias"].data[control, 5] *= 1 + 2**-52
        original(self, number)

    monkeypatch.setattr(StackedExecutor, "_compare", faulty)
    # the step of the fault is not one whose distances are recorded
    result = train(changed(SETTINGS, every=3), progress=False, executor="stacked")
    assert result.void == "control differed at step 7 in parameter layers.3.bias (seed 4)"
    assert all(member.outcome == "stopped: the comparison is void" for member in result.members)


def test_divergence_is_recorded_and_ends_a_member(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = changed(SETTINGS, arithmetic=Arithmetic.parse("float16"), optimiser=Optimiser())
    stacked, forked = (train(settings, progress=False, executor=name) for name in ("stacked", "forking"))
    assert stacked.void is forked.void is None
    for result in (stacked, forked):
        for member in result.members:
            assert member.outcome == "diverged: non-finite at step 1"
            assert member.epochs == []
            assert member.steps.step == []
            assert member.first_difference is None


def test_what_cannot_be_stacked_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    original = training_model.build

    def build(*rest: Any) -> Any:
        model: Any = original(*rest)
        model.add_module("soft", nn.Softplus())
        return model

    monkeypatch.setattr(training_stacked, "build", build)
    with pytest.raises(ExecutorError, match=r"Softplus 'soft' cannot be stacked, only Flatten, Linear.*use the forking"):
        train(SETTINGS, progress=False, executor="stacked")


def test_test_loss_is_computed_from_wide_logits() -> None:
    settings = changed(SETTINGS, arithmetic=Arithmetic.parse("bfloat16"))
    _, test = (split_of(settings, split, None, torch.device("cpu")) for split in ("train", "test"))
    run = StackedExecutor(settings, (3,), test, test, torch.device("cpu"))
    run.begin(0)
    run.step(0, 32, 1)
    run.end()
    with torch.no_grad():
        logits = run._forward(test.images, training=False)
    for position, result in enumerate(run.results.values()):
        loss = F.cross_entropy(logits[position].double(), test.labels)
        assert result.epochs[0].test_loss == pytest.approx(float(loss), rel=1e-6)
        assert result.epochs[0].test_loss != float(F.cross_entropy(logits[position], test.labels))
