"""The forking executor as it works on CUDA against how it works on a CPU: the same results, bit for bit.

A recording is the work itself here (``relucheck.training.forking.captured``), so that everything but the CUDA graph is
tested without a GPU. ``test_on_cuda.py`` tests the graph.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from relucheck.networks import Network
from relucheck.numerics.determinism import deterministic
from relucheck.training import model as training_model
from relucheck.training.forking import Branch, ForkingExecutor, captured, comparing
from relucheck.training.forking import executor as forking
from relucheck.training.members import members_of
from relucheck.training.settings import Optimiser, Settings
from tests.helpers.training_case import changed
from tests.training import test_networks as networks
from tests.training.forking import test_executor as executors
from tests.training.forking import test_nudging as nudging

CPU = torch.device("cpu")
SETTINGS = executors.SETTINGS
dead_units = executors.dead_units  # a fixture


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What made the host wait for the device, in order."""
    found: list[str] = []

    def noting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            found.append(name)
            return original(*arguments)

        return noted

    for name in ("hit", "hits"):
        monkeypatch.setattr(Branch, name, noting(name, getattr(Branch, name)))
    for name in ("now", "read"):
        monkeypatch.setattr(comparing, name, noting(name, getattr(comparing, name)))
    return found


def _rows(run: ForkingExecutor) -> list[dict[str, Any]]:
    return [result.to_json() for result in run.results.values()]


def _check_same(run: Callable[..., ForkingExecutor]) -> ForkingExecutor:
    """The deferred run, after comparing everything that it leaves with the usual one."""
    usual, deferred = run(deferred=False), run(deferred=True)
    assert _rows(deferred) == _rows(usual)
    assert deferred.void == usual.void
    ours, theirs = executors._parameters(deferred), executors._parameters(usual)
    assert ours.keys() == theirs.keys()
    for index, values in ours.items():
        for name, value in values.items():
            bits, wanted = (one.contiguous().view(-1).view(torch.uint8) for one in (value, theirs[index][name]))
            assert torch.equal(bits, wanted), f"{name} of member {index}"
    return deferred


@pytest.mark.usefixtures("dead_units")
@pytest.mark.parametrize("variation", executors.VARIATIONS)
def test_deferred_equals_usual(variation: str) -> None:
    settings = changed(SETTINGS, **executors.VARIATIONS[variation])
    run = _check_same(functools.partial(executors._run, settings))
    assert any(result.forked_at for result in run.results.values()), "no fork, so nothing was tested"
    assert all(bool(branch._recorded) != settings.arithmetic.scaled for branch in run.branches)


@pytest.mark.usefixtures("dead_units")
def test_deferred_equals_usual_where_every_member_is_trained_by_itself() -> None:
    _check_same(functools.partial(executors._run, SETTINGS, apart=True))


@pytest.mark.parametrize("case", [*nudging.CASES, "float32"])
def test_nudges_are_the_same(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if case in nudging.DEAD:
        monkeypatch.setattr(forking, "build", functools.partial(nudging._dead, training_model.build))
    run = _check_same(functools.partial(executors._run, nudging._settings(case)))
    assert any(result.nudge is not None for result in run.results.values())


NETWORKS = {
    **networks.NETWORKS,
    "basic": Network("residual", (3, 3), batch_norm=True, dropout=0.2),
    "inverted": Network("inverted-residual", (2, 3), "relu6", batch_norm=True, dropout=0.2),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With mini-batches of two sizes, batch norm, dropout, two kinks, and convolutions rounded once."""
    monkeypatch.setitem(networks.NETWORKS, name, NETWORKS[name])
    settings = networks.settings_of(name, arithmetic="bfloat16 emulated (rounded)")

    def run(deferred: bool) -> ForkingExecutor:
        with monkeypatch.context() as patch:
            patch.setattr(networks, "ForkingExecutor", functools.partial(ForkingExecutor, deferred=deferred))
            return networks.run_of(settings, apart=False)

    _check_same(run)


def _late(settings: Settings, seed: int, clock: training_model.Clock, switch: training_model.Switch) -> nn.Module:
    """A model in which a unit is exactly 0 on some images, from step 7 on."""
    model: Any = training_model.build(settings, seed, clock, switch)

    def hits(module: nn.Module, inputs: Any, result: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros_like(result)
        mask[::3, 2] = float(module.training and clock.step >= 7)
        return result - (result * mask).detach()

    model.layers[2 if settings.network.batch_norm else 1].register_forward_hook(hits)
    return model


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_step_with_hits_is_computed_again_with_all_choices(batch_norm: bool, waits: list[str]) -> None:
    """Its replay, which counted the mini-batch and moved the statistics of batch norm, is taken back."""
    run = _check_same(functools.partial(executors._run, changed(SETTINGS, batch_norm=batch_norm, dropout=0.2), model=_late))
    assert {result.forked_at for result in run.results.values()} == {None, 7}
    assert all(len(epoch) == 2 for result in run.results.values() for epoch in result.hits)


def test_a_replay_that_is_not_taken_back_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeded fault."""
    monkeypatch.setattr(Branch, "undo", lambda self: None)
    with pytest.raises(AssertionError, match="hits"):
        _check_same(functools.partial(executors._run, SETTINGS, model=_late))


def _steps(run: ForkingExecutor, count: int) -> None:
    run.begin(0)
    for step in range(count):
        run.step(32 * step, 32 * step + 32, step + 1)


@pytest.mark.usefixtures("dead_units")
def test_the_host_waits_in_no_step_once_members_have_parted(waits: list[str]) -> None:
    train, test = executors._splits(SETTINGS)
    run = ForkingExecutor(SETTINGS, 3, train, test, CPU, deferred=True)
    run.begin(0)
    run.step(0, 32, 1)
    assert {len(branch.members) for branch in run.branches} == {1}
    waits.clear()
    for step in range(1, 4):
        run.step(32 * step, 32 * step + 32, step + 1)
    assert waits == []
    run.end()
    assert waits == ["read", *["hits"] * 6]


def test_a_shared_branch_reads_one_number_in_a_step(waits: list[str]) -> None:
    settings = changed(SETTINGS, arithmetic="float64")  # no hits
    train, test = executors._splits(settings)
    run = ForkingExecutor(settings, 3, train, test, CPU, deferred=True)
    run.begin(0)
    waits.clear()
    for step in range(3):
        run.step(32 * step, 32 * step + 32, step + 1)
    assert [len(branch.members) for branch in run.branches] == [5, 1]
    assert waits == ["hit"] * 3


def test_a_control_that_moves_is_found_at_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeded fault: a weight of the control moves by one ulp after step 2; then another one."""
    update, steps = Branch.update, [0]

    def faulty(self: Branch, gradients: Any) -> None:
        update(self, gradients)
        if self.settings.members[self.members[0]].control:
            steps[0] += 1
            if steps[0] >= 2:
                name = "layers.3.bias" if steps[0] == 2 else "layers.1.weight"
                dict(self.model.named_parameters())[name].data.view(torch.int32).view(-1)[2] += 1

    monkeypatch.setattr(Branch, "update", faulty)
    for deferred in (False, True):
        steps[0] = 0
        train, test = executors._splits(SETTINGS)
        run = ForkingExecutor(SETTINGS, 3, train, test, CPU, deferred=deferred)
        _steps(run, 2 if not deferred else 4)
        run.end()
        assert run.void == "control differed at step 2 in parameter layers.3.bias (seed 3)"
        assert not run.alive()
        assert {tuple(result.steps.step) for result in run.results.values()} == {(1,)}


def test_a_buffer_of_the_control_that_moves_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = changed(SETTINGS, batch_norm=True)
    update, steps = Branch.update, [0]

    def faulty(self: Branch, gradients: Any) -> None:
        update(self, gradients)
        if self.settings.members[self.members[0]].control:
            steps[0] += 1
            if steps[0] == 3:
                self.flat.buffers["layers.5.running_var"].view(torch.int32)[-1] += 1

    monkeypatch.setattr(Branch, "update", faulty)
    for deferred in (False, True):
        steps[0] = 0
        train, test = executors._splits(settings)
        run = ForkingExecutor(settings, 3, train, test, CPU, deferred=deferred)
        _steps(run, 3)
        run.end()
        assert run.void == "control differed at step 3 in buffer layers.5.running_var (seed 3)"


def test_a_member_that_diverged_does_not_fork_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared members diverge at step 2, unread; at step 3 they would have hits."""
    update, steps = Branch.update, [0]

    def diverging(self: Branch, gradients: Any) -> None:
        update(self, gradients)
        steps[0] += 1
        if steps[0] in (3, 4):  # both branches, in step 2
            dict(self.model.named_parameters())["layers.5.bias"].data[0] = float("inf")

    def run(deferred: bool) -> ForkingExecutor:
        steps[0] = 0
        return executors._run(SETTINGS, model=functools.partial(_hits_from, 3), deferred=deferred)

    monkeypatch.setattr(Branch, "update", diverging)
    found = _check_same(run)
    assert {result.outcome for result in found.results.values()} == {"diverged: non-finite at step 2"}
    assert {result.forked_at for result in found.results.values()} == {None}


def _hits_from(
    step: int, settings: Settings, seed: int, clock: training_model.Clock, switch: training_model.Switch
) -> nn.Module:
    model: Any = training_model.build(settings, seed, clock, switch)

    def hits(module: nn.Module, inputs: Any, result: torch.Tensor) -> torch.Tensor:
        return result * float(clock.step < step)

    model.layers[1].register_forward_hook(hits)
    return model


@pytest.mark.parametrize("name", ["adam", "sgd bfloat16"])
def test_work_whose_replay_has_other_bits_is_not_replayed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeded fault: a recorded gradient differs in its last bit."""
    record = captured._record

    def faulty(work: Callable[[], None], lane: captured.Lane) -> Callable[[], None]:
        return lambda: (record(work, lane)(), spoilt())[0]

    def spoilt() -> None:
        with torch.no_grad():
            touched[0].add_(2.0**-20)

    touched: list[torch.Tensor] = []
    monkeypatch.setattr(captured, "_record", faulty)
    settings = changed(SETTINGS, **executors.VARIATIONS.get(name, {}))
    train, test = executors._splits(settings)
    run = ForkingExecutor(settings, 3, train, test, CPU, deferred=True)
    branch = run.branches[0]
    touched.append(branch.loss)
    x, y = train.images[:32], train.labels[:32]
    before = [tensor.clone() for tensor in branch._counted()]
    assert not branch.replay(x, y, ((0.0, 0.0), "chain"), undoable=False)
    assert all(torch.equal(one, other) for one, other in zip(branch._counted(), before, strict=True))
    assert branch.samples == 0


def test_what_cannot_be_recorded_is_computed_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(captured, "_record", failing)
    with pytest.warns(RuntimeWarning, match=r"steps are not recorded on cpu.*slower: operation not permitted.*capturing$"):
        run = executors._run(SETTINGS, deferred=True)
    assert _rows(run) == _rows(executors._run(SETTINGS, deferred=False))


def test_a_fork_has_no_recordings_of_its_own_and_takes_the_counts_along() -> None:
    train, test = executors._splits(SETTINGS)
    run = ForkingExecutor(SETTINGS, 3, train, test, CPU, deferred=True)
    _steps(run, 2)
    branch = run.branches[0]
    other = branch.fork([1])
    assert len(branch._recorded) == 1
    assert other._recorded == {}
    assert other.hits() == branch.hits()
    assert other.samples == branch.samples == 64
    assert float(other.loss) == float(branch.loss)
    other.forward(train.images[:32], train.labels[:32])
    assert branch.samples == 64
    assert other.layers[0].counts is not branch.layers[0].counts


def test_masks_of_dropout_keep_their_place_where_steps_are_recorded() -> None:
    like = torch.empty(8, 5)
    usual, fixed = training_model.Clock(3), training_model.Clock(3, fixed=True)
    held = []
    for step in (1, 2, 3):
        for clock in (usual, fixed):
            clock.tick(step)
        fixed.refresh(8)
        if held:  # a replay reads it without asking
            assert torch.equal(held[0], usual.mask(1, 0.5, like))
        held.append(fixed.mask(1, 0.5, like))
        assert torch.equal(held[-1], usual.mask(1, 0.5, like))
    assert len({mask.data_ptr() for mask in held}) == 1


def test_progress_does_not_wait() -> None:
    train, test = executors._splits(SETTINGS)
    run = ForkingExecutor(SETTINGS, 3, train, test, CPU, deferred=True)
    _steps(run, 2)
    assert run.note() == "2 branches, loss -"
    run.end()
    assert run.note().startswith("2 branches, loss 2.")


@pytest.mark.usefixtures("dead_units")
@pytest.mark.parametrize("name", ["batch norm", "dropout", "shuffle", "sgd mixed float16", "late hits"])
def test_a_run_that_resumes_is_the_same(name: str) -> None:
    """From the state after the first epoch, as a checkpoint holds it."""
    settings = changed(SETTINGS, **executors.VARIATIONS.get(name, {}))
    model = _late if name == "late hits" else None
    whole = executors._run(settings, deferred=True, model=model)
    train, test = executors._splits(settings)
    steps = settings.steps_of(len(train))
    run = ForkingExecutor(settings, 3, train, test, CPU, deferred=True, model=model)
    with settings.arithmetic.active(), deterministic():
        for epoch in range(settings.epochs):
            run.begin(epoch)
            for step in range(steps):
                start = step * settings.batch_size
                stop = min(start + settings.batch_size, len(train))
                run.step(start, stop, epoch * steps + step + 1)
            run.end()
            buffer = io.BytesIO()
            torch.save(run.state(), buffer)
            run = ForkingExecutor(settings, 3, train, test, CPU, deferred=True, model=model)
            run.load(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    assert settings.epochs > 1
    assert any(result.forked_at for result in run.results.values())
    assert _rows(run) == _rows(whole)


def test_an_optimiser_that_diverges_by_rule_is_read_later() -> None:
    settings = changed(SETTINGS, arithmetic="float16", optimiser=Optimiser(), members=members_of([3], [1.0], nudges=2))
    _check_same(functools.partial(executors._run, settings))


def test_masks_are_drawn_before_a_replay_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA graph reads them without asking the clock."""
    record, replayed = captured._record, list[int]()

    def strict(work: Callable[[], None], lane: captured.Lane) -> Callable[[], None]:
        def replay() -> None:
            used = [key for key, mask in run.clock._masks.items() if len(mask) == 32]
            assert len(used) == 2
            assert {run.clock._drawn_at[key] for key in used} == {run.clock.step}
            replayed.append(run.clock.step)
            work()

        return replay if record(work, lane) else work

    monkeypatch.setattr(captured, "_record", strict)
    train, test = executors._splits(SETTINGS)
    settings = changed(SETTINGS, dropout=0.2, members=members_of([3], [1.0], nudges=1))
    run = ForkingExecutor(settings, 3, train, test, CPU, deferred=True)
    _steps(run, 3)
    assert set(replayed) == {1, 2, 3}
