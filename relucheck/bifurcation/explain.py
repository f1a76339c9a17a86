"""Why a mini-batch bifurcates: its hits with their reasons, the gradients that each of them changes, and its zone.

Hits and the parameters behind them are found for any eager model. Reasons, and whether the gradients differ over the reals
(:mod:`relucheck.bifurcation.exact_forward`), are given for networks of linear layers and piecewise linear activations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, Final

import torch
from torch import Tensor, nn

from relucheck.activations.rules import ModelSubgradient, Rule, as_model_subgradient, as_subgradient
from relucheck.bifurcation.compare import Comparison, Difference, compare, differences_of, root_of, untouched
from relucheck.bifurcation.exact_forward import ExactError, ExactRows, Reals, real_inputs
from relucheck.bifurcation.exact_gradients import over_the_reals
from relucheck.bifurcation.explanation import Explanation, Hit, Missed, Reason
from relucheck.bifurcation.gradients import gradients
from relucheck.bifurcation.interception import Call, Interception, as_arguments
from relucheck.errors import ControlError, ModelError, whole
from relucheck.numerics import dyadics
from relucheck.numerics.determinism import deterministic

#: Hits whose effect is measured by a backward of their own, by default.
LIMIT: Final = 32


class _PerHit(Interception):
    """An interception that gives each call with hits subgradients of its own, one per element and kink."""

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
        own = None
        if call.hit_count and call.differentiated:
            own = (self._shared[0].expand(call.shape).clone(), self._shared[1].expand(call.shape).clone())
        self.chosen.append(own)
        self._lower, self._upper = own or self._shared

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        before = len(self.chosen)
        result = super().run(func, args, kwargs)
        self._lower, self._upper = self._shared  # what is recomputed later records nothing
        if len(self.chosen) > before:
            self.results.append(result.detach())
            if self.chosen[-1] is not None:

                def keep(gradient: Tensor, at: int = before) -> None:
                    self.cotangents.setdefault(at, gradient.detach().clone())

                result.register_hook(keep)
        return result


def explain(
    model: nn.Module,
    inputs: Tensor | Sequence[Any],
    targets: Tensor | None = None,
    *,
    subgradients: tuple[ModelSubgradient, ModelSubgradient] = (0.0, 1.0),
    limit: int = LIMIT,
) -> Explanation:
    """Explains what one mini-batch does at kinks.

    Args:
        model, inputs, targets, subgradients: as for :func:`relucheck.bifurcation.compare.compare` (without targets, its
            upstream gradient).
        limit: most hits whose effect on the gradients is measured, by one backward each; hits whose cotangent is 0 change
            nothing and cost nothing. Calls that autograd did not record (under ``torch.no_grad``) are not measured.

    Raises:
        ModelError, ControlError, SubgradientError: as ``compare``.
    """
    whole("explain: limit", limit, 0, error=ModelError)
    comparison = compare(model, inputs, targets, subgradients=subgradients)
    arguments = as_arguments(inputs)
    first, second = (as_model_subgradient(setting) for setting in subgradients)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    device = next(iter(parameters.values())).device
    interception = _PerHit(model, device, first)
    with torch.inference_mode(False), deterministic(), untouched(model, device), torch.enable_grad(), interception:
        output = model(*arguments)
        root, upstream = root_of(output, targets, None, None)
        interception.recording = False
        if not _same_hits(comparison.calls, interception.calls):
            raise ControlError(
                "explain: two forwards of one mini-batch hit different kinks, so this model is not deterministic here; "
                "look for unseeded randomness in its forward"
            )
        effects, unmeasured = _effects(interception, parameters, root, upstream, second, limit)
    reals, unserved = None, None
    try:
        if len(arguments) != 1 or not isinstance(arguments[0], Tensor):
            raise ExactError("exact evaluation: the model takes other arguments than one tensor; pass one that takes one")
        cotangent = upstream if targets is None else None
        reals = over_the_reals(model, arguments[0], targets, (first, second), cotangent=cotangent)
    except ExactError as error:
        unserved = str(error)
    with torch.device("cpu"):  # whatever the default device
        reasons = [] if reals is None else list(_reasons(reals, arguments[0], interception, comparison))
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
    """Call, kink and position of every hit, in the order of an explanation."""
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
    """For each hit its cotangent and what it changes alone; and how many hits are not measured because of the limit."""
    base = gradients(root, parameters, upstream, interception.running())
    cotangents = {call: gradient.cpu() for call, gradient in interception.cotangents.items()}
    other = second if isinstance(second, tuple) else (second, second)
    values = tuple(as_subgradient(value, optional=True) for value in other)
    found: list[tuple[float | None, tuple[Difference, ...] | None]] = []
    measured = unmeasured = 0
    for call, kink, position in _each_hit(interception.calls):
        at = tuple(position)
        chosen = interception.chosen[call]
        if chosen is None:
            found.append((None, None))
            continue
        if call not in cotangents:  # no gradient passes here
            found.append((0.0, ()))
            continue
        cotangent = float(cotangents[call][at])
        if cotangent == 0:
            found.append((cotangent, ()))
        elif measured == limit:
            unmeasured += 1
            found.append((cotangent, None))
        else:
            measured += 1
            here = chosen[kink].data  # by reference: backward reads it when it runs
            kept = here[at].clone()
            here[at] = values[kink].to(here)
            changed = gradients(root, parameters, upstream, interception.running())
            here[at] = kept
            found.append((cotangent, tuple(differences_of(base, changed))))
    return found, unmeasured


def _reasons(
    reals: Reals, inputs: Tensor, interception: _PerHit, comparison: Comparison
) -> Iterator[tuple[Reason, Fraction | None, Fraction | None]]:
    """Reason, value over the reals and value given the layer before of each hit of a network that the reals serve."""
    x = real_inputs(reals.layers, inputs)
    exact = ExactRows(reals.layers, x)
    smallest = torch.finfo(comparison.arithmetic.dtype)
    half = Fraction(smallest.smallest_normal) * Fraction(smallest.eps) / 2  # of the least subnormal: rounds to 0
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
    """The numbers at some positions; those at the kink, mostly all, need no conversion."""
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
    for index, (call, exact) in enumerate(zip(calls, reals.hits, strict=True)):
        for kink, found, real in zip(call.rule.kinks, call.hits, exact, strict=True):
            seen = {(position[0], position[-1]) for position in found.tolist()}
            for position in map(tuple, real.tolist()):
                if position not in seen:
                    yield Missed(call.site, index, position, kink)
