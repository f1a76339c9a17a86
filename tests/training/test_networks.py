"""Trainings of networks that are no MLPs: a convolutional and a residual one, with batch norm, on the shipped digits."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from relucheck.bifurcation.subgradient import set_subgradient
from relucheck.errors import SettingsError
from relucheck.networks import Network
from relucheck.numerics.determinism import deterministic
from relucheck.training.engine import Interrupted, train
from relucheck.training.forking import Branch, DataSplit, ForkingExecutor
from relucheck.training.members import members_of
from relucheck.training.model import Kinked
from relucheck.training.settings import Settings
from relucheck.training.splits import split_of
from tests.helpers.training_case import changed, numbers

CPU = torch.device("cpu")
NETWORKS = {
    "convnet": Network("convnet", (3, 2)),  # with batch norm, which is rounded once here, no hit was met
    "convnet, dropout": Network("convnet", (3, 2), dropout=0.2),
    "residual": Network("residual", (3,), batch_norm=True),
    "residual, relu6, no bias": Network("residual", (3,), "relu6", batch_norm=True, bias=False),
    "lenet": Network("lenet", (2, 3, 8, 6)),
}
#: Activations behind each other, and numbers that each makes of one image.
ACTIVATIONS = {
    "convnet": (3 * 784, 2 * 784),
    "convnet, dropout": (3 * 784, 2 * 784),
    "residual": (3 * 784,) * 3,
    "residual, relu6, no bias": (3 * 784,) * 3,
    "lenet": (2 * 784, 3 * 100, 8, 6),
}


def settings_of(name: str, **changes: Any) -> Settings:
    base = Settings(
        *("digits", NETWORKS[name], members_of([3], [1.0])),
        arithmetic="bfloat16 emulated (product)",  # type: ignore[arg-type]
        epochs=2,
        batch_size=16,
        train_samples=56,
        test_samples=30,
        shuffle=True,
    )
    return changed(base, **changes)


def run_of(settings: Settings, *, apart: bool) -> ForkingExecutor:
    """The executor after all epochs."""
    data: list[DataSplit] = [split_of(settings, split, None, CPU) for split in ("train", "test")]
    run = ForkingExecutor(settings, settings.seeds[0], *data, CPU, apart=apart)
    steps = settings.steps_of(len(data[0]))
    with deterministic(), settings.arithmetic.active():
        for epoch in range(settings.epochs):
            run.begin(epoch)
            for step in range(steps):
                start = step * settings.batch_size
                run.step(start, min(start + settings.batch_size, len(data[0])), epoch * steps + step + 1)
            run.end()
    return run


def check_forking(name: str) -> None:
    """Members that are forked are, in every parameter and buffer, those that are trained by themselves."""
    forked, apart = (run_of(settings_of(name), apart=apart) for apart in (False, True))
    assert any(result.forked_at is not None for result in forked.results.values()), "no fork, so nothing was tested"
    ours, theirs = (
        {index: branch.model.state_dict() for branch in run.branches for index in branch.members} for run in (forked, apart)
    )
    assert ours.keys() == theirs.keys() == forked.results.keys()
    for index, values in ours.items():
        assert all(torch.equal(value, theirs[index][key]) for key, value in values.items()), f"member {index} differs"
    for result, other in zip(forked.results.values(), apart.results.values(), strict=True):
        assert dataclasses.replace(result, forked_at=None) == other


@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_is_trained(name: str) -> None:
    result = train(settings_of(name), progress=False)
    assert (result.executor, result.void) == ("forking", None)
    reference, control = result.find(3, 0.0), result.find(3, 0.0, control=True)
    assert control.first_difference is None
    assert (control.epochs, control.hits) == (reference.epochs, reference.hits)
    assert not any(control.steps.l2)
    chain, injected = (result.find(3, 1.0, rule) for rule in ("chain", "injected"))
    for member in (chain, injected):
        assert member.outcome == "finished"
        assert member.first_difference is not None
    assert chain.steps.l2 != injected.steps.l2
    kinks = len(NETWORKS[name].kinks)
    for member in result.members:
        assert member.activations == [[56 * count for count in ACTIVATIONS[name]]] * 2
        assert all(len(layer) == kinks for epoch in member.hits for layer in epoch)
        assert sum(count for epoch in member.hits for layer in epoch for count in layer) > 0


@pytest.mark.parametrize("name", ["convnet", "residual", "convnet, dropout"])
def test_forking_equals_every_member_by_itself(name: str) -> None:
    check_forking(name)


def test_shared_statistics_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeded fault: a fork keeps the buffers of batch norm of the branch that it leaves."""
    fork = Branch.fork

    def faulty(self: Branch, members: list[int]) -> Branch:
        other = fork(self, members)
        for name, module in other.model.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean = self.model.get_submodule(name).running_mean
        return other

    monkeypatch.setattr(Branch, "fork", faulty)
    with pytest.raises(AssertionError, match=r"differs|=="):
        check_forking("residual")


def test_a_control_that_moves_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeded fault: one weight of a convolution of the control moves by one ulp after step 3."""
    update = Branch.update
    steps = [0]

    def faulty(self: Branch, gradients: Any) -> None:
        update(self, gradients)
        if self.settings.members[self.members[0]].control:
            steps[0] += 1
            if steps[0] == 3:
                weight = dict(self.model.named_parameters())["blocks.0.conv2.weight"].data
                weight.view(torch.int16)[0, 0, 0, 0] += 1

    monkeypatch.setattr(Branch, "update", faulty)
    void = train(settings_of("residual"), progress=False).void
    assert void == "control differed at step 3 in parameter blocks.0.conv2.weight (seed 3)"


@pytest.mark.parametrize("name", ["convnet", "residual"])
def test_a_resumed_run_ends_bitwise_equal(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(name)
    whole = train(settings, progress=False)
    begin = ForkingExecutor.begin

    def stopping(self: ForkingExecutor, epoch: int) -> None:
        if epoch == 1:
            raise KeyboardInterrupt
        begin(self, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(ForkingExecutor, "begin", stopping)
        with pytest.raises(Interrupted, match="kept"):
            train(settings, progress=False, folder=tmp_path)
    assert numbers(train(settings, progress=False, folder=tmp_path)) == numbers(whole)


@pytest.mark.parametrize("name", ["convnet", "residual"])
@pytest.mark.parametrize("subgradient", [0.0, 1.0])
def test_chain_is_a_plain_loop_with_public_modules(name: str, subgradient: float) -> None:
    settings = settings_of(name, shuffle=False)
    run = run_of(settings, apart=False)
    data = split_of(settings, "train", None, CPU)
    plain = settings.network.draw(3, settings.arithmetic, drawn=torch.float32)
    set_subgradient(plain, subgradient)
    optimiser = torch.optim.Adam(plain.parameters(), lr=1e-3)
    with deterministic():
        for _ in range(settings.epochs):
            for x, y in zip(data.images.split(16), data.labels.split(16), strict=True):
                optimiser.zero_grad()
                nn.functional.cross_entropy(plain(x), y).backward()
                optimiser.step()
    index = next(
        i for i, m in enumerate(settings.members) if (m.subgradient, m.rule, m.control) == (subgradient, "chain", False)
    )
    (branch,) = (branch for branch in run.branches if index in branch.members)
    expected = plain.state_dict()
    assert branch.model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in branch.model.state_dict().items())


def test_activations_of_members_are_kinked_and_share_a_switch() -> None:
    (branch, *_) = run_of(settings_of("residual", epochs=1, every=1), apart=False).branches
    kinked = [module for module in branch.model.modules() if isinstance(module, Kinked)]
    assert kinked == branch.layers
    assert len({id(layer.switch) for layer in kinked}) == 1
    assert copy.deepcopy(branch.model).activation.switch is not branch.switch


@pytest.mark.parametrize("network", [*NETWORKS.values(), Network("mlp", (4,), bias=False)], ids=str)
def test_what_cannot_be_stacked_is_refused_by_name(network: Network) -> None:
    settings = dataclasses.replace(settings_of("convnet"), network=network)
    with pytest.raises(
        SettingsError, match=r"only an mlp with biases can; use the forking executor, which runs any"
    ) as error:
        train(settings, progress=False, executor="stacked")
    assert str(error.value).startswith(f"{network} cannot be stacked")


@pytest.mark.parametrize(
    "network",
    [
        Network("convnet", (2,), input_shape=(1, 14, 14)),
        Network("mlp", (2,), input_shape=(100,)),
        Network("mlp", (2,), classes=9),
    ],
    ids=str,
)
def test_a_network_that_does_not_fit_the_data_is_refused(network: Network) -> None:
    settings = dataclasses.replace(settings_of("convnet"), network=network)
    message = r"network=.*digits has images of 784 pixels and classes 0 to 9; change its input_shape or classes"
    with pytest.raises(SettingsError, match=message):
        train(settings, progress=False)


def test_images_have_the_shape_that_the_network_takes() -> None:
    flat, image = (
        split_of(settings_of("convnet", kind=kind, widths=(2,)), "train", None, CPU).images for kind in ("mlp", "residual")
    )
    assert (flat.shape, image.shape) == ((56, 784), (56, 1, 28, 28))
    assert torch.equal(flat, image.flatten(1))
