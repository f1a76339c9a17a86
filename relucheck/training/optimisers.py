"""Optimisers of stacked members, which must treat all members alike, bit for bit.

Kernels may round in the tail of a tensor otherwise than in its body (torch's SGD in 16 bits and its fused kernels do so on
a CPU), so that the last member of a stack would take other steps than the first one. :func:`make` tries on the sizes,
dtype and device at hand whether members stay alike, and steps each member by itself where they do not. Fused optimisers
always step so: they may differ in a moment that reaches no parameter for a hundred steps. :class:`Scaled` is made of
operations that round each element by itself.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from relucheck.numerics.determinism import generator
from relucheck.numerics.dtypes import bits_dtype
from relucheck.training.flat import make_optimiser, trial_values
from relucheck.training.settings import Optimiser, Settings

_GROWTH: Final = 2000  # steps without overflow after which the scale doubles, as torch.amp.GradScaler's
_STEPS: Final = 4  # of the proof: moments of 0, then of every size
#: Stacks beside those at hand: whether the few elements of one tail show what its kernel does is chance; with these not.
_TAILS: Final = tuple((3, size) for size in range(1, 65))


class Stacked:
    """torch's own optimiser over parameters [members, ...].

    Args:
        chosen: which one.
        parameters: stepped in place.
        apart: whether each member's part of a parameter is a parameter of its own.
    """

    def __init__(self, chosen: Optimiser, parameters: Sequence[Tensor], *, apart: bool) -> None:
        self.apart = apart
        whole = [parameter.detach() for parameter in parameters]  # detached: the same memory
        self.parameters = [nn.Parameter(part) for value in whole for part in (value.unbind() if apart else (value,))]
        self.optimiser = make_optimiser(chosen, self.parameters)

    def step(self, gradients: Sequence[Tensor]) -> None:
        """One step with a gradient of each parameter's shape."""
        # contiguous: fused kernels go through memory whatever the strides
        whole = [gradient.contiguous() for gradient in gradients]
        own = [part for value in whole for part in (value.unbind() if self.apart else (value,))]
        for parameter, gradient in zip(self.parameters, own, strict=True):
            parameter.grad = gradient
        self.optimiser.step()

    def state_dict(self) -> dict[str, Any]:
        return self.optimiser.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimiser.load_state_dict(state)


def make(settings: Settings, parameters: Sequence[Tensor]) -> Stacked | Scaled:
    """The optimiser of a comparison over parameters [members, ...], which it steps in place."""
    if settings.arithmetic.scaled:
        return Scaled(settings, [parameter.detach() for parameter in parameters])
    shapes = tuple(tuple(parameter.shape) for parameter in parameters)
    first = parameters[0]
    apart = settings.optimiser.fused or not _alike(
        settings.optimiser, shapes, first.dtype, first.device, torch.get_num_threads()
    )
    return Stacked(settings.optimiser, parameters, apart=apart)


@functools.lru_cache(maxsize=64)
def _alike(
    chosen: Optimiser, shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype, device: torch.device, threads: int
) -> bool:
    """Whether members of the same values and gradients take the same steps, wherever in a stack they are. Tried."""
    # not on the default device, where optimisers make their counts of steps
    with torch.device("cpu"):
        return _tried(chosen, (*shapes, *_TAILS), dtype, device)


def _tried(chosen: Optimiser, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: torch.device) -> bool:
    random = generator(0)

    def drawn(smallest: int) -> list[Tensor]:
        """Every member's the same."""
        made = [(count, trial_values(shape, smallest, random).to(dtype).to(device)) for count, *shape in shapes]
        return [value.expand(count, *value.shape).contiguous() for count, value in made]

    parameters = drawn(-2)
    optimiser = Stacked(chosen, parameters, apart=False)
    for _ in range(_STEPS):
        optimiser.step(drawn(-9))
    states = [state for own in optimiser.optimiser.state.values() for state in own.values() if torch.is_tensor(state)]
    bits = [tensor.view(bits_dtype(dtype)) for tensor in (*parameters, *states) if tensor.ndim]  # counts of steps have none
    return all(bool((value == value[:1]).all()) for value in bits)


class Scaled:
    """Adam or SGD under a gradient scaler of each member's own; a member whose gradients overflow skips its step.

    ``torch.amp.GradScaler`` has one scale and would skip the step of all. Same rules and constants. Parameters are float32
    here, so torch's fused optimisers differ from this by rounding only, and there is one form for both.
    """

    def __init__(self, settings: Settings, parameters: list[Tensor]) -> None:
        self.chosen, self.parameters = settings.optimiser, parameters
        count, device = parameters[0].shape[0], parameters[0].device
        self.scale = torch.full((count,), 65536.0, device=device)
        self.clean = torch.zeros(count, dtype=torch.int64, device=device)
        # Adam's betas to the number of steps taken, [2, members]: products, as kernels of ** may round by place
        self.betas = torch.tensor([[0.9], [0.999]], dtype=torch.float64, device=device)
        self.powers = torch.ones(2, count, dtype=torch.float64, device=device)
        self.first = [torch.zeros_like(p) for p in parameters]
        self.second = [torch.zeros_like(p) for p in parameters]

    def step(self, gradients: Sequence[Tensor]) -> None:
        gradients = [g / _like(self.scale, g) for g in gradients]
        good = torch.stack([g.flatten(1).isfinite().all(1) for g in gradients]).all(0)
        self.powers = torch.where(good, self.powers * self.betas, self.powers)
        corrections = (1 - self.powers).to(self.scale.dtype)
        for p, g, m, v in zip(self.parameters, gradients, self.first, self.second, strict=True):
            at = _like(good, p)
            if self.chosen.name == "adam":
                m.copy_(torch.where(at, m + (g - m) * (1 - 0.9), m))
                v.copy_(torch.where(at, v * 0.999 + g * g * (1 - 0.999), v))
                one, two = (_like(correction, p) for correction in corrections)
                change = self.chosen.lr * (m / one) / ((v / two).sqrt() + self.chosen.eps)
            else:
                m.copy_(torch.where(at, m * self.chosen.momentum + g, m))
                change = self.chosen.lr * m
            p.copy_(torch.where(at, p - change, p))
        self.clean = torch.where(good, self.clean + 1, 0)
        grown = self.clean >= _GROWTH
        self.scale = torch.where(good, torch.where(grown, self.scale * 2, self.scale), self.scale * 0.5)
        self.clean = torch.where(grown, 0, self.clean)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("scale", "clean", "powers", "first", "second")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.scale.device
        for name, value in state.items():
            setattr(self, name, [t.to(device) for t in value] if isinstance(value, list) else value.to(device))


def _like(values: Tensor, target: Tensor) -> Tensor:
    """[members] shaped to broadcast over the other dimensions of ``target``."""
    return values.view(-1, *[1] * (target.ndim - 1))
