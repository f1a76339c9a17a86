"""Explain why a mini-batch bifurcates: its hits, their reasons and effects, and the zone.

Hits and their effects on gradients are determined for any eager model. Reasons and the zone need exact evaluation over the
real numbers (``relucheck.bifurcation.exact_forward``), which supports sequential networks of linear layers and piecewise
linear activations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from relucheck.activations.rules import ModelSubgradient, Rule, as_model_subgradient, as_subgradient
from relucheck.bifurcation.compare import Comparison, Difference, compare, differences_of
from relucheck.bifurcation.exact_forward import ExactError, ExactRows, Reals, real_inputs
from relucheck.bifurcation.exact_gradients import over_the_reals
from relucheck.bifurcation.explanation import Explanation, Hit, Missed, Reason
from relucheck.bifurcation.forward.arguments import Inputs, arguments_of
from relucheck.bifurcation.forward.state import reproducible, untouched
from relucheck.bifurcation.gradients import gradients, root_of
from relucheck.bifurcation.interception import Call, Interception
from relucheck.errors import ControlError, ModelError, whole
from relucheck.numerics import dyadics

#: The default number of hits whose effects on the gradients are measured, with one backward for each hit.
LIMIT: Final = 32


class _PerHit(Interception):
    """An interception with separate subgradients for every element of a call with hits.

    Attributes:
        chosen: for each call, the subgradients at the lower and the upper kink, of the shape of its input; None for calls
            without hits, without autograd or inside of a vmap.
        results: the output of each call, detached.
        cotangents: the upstream gradient of each call with hits, by the index of the call.
    """

    def __init__(self, model: nn.Module, device: torch.device, base: ModelSubgradient) -> None:
        super().__init__(model, device)
        self.choose(base)
        self._shared = (self._lower, self._upper)
        self.chosen: list[tuple[Tensor, Tensor] | None] = []
        self.results: list[Tensor] = []
        self.cotangents: dict[int, Tensor] = {}

    def _record(self, rule: Rule, x: Tensor, func: Any) -> None:
        super()._record(rule, x, func)
        call = self.calls[-1]
        per_element = None
        # inside of a vmap, a call has the values of one sample at a time
        if call.hit_count and call.differentiated and not torch._C._are_functorch_transforms_active():
            per_element = (self._shared[0].expand(call.shape).clone(), self._shared[1].expand(call.shape).clone())
        self.chosen.append(per_element)
        self._lower, self._upper = per_element or self._shared

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        before = len(self.chosen)
        result = super().run(func, args, kwargs)
        self._lower, self._upper = self._shared  # for checkpointed parts that are recomputed and not recorded again
        if len(self.chosen) > before:
            self.results.append(result.detach())
            if self.chosen[-1] is not None:

                def keep(gradient: Tensor, at: int = before) -> None:
                    self.cotangents.setdefault(at, gradient.detach().clone())

                result.register_hook(keep)
        return result


def explain(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor | None = None,
    *,
    subgradients: tuple[ModelSubgradient, ModelSubgradient] = (0.0, 1.0),
    limit: int = LIMIT,
) -> Explanation:
    """Explain the hits of one mini-batch: why they occur, what they change, and in which zone.

    Args:
        model: an eager module with parameters.
        inputs: the mini-batch; a list or tuple of the positional arguments of the model; or a mapping of its keyword
            arguments.
        targets: class indices, int64 [batch]. The loss is the mean cross-entropy. Without targets, the upstream gradient of
            the output is that of ``relucheck.compare``.
        subgradients: the two settings to compare.
        limit: the largest number of hits whose effect on the gradients is measured, by one backward each. Hits whose
            upstream gradient is 0 change nothing and do not count. Hits in calls that autograd does not record (under
            ``torch.no_grad``), and in those inside of a ``torch.func.vmap``, are not measured.

    Returns:
        The comparison of the two gradients, every hit with its reason and its effect, and the zone.

    Raises:
        ModelError: as ``relucheck.compare``, for a model that differentiates in its forward, and for a limit that is not an
            integer of at least 0.
        ControlError: as ``relucheck.compare``, and if two forwards have different hits.
        SubgradientError: as ``relucheck.compare``.

    Source: Boustany 2024, "On the numerical reliability of nonsmooth autodiff" (https://arxiv.org/abs/2401.02736), for the
    zones.
    """
    whole("explain: limit", limit, 0, error=ModelError)
    comparison = compare(model, inputs, targets, subgradients=subgradients)
    arguments = arguments_of(model, inputs)
    first, second = (as_model_subgradient(setting) for setting in subgradients)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    device = next(iter(parameters.values())).device
    interception = _PerHit(model, device, first)
    with (
        torch.inference_mode(False),
        reproducible(device),
        untouched(model, device) as state,
        torch.enable_grad(),
        interception,
    ):
        interception.changing = state.keep
        output = arguments.call(model)
        root, upstream = root_of(output, targets, None, None)
        interception.recording = False
        if interception.derives:
            raise ModelError(
                f"explain: {type(model).__name__} differentiates in its forward, so its values depend on the subgradient, "
                "and one more backward cannot measure the effect of a single hit; use relucheck.compare, which serves it"
            )
        if not _same_hits(comparison.calls, interception.calls):
            raise ControlError(
                "explain: two forwards of one mini-batch hit different kinks, so this model is not deterministic here; "
                "look for unseeded randomness in its forward"
            )
        try:
            effects, unmeasured = _effects(interception, parameters, root, upstream, second, limit)
        except CheckpointError as error:
            raise ModelError(
                "explain: a checkpointed part cannot be recomputed with another subgradient for each hit (a selective "
                "checkpoint cannot); use relucheck.compare, which serves it"
            ) from error
    reals, unserved = None, None
    try:
        values = [*arguments.positional, *arguments.keyword.values()]
        if len(values) != 1 or not isinstance(values[0], Tensor):
            raise ExactError("exact evaluation supports only models that take one tensor")
        cotangent = upstream if targets is None else None
        reals = over_the_reals(model, values[0], targets, (first, second), cotangent=cotangent)
    except ExactError as error:
        unserved = str(error)
    with torch.device("cpu"):  # the user's default device may be another
        reasons = [] if reals is None else list(_reasons(reals, values[0], interception, comparison))
    hits = []
    for index, (call, kink, position) in enumerate(_each_hit(comparison.calls)):
        reason, real, local = reasons[index] if reasons else _UNKNOWN
        at, site = comparison.calls[call], tuple(position)
        cotangent_here, changed = effects[index]
        hits.append(Hit(at.site, call, site, at.rule.kinks[kink], reason, real, local, cotangent_here, changed))
    alone = {difference.parameter for hit in hits for difference in hit.changed or ()}
    jointly = tuple(d.parameter for d in comparison.differences if d.parameter not in alone)
    missed = () if reals is None else tuple(_missed(reals, comparison.calls))
    return Explanation(comparison, tuple(hits), missed, reals, unserved, limit, unmeasured, jointly)


_UNKNOWN: Final[tuple[Reason, None, None]] = ("unknown", None, None)


def _same_hits(one: Sequence[Call], other: Sequence[Call]) -> bool:
    return len(one) == len(other) and all(
        len(a.hits) == len(b.hits) and all(torch.equal(p, q) for p, q in zip(a.hits, b.hits, strict=True))
        for a, b in zip(one, other, strict=True)
    )


def _each_hit(calls: Sequence[Call]) -> Iterator[tuple[int, int, list[int]]]:
    """Yield index of the call, index of the kink and position of every hit."""
    for index, call in enumerate(calls):
        for kink, positions in enumerate(call.hits):
            for position in positions.tolist():
                yield index, kink, position


def _effects(
    interception: _PerHit,
    parameters: dict[str, nn.Parameter],
    root: Tensor,
    upstream: Tensor | None,
    second: ModelSubgradient,
    limit: int,
) -> tuple[list[tuple[float | None, tuple[Difference, ...] | None]], int]:
    """Measure the effect of each hit.

    Returns:
        For each hit its upstream gradient and how the gradients change if this hit alone uses the second subgradient; and
        the number of hits that are not measured because of the limit.
    """
    base = gradients(root, parameters, upstream, interception.running())
    cotangents = {call: gradient.cpu() for call, gradient in interception.cotangents.items()}
    other = second if isinstance(second, tuple) else (second, second)
    values = tuple(as_subgradient(value, optional=True) for value in other)
    effects: list[tuple[float | None, tuple[Difference, ...] | None]] = []
    measured = unmeasured = 0
    for call, kink, position in _each_hit(interception.calls):
        at = tuple(position)
        chosen = interception.chosen[call]
        if chosen is None:
            effects.append((None, None))
            continue
        if call not in cotangents:  # no gradient reached the call
            effects.append((0.0, ()))
            continue
        cotangent = float(cotangents[call][at])
        if cotangent == 0:
            effects.append((cotangent, ()))
        elif measured == limit:
            unmeasured += 1
            effects.append((cotangent, None))
        else:
            measured += 1
            here = chosen[kink].data  # the tensor itself, which the backward reads when it runs
            kept = here[at].clone()
            here[at] = values[kink].to(here)
            changed = gradients(root, parameters, upstream, interception.running())
            here[at] = kept
            effects.append((cotangent, tuple(differences_of(base, changed))))
    return effects, unmeasured


def _reasons(
    reals: Reals, inputs: Tensor, interception: _PerHit, comparison: Comparison
) -> Iterator[tuple[Reason, Fraction | None, Fraction | None]]:
    """Yield each hit's reason, its value over the reals, and its value given the layer before."""
    x = real_inputs(reals.layers, inputs)
    exact = ExactRows(reals.layers, x)
    smallest = torch.finfo(comparison.arithmetic.dtype)
    half = Fraction(smallest.smallest_normal) * Fraction(smallest.eps) / 2  # half the smallest subnormal, which rounds to 0
    call = -1
    for depth, layer in enumerate(reals.layers):
        if layer.rule is None:
            continue
        call += 1
        previous: Tensor | None = x
        if depth:
            followed = reals.layers[depth - 1].rule is not None
            previous = interception.results[call - 1].cpu().double().reshape(len(x), -1) if followed else None
        for kink, positions in zip(layer.rule.kinks, comparison.calls[call].hits, strict=True):
            samples, units = positions[:, 0].cpu(), positions[:, -1].cpu()
            rows, place = samples.unique(return_inverse=True)
            if not len(rows):
                continue
            real = _values(exact.before(depth, rows), place, units, int(kink))
            local: list[Fraction] | list[None] = [None] * len(place)
            idle: list[Reason | None] = [None] * len(place)
            if previous is not None:
                entering = previous[rows]
                given = dyadics.linear(exact.floats(entering), layer.weight, layer.bias)
                local = _values(given, place, units, int(kink))
                products = (entering != 0).double() @ (layer.weight != 0).double().T
                none = (products[place, units] == 0).tolist()
                dead_row = (entering == 0).all(1)[place].tolist()
                dead_unit = (layer.weight == 0).all(1)[units].tolist()
                before: Reason = "dead previous layer" if depth else "zero input"
                idle = [
                    (before if row else "dead unit" if unit else "no live product") if still else None
                    for still, row, unit in zip(none, dead_row, dead_unit, strict=True)
                ]
            for value, near, still in zip(real, local, idle, strict=True):
                yield _reason(Fraction(kink), value, near, still, half), value, near


def _values(x: dyadics.Dyadic, rows: Tensor, units: Tensor, kink: int) -> list[Fraction]:
    """Convert the numbers at some positions to fractions; equality to the kink is faster."""
    at = dyadics.compare(x, kink)[rows, units] == 0
    others = iter(x.fractions((rows[~at], units[~at])))
    same = Fraction(kink)
    return [same if exact else next(others) for exact in at.tolist()]


def _reason(kink: Fraction, real: Fraction, local: Fraction | None, idle: Reason | None, half: Fraction) -> Reason:
    if kink:
        return "exact saturation" if real == kink else "rounded saturation"
    if idle is not None:
        return idle
    if 0 < abs(real) <= half or (local is not None and 0 < abs(local) <= half):
        return "underflow"
    return "exact cancellation" if real == kink else "rounding cancellation"


def _missed(reals: Reals, calls: Sequence[Call]) -> Iterator[Missed]:
    """Yield the exact hits over the reals that are not hits in floating point."""
    for index, (call, exact) in enumerate(zip(calls, reals.hits, strict=True)):
        for kink, hits, real in zip(call.rule.kinks, call.hits, exact, strict=True):
            seen = {(position[0], position[-1]) for position in hits.tolist()}
            for position in map(tuple, real.tolist()):
                if position not in seen:
                    yield Missed(call.site, index, position, kink)
