"""All parameters of a model in one tensor, so that an optimiser's step is one pass of each operation over all of them.

An optimiser works element by element, so one tensor or many should make no difference in any bit. Kernels may treat the
body and the tail of a tensor differently, though, so :func:`same_as_apart` proves it where it is used, on the device, dtype
and sizes at hand, and :class:`relucheck.training.forking.Branch` steps every parameter by itself where the proof fails.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from relucheck.numerics.determinism import generator
from relucheck.training.settings import Optimiser

_ALIGNMENT: Final = 64  # bytes, as torch aligns what it allocates: kernels may round differently on other alignments
_STEPS: Final = 4  # of the proof: moments of 0, then of every size
_TAILS: Final = ((3,),) * 64  # by themselves too short for any vector register; in one tensor, each part of its body


class Flat:
    """The parameters of a model in one tensor, of which each parameter is made a view.

    Attributes:
        values: all parameters one after another, each begun on a 64-byte boundary, with zeros between. [n]
        names: of the parameters.
        parameters: the model's own, in the same order.
        whole: ``values`` as one parameter, for an optimiser. [n]
    """

    def __init__(self, model: nn.Module) -> None:
        named = list(model.named_parameters())
        self.names = [name for name, _ in named]
        self.parameters = [parameter for _, parameter in named]
        self.values, places = _laid_out(self.parameters)
        for place, parameter in zip(places, self.parameters, strict=True):
            place.copy_(parameter.detach())
            parameter.data = place
        self.whole = nn.Parameter(self.values)
        self._slots: list[Tensor] = []

    def collect(self, gradients: Sequence[Tensor]) -> None:
        """Makes the gradients of the parameters, in their order, the gradient of :attr:`whole`; zeros stay between them."""
        if self.whole.grad is None:
            self.whole.grad, self._slots = _laid_out(self.parameters)
        torch._foreach_copy_(self._slots, list(gradients))

    def touched(self) -> None:
        """Tells autograd that the parameters have changed: a step over :attr:`whole` raises its version, not theirs."""
        torch.autograd.graph.increment_version(self.parameters)

    def finite(self) -> bool:
        """Whether every parameter is finite. Reads the values."""
        return bool(torch.stack(self.values.aminmax()).isfinite().all())  # aminmax is NaN where a value is

    def same_bits(self, other: Flat) -> bool:
        """Whether all parameters hold the same bits, signs of zeros and patterns of NaN included."""
        return torch.equal(self.values.view(torch.int64), other.values.view(torch.int64))

    def first_unequal(self, other: Flat) -> str | None:
        """The name of the first parameter that differs in a bit."""
        for name, a, b in zip(self.names, self.parameters, other.parameters, strict=True):
            if not torch.equal(a.detach().contiguous().view(torch.uint8), b.detach().contiguous().view(torch.uint8)):
                return name
        return None


def _laid_out(parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Zeros for all parameters, and the view of them that is each one's place."""
    first = parameters[0]
    block = _ALIGNMENT // first.element_size()
    ends = list(itertools.accumulate(-(-parameter.numel() // block) * block for parameter in parameters))
    values = torch.zeros(ends[-1], dtype=first.dtype, device=first.device)
    starts = [0, *ends[:-1]]
    return values, [values[a : a + p.numel()].view(p.shape) for a, p in zip(starts, parameters, strict=True)]


def make_optimiser(chosen: Optimiser, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    """torch's own optimiser over some tensors."""
    # fused=None is torch's own default; False would also forbid its foreach kernels, which it takes on CUDA
    if chosen.name == "adam":
        return torch.optim.Adam(parameters, lr=chosen.lr, eps=chosen.eps, fused=chosen.fused or None)
    return torch.optim.SGD(parameters, lr=chosen.lr, momentum=chosen.momentum, fused=chosen.fused or None)


def trial_values(shape: Sequence[int], smallest: int, random: torch.Generator) -> Tensor:
    """Made-up values for the trial of an optimiser: float32 on the CPU, from 10 ** smallest to about 1, a tenth are 0."""
    # whatever torch's default dtype is
    size = 10.0 ** torch.randint(smallest, 1, tuple(shape), generator=random, device="cpu").float()
    value = torch.randn(tuple(shape), generator=random, device="cpu", dtype=torch.float32) * size
    value[torch.rand(tuple(shape), generator=random, device="cpu", dtype=torch.float32) < 0.1] = 0
    return value


def same_as_apart(chosen: Optimiser, flat: Flat) -> bool:
    """Whether one step over :attr:`Flat.whole` is, bit for bit, a step over each parameter, and leaves the zeros between.

    Tried on made-up values and gradients from 1e-9 to 1, zeros included, of the parameters' own shapes and of many tensors
    that are all tail. The answer is no, for example, for torch's SGD in 16 bits, whose tails round otherwise, and where
    Adam's eps rounds to 0, as the zeros between become 0 / 0. A fused optimiser takes one pass anyway: no.
    """
    if chosen.fused:
        return False
    shapes = tuple(tuple(parameter.shape) for parameter in flat.parameters)
    return _same(chosen, shapes, flat.values.dtype, flat.values.device, torch.get_num_threads())


@functools.lru_cache(maxsize=64)
def _same(
    chosen: Optimiser, shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype, device: torch.device, threads: int
) -> bool:
    # not on the default device, where optimisers make their counts of steps
    with torch.device("cpu"):
        return _tried(chosen, (*shapes, *_TAILS), dtype, device)


def _tried(chosen: Optimiser, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: torch.device) -> bool:
    random = generator(0)

    def drawn(smallest: int) -> list[Tensor]:
        return [trial_values(shape, smallest, random).to(dtype).to(device) for shape in shapes]

    model = nn.ParameterList(nn.Parameter(value) for value in drawn(-2))
    apart = [nn.Parameter(parameter.detach().clone()) for parameter in model]
    flat = Flat(model)
    one, many = make_optimiser(chosen, [flat.whole]), make_optimiser(chosen, apart)
    expected, places = _laid_out(apart)
    for _ in range(_STEPS):
        gradients = drawn(-9)
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
