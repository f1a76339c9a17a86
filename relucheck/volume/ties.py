"""Decide where the native and the minimal-norm gradient of max pooling differ for a network.

Two backwards that share a forward and differ only in max pooling's choice can differ only where a pooling window has a
tie. So a forward without a graph suffices until a mini-batch has a tie that can matter. One kind of tie cannot: if the
tied value is at most 0 and a ReLU comes directly before or after the pooling, the gradient is zero for either choice.

Over the reals, a tie need not be a kink. Tied elements that see identical inputs, such as a constant background, are the
same function of the weights. Their maximum is smooth, and both choices give the same gradient over the reals. In floating
point the gradients can still differ, because a sum of four quarters is rounded differently from one whole. Tied elements
that see different inputs mostly tie by rounding; only by chance are they equal over the reals. ``kind="different
inputs"`` decides with these ties alone.

Source: Boustany 2024, "On the numerical reliability of nonsmooth autodiff: a MaxPool case study", TMLR (arXiv
2401.02736), for the two choices and for the bifurcation and compensation zones.
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
from relucheck.bifurcation.compare import Outcome
from relucheck.bifurcation.decide import checked_data
from relucheck.bifurcation.forward.state import untouched
from relucheck.bifurcation.gradients import gradients
from relucheck.errors import ControlError, ModelError
from relucheck.networks.lenet import LeNet
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.bits import differs, same_bits
from relucheck.numerics.determinism import deterministic

Kind = Literal["all", "different inputs"]
#: Thresholds in the released code of Boustany 2024. It counts a mini-batch if the largest gradient differences of all
#: parameters sum to more than this.
THRESHOLDS: Final = {torch.float16: 1e-3, torch.bfloat16: 1e-3, torch.float32: 1e-7, torch.float64: 1e-15}


@dataclasses.dataclass(frozen=True)
class PoolingCall:
    """One call of a max pooling module in a forward.

    Attributes:
        name: name of the module.
        tied: int16 [batch, channels, OH, OW], the number of elements of each window that equal its maximum.
        matters: bool [batch, channels, OH, OW], the windows whose tie can change the gradient, as far as is known.
        input: [batch, channels, H, W], the tensor that was pooled, detached.
    """

    name: str
    tied: Tensor
    matters: Tensor
    input: Tensor


def _kills_zero(module: Any) -> bool:
    """Return whether an activation's gradient is zero wherever its output is zero.

    That holds for torch's ReLU, and for relucheck's ReLU with subgradient 0.
    """
    if type(module) is ReLU:
        return not isinstance(module.subgradient, Tensor) and module.subgradient == 0
    return type(module) is nn.ReLU


@contextlib.contextmanager
def ties(model: nn.Module) -> Iterator[list[PoolingCall]]:
    """Record the ties of every max pooling module that is called while the context is active.

    A tie at 0 matters, with two exceptions: the pooled tensor is the output of a ReLU whose gradient there is zero, or,
    in a ``LeNet``, such a ReLU alone uses the result. Functional calls (``F.max_pool2d``) are not recorded.

    Args:
        model: a model with ``nn.MaxPool2d`` modules.

    Yields:
        The list of calls, which grows with every call.

    Raises:
        ModelError: the model has no max pooling module.
    """
    calls: list[PoolingCall] = []
    rectified: list[Tensor] = []  # kept alive, as tensors are recognised by identity below
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
            raise ModelError(
                f"{type(model).__name__} has no nn.MaxPool2d, so there are no ties to count; use modules, not functions"
            )
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def different_inputs(call: PoolingCall, fields: tuple[Tensor, ...]) -> Tensor:
    """Windows of a 2x2 pooling with tied maxima that see different inputs.

    Args:
        call: a call of a pooling with kernel 2, stride 2 and no padding.
        fields: each [batch, values, H, W]: what each element of the pooling's input sees. Two elements see the same if
            they are equal in one of these tensors.

    Returns:
        bool [batch, channels, OH, OW].
    """
    largest = call.input.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))
    views = [(slice(i, None, 2), slice(j, None, 2)) for i in range(2) for j in range(2)]
    different = torch.zeros_like(call.matters)
    for a, b in itertools.combinations(views, 2):
        both = (call.input[(..., *a)] == largest) & (call.input[(..., *b)] == largest)
        for field in fields:
            both &= (field[(..., *a)] != field[(..., *b)]).any(1, keepdim=True)
        different |= both
    return different


@dataclasses.dataclass(frozen=True)
class TieDecision:
    """Where the native and the minimal-norm gradient of one network first differ.

    Attributes:
        seed: seed of the network; None if the network was given.
        outcome: ``agree`` on every mini-batch, ``bifurcate``, or ``non-finite`` if a logit, or a gradient of a mini-batch
            with a tie that matters, is NaN or infinite.
        batch: the first mini-batch (counted from 0) with that outcome; None for ``agree``.
        windows: number of pooling windows, over the mini-batches up to and including ``batch``.
        tied: number of these with a tie.
        matter: number of these with a tie that can matter.
        distance: sum over parameters of the largest absolute difference of the two gradients in ``batch``, the measure of
            Boustany 2024; 0 for ``agree``.
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
    """The first mini-batch, in file order, at which the two choices give different gradients.

    Every pair of backwards comes with a control: a second native backward, which must equal the first bit for bit. The
    model, its choices, its buffers and the random state are not changed.

    Args:
        model: any eager module with ``nn.MaxPool2d`` modules that returns logits [batch, classes].
        inputs: [n, ...], of the model's dtype and on its device.
        targets: class indices, int64 [n].
        batch_size: samples of a mini-batch; the last one may be smaller.
        kind: "all" for all ties. "different inputs" applies the minimal-norm choice only where tied elements see
            different inputs; it serves ``LeNet`` only.
        seed: label of the decision.

    Raises:
        ModelError: there is no max pooling module or none is called, no parameter requires a gradient, a part of the
            model is checkpointed with ``use_reentrant=True``, or ``kind`` does not serve the model.
        PoolingError: ``kind`` is unknown.
        ZoneDataError: as for ``relucheck.bifurcation.decide.decide``.
        ControlError: two native backwards differ.
    """
    if kind not in ("all", "different inputs"):
        raise PoolingError(f"kind={kind!r}: must be 'all' or 'different inputs'")
    if kind == "different inputs" and not isinstance(model, LeNet):
        raise ModelError(
            f"{type(model).__name__}: the inputs that a pooled element sees are known for LeNet only; use kind='all'"
        )
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
        raise ModelError(f"{type(model).__name__}: every max pooling was called on an empty tensor, which has no ties")
    return TieDecision(seed, "agree", None, windows, tied, matter)


def _different(model: nn.Module, x: Tensor, calls: list[PoolingCall]) -> dict[str, Tensor]:
    assert isinstance(model, LeNet)
    fields = model.fields(x)
    return {call.name: call.matters & different_inputs(call, fields[call.name]) for call in calls}


@contextlib.contextmanager
def _choosing(model: nn.Module) -> Iterator[list[tuple[str, PoolingSetting]]]:
    """Give each pooling module a setting while active; restore its former one afterwards."""
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
    runs = []
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
            runs.append(gradients(loss, parameters))
    distance, outcome = 0.0, "agree"
    for name, parameter in parameters.items():
        values = [run[name] for run in runs]
        if all(value is None for value in values):
            continue
        one, other, control = (torch.zeros_like(parameter) if value is None else value for value in values)
        if not same_bits(one, control):
            raise ControlError("control: two native backwards differ, so this model is not deterministic on this device")
        if not bool(one.isfinite().all() & other.isfinite().all()):
            return "non-finite", 0.0
        if bool(differs(one, other).any()):
            outcome = "bifurcate"
            distance += float((one.double() - other.double()).abs().max())
    return ("bifurcate" if outcome == "bifurcate" else "agree"), distance


def equal_in_float64(model: LeNet, x: Tensor) -> tuple[int, int]:
    """How many of the ties that matter and see different inputs are ties in float64 too.

    The model's weights are converted to float64, which is exact, and everything from the images on is computed in
    float64. A tie that breaks in float64 comes from rounding, unless float64's error is as large as the difference, which
    is then a few float64 ulps.

    Args:
        model: with its weights in any dtype.
        x: images [n, ...], of the model's dtype.

    Returns:
        The number of windows that tie in float64 too, and the number of all.
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
