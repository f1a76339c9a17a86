"""Optimisers, and the trials that say where one step may go over many parameters or members at once.

An optimiser works element by element, so that neither what lies in the same tensor nor where should make a difference in
any bit. Kernels may round in the tail of a tensor otherwise than in its body, though: torch's SGD in 16 bits and its fused
kernels do so on a CPU. So it is tried on the device, dtype and sizes at hand, on made-up values, and what fails is stepped
part by part. Fused optimisers always are: they take one pass anyway, and may differ in a moment that reaches no parameter
for a hundred steps. :class:`Scaled` is made of operations that round each element by itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from relucheck.numerics.determinism import generator
from relucheck.numerics.dtypes import bits_dtype
from relucheck.training.flat import Flat, laid_out
from relucheck.training.settings import Optimiser, Settings

_GROWTH: Final = 2000  # steps without overflow after which the scale doubles, as torch.amp.GradScaler's
_STEPS: Final = 4  # of a trial: moments of 0, then of every size
_SMALLEST: Final = {"values": -2, "gradients": -9}  # powers of 10, from which values and gradients of a trial go to about 1
#: Tensors beside those at hand: whether the few elements of one tail show what its kernel does is chance; with these not.
#: By themselves too short for any vector register; in one tensor, each is part of its body.
_SHORT: Final = ((3,),) * 64
_STACKS: Final = tuple((3, size) for size in range(1, 65))

#: Whether an optimiser passes a trial: of the optimiser, and of made-up values [...] of given shapes.
Drawn = Callable[[Sequence[tuple[int, ...]], str], list[Tensor]]
Trial = Callable[[Optimiser, Sequence[tuple[int, ...]], Drawn], bool]


def make_optimiser(chosen: Optimiser, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    """torch's own optimiser over some tensors."""
    # fused=None is torch's own default; False would also forbid its foreach kernels, which it takes on CUDA
    if chosen.name == "adam":
        return torch.optim.Adam(parameters, lr=chosen.lr, eps=chosen.eps, fused=chosen.fused or None)
    return torch.optim.SGD(parameters, lr=chosen.lr, momentum=chosen.momentum, fused=chosen.fused or None)


def same_as_apart(chosen: Optimiser, flat: Flat) -> bool:
    """Whether one step over :attr:`Flat.whole` is, bit for bit, a step over each parameter, and leaves the zeros between.

    The answer is no, for example, for torch's SGD in 16 bits, whose tails round otherwise, and where Adam's eps rounds to
    0, as the zeros between become 0 / 0.
    """
    return _passes(_in_one_tensor, chosen, flat.parameters)


def _in_one_tensor(chosen: Optimiser, shapes: Sequence[tuple[int, ...]], drawn: Drawn) -> bool:
    """The trial of :func:`same_as_apart`."""
    shapes = (*shapes, *_SHORT)
    model = nn.ParameterList(nn.Parameter(value) for value in drawn(shapes, "values"))
    apart = [nn.Parameter(parameter.detach().clone()) for parameter in model]
    flat = Flat(model)
    one, many = make_optimiser(chosen, [flat.whole]), make_optimiser(chosen, apart)
    expected, places = laid_out(apart)
    for _ in range(_STEPS):
        gradients = drawn(shapes, "gradients")
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


def _wherever_stacked(chosen: Optimiser, shapes: Sequence[tuple[int, ...]], drawn: Drawn) -> bool:
    """The trial of :func:`make`: members of the same values and gradients take the same steps, wherever in a stack."""
    shapes = (*shapes, *_STACKS)

    def alike(what: str) -> list[Tensor]:
        values = drawn([shape for _, *shape in shapes], what)  # type: ignore[misc]
        return [value.expand(count, *value.shape).contiguous() for value, (count, *_) in zip(values, shapes, strict=True)]

    parameters = alike("values")
    optimiser = Stacked(chosen, parameters, apart=False)
    for _ in range(_STEPS):
        optimiser.step(alike("gradients"))
    states = [state for own in optimiser.optimiser.state.values() for state in own.values() if torch.is_tensor(state)]
    # counts of steps have no dimensions
    bits = [tensor.view(bits_dtype(tensor.dtype)) for tensor in (*parameters, *states) if tensor.ndim]
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

    def drawn(wanted: Sequence[tuple[int, ...]], what: str) -> list[Tensor]:
        return [_made_up(shape, _SMALLEST[what], random).to(dtype).to(device) for shape in wanted]

    # not on the default device, where optimisers make their counts of steps
    with torch.device("cpu"):
        return trial(chosen, shapes, drawn)


def _made_up(shape: Sequence[int], smallest: int, random: torch.Generator) -> Tensor:
    """Values for a trial: float32 on the CPU, from 10 ** smallest to about 1, a tenth are 0."""
    # whatever torch's default dtype is
    size = 10.0 ** torch.randint(smallest, 1, tuple(shape), generator=random, device="cpu").float()
    value = torch.randn(tuple(shape), generator=random, device="cpu", dtype=torch.float32) * size
    value[torch.rand(tuple(shape), generator=random, device="cpu", dtype=torch.float32) < 0.1] = 0
    return value


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
    apart = not _passes(_wherever_stacked, settings.optimiser, parameters)
    return Stacked(settings.optimiser, parameters, apart=apart)


class Scaled:
    """Adam or SGD under a gradient scaler of each member's own; a member whose gradients overflow skips its step.

    ``torch.amp.GradScaler`` has one scale and would skip the step of all. Same rules and constants. Parameters are float32
    here, so torch's fused optimisers differ from this by rounding only, and there is one form for both.
    """

    def __init__(self, settings: Settings, parameters: list[Tensor], growth: int = _GROWTH) -> None:
        self.chosen, self.parameters, self.growth = settings.optimiser, parameters, growth
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
    """[members] shaped to broadcast over the other dimensions of ``target``."""
    return values.view(-1, *[1] * (target.ndim - 1))
