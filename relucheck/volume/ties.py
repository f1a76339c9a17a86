"""The zone of max pooling's ties: where the native and the minimal-norm gradient of a network differ.

Two backwards that share a forward and differ only in max pooling's choice can differ only where a window has a tie, so a
forward decides: no graph until a mini-batch has a tie that can matter. One kind cannot: a tie at zero or below that a ReLU
meets, before the pooling or behind it, has gradient zero whatever the choice.

Over the reals a tie need not be a kink. Where the tied elements see identical inputs (a constant background) they are one
function of the weights, their largest is smooth, and both choices give one gradient; they differ in floating point only
because a sum of quarters rounds otherwise than one whole. Where the tied elements see different inputs, the tie is one of
rounding, unless they are equal over the reals by chance. ``kind="different inputs"`` decides with these ties alone.

Source: Boustany (2024), "On the numerical reliability of nonsmooth autodiff: a MaxPool case study", TMLR (arXiv
2401.02736), for the two choices and for bifurcation against compensation zone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from relucheck.activations.modules import ReLU
from relucheck.activations.pooling import Choice, MaxPool2d, PoolingError, PoolingSetting, Windows, tied_maxima
from relucheck.bifurcation.compare import Outcome, untouched
from relucheck.bifurcation.decide import checked_data
from relucheck.bifurcation.gradients import gradients
from relucheck.errors import ControlError, ModelError
from relucheck.networks.lenet import LeNet
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.bits import differs, same_bits
from relucheck.numerics.determinism import deterministic

Kind = Literal["all", "different inputs"]
#: [M24]'s released code counts a mini-batch whose sum over parameters of the largest difference is above this.
THRESHOLDS: Final = {torch.float16: 1e-3, torch.bfloat16: 1e-3, torch.float32: 1e-7, torch.float64: 1e-15}


@dataclasses.dataclass(frozen=True)
class PoolingCall:
    """One call of a max pooling in a forward.

    Attributes:
        name: of the module.
        tied: int16 [batch, channels, OH, OW], the number of largest elements of each window.
        matters: bool, the windows with a tie that no ReLU provably kills.
        input: what was pooled, detached.
    """

    name: str
    tied: Tensor
    matters: Tensor
    input: Tensor


def _kills_zero(module: Any) -> bool:
    """Whether an activation's gradient is zero wherever its output is: torch's own ReLU, or ours with subgradient 0."""
    if type(module) is ReLU:
        return not isinstance(module.subgradient, Tensor) and module.subgradient == 0
    return type(module) is nn.ReLU


@contextlib.contextmanager
def ties(model: nn.Module) -> Iterator[list[PoolingCall]]:
    """Counts the ties of every max pooling module called while it is active; yields the list that fills.

    A tie at zero matters unless a ReLU whose gradient there is zero made the pooled tensor, or, in :class:`LeNet`, is the
    only one to take the result. Functional calls (``F.max_pool2d``) are not seen.

    Raises:
        ModelError: if the model has no max pooling module.
    """
    calls: list[PoolingCall] = []
    rectified: list[Tensor] = []  # held, so that no other tensor takes their identity
    handles = []

    def after_relu(module: nn.Module, args: Any, output: Any) -> None:
        rectified.append(output)

    def after_pool(name: str) -> Any:
        def record(module: Any, args: Any, output: Any) -> None:
            x, pooled = args[0], output[0] if module.return_indices else output
            count = tied_maxima(x.detach(), pooled.detach(), Windows.of(module))
            matters = count > 1
            behind = model.behind(module) if isinstance(model, LeNet) else None
            if any(x is tensor for tensor in rectified) or _kills_zero(behind):
                matters &= pooled.detach() > 0
            calls.append(PoolingCall(name, count, matters, x.detach()))

        return record

    for name, module in model.named_modules():
        if isinstance(module, nn.MaxPool2d):
            handles.append(module.register_forward_hook(after_pool(name)))
        elif _kills_zero(module):
            handles.append(module.register_forward_hook(after_relu))
    try:
        if not any(isinstance(module, nn.MaxPool2d) for module in model.modules()):
            raise ModelError(f"{type(model).__name__} has no nn.MaxPool2d: there are no ties to count; use modules")
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def different_inputs(call: PoolingCall, fields: tuple[Tensor, ...]) -> Tensor:
    """The windows of a 2x2 pooling, [batch, channels, OH, OW], with tied largest elements that see different inputs.

    Args:
        call: of a pooling with kernel and stride 2 and no padding.
        fields: each [batch, values, H, W], what each element of its input sees; elements alike in one of them are alike.
    """
    largest = call.input.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))
    views = [(slice(i, None, 2), slice(j, None, 2)) for i in range(2) for j in range(2)]
    found = torch.zeros_like(call.matters)
    for a, b in itertools.combinations(views, 2):
        both = (call.input[(..., *a)] == largest) & (call.input[(..., *b)] == largest)
        for field in fields:
            both &= (field[(..., *a)] != field[(..., *b)]).any(1, keepdim=True)
        found |= both
    return found


@dataclasses.dataclass(frozen=True)
class TieDecision:
    """Where the native and the minimal-norm gradient of one network first differ.

    Attributes:
        seed: of the draw, None for a given network.
        outcome: ``agree`` on every mini-batch; ``bifurcate``; ``non-finite``: a logit, or a gradient of a mini-batch with
            a tie that matters, is NaN or infinite.
        batch: the first mini-batch (from 0) with that outcome, None for ``agree``.
        windows, tied, matter: pooling windows, those with a tie, and those with a tie that can matter, over the
            mini-batches up to and with ``batch``.
        distance: sum over parameters of the largest absolute difference there ([M24]'s measure), 0 for ``agree``.
    """

    seed: int | None
    outcome: Outcome
    batch: int | None
    windows: int
    tied: int
    matter: int
    distance: float = 0.0


def decide(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    batch_size: int = 256,
    kind: Kind = "all",
    seed: int | None = None,
) -> TieDecision:
    """The first mini-batch of a data set, in file order, at which the two choices give different gradients; exact.

    Every pair of backwards carries its control: a second native one, which must repeat the first bit for bit. The model,
    its choices, buffers and the random state stay as they are.

    Args:
        model: any eager module with ``nn.MaxPool2d`` modules that returns logits [batch, classes].
        inputs: [n, ...], of the model's dtype and on its device; targets: class indices, int64 [n].
        batch_size: samples of a mini-batch; the last one may be smaller.
        kind: ``different inputs`` shares the cotangent only where tied elements see different inputs (:class:`LeNet` only).
        seed: what the decision is labelled with.

    Raises:
        ModelError: no max pooling module, none called, no parameter that requires a gradient, a part checkpointed with
            ``use_reentrant=True``, or a ``kind`` that the model cannot serve.
        ZoneDataError: as for :func:`relucheck.bifurcation.decide.decide`.
        ControlError: two native backwards differed.
    """
    if kind not in ("all", "different inputs"):
        raise PoolingError(f"kind={kind!r}: must be 'all' or 'different inputs'")
    if kind == "different inputs" and not isinstance(model, LeNet):
        raise ModelError(f"{type(model).__name__}: what pooled elements see is known of LeNet only; use kind='all'")
    size = checked_data(inputs, targets, batch_size)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not parameters:
        raise ModelError(f"{type(model).__name__}: no parameter requires a gradient, so there is no gradient to compare")
    windows = tied = matter = 0
    device = next(iter(parameters.values())).device
    for batch, (x, y) in enumerate(zip(inputs.split(size), targets.split(size), strict=True)):
        with torch.inference_mode(False), deterministic(), untouched(model, device), torch.no_grad(), ties(model) as calls:
            logits = model(x)
        if not calls:
            raise ModelError(f"{type(model).__name__}: no max pooling module was called, so there is nothing to decide")
        windows += sum(call.tied.numel() for call in calls)
        tied += sum(int((call.tied > 1).sum()) for call in calls)
        only = {call.name: call.matters for call in calls}
        if kind == "different inputs":
            only = _different(model, x, calls)
        here = sum(int(mask.sum()) for mask in (only.values() if kind != "all" else [call.matters for call in calls]))
        matter += here
        if not bool(logits.isfinite().all()):
            return TieDecision(seed, "non-finite", batch, windows, tied, matter)
        if here:
            restricted = only if kind != "all" else {}
            outcome, distance = _compare(model, x, y, parameters, restricted)
            if outcome != "agree":
                return TieDecision(seed, outcome, batch, windows, tied, matter, distance)
    if not windows:
        raise ModelError(f"{type(model).__name__}: every max pooling was called on an empty tensor, so there can be no tie")
    return TieDecision(seed, "agree", None, windows, tied, matter)


def _different(model: nn.Module, x: Tensor, calls: list[PoolingCall]) -> dict[str, Tensor]:
    assert isinstance(model, LeNet)
    fields = model.fields(x)
    return {call.name: call.matters & different_inputs(call, fields[call.name]) for call in calls}


@contextlib.contextmanager
def _choosing(model: nn.Module) -> Iterator[list[tuple[str, PoolingSetting]]]:
    """Gives every pooling a setting of its own by name, and puts back what the model had."""
    kept: list[tuple[Any, PoolingSetting | None]] = []
    fresh = []
    try:
        for name, module in model.named_modules():
            if type(module) is nn.MaxPool2d or isinstance(module, MaxPool2d):
                kept.append((module, module.setting if isinstance(module, MaxPool2d) else None))
                module.__class__ = MaxPool2d if type(module) is nn.MaxPool2d else module.__class__
                fresh.append((name, PoolingSetting()))
                module.__dict__["setting"] = fresh[-1][1]
        yield fresh
    finally:
        for pool, setting in kept:
            if setting is None:
                del pool.setting
                pool.__class__ = nn.MaxPool2d
            else:
                pool.setting = setting


def _compare(
    model: nn.Module, x: Tensor, y: Tensor, parameters: dict[str, nn.Parameter], only: dict[str, Tensor]
) -> tuple[Outcome, float]:
    found = []
    choices: tuple[Choice, ...] = ("native", "minimal-norm", "native")
    with (
        torch.inference_mode(False),
        deterministic(),
        untouched(model, x.device),
        torch.enable_grad(),
        _choosing(model) as settings,
    ):
        loss = nn.functional.cross_entropy(model(x), y)
        for choice in choices:
            for name, setting in settings:
                setting.choice, setting.only = choice, only.get(name)
            found.append(gradients(loss, parameters))
    distance, outcome = 0.0, "agree"
    for name, parameter in parameters.items():
        values = [run[name] for run in found]
        if all(value is None for value in values):
            continue
        one, other, control = (torch.zeros_like(parameter) if value is None else value for value in values)
        if not same_bits(one, control):
            raise ControlError("control: two native backwards differ, so the model is not deterministic here")
        if not bool(one.isfinite().all() & other.isfinite().all()):
            return "non-finite", 0.0
        if bool(differs(one, other).any()):
            outcome = "bifurcate"
            distance += float((one.double() - other.double()).abs().max())
    return ("bifurcate" if outcome == "bifurcate" else "agree"), distance


def equal_in_float64(model: LeNet, x: Tensor) -> tuple[int, int]:
    """Of the ties that matter and see different inputs: how many tie in float64 as well, and how many there are.

    The weights are the model's own, converted exactly; float64 arithmetic from the images on. A tie that float64 breaks is
    one of rounding, unless float64 itself errs by as much (then it would be broken by a few of its own ulps).
    """
    exact = model.network.draw(0, Arithmetic(torch.float64))
    exact.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    with torch.no_grad(), ties(model) as calls:
        model(x)
    with torch.no_grad(), ties(exact) as references:
        exact(x.double())
    again = total = 0
    masks = _different(model, x, calls)
    for call, reference in zip(calls, references, strict=True):
        windows = [item.input.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2) for item in (call, reference)]
        here, there = (item[masks[call.name]] for item in windows)
        largest = here == here.amax(-1, keepdim=True)
        low = there.masked_fill(~largest, torch.inf).amin(-1)
        high = there.masked_fill(~largest, -torch.inf).amax(-1)
        again, total = again + int((low == high).sum()), total + len(low)
    return again, total
