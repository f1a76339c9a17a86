"""The stacked executor in emulated arithmetics whose layers differ: bit for bit what the modules compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from relucheck.networks import Network
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.emulation import Emulation, EmulationError
from relucheck.training import model as training_model
from relucheck.training.engine import train
from relucheck.training.members import members_of
from relucheck.training.settings import Settings
from relucheck.training.splits import split_of
from relucheck.training.stacked import executor as training_stacked
from relucheck.training.stacked.executor import StackedExecutor
from tests.helpers.training_case import changed

SETTINGS = Settings(
    "digits", Network("mlp", (16, 12)), members_of([3], [1.0]), epochs=1, batch_size=32, train_samples=64, test_samples=20
)


def _emulated_differences(label: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a stacked member and its module compute differently: logits, and gradients by parameter.

    Parameters, images and cotangents lie on coarse grids. So float32 sums are exact, batched or not, and only the emulation
    rounds.
    """
    original = training_model.build

    def build(settings: Settings, *rest: Any) -> Any:
        model: Any = original(settings, *rest)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_((parameter * 64).round() / 32)
        return model

    monkeypatch.setattr(training_stacked, "build", build)
    settings = changed(SETTINGS, arithmetic=Arithmetic.parse(f"bfloat16 emulated ({label})"))
    device = torch.device("cpu")
    run = StackedExecutor(settings, (3,), *(split_of(settings, split, None, device) for split in ("train", "test")), device)
    random = torch.Generator().manual_seed(0)
    x = (torch.randint(0, 33, (29, 784), generator=random) / 32).bfloat16()
    cotangent = (torch.randint(-8, 9, (29, 10), generator=random) / 16).bfloat16()
    run.begin(0)
    together, alone = run._forward(x, training=True), run.template(x)
    place = int(run.references[0])
    found = torch.autograd.grad(together[place], list(run.parameters.values()), cotangent)
    wanted = torch.autograd.grad(alone, list(run.template.parameters()), cotangent)
    assert not torch.equal(alone, torch.zeros_like(alone))
    pairs = {"logits": (together[place], alone)}
    pairs |= {name: (one[place], other) for name, one, other in zip(run.parameters, found, wanted, strict=True)}
    return [name for name, (one, other) in pairs.items() if not torch.equal(one, other)]


BY_LAYER = (
    "rounded; layer 1 forward: split-k 4",
    "rounded; layer 2: split-k 3 wide; layer 3 backward: split-k 2 in place",
    "product; K from 20: split-k 4; layer 1 weight gradient: split-k 5",
)


@pytest.mark.parametrize("label", BY_LAYER)
def test_emulated_layers_are_those_of_the_module(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _emulated_differences(label, monkeypatch) == []
    with monkeypatch.context() as patch:  # a seeded fault: the stacked layers take each other's emulations
        patch.setattr(
            training_stacked.StackedExecutor, "emulations", property(_turned, lambda self, value: None), raising=False
        )
        assert _emulated_differences(label, monkeypatch) != []


def _turned(self: StackedExecutor) -> tuple[Emulation, ...]:
    emulation = self.settings.arithmetic.emulated
    assert emulation is not None
    return emulation.layers(3)[::-1]


def test_a_layer_that_the_network_does_not_have_is_an_error() -> None:
    settings = changed(SETTINGS, arithmetic=Arithmetic.parse("bfloat16 emulated (rounded; layer 9: split-k 4)"))
    for executor in ("stacked", "forking"):
        with pytest.raises(EmulationError, match="layer 9 of a model with 3 layers with products; name layers from 1 to 3"):
            train(settings, progress=False, executor=executor)
