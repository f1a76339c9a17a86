"""Models of the members of a comparison, with activations that follow a chosen rule.

A member's activation is torch's own in forward. In backward it is torch's own too, corrected at the hits by the chain
rule or by the injected rule (``relucheck.activations.rules``). On a CPU it locates the hits once, in forward, where they
are also counted. On an accelerator it compares every element instead (``relucheck.training.masks.masked``). Rule and
subgradient are read when backward runs, so several backwards can share one forward. The members of a seed share
initialisation and dropout masks.

Activations and max poolings that no chosen subgradient reaches stay torch's own. Their hits and ties are counted, too.
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
from relucheck.activations.pooling import Windows, tied_maxima
from relucheck.activations.rules import at_hits
from relucheck.errors import RelucheckError
from relucheck.networks.network import ACTIVATIONS
from relucheck.networks.sites import Site, unreached
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.bits import has_value, positions_of
from relucheck.numerics.determinism import generator
from relucheck.training.masks import masked
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
        masked: whether activations treat hits as masks on the device, so that the host does not wait for it.
    """

    choice: Choice = ((0.0, 0.0), "chain")
    masked: bool = False


class Clock:
    """The seed and the step from which dropout masks are drawn, shared by all models of a seed.

    Copies of a model share the clock too, because a deep copy of a clock is the clock itself.

    Args:
        seed: of the masks.
        fixed: whether each mask keeps its place in memory from step to step, so that recorded steps can read it.
    """

    def __init__(self, seed: int, *, fixed: bool = False) -> None:
        self.seed, self.step, self.fixed = seed, 0, fixed
        self._masks: dict[Any, Tensor] = {}
        self._drawn_at: dict[Any, int] = {}

    def tick(self, step: int) -> None:
        """Go to a step; the masks of the last one are no longer used."""
        self.step = step
        if not self.fixed:
            self._masks.clear()

    def refresh(self, samples: int) -> None:
        """Draw the masks that earlier steps used for mini-batches of this size, for this step."""
        for (layer, keep, *_), mask in list(self._masks.items()):
            if len(mask) == samples:
                self.mask(layer, keep, mask)

    def mask(self, layer: int, keep: float, like: Tensor) -> Tensor:
        """The dropout mask of a layer in this step: 0 or 1 / keep, the same for all callers.

        Args:
            layer: which dropout layer.
            keep: probability of keeping a value.
            like: a tensor of the shape, dtype and device that the mask gets.
        """
        key = (layer, keep, like.shape, like.dtype)
        known = self._masks.get(key)
        if known is not None and self._drawn_at[key] == self.step:
            return known
        random = generator(stream(self.seed, "dropout", self.step, layer), like.device)
        drawn = torch.rand(like.shape, generator=random, device=like.device) < keep
        mask = drawn.to(like.dtype).div_(keep)
        self._masks[key], self._drawn_at[key] = (mask if known is None else known.copy_(mask)), self.step
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
        hits: number of hits in the last training forward, by kink; not used if ``Switch.masked``.
        counts: int64 [kinks] on the device, to which the hits of each training forward are added if ``Switch.masked``; None
            counts nothing.
        elements: number of pre-activations in that forward.

    Raises:
        ForwardModeError: forward-mode differentiation is active in a training forward.
    """

    def __init__(self, rule: rules.Rule, switch: Switch, slope: float = _SLOPE) -> None:
        super().__init__()
        self.rule, self.switch, self.slope = rule, switch, slope
        self.hits = [0] * len(rule.kinks)
        self.counts: Tensor | None = None
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
        self.elements = x.numel()
        if self.switch.masked:
            with torch._C.DisableTorchFunction():
                return _Masked.apply(x, self)
        # coordinates, not a mask, because hits are rare and a CPU finds them quickly
        hits = [_hits(x.detach(), at) for at in self.rule.kinks]
        self.hits = [0 if hit is None else len(hit[0]) for hit in hits]
        with torch._C.DisableTorchFunction():  # keeps relucheck.bifurcation.interception from choosing the subgradient
            result = result_of(x, self.slope)
        if any(self.hits) and result.grad_fn is not None:
            result.grad_fn.register_hook(functools.partial(_correct_hits, self, hits))
        return result


class _Masked(torch.autograd.Function):
    """The activation of a ``Kinked`` whose hits are masks on the device."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: Kinked) -> Tensor:
        if module.counts is not None:
            masked.count(x, module.rule.kinks, module.counts)
        ctx.save_for_backward(x)
        ctx.module = module
        return module.rule.forward(x, module.slope)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (cotangent,), (x,), module = grad_outputs, ctx.saved_tensors, ctx.module
        subgradients, name = module.switch.choice
        return masked.gradient(module.rule, x, cotangent, module.slope, subgradients, name == "injected"), None


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


class Counted(nn.Module):
    """Torch's activation or max pooling, with a count of its hits or ties.

    No subgradient is chosen here, so every member has the same gradient at them.

    Args:
        module: torch's module.
        kinks: positions of its kinks; empty for a max pooling, whose ties are counted.

    Attributes:
        counts: int64 [kinks], or [1] for ties, on the device; the hits or ties of each training forward are added. None
            counts nothing.
        elements: number of pre-activations in the last training forward; of windows for a max pooling.
    """

    def __init__(self, module: nn.Module, kinks: Sequence[float]) -> None:
        super().__init__()
        self.module, self.kinks = module, tuple(kinks)
        self.kinds = len(self.kinks) or 1
        self.counts: Tensor | None = None
        self.elements = 0

    def forward(self, x: Tensor) -> Tensor:
        counts = self.counts if self.training and torch.is_grad_enabled() else None
        if self.kinks and counts is not None:  # before the module, which may write over its input
            self.elements = x.numel()
            masked.count(x.detach(), self.kinks, counts)
        result: Tensor = self.module(x)
        if isinstance(self.module, nn.MaxPool2d) and counts is not None:
            self.elements = result.numel()
            tied = tied_maxima(x.detach(), result.detach(), Windows.of(self.module)) > 1
            counts[0].add_(tied.sum())
        return result


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


def counters(model: nn.Module) -> list[Counted]:
    """The modules of a model that are only counted, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, Counted)]


def count_at(model: nn.Module, sites: Sequence[Site]) -> nn.Module:
    """Count hits and ties at some sites of a model, which is changed in place and returned.

    Args:
        model: of the network that the sites belong to.
        sites: those whose gradient is torch's.
    """
    for site in sites:
        model.set_submodule(site.module, Counted(model.get_submodule(site.module), site.kinks))
    return model


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
    return count_at(uncounted(settings, seed, clock, switch), unreached(settings.network))


def uncounted(settings: Settings, seed: int, clock: Clock, switch: Switch) -> nn.Module:
    """The model of ``build`` without counts where no subgradient reaches.

    So its modules have the names of the network's.
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
