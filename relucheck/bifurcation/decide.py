"""Find the first mini-batch of a data set on which backprop_s and backprop_t differ.

Two backwards of one forward can differ only where a pre-activation is exactly at a kink. So each mini-batch first runs a
forward without a graph, and only a mini-batch with a hit runs the backwards. ``relucheck.volume.engine`` does the same for
many fully connected networks at once.

Source: Bertoin, Bolte, Gerchinovitz, Pauwels 2021, "Numerical influence of ReLU'(0) on backpropagation", section 3.1.
There a network is in the bifurcation zone if at least one mini-batch gives different gradients.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from relucheck.activations.rules import ModelSubgradient, as_model_subgradient
from relucheck.bifurcation.compare import Outcome, backprop, judge_controlled
from relucheck.bifurcation.forward.arguments import arguments_of, refuse_empty, refuse_function, tensors_in
from relucheck.bifurcation.forward.state import reproducible, untouched
from relucheck.bifurcation.interception import Interception, OutOfReach, listed
from relucheck.errors import ModelError, RelucheckError, one_of, whole

#: Which gradients are compared: those of all parameters, or those of the first layer, as in the published tables.
Watch = Literal["all", "first layer"]


class ZoneDataError(RelucheckError, ValueError):
    """Inputs, targets or a batch size from which no mini-batches can be made."""


@dataclasses.dataclass(frozen=True)
class Decision:
    """The outcome for one network, and the mini-batch that decided it.

    Attributes:
        seed: the seed of the network's initialisation; None for a given network.
        outcome: "agree" if the gradients agree on every mini-batch; "bifurcate" if they differ on one; "non-finite" if a
            logit, or a watched gradient of a mini-batch with hits, is NaN or infinite. Gradients of a mini-batch without
            hits are not computed, because both backwards would be the same computation.
        batch: the index of the first mini-batch with that outcome, from 0; None for "agree".
        hits: the number of hits in the mini-batches up to and including ``batch``.
        activations: the number of scalar activations in these mini-batches.
        out_of_reach: functions with kinks whose subgradient could not be chosen, in the first mini-batch of a model.
    """

    seed: int | None
    outcome: Outcome
    batch: int | None
    hits: int
    activations: int
    out_of_reach: tuple[OutOfReach, ...] = ()


def checked_subgradients(subgradients: Any) -> tuple[ModelSubgradient, ModelSubgradient]:
    """Check that there are two subgradients, and return them.

    Raises:
        ModelError: if there are not two.
        SubgradientError: for a value that cannot be a subgradient.
    """
    if not isinstance(subgradients, tuple | list) or len(subgradients) != 2:
        raise ModelError(f"subgradients={subgradients!r}: must be two subgradients, for example (0.0, 1.0)")
    return as_model_subgradient(subgradients[0]), as_model_subgradient(subgradients[1])


def checked_watch(watch: Any) -> Watch:
    """Check the name of the gradients to compare, and return it.

    Raises:
        ModelError: for any other name.
    """
    one_of("watch", watch, get_args(Watch), error=ModelError)
    checked: Watch = watch
    return checked


def checked_data(inputs: Tensor, targets: Tensor, batch_size: Any) -> int:
    """Check inputs [n, ...], targets [n] and the batch size; return the batch size, at most n.

    Raises:
        ZoneDataError: for anything but two tensors of equal length, for no sample, and for a batch size below 1.
    """
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
    """Check that targets are class indices below ``classes``, int64 [n].

    Raises:
        ZoneDataError: if they are not.
    """
    if targets.dtype != torch.int64 or targets.ndim != 1:
        raise ZoneDataError(
            f"targets of {targets.dtype} and shape {tuple(targets.shape)}: must be class indices, int64 [n]; convert them"
        )
    low, high = (int(value) for value in targets.aminmax())
    if low < 0 or high >= classes:
        raise ZoneDataError(
            f"targets from {low} to {high}: the network has {classes} outputs, so they must be from 0 to {classes - 1}"
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
    """Find the first mini-batch on which two subgradients give a model different gradients.

    The model is any eager module that calls ReLU, ReLU6 or LeakyReLU as modules or functions. Its parameters, its buffers
    and the random state do not change, so dropout masks are the same for every mini-batch of one size. The loss is the mean
    cross-entropy.

    Args:
        model: takes [batch, ...] and returns logits [batch, classes].
        inputs: [n, ...], with the model's dtype and on its device.
        targets: class indices, int64 [n].
        batch_size: the number of samples of a mini-batch. The last mini-batch may be smaller.
        subgradients: the two settings to compare.
        watch: which gradients are compared. "first layer" means the parameters of the first module that has any.

    Returns:
        The outcome, the mini-batch that decided it, and the number of hits until then.

    Raises:
        ModelError: if the model calls no such activation, none of the calls has an element, no watched parameter requires a
            gradient, or a part with hits is checkpointed with ``use_reentrant=True``.
        ZoneDataError: for inputs and targets of different length, no sample, targets that are not class indices of the
            model, and a batch size below 1.
        SubgradientError: for a value that cannot be a subgradient.
        ControlError: if the model is not deterministic on a mini-batch with hits.
    """
    refuse_function(model)
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
                "gradient; set requires_grad on one of them, or use watch='all'"
            )
    device = next(model.parameters()).device
    hits = activations = 0
    out_of_reach: tuple[OutOfReach, ...] = ()
    for batch, (x, y) in enumerate(zip(inputs.split(batch_size), targets.split(batch_size), strict=True)):
        looking = batch == 0  # for functions out of reach, which only the graph of a forward shows
        interception = Interception(model, device, tracing=looking)
        arguments = arguments_of(model, x)
        with (
            torch.inference_mode(False),
            reproducible(device),
            untouched(model, device) as state,
            torch.set_grad_enabled(looking),
            interception,
        ):
            interception.changing = state.keep
            interception.choose(first_setting)
            interception.enter(arguments)
            logits = arguments.call(model)
            if looking:
                interception.recording = False
                out_of_reach = interception.out_of_reach(list(tensors_in(logits)))
        if not interception.calls:
            raise ModelError(
                f"{type(model).__name__}: no ReLU, ReLU6 or LeakyReLU was called on this input, so there is nothing to "
                f"decide; use one of them, or relucheck's modules{listed(out_of_reach)}"
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
            return Decision(None, outcome, batch, hits, activations, out_of_reach)
    if not activations:  # in a model that sorts its samples, one mini-batch may have no activation, but not all
        refuse_empty(interception.calls)
    return Decision(None, "agree", None, hits, activations, out_of_reach)
