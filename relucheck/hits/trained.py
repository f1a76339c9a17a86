"""States along the trainings of E2's and E5's networks, and the hits that they plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relucheck.hits import states as hits_states
from relucheck.hits.normed import forecast
from relucheck.hits.plans import Activations, Rounding
from relucheck.hits.plans import rate as assumed_rate
from relucheck.hits.rates import measure
from relucheck.hits.states import State
from relucheck.hits.widths import FORMATS
from relucheck.networks.network import Network
from relucheck.networks.resnets import RESNET_20
from relucheck.networks.sites import RESIDUAL_SUM
from relucheck.numerics.arithmetic import Arithmetic

_BATCH: Final = 128
_LOOKED_AT: Final = 2000  # samples for the states and hits of an MLP; those of a ResNet are one mini-batch's
_BF16: Final = FORMATS["bfloat16"]


@dataclasses.dataclass(frozen=True)
class Training:
    """A training along which states are measured.

    Attributes:
        name: what is trained, in words.
        network: its description.
        seeds: one network is trained for each.
        after: the numbers of steps after which states are measured.
        counted: the arithmetic in which hits are counted at the same weights.
        rounding: the same for plans.
    """

    name: str
    network: Network
    seeds: tuple[int, ...]
    after: tuple[int, ...]
    counted: Arithmetic
    rounding: Rounding


@dataclasses.dataclass(frozen=True)
class Measured:
    """The states of one training at one step.

    Attributes:
        name: of the training.
        seed: of its network.
        after: the number of steps.
        states: one for each kind of pre-activation.
        planned: the hits that the states plan in the arithmetic in which they are counted, of linear layers or of
            residual sums.
        hits: the counted hits of the same.
        activations: the number of their pre-activations.
    """

    name: str
    seed: int
    after: int
    states: tuple[State, ...]
    planned: float
    hits: int
    activations: int


def trainings() -> tuple[Training, ...]:
    """The MLP of E2, and the residual network of E5 with identity skips."""
    return (
        Training(
            *("E2's MLP", Network("mlp", (200, 200, 200)), (0, 1, 2), (0, 469, 2345)),
            *(Arithmetic.parse("bfloat16 emulated (product)"), Rounding("product", _BF16, _BF16, "product")),
        ),
        Training(
            *("E5's 20 layers, identity skips", Network("resnet", RESNET_20, batch_norm=True), (0, 1, 2), (0, 13, 50)),
            *(Arithmetic.parse("bfloat16 emulated (rounded)"), Rounding("operator", _BF16, _BF16, "operator")),
        ),
    )


def carry_out(training: Training, images: Tensor, labels: Tensor) -> Iterator[Measured]:
    """Train in float32, with Adam and mini-batches of 128 in file order; measure states.

    Args:
        training: what to do.
        images: float32, MNIST's training images.
        labels: their classes.
    """
    images = images.reshape(-1, *training.network.input_shape)
    for seed in training.seeds:
        model = training.network.draw(seed, Arithmetic(torch.float32)).train()
        optimiser = torch.optim.Adam(model.parameters(), 1e-3, fused=False)
        for step in range(training.after[-1] + 1):
            at = step * _BATCH % (len(images) // _BATCH * _BATCH)
            if step in training.after:
                rows = slice(at, at + _BATCH) if training.network.batch_norm else slice(0, _LOOKED_AT)
                yield _measured(training, seed, step, model, images[rows])
            if step < training.after[-1]:
                optimiser.zero_grad()
                F.cross_entropy(model(images[at : at + _BATCH]), labels[at : at + _BATCH]).backward()
                optimiser.step()


def _measured(training: Training, seed: int, step: int, model: nn.Module, x: Tensor) -> Measured:
    found = hits_states.states(model, x)
    narrow = training.network.draw(seed, training.counted)
    narrow.load_state_dict(model.state_dict())
    x = x.to(training.counted.dtype)
    if training.network.batch_norm:
        sums = [one for one in forecast(narrow, x) if one.site.before == RESIDUAL_SUM]
        hits, seen = sum(one.hits for one in sums), sum(one.activations for one in sums)
        kinds = [state for state in found if state.kind in ("residual", "projection")]
        planned = sum(state.count * hits_states.rate(state, training.rounding) for state in kinds)
    else:
        layers = measure(narrow, x)
        hits, seen = sum(one.hits for one in layers), sum(one.activations for one in layers)
        planned = 0.0
        for state in found:
            part = Activations("", 1, "linear", training.network.widths[0], spread=state.spread)
            planned += state.count * assumed_rate(hits_states.linear(state, part), training.rounding, pairs=1024).value
    return Measured(training.name, seed, step, found, planned, hits, seen)
