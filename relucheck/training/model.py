"""Models of the members of a comparison, with activations that follow a chosen rule.

A member's activation is torch's own in forward. In backward it is torch's own too, corrected at the hits by the chain
rule or by the injected rule (``relucheck.activations.rules``). It locates the hits once, in forward, where they are also
counted. Rule and subgradient are read when backward runs, so several backwards can share one forward. The members of a
seed share initialisation and dropout masks.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Sequence
from typing import Any, Final

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn

from relucheck.activations import rules
from relucheck.activations.rules import at_hits
from relucheck.errors import RelucheckError
from relucheck.networks.network import ACTIVATIONS
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.bits import has_value, positions_of
from relucheck.numerics.determinism import generator
from relucheck.training.settings import Settings

_SLOPE: Final = 0.01
_SMALL: Final = 2**17  # number of elements up to which comparing all is faster than first selecting rows with a hit

#: What backward does at hits: the subgradients at the kinks, and the name of the rule.
Choice = tuple[tuple[float, float], str]


@dataclasses.dataclass
class Switch:
    """What backward does at hits, for all activations of one model; read when backward runs.

    Attributes:
        choice: the subgradients at the kinks, and the rule.
    """

    choice: Choice = ((0.0, 0.0), "chain")


class Clock:
    """The seed and the step from which dropout masks are drawn, shared by all models of a seed.

    Copies of a model share the clock too, because a deep copy of a clock is the clock itself.
    """

    def __init__(self, seed: int) -> None:
        self.seed, self.step = seed, 0
        self._masks: dict[Any, Tensor] = {}

    def tick(self, step: int) -> None:
        """Go to a step, and forget the masks of the last one."""
        self.step = step
        self._masks.clear()

    def mask(self, layer: int, keep: float, like: Tensor) -> Tensor:
        """The dropout mask of a layer in this step: 0 or 1 / keep, the same for all callers.

        Args:
            layer: which dropout layer.
            keep: probability of keeping a value.
            like: a tensor of the shape, dtype and device that the mask gets.
        """
        key = (layer, like.shape, like.dtype)
        if key not in self._masks:
            random = generator(stream(self.seed, "dropout", self.step, layer), like.device)
            drawn = torch.rand(like.shape, generator=random, device=like.device) < keep
            self._masks[key] = drawn.to(like.dtype).div_(keep)
        return self._masks[key]

    def __deepcopy__(self, memo: Any) -> Clock:
        return self


def stream(seed: int, *names: object) -> int:
    """A 63-bit seed for one purpose: equal for equal arguments, otherwise unrelated."""
    text = ",".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class SharedDropout(nn.Module):
    """Dropout whose masks come from a ``Clock``."""

    def __init__(self, probability: float, layer: int, clock: Clock) -> None:
        super().__init__()
        self.keep, self.layer, self.clock = 1 - probability, layer, clock

    def forward(self, x: Tensor) -> Tensor:
        return x * self.clock.mask(self.layer, self.keep, x) if self.training else x


class ExecutorError(RelucheckError, TypeError):
    """A model that an executor cannot train."""


class ForwardModeError(RelucheckError, RuntimeError):
    """Forward-mode differentiation of a model that supports reverse mode only."""


class Kinked(nn.Module):
    """ReLU, ReLU6 or LeakyReLU whose gradient at hits is decided by a ``Switch``.

    Args:
        rule: forward, backward and kinks of the activation.
        switch: what backward does at hits.
        slope: negative slope of LeakyReLU.

    Attributes:
        hits: number of hits in the last training forward, by kink.
        elements: number of pre-activations in that forward.

    Raises:
        ForwardModeError: forward-mode differentiation is active in a training forward.
    """

    def __init__(self, rule: rules.Rule, switch: Switch, slope: float = _SLOPE) -> None:
        super().__init__()
        self.rule, self.switch, self.slope = rule, switch, slope
        self.hits = [0] * len(rule.kinks)
        self.elements = 0

    def forward(self, x: Tensor) -> Tensor:
        result_of = self.rule.forward
        if not (self.training and torch.is_grad_enabled()):
            return result_of(x, self.slope)
        if forward_ad._current_level >= 0:
            raise ForwardModeError(
                "relucheck.training.model.Kinked supports reverse mode only, in which members are trained; forward mode "
                "would use torch's subgradient: use relucheck.ReLU"
            )
        # Coordinates, not a mask, because hits are rare. On accelerators this waits for the device; the stacked executor
        # has an activation that does not.
        hits = [_hits(x.detach(), at) for at in self.rule.kinks]
        self.hits = [0 if hit is None else len(hit[0]) for hit in hits]
        self.elements = x.numel()
        with torch._C.DisableTorchFunction():  # keeps relucheck.bifurcation.interception from choosing the subgradient
            result = result_of(x, self.slope)
        if any(self.hits) and result.grad_fn is not None:
            result.grad_fn.register_hook(functools.partial(_correct_hits, self, hits))
        return result


def _correct_hits(
    module: Kinked,
    hits: Sequence[tuple[Tensor, ...] | None],
    gradients: Sequence[Tensor | None],
    cotangents: Sequence[Tensor | None],
) -> tuple[Tensor] | None:
    """Correct the gradient at the hits; a hook on the backward node of torch's activation."""
    (gradient,), (cotangent,) = gradients, cotangents
    if gradient is None or cotangent is None:
        return None
    torch_subgradient = module.slope if module.rule.leaky else 0.0
    subgradients, name = module.switch.choice
    for hit, subgradient in zip(hits, subgradients, strict=False):
        if hit is not None:
            corrected = at_hits(gradient[hit], cotangent[hit], subgradient, torch_subgradient, name == "injected")
            gradient.index_put_(hit, corrected)
    return (gradient,)


def _hits(x: Tensor, at: float) -> tuple[Tensor, ...] | None:
    """The coordinates at which ``x`` equals ``at``, or None."""
    if x.device.type == "cpu":
        if x.numel() > _SMALL:
            return positions_of(x, at)
        if not has_value(x, at):
            return None
    coordinates = (x == at).nonzero(as_tuple=True)
    return coordinates if len(coordinates[0]) else None


def layers(model: nn.Module) -> list[Kinked]:
    """The activations of a model, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, Kinked)]


def build(settings: Settings, seed: int, clock: Clock, switch: Switch) -> nn.Module:
    """Build the model of a comparison's seed, on the CPU, in the comparison's arithmetic.

    The initialisation is PyTorch's default, drawn in float32 and then converted. So one seed gives the same
    initialisation in every arithmetic, up to rounding.

    Args:
        settings: of the comparison.
        seed: seed of the initialisation.
        clock: source of the dropout masks.
        switch: what backward does at hits.
    """
    network, layer, arithmetic = settings.network, itertools.count(1), settings.arithmetic
    rule = ACTIVATIONS[network.activation].rule
    return network.draw(
        seed,
        Arithmetic(arithmetic.dtype) if arithmetic.mixed else arithmetic,  # the executor switches autocast on
        activation=lambda: Kinked(rule, switch, network.negative_slope),
        dropout=lambda probability: SharedDropout(probability, next(layer), clock),
        drawn=torch.float32,
    )
