"""Models of the members of a comparison: one initialisation, activations that follow a rule, shared dropout masks.

A member's activation is torch's own forward, and torch's own backward corrected at the hits, by the chain rule or by the
injected one (:mod:`relucheck.activations.rules`). It finds the hits once, in forward, where they are also counted, and
reads rule and subgradient when backward runs, so that several backwards can share one forward (DESIGN, semantics 4).
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
_SMALL: Final = 2**17  # elements up to which comparing all is faster than picking rows

#: What a backward does at hits: subgradients at the kinks, and the rule's name.
Choice = tuple[tuple[float, float], str]


@dataclasses.dataclass
class Switch:
    """What backward does at hits, for all activations of one model; read when backward runs."""

    choice: Choice = ((0.0, 0.0), "chain")


class Clock:
    """Seed and step, from which dropout masks are drawn; one object for all models of an ensemble, copies included."""

    def __init__(self, seed: int) -> None:
        self.seed, self.step = seed, 0
        self._masks: dict[Any, Tensor] = {}

    def tick(self, step: int) -> None:
        """Goes to a step, and forgets the masks of the last one."""
        self.step = step
        self._masks.clear()

    def mask(self, layer: int, keep: float, like: Tensor) -> Tensor:
        """0 or 1 / keep, of the shape, dtype and device of ``like``; the same for everyone who asks in this step."""
        key = (layer, like.shape, like.dtype)
        if key not in self._masks:
            random = generator(stream(self.seed, "dropout", self.step, layer), like.device)
            drawn = torch.rand(like.shape, generator=random, device=like.device) < keep
            self._masks[key] = drawn.to(like.dtype).div_(keep)
        return self._masks[key]

    def __deepcopy__(self, memo: Any) -> Clock:
        return self


def stream(seed: int, *names: object) -> int:
    """A seed for one purpose: equal for equal arguments, else unrelated. 63 bits."""
    text = ",".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class SharedDropout(nn.Module):
    """Dropout whose masks come from a :class:`Clock`."""

    def __init__(self, probability: float, layer: int, clock: Clock) -> None:
        super().__init__()
        self.keep, self.layer, self.clock = 1 - probability, layer, clock

    def forward(self, x: Tensor) -> Tensor:
        return x * self.clock.mask(self.layer, self.keep, x) if self.training else x


class ExecutorError(RelucheckError, TypeError):
    """A model that an executor of trainings cannot run."""


class ForwardModeError(RelucheckError, RuntimeError):
    """Forward-mode differentiation of a model that serves reverse mode only."""


class Kinked(nn.Module):
    """ReLU, ReLU6 or LeakyReLU with what backward does at hits taken from a :class:`Switch`.

    Attributes:
        hits: of the last training forward, by kink.
        elements: how many pre-activations that forward had.
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
                "relucheck.training.model.Kinked serves reverse mode, in which members are trained; forward mode would "
                "take torch's own subgradient: use relucheck.ReLU"
            )
        # coordinates, not a mask: hits are rare; on accelerators this waits for the device, see the stacked executor
        hits = [_hits(x.detach(), at) for at in self.rule.kinks]
        self.hits = [0 if hit is None else len(hit[0]) for hit in hits]
        self.elements = x.numel()
        with torch._C.DisableTorchFunction():  # an interception would choose a subgradient, which is the switch's
            result = result_of(x, self.slope)
        if any(self.hits) and result.grad_fn is not None:
            result.grad_fn.register_hook(functools.partial(_put_right, self, hits))
        return result


def _put_right(
    module: Kinked,
    hits: Sequence[tuple[Tensor, ...] | None],
    gradients: Sequence[Tensor | None],
    cotangents: Sequence[Tensor | None],
) -> tuple[Tensor] | None:
    """A hook on the node of torch's own activation: what its backward returned, with the hits put right."""
    (gradient,), (cotangent,) = gradients, cotangents
    if gradient is None or cotangent is None:
        return None
    own = module.slope if module.rule.leaky else 0.0
    subgradients, name = module.switch.choice
    for hit, subgradient in zip(hits, subgradients, strict=False):
        if hit is not None:
            put = at_hits(gradient[hit], cotangent[hit], subgradient, own, name == "injected")
            gradient.index_put_(hit, put)
    return (gradient,)


def _hits(x: Tensor, at: float) -> tuple[Tensor, ...] | None:
    """Where ``x`` equals ``at``, or None."""
    if x.device.type == "cpu":
        if x.numel() > _SMALL:
            return positions_of(x, at)
        if not has_value(x, at):
            return None
    found = (x == at).nonzero(as_tuple=True)
    return found if len(found[0]) else None


def layers(model: nn.Module) -> list[Kinked]:
    """The activations of a model in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, Kinked)]


def build(settings: Settings, seed: int, clock: Clock, switch: Switch) -> nn.Module:
    """The model of a comparison, on the CPU, in its arithmetic.

    PyTorch's default initialisation, drawn in float32 and then cast: one seed is one initialisation in every arithmetic,
    but for rounding.
    """
    network, layer, arithmetic = settings.network, itertools.count(1), settings.arithmetic
    rule = ACTIVATIONS[network.activation].rule
    return network.draw(
        seed,
        Arithmetic(arithmetic.dtype) if arithmetic.mixed else arithmetic,  # a sitting brings its autocast
        activation=lambda: Kinked(rule, switch, network.negative_slope),
        dropout=lambda probability: SharedDropout(probability, next(layer), clock),
        drawn=torch.float32,
    )
