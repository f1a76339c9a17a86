"""Stacked networks in emulated arithmetics: the pre-activations are those of each network alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.emulation import EmulationError
from relucheck.volume.stack import Stack, Way
from tests.helpers.uniform import mlp
from tests.helpers.zone import EMULATIONS, coarsen, drawn_data

WAYS: tuple[Way, ...] = ("joined", "batched", "separate")


def _stack(arithmetic: Arithmetic) -> tuple[Stack, list[nn.Module], torch.Tensor]:
    """Networks and inputs on coarse grids: float32 sums are exact, batched or not, and only the emulation rounds."""
    models = [coarsen(mlp(50, 24, 2).draw(seed, arithmetic), 32, 4.0) for seed in range(3)]
    x, _ = drawn_data(29, 50, 0, 32)
    return Stack(models, arithmetic), list(models), x.to(arithmetic.dtype)


def _differences(stack: Stack, models: list[nn.Module], x: torch.Tensor) -> list[tuple[str, int]]:
    """The ways and layers in which a stack computes something else than the networks' modules."""
    seen: list[list[torch.Tensor]] = []
    for model in models:
        own: list[torch.Tensor] = []
        hooks = [
            module.register_forward_hook(lambda _, args, z, own=own: own.append(z.detach().clone()))
            for module in model.modules()
            if isinstance(module, nn.Linear)
        ]
        model(x)
        seen.append(own)
        for hook in hooks:
            hook.remove()
    found = []
    for way in WAYS:
        groups = [[index] for index in range(len(models))] if way == "separate" else [list(range(len(models)))]
        for group in groups:
            for layer, z in enumerate(stack.part(group).pre_activations(x, way, logits=True)):
                if not torch.equal(z, torch.stack([seen[index][layer] for index in group])):
                    found.append((way, layer))
    return found


@pytest.mark.parametrize("arithmetic", EMULATIONS, ids=str)
def test_layers_compute_in_their_emulations(arithmetic: Arithmetic) -> None:
    assert _differences(*_stack(arithmetic)) == []


def test_layers_that_take_each_others_emulations_are_found() -> None:
    stack, models, x = _stack(EMULATIONS[4])
    stack._emulations = stack._emulations[::-1]
    found = _differences(stack, models, x)
    assert {way for way, _ in found} == set(WAYS)


def test_a_layer_that_the_networks_do_not_have_is_an_error() -> None:
    arithmetic = Arithmetic.parse("bfloat16 emulated (rounded; layer 4: split-k 4)")
    models = [mlp(50, 24, 2).draw(0, Arithmetic(torch.bfloat16))]
    with pytest.raises(EmulationError, match="layer 4 of a model with 3 layers with products; name layers from 1 to 3"):
        Stack(models, arithmetic)
