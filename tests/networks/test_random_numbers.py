"""Random numbers of MobileNetV3: initialisation, batch order and dropout come from one seed, equal across members."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relucheck.networks import Network
from relucheck.networks.mobilenet import MOBILENET_V3_SMALL
from relucheck.numerics.determinism import deterministic
from relucheck.training.batches import Batches, DataSplit
from relucheck.training.forking import ForkingExecutor
from relucheck.training.members import members_of
from relucheck.training.model import Clock, SharedDropout, Switch, build
from relucheck.training.settings import Settings

SETTINGS = Settings(
    "MNIST",
    Network("mobilenet-v3-small", MOBILENET_V3_SMALL, batch_norm=True, dropout=0.5),
    members_of([3], [1.0]),
    batch_size=6,
    shuffle=True,
)
IMAGES = torch.rand(18, 1, 28, 28, generator=torch.Generator().manual_seed(0))
SPLIT = DataSplit(IMAGES, torch.arange(18) % 10)
CPU = torch.device("cpu")


def masks(model: nn.Module) -> list[Tensor]:
    """What the dropout of a model drops in one training forward."""
    seen: list[Tensor] = []
    (dropout,) = (module for module in model.modules() if isinstance(module, SharedDropout))
    handle = dropout.register_forward_hook(lambda module, args, output: seen.append((output == 0) & (args[0] != 0)))
    model.train()(IMAGES[:6])
    handle.remove()
    return seen


def test_a_training_forward_leaves_the_random_state_of_the_process_alone() -> None:
    model = build(SETTINGS, 3, Clock(3), Switch()).train()
    state = torch.get_rng_state()
    model(IMAGES[:6]).sum().backward()
    assert torch.equal(torch.get_rng_state(), state)


def test_members_of_a_seed_share_masks_and_others_do_not() -> None:
    clock = Clock(3)
    one, other = (build(SETTINGS, 3, clock, Switch()) for _ in range(2))
    stranger = build(SETTINGS, 3, Clock(4), Switch())
    found: dict[str, Tensor] = {}
    for step in (1, 2, 1):
        clock.tick(step)
        (mask,), (same,) = masks(one), masks(other)
        assert 0.4 < float(mask.float().mean()) < 0.6
        assert torch.equal(mask, same)
        assert step not in found or torch.equal(found[f"step {step}"], mask)
        found[f"step {step}"] = mask
    stranger_clock = next(m.clock for m in stranger.modules() if isinstance(m, SharedDropout))
    stranger_clock.tick(1)
    (found["another seed"],) = masks(stranger)
    assert not torch.equal(found["step 1"], found["step 2"])
    assert not torch.equal(found["step 1"], found["another seed"])


def test_initialisation_depends_on_the_seed_alone() -> None:
    models = []
    for seed in (3, 3, 4):
        torch.rand(5)  # the process's random numbers have gone on
        models.append(build(SETTINGS, seed, Clock(seed), Switch()).state_dict())
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())
    assert any(not torch.equal(value, models[2][name]) for name, value in models[0].items())


def test_the_batch_order_depends_on_the_seed_and_the_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> Tensor:
        torch.rand(5)
        batches = Batches(SETTINGS, (seed,), SPLIT)
        batches.begin(epoch)
        assert batches.order is not None
        assert torch.equal(batches.of(0, 6)[0][0], IMAGES[batches.order[0, :6]])
        return batches.order[0]

    assert torch.equal(order(3, 0), order(3, 0))
    assert sorted(order(3, 0).tolist()) == list(range(18))
    assert not torch.equal(order(3, 0), order(3, 1))
    assert not torch.equal(order(3, 0), order(4, 0))


def void(**options: Any) -> str | None:
    """Why a comparison of three steps is void: reference and control are trained one after the other in each step."""
    with deterministic():
        run = ForkingExecutor(SETTINGS, 3, SPLIT, SPLIT, CPU, **options)
        run.begin(0)
        for step in range(3):
            if run.alive():
                run.step(6 * step, 6 * step + 6, step + 1)
        if run.alive():
            run.end()  # a reading of the control that is still outstanding
    return run.void


def test_members_of_one_seed_are_one_run() -> None:
    assert void() is None
    assert void(apart=True) is None


def hidden_generator(settings: Settings, seed: int, clock: Clock, switch: Switch) -> nn.Module:
    """A seeded fault: dropout as torchvision has it, which draws from the process's generator."""
    model = build(settings, seed, clock, switch)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, SharedDropout):
                setattr(parent, name, nn.Dropout(0.5))
    return model


def own_initialisation(settings: Settings, seed: int, clock: Clock, switch: Switch) -> nn.Module:
    """A seeded fault: every member is initialised with the numbers that come next."""
    return build(settings, int(torch.randint(2**31, ())), clock, switch)


@pytest.mark.parametrize("fault", [hidden_generator, own_initialisation])
def test_a_generator_that_members_do_not_share_makes_the_comparison_void(fault: Any) -> None:
    why = void(model=fault)
    assert why is not None
    assert "control differed at step 1" in why
