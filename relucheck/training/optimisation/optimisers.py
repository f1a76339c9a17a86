"""Optimisers, and trials that decide whether one step may go over many tensors at once.

An optimiser works element by element, so neither the other elements of a tensor nor the place in it should change a bit.
But kernels can round differently in the tail of a tensor: on a CPU, torch's SGD in 16 bits and torch's fused kernels do.
So a trial on random values compares the bits, on the device, dtype and sizes at hand. If they differ, every part is
stepped by itself. Fused optimisers are always stepped part by part: they make one pass anyway, and a wrong moment can
take a hundred steps until it shows in a parameter. ``Scaled`` consists of operations that round each element by itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from relucheck.numerics.determinism import generator
from relucheck.numerics.dtypes import bits_dtype
from relucheck.training.optimisation.flat import Flat, laid_out
from relucheck.training.settings import Optimiser, Settings

_GROWTH: Final = 2000  # steps without overflow after which the scale doubles, as torch.amp.GradScaler's
_STEPS: Final = 4  # steps of a trial: in the first one all moments are 0, later they have every magnitude
#: Values and gradients of a trial have magnitudes from this power of 10 up to about 1.
_SMALLEST: Final = {"values": -2, "gradients": -9}
#: Shapes that are tried in addition to those at hand, because the few elements in the tail of one tensor may agree by
#: chance. These are too short for a vector register, so a kernel treats them as a tail; joined in one tensor, they are its
#: body.
_SHORT: Final = ((3,),) * 64
_STACKS: Final = tuple((3, size) for size in range(1, 65))

#: Draws random tensors of given shapes, as "values" or as "gradients".
Draw = Callable[[Sequence[tuple[int, ...]], str], list[Tensor]]
#: Whether an optimiser passes a trial with tensors of given shapes.
Trial = Callable[[Optimiser, Sequence[tuple[int, ...]], Draw], bool]


def make_optimiser(chosen: Optimiser, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    """torch's optimiser over some tensors."""
    # fused=None is torch's default; False would also forbid the foreach kernels that torch uses on CUDA
    if chosen.name == "adam":
        return torch.optim.Adam(parameters, lr=chosen.lr, eps=chosen.eps, fused=chosen.fused or None)
    return torch.optim.SGD(parameters, lr=chosen.lr, momentum=chosen.momentum, fused=chosen.fused or None)


def same_as_apart(chosen: Optimiser, flat: Flat) -> bool:
    """Return whether one step over ``Flat.whole`` gives the bits of a step over each parameter.

    The zeros between the parameters must stay zeros as well. The answer is False, for example, for torch's SGD in 16
    bits, whose tails round differently, and where Adam's eps rounds to 0, because the zeros between the parameters become
    0 / 0.
    """
    return _passes(_flat_trial, chosen, flat.parameters)


def _flat_trial(chosen: Optimiser, shapes: Sequence[tuple[int, ...]], draw: Draw) -> bool:
    """The trial of ``same_as_apart``."""
    shapes = (*shapes, *_SHORT)
    model = nn.ParameterList(nn.Parameter(value) for value in draw(shapes, "values"))
    apart = [nn.Parameter(parameter.detach().clone()) for parameter in model]
    flat = Flat(model)
    one, many = make_optimiser(chosen, [flat.whole]), make_optimiser(chosen, apart)
    expected, places = laid_out(apart)
    for _ in range(_STEPS):
        gradients = draw(shapes, "gradients")
        flat.collect(gradients)
        for parameter, gradient in zip(apart, gradients, strict=True):
            parameter.grad = gradient
        one.step()
        many.step()
        for place, parameter in zip(places, apart, strict=True):
            place.copy_(parameter.detach())
        if not torch.equal(flat.values.view(torch.int64), expected.view(torch.int64)):
            return False
    return True


def _stacked_trial(chosen: Optimiser, shapes: Sequence[tuple[int, ...]], draw: Draw) -> bool:
    """The trial of ``make``: equal members must take equal steps at every place in a stack."""
    shapes = (*shapes, *_STACKS)

    def alike(what: str) -> list[Tensor]:
        values = draw([shape for _, *shape in shapes], what)  # type: ignore[misc]
        return [value.expand(count, *value.shape).contiguous() for value, (count, *_) in zip(values, shapes, strict=True)]

    parameters = alike("values")
    optimiser = Stacked(chosen, parameters, apart=False)
    for _ in range(_STEPS):
        optimiser.step(alike("gradients"))
    moments = [state for entry in optimiser.optimiser.state.values() for state in entry.values() if torch.is_tensor(state)]
    # torch's counts of steps are tensors without dimensions
    bits = [tensor.view(bits_dtype(tensor.dtype)) for tensor in (*parameters, *moments) if tensor.ndim]
    return all(bool((value == value[:1]).all()) for value in bits)


def _passes(trial: Trial, chosen: Optimiser, parameters: Sequence[Tensor]) -> bool:
    if chosen.fused:
        return False
    shapes, first = tuple(tuple(parameter.shape) for parameter in parameters), parameters[0]
    return _tried(trial, chosen, shapes, first.dtype, first.device, torch.get_num_threads())


@functools.lru_cache(maxsize=128)
def _tried(
    trial: Trial,
    chosen: Optimiser,
    shapes: tuple[tuple[int, ...], ...],
    dtype: torch.dtype,
    device: torch.device,
    threads: int,
) -> bool:
    random = generator(0)

    def draw(wanted: Sequence[tuple[int, ...]], what: str) -> list[Tensor]:
        return [_random_values(shape, _SMALLEST[what], random).to(dtype).to(device) for shape in wanted]

    # optimisers create their counts of steps on the default device, which may be another one
    with torch.device("cpu"):
        return trial(chosen, shapes, draw)


def _random_values(shape: Sequence[int], smallest: int, random: torch.Generator) -> Tensor:
    """float32 values on the CPU with magnitudes from 10 ** smallest to about 1; a tenth are 0."""
    # dtypes are given, as torch's default dtype may be another one
    size = 10.0 ** torch.randint(smallest, 1, tuple(shape), generator=random, device="cpu").float()
    value = torch.randn(tuple(shape), generator=random, device="cpu", dtype=torch.float32) * size
    value[torch.rand(tuple(shape), generator=random, device="cpu", dtype=torch.float32) < 0.1] = 0
    return value


class Stacked:
    """torch's optimiser over parameters [members, ...].

    Args:
        chosen: which optimiser.
        parameters: [members, ...] each, changed in place.
        apart: whether each member's part of a parameter is stepped as a parameter by itself.
    """

    def __init__(self, chosen: Optimiser, parameters: Sequence[Tensor], *, apart: bool) -> None:
        self.apart = apart
        whole = [parameter.detach() for parameter in parameters]  # shares memory with the parameters
        self.parameters = [nn.Parameter(part) for value in whole for part in (value.unbind() if apart else (value,))]
        self.optimiser = make_optimiser(chosen, self.parameters)

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Take one step, given a gradient of each parameter's shape."""
        whole = [gradient.contiguous() for gradient in gradients]  # fused kernels ignore strides
        parts = [part for value in whole for part in (value.unbind() if self.apart else (value,))]
        for parameter, gradient in zip(self.parameters, parts, strict=True):
            parameter.grad = gradient
        self.optimiser.step()

    def state_dict(self) -> dict[str, Any]:
        return self.optimiser.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimiser.load_state_dict(state)


def make(settings: Settings, parameters: Sequence[Tensor]) -> Stacked | Scaled:
    """The optimiser of a comparison over parameters [members, ...], which it changes in place."""
    if settings.arithmetic.scaled:
        return Scaled(settings, [parameter.detach() for parameter in parameters])
    apart = not _passes(_stacked_trial, settings.optimiser, parameters)
    return Stacked(settings.optimiser, parameters, apart=apart)


class Scaled:
    """Adam or SGD with a gradient scaler for each member.

    A member whose gradients overflow skips its step. ``torch.amp.GradScaler`` has a single scale, so all members would
    skip. Rules and constants are those of torch. Parameters are float32 here, so torch's fused optimisers differ from
    this by rounding only, and this one form stands for both.

    Args:
        settings: of the comparison.
        parameters: float32 [members, ...] each, changed in place.
    """

    def __init__(self, settings: Settings, parameters: list[Tensor], growth: int = _GROWTH) -> None:
        self.chosen, self.parameters, self.growth = settings.optimiser, parameters, growth
        count, device = parameters[0].shape[0], parameters[0].device
        self.scale = torch.full((count,), 65536.0, device=device)
        self.clean = torch.zeros(count, dtype=torch.int64, device=device)
        # Adam's betas to the power of the number of steps, [2, members]. They are products, as kernels for ** may round
        # differently at different places.
        self.betas = torch.tensor([[0.9], [0.999]], dtype=torch.float64, device=device)
        self.powers = torch.ones(2, count, dtype=torch.float64, device=device)
        self.first = [torch.zeros_like(p) for p in parameters]
        self.second = [torch.zeros_like(p) for p in parameters]

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Take one step, given the gradients of the scaled losses."""
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
        grown = self.clean >= self.growth
        self.scale = torch.where(good, torch.where(grown, self.scale * 2, self.scale), self.scale * 0.5)
        self.clean = torch.where(grown, 0, self.clean)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("scale", "clean", "powers", "first", "second")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.scale.device
        for name, value in state.items():
            setattr(self, name, [t.to(device) for t in value] if isinstance(value, list) else value.to(device))


def _like(values: Tensor, target: Tensor) -> Tensor:
    """[members], reshaped to broadcast over the other dimensions of ``target``."""
    return values.view(-1, *[1] * (target.ndim - 1))
