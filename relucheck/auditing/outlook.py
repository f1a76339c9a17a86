"""Predict the hits of any eager model in one training forward, where a rule applies.

A rule of ``relucheck.hits`` needs to know what computes the input of an activation. Here the calls of the forward are
watched. If the input is the very tensor that a linear layer, a batch norm or an addition of two tensors returned,
``relucheck.hits.rates`` or ``relucheck.hits.normed`` predicts its hits. Hits behind other calls, such as convolutions, are
counted and not predicted.

Some hits are certain, whatever the rounding: the sum of two exact zeros, such as those of a ReLU and of a batch norm whose
weight and bias are 0, and the outputs of that batch norm. They are added to what the rules predict.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from relucheck.activations.rules import Rule
from relucheck.bifurcation.forward.arguments import Inputs, arguments_of, refuse_empty
from relucheck.bifurcation.forward.state import reproducible, untouched
from relucheck.bifurcation.interception import Interception
from relucheck.errors import RelucheckError
from relucheck.hits.normed import batch_norm, residual_sum
from relucheck.hits.rates import accumulation, predict_layer
from relucheck.networks.sites import BATCH_NORM, LINEAR, RESIDUAL_SUM
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.emulation.norm import RoundedBatchNorm

OTHER: Final = "other"
_ADDITIONS: Final = frozenset({torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__, Tensor.__radd__})
_LINEAR: Final = frozenset({F.linear, torch._C._nn.linear})


@dataclasses.dataclass(frozen=True)
class Outlook:
    """The predicted and the counted hits of one activation call at one kink.

    They are those of one mini-batch or of several.

    Attributes:
        site: the name of the call, as in ``relucheck.bifurcation.interception.Call``.
        kink: the position of the kink.
        before: what computes the input: "linear layer", "batch norm", "residual sum" or "other".
        activations: the number of pre-activations.
        hits: how many of them equal the kink.
        expected: the predicted number of hits; None without a prediction.
        reason: why there is no prediction; "" if there is one.
    """

    site: str
    kink: float
    before: str
    activations: int
    hits: int
    expected: float | None
    reason: str = ""

    def __add__(self, other: Outlook) -> Outlook:
        """Pool two mini-batches."""
        both = None if self.expected is None or other.expected is None else self.expected + other.expected
        seen, hits = self.activations + other.activations, self.hits + other.hits
        return Outlook(self.site, self.kink, self.before, seen, hits, both, self.reason or other.reason)


#: Predicts the hits of the result of a call at a kink; raises ``_Unpredicted`` if it cannot.
_Rule = Callable[[Tensor, float], float]


class _Unpredicted(Exception):
    """No rule applies; the message says why."""


class _Watching(Interception):
    """An interception that knows what computed the input of each activation call."""

    def __init__(self, model: nn.Module, device: torch.device, arithmetic: Arithmetic) -> None:
        super().__init__(model, device)
        self._arithmetic = arithmetic
        self._made: dict[int, tuple[Tensor, str, _Rule]] = {}  # the tensor itself, so that its id stays taken
        self._before: list[tuple[str, list[tuple[float | None, str]]]] = []  # for each call and kink

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        terms = [value for value in args if isinstance(value, Tensor)] if func in _ADDITIONS else []
        same = len(terms) == 2 and terms[0].shape == terms[1].shape and terms[0].dtype == terms[1].dtype
        # copies, because a sum may be written over its first summand
        a, b = (term.clone() for term in terms) if same and terms[0].is_floating_point() else (None, None)
        result = super().run(func, args, kwargs)
        if a is not None and b is not None and kwargs.get("alpha", 1) == 1:
            self._make(result, RESIDUAL_SUM, _sum_rule(a, b))
        elif func in _LINEAR:
            self._make(result, LINEAR, _linear_rule(self._arithmetic, *args, **kwargs))
        elif func is F.batch_norm:
            self._make(result, BATCH_NORM, _norm_rule(self._model.get_submodule(self._inner), args[0]))
        return result

    def _make(self, result: Tensor, before: str, rule: _Rule) -> None:
        self._made[id(result)] = result, before, rule

    def _record(self, rule: Rule, x: Tensor, func: Any) -> None:
        super()._record(rule, x, func)
        known = self._made.get(id(x))
        if known is None:
            self._before.append((OTHER, [(None, "no rule for what computes its input")] * len(rule.kinks)))
            return
        self._before.append((known[1], [_predicted(known[2], x, kink) for kink in rule.kinks]))

    def outlooks(self) -> tuple[Outlook, ...]:
        """What was counted and predicted, call by call and kink by kink."""
        return tuple(
            Outlook(call.site, kink, before, call.elements, len(positions), expected, reason)
            for call, (before, predicted) in zip(self.calls, self._before, strict=True)
            for kink, positions, (expected, reason) in zip(call.rule.kinks, call.hits, predicted, strict=True)
        )


def _predicted(rule: _Rule, x: Tensor, kink: float) -> tuple[float | None, str]:
    try:
        return rule(x, kink), ""
    except (_Unpredicted, RelucheckError) as error:
        return None, str(error).split(";")[0]


def _sum_rule(a: Tensor, b: Tensor) -> _Rule:
    def rule(z: Tensor, kink: float) -> float:
        if kink != 0 or z.ndim < 2:
            raise _Unpredicted("residual sums are predicted at 0, with at least two dimensions")
        return residual_sum(a, b).hits + int(((a == 0) & (b == 0)).sum())

    return rule


def _linear_rule(arithmetic: Arithmetic, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> _Rule:
    def rule(z: Tensor, kink: float) -> float:
        if kink != 0:
            raise _Unpredicted("linear layers are predicted at 0")
        rows = x.detach().reshape(-1, x.shape[-1])
        how = accumulation(arithmetic, weight.shape[1], weight.shape[0], len(rows), str(weight.device))
        return predict_layer(rows, weight, bias, how).expected

    return rule


def _norm_rule(norm: nn.Module, x: Tensor) -> _Rule:
    def rule(z: Tensor, kink: float) -> float:
        if not isinstance(norm, _BatchNorm) or not (norm.training or norm.running_mean is None):
            raise _Unpredicted("batch norm is predicted in training, as a module")
        if z.dtype.itemsize == 2 and not isinstance(norm, RoundedBatchNorm):
            raise _Unpredicted("the device's own batch norm in 16 bits has no rule")
        if not norm.affine:
            return batch_norm(x, norm, kink).hits
        certain = int(((norm.weight == 0) & (norm.bias == kink)).sum()) * (x.numel() // x.shape[1])
        return batch_norm(x, norm, kink).hits + certain

    return rule


def outlook(model: nn.Module, inputs: Inputs, arithmetic: Arithmetic | None = None) -> tuple[Outlook, ...]:
    """Predict and count the hits of every activation call of a model in one forward.

    The model stays as it is: its buffers and the random state do not change. It runs in the mode in which it is, and batch
    norm is predicted in training only.

    Args:
        model: any eager module, as for ``relucheck.compare``.
        inputs: one mini-batch, as for ``relucheck.compare``.
        arithmetic: that of the model; None means ``Arithmetic.of(model)``. For mixed precision, call this under autocast.

    Returns:
        One entry for each activation call and kink, in the order of the forward.

    Raises:
        ModelError: as ``relucheck.compare``, for a model that cannot be run or whose calls cannot be seen.
    """
    device = next(model.parameters()).device
    known = Arithmetic.of(model) if arithmetic is None else arithmetic
    arguments = arguments_of(model, inputs)
    watching = _Watching(model, device, known)
    with torch.inference_mode(False), reproducible(device), untouched(model, device), torch.enable_grad(), watching:
        arguments.call(model)
    refuse_empty(watching.calls)
    return watching.outlooks()
