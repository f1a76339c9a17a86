"""The zone decision of one model: the first mini-batch of a data set at which backprop_s and backprop_t differ.

Two backwards that share a forward can differ only where a pre-activation is exactly at a kink, so a forward decides: no
graph, no second network, and only a mini-batch with a hit runs the exact two backwards. :mod:`relucheck.volume.engine`
does the same for many fully connected networks at once, at the speed of their products.

Source: the bifurcation zone is that of Bertoin, Bolte, Gerchinovitz, Pauwels 2021 ("Numerical influence of ReLU'(0) on
backpropagation", section 3.1), where a network counts as soon as one mini-batch gives different gradients.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from relucheck.activations.rules import ModelSubgradient, as_model_subgradient
from relucheck.bifurcation.compare import Outcome, backprop, judge_controlled, untouched
from relucheck.bifurcation.interception import Interception, refuse_empty
from relucheck.errors import ModelError, RelucheckError, one_of, whole
from relucheck.numerics.determinism import deterministic

#: Which gradients count: of every parameter, or of the first layer alone (as in the published tables).
Watch = Literal["all", "first layer"]


class ZoneDataError(RelucheckError, ValueError):
    """Inputs and targets that make no mini-batches."""


@dataclasses.dataclass(frozen=True)
class Decision:
    """Where the gradients of one network first differ.

    Attributes:
        seed: of the draw, None for a given network.
        outcome: ``agree`` on every mini-batch; ``bifurcate``; ``non-finite``: a logit, or a watched gradient of a
            mini-batch with hits, is NaN or infinite, which is never agreement. A gradient that overflows in a mini-batch
            without hits is not looked at: its two backwards are one computation.
        batch: the first mini-batch (from 0) with that outcome, None for ``agree``.
        hits: over the mini-batches up to and with ``batch``.
        activations: evaluated for these, at hidden units.
    """

    seed: int | None
    outcome: Outcome
    batch: int | None
    hits: int
    activations: int


def checked_subgradients(subgradients: Any) -> tuple[ModelSubgradient, ModelSubgradient]:
    if not isinstance(subgradients, tuple | list) or len(subgradients) != 2:
        raise ModelError(f"subgradients={subgradients!r}: must be two subgradients, for example (0.0, 1.0)")
    return as_model_subgradient(subgradients[0]), as_model_subgradient(subgradients[1])


def checked_watch(watch: Any) -> Watch:
    one_of("watch", watch, get_args(Watch), error=ModelError)
    checked: Watch = watch
    return checked


def checked_data(inputs: Tensor, targets: Tensor, batch_size: Any) -> int:
    for name, value, held in (("inputs", inputs, "samples, [n, ...]"), ("targets", targets, "class indices, int64 [n]")):
        if not isinstance(value, Tensor):
            raise ZoneDataError(
                f"{name} is of class {type(value).__name__}: must be one tensor of {held}; for a model that takes "
                "more than one, compare each mini-batch by relucheck.compare"
            )
    if not inputs.numel():
        raise ZoneDataError("the data set is empty: there is no mini-batch to decide; pass at least one sample")
    if len(targets) != len(inputs):
        raise ZoneDataError(f"{len(inputs)} inputs but {len(targets)} targets; pass one class index per input")
    whole("batch_size", batch_size, error=ZoneDataError)
    return min(batch_size, len(inputs))


def checked_targets(targets: Tensor, classes: int) -> None:
    """Raises :class:`ZoneDataError` unless targets are int64 class indices below ``classes``."""
    if targets.dtype != torch.int64 or targets.ndim != 1:
        raise ZoneDataError(
            f"targets of {targets.dtype} and shape {tuple(targets.shape)}: must be class indices, int64 [n]; convert them"
        )
    low, high = (int(value) for value in targets.aminmax())
    if low < 0 or high >= classes:
        raise ZoneDataError(
            f"targets from {low} to {high}: the network has {classes} outputs, so they are 0 to {classes - 1}; check them"
        )


def decide(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    batch_size: int = 256,
    subgradients: tuple[ModelSubgradient, ModelSubgradient] = (0.0, 1.0),
    watch: Watch = "all",
) -> Decision:
    """The decision for any eager model with ReLU, ReLU6 or LeakyReLU, modules or functions
    (:mod:`relucheck.bifurcation.interception`).

    A forward without a graph looks for hits; a mini-batch that has some is handed to
    :func:`relucheck.bifurcation.compare.compare`. The model, its buffers and the random state stay as they are, so every
    mini-batch meets the same dropout masks.

    Args:
        model: takes [batch, ...] and returns logits [batch, classes].
        inputs: [n, ...], of the model's dtype and on its device.
        targets: class indices, int64 [n].
        batch_size, subgradients: as for :class:`Engine`.
        watch: "first layer" counts the parameters of the first module that has any.

    Raises:
        ModelError: the model calls no such activation, none of its calls has an element, it has no parameter that requires
            a gradient, or it checkpoints a part with hits with ``use_reentrant=True``.
        ZoneDataError: as :class:`Engine`.
    """
    first_setting, second_setting = checked_subgradients(subgradients)
    watch = checked_watch(watch)
    batch_size = checked_data(inputs, targets, batch_size)
    watched = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not watched:
        raise ModelError(f"{type(model).__name__}: no parameter requires a gradient, so there is no gradient to compare")
    if watch == "first layer":
        owner = next(name for name, _ in model.named_parameters()).rpartition(".")[0]
        watched = {name for name in watched if name.rpartition(".")[0] == owner}
        if not watched:
            raise ModelError(
                f"{type(model).__name__}: watch='first layer', but no parameter of the first layer ({owner!r}) requires a "
                "gradient; thaw it, or watch 'all'"
            )
    device = next(model.parameters()).device
    hits = activations = 0
    for batch, (x, y) in enumerate(zip(inputs.split(batch_size), targets.split(batch_size), strict=True)):
        interception = Interception(model, device)
        with contextlib.ExitStack() as stack:
            for context in (torch.inference_mode(False), deterministic(), untouched(model, device), torch.no_grad()):
                stack.enter_context(context)
            with interception:
                interception.choose(first_setting)
                logits = model(x)
        if not interception.calls:
            raise ModelError(
                f"{type(model).__name__}: no ReLU, ReLU6 or LeakyReLU was called on this input, so there is nothing to "
                "decide; use one of them, or relucheck's modules"
            )
        checked_targets(targets if batch == 0 else y, logits.shape[-1])
        here = sum(call.hit_count for call in interception.calls)
        hits += here
        activations += sum(call.elements for call in interception.calls)
        outcome: Outcome = "agree"
        if not bool(logits.isfinite().all()):
            outcome = "non-finite"
        elif here:
            run = backprop(model, x, y, subgradients=(first_setting, second_setting, first_setting))
            outcome = judge_controlled(run, watched).outcome
        if outcome != "agree":
            return Decision(None, outcome, batch, hits, activations)
    if not activations:  # one mini-batch may have none (a model that sorts its samples), but not all
        refuse_empty(interception.calls)
    return Decision(None, "agree", None, hits, activations)
