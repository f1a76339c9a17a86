"""Compute backprop_s for several subgradients s on one forward; compare two bit for bit.

backprop_s is reverse-mode differentiation with ReLU'(0) = s. The bifurcation zone is the set of parameters for which two
choices of s give different gradients.

Source: Bertoin, Bolte, Gerchinovitz, Pauwels 2021, "Numerical influence of ReLU'(0) on backpropagation", section 2.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from relucheck.activations.rules import ModelSubgradient, SubgradientError, as_model_subgradient
from relucheck.bifurcation.forward.arguments import Inputs, arguments_of, refuse_empty, refuse_function, tensors_in
from relucheck.bifurcation.forward.state import reproducible, set_aside, untouched
from relucheck.bifurcation.gradients import INDEPENDENT, Gradients, OneBackwardError, gradients, root_of
from relucheck.bifurcation.interception import Call, Interception, OutOfReach, listed
from relucheck.errors import ControlError, ModelError
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.bits import differs, same_bits

Outcome = Literal["agree", "bifurcate", "non-finite"]

_SHOWN: Final = 8  # how many parameters the text of a comparison lists


class _Counted:
    """The counts of hits and activations, for classes with the activation calls of a forward."""

    calls: tuple[Call, ...]

    @property
    def hit_count(self) -> int:
        """The number of hits in the forward."""
        return sum(call.hit_count for call in self.calls)

    @property
    def activation_count(self) -> int:
        """The number of scalar activations in the forward."""
        return sum(call.elements for call in self.calls)


@dataclasses.dataclass(frozen=True)
class Backprops(_Counted):
    """The result of one forward with several backwards.

    Attributes:
        settings: the subgradients, in the order of the argument.
        gradients: for each subgradient, the gradient of every parameter that requires one, by name, with the shape and
            dtype of the parameter. It is None if the loss does not depend on the parameter.
        output: the output of the model. A tensor is detached.
        calls: every activation call of the forward, with its hits.
        out_of_reach: functions with kinks whose subgradient could not be chosen.
        arithmetic: the arithmetic of the forward and the backwards.
    """

    settings: tuple[ModelSubgradient, ...]
    gradients: tuple[Gradients, ...]
    output: Any
    calls: tuple[Call, ...]
    out_of_reach: tuple[OutOfReach, ...]
    arithmetic: Arithmetic


@dataclasses.dataclass(frozen=True)
class Difference:
    """How two gradients of one parameter differ.

    Attributes:
        parameter: the qualified name of the parameter.
        entries: the number of entries that differ.
        largest: the largest absolute difference of an entry, computed in float64 over finite differences.
        l1: the sum of the absolute differences, in the same way.
    """

    parameter: str
    entries: int
    largest: float
    l1: float


@dataclasses.dataclass(frozen=True)
class Comparison(_Counted):
    """Whether two backprops of one forward agree.

    Attributes:
        outcome: "agree" if the gradients are bitwise equal up to the sign of zero, "bifurcate" if they differ, and
            "non-finite" if one of them has a NaN or an infinity, which never counts as agreement.
        settings: the two subgradients compared.
        calls: every activation call of the forward, with its hits.
        out_of_reach: functions with kinks whose subgradient could not be chosen.
        arithmetic: the arithmetic of the forward and the backwards.
        differences: one entry per parameter whose gradients differ, in the model's order.
    """

    outcome: Outcome
    settings: tuple[ModelSubgradient, ModelSubgradient]
    calls: tuple[Call, ...]
    out_of_reach: tuple[OutOfReach, ...]
    arithmetic: Arithmetic
    differences: tuple[Difference, ...]

    @property
    def hits(self) -> tuple[Call, ...]:
        """The activation calls that have hits."""
        return tuple(call for call in self.calls if call.hit_count)

    @property
    def first_difference(self) -> str | None:
        """The first parameter, in the model's order, whose gradients differ; None if there is none."""
        return self.differences[0].parameter if self.differences else None

    @property
    def largest(self) -> float:
        """The largest absolute difference of an entry of the gradients."""
        return max((difference.largest for difference in self.differences), default=0.0)

    @property
    def l1(self) -> float:
        """The L1 norm of the difference of the gradients."""
        return sum(difference.l1 for difference in self.differences)

    def __str__(self) -> str:
        lines = [f"backprop_{self.settings[0]} and backprop_{self.settings[1]} in {self.arithmetic.name}: {self.outcome}"]
        lines.append(f"  hits: {self.hit_count} of {self.activation_count} activations")
        for call in self.hits:
            for at, positions in zip(call.rule.kinks, call.hits, strict=True):
                if len(positions):
                    first = tuple(positions[0].tolist())
                    lines.append(f"    {call.site} ({call.rule.name}) at {at:g}: {len(positions)}, the first at {first}")
        for difference in self.differences[:_SHOWN]:
            lines.append(
                f"  {difference.parameter}: {difference.entries} entries differ, by at most {difference.largest:.3g}, "
                f"L1 {difference.l1:.3g}"
            )
        if len(self.differences) > _SHOWN:
            lines.append(f"  and {len(self.differences) - _SHOWN} more parameters (L1 over all parameters {self.l1:.3g})")
        for node, count in collections.Counter(item.node for item in self.out_of_reach).items():
            where = next(item.site for item in self.out_of_reach if item.node == node)
            lines.append(f"  out of reach of the subgradient: {count} x {node}, the first at {where}")
        return "\n".join(lines)


def backprop(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor | None = None,
    *,
    subgradients: Sequence[ModelSubgradient] = (0.0, 1.0),
    loss: Callable[[Any], Tensor] | None = None,
    cotangent: Tensor | None = None,
) -> Backprops:
    """Run one forward of a model, and one backward per subgradient on the same graph.

    A model that differentiates in its forward, such as one with a gradient penalty, has values that depend on the
    subgradient. It runs one forward per subgradient, all with the same random numbers. The calls are those of the first.
    So does a model whose graph allows one backward only, such as one with selective checkpoints.

    The subgradients apply to every ReLU, ReLU6 and LeakyReLU of the model, whether a module or a function is called. The
    model does not change: its settings, its parameters, its buffers, ``.grad`` and the random state stay as they were.

    Args:
        model: an eager module with parameters.
        inputs: the mini-batch; a list or tuple of the positional arguments of the model; or a mapping of its keyword
            arguments.
        targets: class indices, int64 [batch]. The loss is the mean cross-entropy of the output.
        subgradients: one setting per backward: a number, or a pair for the two kinks of ReLU6. None means the subgradient
            that torch uses.
        loss: a function from the model's output to a scalar tensor, in place of ``targets``.
        cotangent: the upstream gradient of the output, of its shape and dtype, in place of ``targets``. Without targets,
            loss and cotangent, it is drawn from a normal distribution with a fixed seed. It is not all ones, because ones
            would hide an error in the chain rule.

    Returns:
        The gradients of all subgradients, with the activation calls and their hits.

    Raises:
        ModelError: if no parameter requires a gradient, ``inputs`` does not fit the model's forward, no activation call has
            an element (an empty mini-batch), the output is not a tensor where one is needed, the loss is not a scalar, the
            model is compiled, scripted or checkpointed with ``use_reentrant=True``, or the forward, a Function or a hook
            accumulates gradients where a comparison cannot see them.
        SubgradientError: for a value that cannot be a subgradient.

    Source: section 2 of Bertoin, Bolte, Gerchinovitz, Pauwels 2021, "Numerical influence of ReLU'(0) on backpropagation".
    """
    refuse_function(model)
    settings = tuple(as_model_subgradient(setting) for setting in subgradients)
    if not settings:
        raise SubgradientError("backprop: subgradients is empty; pass one setting per backward, for example (0.0, 1.0)")
    if sum(choice is not None for choice in (targets, loss, cotangent)) > 1:
        raise ModelError("backprop: targets, loss and cotangent exclude each other; pass one of them")
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not parameters:
        raise ModelError(f"{type(model).__name__}: no parameter requires a gradient, so there is no gradient to compare")
    first = next(iter(parameters.values()))
    arithmetic = Arithmetic.of(model)
    arguments = arguments_of(model, inputs)
    interception = Interception(model, first.device, tracing=True)
    runs: list[Gradients] = []
    with (
        torch.inference_mode(False),
        reproducible(first.device),
        untouched(model, first.device) as state,
        set_aside(tensor for tensor in tensors_in(arguments) if tensor.is_leaf),
        torch.enable_grad(),
        interception,
    ):
        interception.changing = state.keep
        interception.choose(settings[0])
        interception.enter(arguments)
        output = arguments.call(model)
        if loss is None:  # a loss may call activations, too, and is checked below
            refuse_empty(interception.calls)
        calling = loss and functools.partial(interception.call, loss)
        root, upstream = root_of(output, targets, calling, cotangent)
        refuse_empty(interception.calls)
        interception.recording = False
        out_of_reach = interception.out_of_reach([root])
        once = interception.derives  # the values of the forward depend on the subgradient
        for index, setting in enumerate(settings):
            interception.choose(setting)
            for again in (index > 0 and once, True):
                if again:
                    state.restore()
                    root, upstream = root_of(arguments.call(model), targets, calling, cotangent)
                _refuse_accumulated(parameters)
                try:
                    runs.append(gradients(root, parameters, upstream, interception.running()))
                    break
                except OneBackwardError:
                    if again:
                        raise
                    once = True
            if all(gradient is None for gradient in runs[-1].values()):
                raise ModelError(INDEPENDENT)
    return Backprops(
        settings,
        tuple(runs),
        output.detach() if isinstance(output, Tensor) else output,
        tuple(interception.calls),
        out_of_reach,
        arithmetic,
    )


def _refuse_accumulated(parameters: Mapping[str, Tensor]) -> None:
    """Refuse a forward that has accumulated gradients, on which no graph depends."""
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            raise ModelError(
                f"the forward accumulates the gradient of {name!r} in .grad, where a comparison cannot see it; let it call "
                "torch.autograd.grad, or .backward(inputs=[...]) with the tensors whose gradients it uses"
            )


def compare(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor | None = None,
    *,
    subgradients: tuple[ModelSubgradient, ModelSubgradient] = (0.0, 1.0),
    loss: Callable[[Any], Tensor] | None = None,
    cotangent: Tensor | None = None,
) -> Comparison:
    """Compare the gradients of two subgradients on one mini-batch, bit for bit.

    Every comparison has a control: another backward with the first subgradient, which has to repeat the first gradients
    bit for bit.

    Args:
        model: an eager module with parameters.
        inputs: the mini-batch; a list or tuple of the positional arguments of the model; or a mapping of its keyword
            arguments.
        targets: class indices, int64 [batch]. The loss is the mean cross-entropy of the output.
        subgradients: the two settings to compare, as in ``backprop``.
        loss: a function from the model's output to a scalar tensor, in place of ``targets``.
        cotangent: the upstream gradient of the output, in place of ``targets``. See ``backprop`` for the default.

    Returns:
        The outcome, with the hits and the parameters whose gradients differ.

    Raises:
        ControlError: if the control differs. The model is then not deterministic, and the comparison means nothing.
        ModelError: as ``backprop``, and if the model calls no ReLU, ReLU6 or LeakyReLU on this input.
        SubgradientError: for a value that cannot be a subgradient, and if there are not two settings.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> for parameter in model.parameters():  # every pre-activation is exactly 0
        ...     _ = nn.init.zeros_(parameter)
        >>> compare(model, torch.ones(1, 2)).outcome
        'bifurcate'
    """
    if len(subgradients) != 2:
        raise SubgradientError(f"compare: subgradients={subgradients!r} must be two settings, for example (0.0, 1.0)")
    first, second = subgradients
    run = backprop(model, inputs, targets, subgradients=(first, second, first), loss=loss, cotangent=cotangent)
    if not run.calls:
        raise ModelError(
            f"{type(model).__name__}: no ReLU, ReLU6 or LeakyReLU was called on this input, so there is nothing to "
            f"compare; use one of them, or relucheck's modules{listed(run.out_of_reach)}"
        )
    return judge_controlled(run)


def judge_controlled(run: Backprops, parameters: Container[str] | None = None) -> Comparison:
    """Compare the first two of three backwards; the third is the control and repeats the first.

    Args:
        run: the result of ``backprop`` with ``subgradients=(s, t, s)``.
        parameters: the names of the parameters whose gradients count; None means all.

    Raises:
        ControlError: if the control differs.
    """
    one, other, control = (
        {name: gradient for name, gradient in by_name.items() if parameters is None or name in parameters}
        for by_name in run.gradients
    )
    for name in one:
        if not _same(one[name], control[name]):
            raise ControlError(
                f"control: two backwards with subgradient {run.settings[0]} differ in {name!r}, so this model is not "
                "deterministic here and no comparison of it means anything; look for atomics or unseeded randomness in its "
                "backward, and for attributes other than parameters and buffers that a forward or a hook changes"
            )
    return judge(one, other, run, (run.settings[0], run.settings[1]))


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else same_bits(a, b)


def judge(
    one: Gradients, other: Gradients, run: Backprops, settings: tuple[ModelSubgradient, ModelSubgradient]
) -> Comparison:
    """Compare two gradients of a run."""
    finite = all(
        bool(gradient.isfinite().all())
        for gradients in (one, other)
        for gradient in gradients.values()
        if gradient is not None
    )
    differences = tuple(differences_of(one, other))
    outcome: Outcome = "non-finite" if not finite else "bifurcate" if differences else "agree"
    return Comparison(outcome, settings, run.calls, run.out_of_reach, run.arithmetic, differences)


def differences_of(one: Gradients, other: Gradients) -> Iterator[Difference]:
    """Yield the differences of two gradients of the same parameters.

    None in only one of the two gradients counts as zero.
    """
    for name, a in one.items():
        b = other[name]
        if a is None:
            if b is None:
                continue
            a = torch.zeros_like(b)
        elif b is None:
            b = torch.zeros_like(a)
        at = differs(a, b)
        if not bool(at.any()):
            continue
        distance = (a[at].double() - b[at].double()).abs()
        distance = distance[distance.isfinite()]
        yield Difference(name, int(at.sum()), float(distance.max()) if len(distance) else 0.0, float(distance.sum()))
