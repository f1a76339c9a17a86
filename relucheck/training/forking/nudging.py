"""Nudges: the second control of a comparison.

A nudge is a run of s = 0 in which one parameter moves by one ulp after the first step with a live hit.

A run that differs from s = 0 in a single bit departs from it, too, because training is chaotic in rounding. So a difference
between two subgradients says something about the subgradient only if it is larger than what a nudge does.

A nudge is s = 0, bit for bit, up to and including the update of the first step with a live hit, which is a step at which
s = 1 under the chain rule would have another gradient than s = 0. Then one parameter moves away from zero by one ulp of its
dtype. It is drawn from the elements of all parameters whose gradient at that step is not zero. A draw whose gradients at
the next step equal the gradients of s = 0, bit for bit, has not changed the run yet, and perhaps never will. It is taken
back, counted, and another element is drawn. After the last step of a run there is no next step, and the first draw stands.

One step decides, although a draw that is taken back might have changed a later gradient. A hit changes the gradient at
once, and a nudge shall act as early as a hit does.

In mixed precision and with TF32, products see the parameters with fewer bits than they have. There nearly no ulp of a
parameter changes a gradient, and the nudge ends after ``MOST_ATTEMPTS`` draws with the outcome "no effective nudge".
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from relucheck.numerics.bits import away_from_zero
from relucheck.numerics.determinism import generator
from relucheck.training.members import NUDGES, Member
from relucheck.training.model import Choice, stream
from relucheck.training.results.result import NO_EFFECT, NO_LIVE_HIT, MemberResult, Nudge

#: Number of draws after which a nudge gives up. Without mixed precision and TF32, 40 to 70 % of the draws change a gradient
#: (30 nudges of an MLP on the digits, in each of four dtypes).
MOST_ATTEMPTS: Final = 100


def probe(nudge: Member) -> Choice:
    """The setting of backward that shows whether a hit is live: s = 1, chain rule.

    The subgradient at the upper kink is 0 for a nudge with ``second=0.0``, so that hits there are not live. That at 0 is 0
    for a nudge with ``upper=True``.
    """
    second = 1.0 if nudge.second is None else nudge.second
    return ((0.0, 1.0) if nudge.upper else (1.0, second)), "chain"


def places(nudge: Member, gradients: Sequence[Tensor], most: int = MOST_ATTEMPTS) -> Iterator[tuple[int, int]]:
    """The elements that a nudge tries to move, in turn.

    The seed draws one permutation of the elements whose gradient is not zero, and the nudges of the seed take turns in it.
    So no two nudges of a seed try the same element, and what one nudge tries does not depend on the others.

    Args:
        nudge: the member, with its seed and its number.
        gradients: of all parameters, at the step with the live hit.
        most: largest number of elements.

    Yields:
        The position of the parameter among ``gradients``, and the place of the element in it, counted row by row.
    """
    assert nudge.nudge is not None
    sizes = [gradient.numel() for gradient in gradients]
    nonzero = torch.cat([(gradient != 0).flatten() for gradient in gradients]).nonzero().squeeze(1).cpu()
    order = torch.randperm(len(nonzero), generator=generator(stream(nudge.seed, "nudge")))
    for drawn in order[nudge.nudge - 1 :: NUDGES][:most].tolist():
        element, parameter = int(nonzero[drawn]), 0
        while element >= sizes[parameter]:
            element -= sizes[parameter]
            parameter += 1
        yield parameter, element


def move(parameter: Tensor, element: int) -> None:
    """Move one element of a parameter by one ulp away from zero, in place.

    Args:
        parameter: contiguous, of any shape.
        element: which, counted row by row.
    """
    with torch.no_grad():
        place = parameter.detach().view(-1)[element : element + 1]
        place.copy_(away_from_zero(place))


def drawn(
    nudges: Mapping[int, Member],
    gradients: Callable[[int], Sequence[Tensor]],
    step: int,
    names: Sequence[str],
    effective: Callable[[Mapping[int, tuple[int, int]]], Collection[int]],
) -> dict[int, Nudge]:
    """Draw an element for each nudge, and draw again for those whose element has no effect.

    Args:
        nudges: members that have met their first live hit, by index.
        gradients: of all parameters at this step, for the index of a nudge.
        step: number of the step.
        names: of the parameters.
        effective: takes the next element of each nudge that has none yet, as the position of the parameter and the place
            in it. It moves these elements, takes back the moves without an effect, and returns the nudges with one.

    Returns:
        For each nudge what moved; its parameter is None if no element had an effect.
    """
    elements = {index: places(member, gradients(index)) for index, member in nudges.items()}
    attempts = dict.fromkeys(nudges, 0)
    found: dict[int, Nudge] = {}
    while len(found) < len(nudges):
        tried: dict[int, tuple[int, int]] = {}
        for index in nudges:
            if index in found:
                continue
            element = next(elements[index], None)
            if element is None:
                found[index] = Nudge(step, attempts[index], None, None)
            else:
                tried[index] = element
                attempts[index] += 1
        for index in effective(tried) if tried else ():
            parameter, place = tried[index]
            found[index] = Nudge(step, attempts[index], names[parameter], place)
    return found


def record(results: dict[int, MemberResult], found: Mapping[int, Nudge]) -> None:
    """Write what moved into the results.

    A nudge without an effect gets a result that holds nothing else.

    Args:
        results: by index, changed in place.
        found: as ``drawn`` returns it.
    """
    for index, nudge in found.items():
        if nudge.parameter is None:
            results[index] = MemberResult(results[index].member, NO_EFFECT, nudge=nudge)
        else:
            results[index].nudge = nudge


def end_waiting(results: dict[int, MemberResult]) -> None:
    """Give the nudges that still wait at the end of the run the outcome "no live hit".

    Args:
        results: by index, changed in place.
    """
    for index, result in results.items():
        if result.waits:
            results[index] = MemberResult(result.member, NO_LIVE_HIT)
