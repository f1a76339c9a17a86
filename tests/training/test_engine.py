"""Running a comparison: the control, divergence, bad input, progress."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from relucheck.data import DataFileError
from relucheck.errors import DeviceError, SettingsError
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.training.engine import train
from relucheck.training.forking import Branch, ForkingExecutor
from relucheck.training.members import Member, members_of
from relucheck.training.results.result import Result, SeedResult
from relucheck.training.settings import Optimiser, Settings
from relucheck.training.stacked.executor import StackedExecutor
from tests.helpers.training_case import SETTINGS, changed


@pytest.fixture(scope="module")
def unbroken() -> Result:
    return train(SETTINGS, progress=False)


def test_control_is_exactly_zero_and_members_differ(unbroken: Result) -> None:
    assert unbroken.void is None
    for seed in (3, 4):
        control, reference = unbroken.find(seed, 0.0, control=True), unbroken.find(seed, 0.0)
        steps = 3 * 8
        assert control.steps.step == list(range(1, steps + 1))
        assert control.steps.l1 == control.steps.l2 == control.steps.sum_difference == [0.0] * steps
        assert control.epochs == reference.epochs
        assert control.hits == reference.hits
        for rule in ("chain", "injected"):
            other = unbroken.find(seed, 1.0, rule)
            assert other.first_difference is not None
            at = other.steps.step.index(other.first_difference)
            assert other.steps.l1[at] > 0
            assert other.steps.l1[:at] == [0.0] * at
            assert all(one >= two for one, two in zip(other.steps.l1, other.steps.l2, strict=True))
            assert all(one >= two for one, two in zip(other.steps.l1, other.steps.sum_difference, strict=True))


def test_result_survives_json(unbroken: Result) -> None:
    for seed in SETTINGS.seeds:
        part = SeedResult([m for m in unbroken.members if m.member.seed == seed], None, 1.5, {"device": "cpu"})
        assert SeedResult.from_json(json.loads(json.dumps(part.to_json())), part.origin) == part


def test_settings_survive_json_and_have_a_digest() -> None:
    assert Settings.from_json(json.loads(json.dumps(SETTINGS.to_json()))) == SETTINGS
    other = changed(SETTINGS, optimiser=Optimiser(eps=1e-4))
    assert other.digest != SETTINGS.digest
    assert dataclasses.replace(other, optimiser=Optimiser()).digest == SETTINGS.digest


@pytest.mark.parametrize("bit", ["value", "sign of zero"])
def test_control_that_differs_makes_the_comparison_void(bit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seeded fault: the control's run is not deterministic, in one bit of one parameter at one step."""
    original, steps = Branch.update, 0

    def faulty(self: Branch, gradients: Any) -> None:
        nonlocal steps
        original(self, gradients)
        if SETTINGS.members[self.members[0]].control:
            steps += 1
            if steps == 11:
                with torch.no_grad():
                    bias = dict(self.model.named_parameters())["layers.3.bias"]
                    bias[5] = -0.0 if bit == "sign of zero" else bias[5] * (1 + 2**-7)
                    if bit == "sign of zero":
                        reference[0].parameters[3][5] = 0.0

    reference: list[Branch] = []
    begin = ForkingExecutor.begin

    def remembering(self: ForkingExecutor, epoch: int) -> None:
        reference[:] = [branch for branch in self.branches if self._reference_index in branch.members]
        begin(self, epoch)

    monkeypatch.setattr(Branch, "update", faulty)
    monkeypatch.setattr(ForkingExecutor, "begin", remembering)
    # the step of the fault is not one whose distances are recorded
    result = train(changed(SETTINGS, every=10), progress=False)
    # the second fault needs the reference to have been updated in the same step, which it was: it goes first
    assert result.void == "control differed at step 11 in parameter layers.3.bias (seed 3)"
    assert [member.outcome for member in result.members] == ["stopped: the comparison is void"] * len(result.members)
    assert len(result.find(3, 0.0).epochs) == 1  # of three: the fault is in the second
    assert result.find(4, 0.0).epochs == []


def test_plain_adam_in_float16_diverges_and_says_when() -> None:
    """eps = 1e-8 is 0 in float16, and where a gradient is 0 the first step is 0 / 0."""
    settings = changed(SETTINGS, arithmetic=Arithmetic.parse("float16"), epochs=1)
    assert settings.optimiser == Optimiser("adam", 1e-3, 1e-8)  # what a user gets who states nothing
    result = train(settings, progress=False)
    assert result.void is None
    for member in result.members:
        assert member.outcome == "diverged: non-finite at step 1"
        assert member.epochs == []
        assert member.steps.step == []
    stated = train(changed(settings, optimiser=Optimiser(eps=1e-4)), progress=False)
    assert {member.outcome for member in stated.members} == {"finished"}
    fused = train(changed(settings, optimiser=Optimiser(fused=True)), progress=False)
    # float32 inside: another run, and labelled so
    assert "diverged: non-finite at step 1" not in {member.outcome for member in fused.members}
    assert fused.settings.optimiser.label == "adam, lr 0.001, eps 1e-08, fused"
    assert fused.settings.optimiser.fused is True


def test_one_member_diverges_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Branch.update

    def exploding(self: Branch, gradients: Any) -> None:
        original(self, gradients)
        if SETTINGS.members[self.members[0]].rule == "injected" and self.flat.values[0] != 7:
            self.flat.values[3] = float("inf")

    monkeypatch.setattr(Branch, "update", exploding)
    result = train(SETTINGS, progress=False)
    assert result.void is None
    for member in result.members:
        if member.member.rule == "injected":
            assert member.outcome == f"diverged: non-finite at step {member.forked_at}"
            assert member.first_difference == member.forked_at
        else:
            assert member.outcome == "finished"
            assert len(member.epochs) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": -1}, "epochs=-1: must be a whole number of at least 1"),
        ({"epochs": True}, "epochs=True"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"data": "cifar"}, "data='cifar': must be one of digits, mnist, fashionmnist"),
        ({"network": (200, 200)}, "network=(200, 200): must be of class Network, for example Network("),
        ({"members": ()}, "members_of"),
        ({"members": (Member(0, 0.0),)}, "seed 0 has 0 members that are its control"),
        ({"members": (Member(0, 0.0, control=True), Member(0, 1.0))}, "seed 0 has 0 members that are its reference"),
        ({"members": (*members_of([0], [1]), Member(0, 1.0))}, "s = 1, chain, seed 0 is listed twice"),
        ({"train_samples": 0}, "train_samples=0"),
    ],
)
def test_bad_settings_are_refused_with_the_fix(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        dataclasses.replace(SETTINGS, **change)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Member(-1, 0.0), "seed=-1"),
        (lambda: Member(0, float("inf")), "subgradient=inf"),
        (lambda: Member(0, 0.0, "clarke"), "rule='clarke': must be one of chain, injected"),
        (lambda: Member(0, 1.0, control=True), "a control repeats the run of s = 0"),
        (lambda: Optimiser("lion"), "optimiser='lion'"),
        (lambda: Optimiser(lr=0), "lr=0: must be a finite number above 0"),
        (lambda: Optimiser(momentum=0.9), "Adam has none"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_parts_are_refused_with_the_fix(make: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert message in str(caught.value)


def test_bad_runs_are_refused_with_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="train_samples=5000: digits train has 2000 images"):
        train(changed(SETTINGS, train_samples=5000), progress=False)
    whole = changed(SETTINGS, train_samples=None, batch_size=43, epochs=4, every=189)
    with pytest.raises(SettingsError, match=r"every=189: the run has 188 steps .4 epochs of 47.*use at most 188"):
        train(whole, progress=False)
    with pytest.raises(SettingsError, match="executor='serial': must be one of forking, stacked"):
        train(SETTINGS, progress=False, executor="serial")
    with pytest.raises(DeviceError, match=r"device 'cuda:99' is not available here.*use device 'cpu'"):
        train(SETTINGS, progress=False, device="cuda:99")
    (tmp_path / "file").touch()
    with pytest.raises(DataFileError, match="data root"):
        train(changed(SETTINGS, data="mnist"), root=tmp_path / "file", progress=False)

    def greedy(self: ForkingExecutor, *rest: Any) -> None:
        torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr(ForkingExecutor, "step", greedy)
    with pytest.raises(DeviceError, match=r"no memory left on cpu for 4 members of 784-16-12-10 \(dropout 0\.1\).*fewer"):
        train(SETTINGS, progress=False)


def test_void_result_says_how_to_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def faulty(self: ForkingExecutor, number: int) -> None:
        self.void = "control differed at step 1 in parameter x (seed 3)"

    with monkeypatch.context() as patch:
        patch.setattr(ForkingExecutor, "_compare", faulty)
        made = train(SETTINGS, folder=tmp_path)
    says = f"nothing may be concluded from it: delete {tmp_path} to run it again"
    assert f"void: {made.void}; {says}" in capsys.readouterr().err
    assert train(SETTINGS, folder=tmp_path) == made  # read
    assert capsys.readouterr().err == f"void: {made.void}; {says}\n"


@pytest.mark.parametrize("executor", ["forking", "stacked"])
@pytest.mark.parametrize("strict", [False, True])
def test_determinism_and_arithmetic_are_on_in_every_step(
    executor: str, strict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, bool, bool]] = []
    kind: Any = {"forking": ForkingExecutor, "stacked": StackedExecutor}[executor]
    original = kind.step

    def reading(self: Any, *rest: int) -> None:
        reduced = Arithmetic.current(torch.bfloat16).reduction
        deterministic = torch.are_deterministic_algorithms_enabled()
        seen.append((deterministic, reduced, torch.utils.deterministic.fill_uninitialized_memory))
        original(self, *rest)

    monkeypatch.setattr(kind, "step", reading)
    before = torch.are_deterministic_algorithms_enabled(), Arithmetic.current(torch.bfloat16)
    other = dataclasses.replace(before[1], reduction=(strict, strict))  # the user has what the run must not have
    with other.active():
        settings = changed(SETTINGS, arithmetic="bfloat16 strict" if strict else "bfloat16", epochs=1)
        train(settings, progress=False, executor=executor)
    assert set(seen) == {(True, (not strict, not strict), False)}
    assert before == (torch.are_deterministic_algorithms_enabled(), Arithmetic.current(torch.bfloat16))


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: out of memory",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes",
    ],
)
def test_memory_errors_are_told_apart(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(self: ForkingExecutor, *rest: Any) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(ForkingExecutor, "step", greedy)
    with pytest.raises(DeviceError, match=r"no memory left on cpu.*fewer seeds"):
        train(SETTINGS, progress=False)


def test_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    train(changed(SETTINGS, members=members_of([3], [1.0])))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3  # one an epoch
    assert lines[0].startswith("digits bfloat16 emulated (product): seed 3 epoch 1/3 ")
    assert "8/24 steps" in lines[0]
    assert lines[2].endswith("0:00:00 left]")
