"""Nudges in the stacked executor.

``relucheck.training.forking.nudging`` says what a nudge is, and draws the elements for both executors.

Until its first live hit, a nudge is a copy of its reference with another backward: that of the probe, which shows whether a
hit is live. So one backward of the stack computes both gradients. If they differ, the hit is live. The update uses the
gradient of the reference in either case, so that a nudge that waits stays a copy.

Then the elements move in the rows of the nudges, and one forward and backward of the whole stack on the next mini-batch
shows which moves have an effect. It changes no state.

All of this needs kernels that round alike at every place in the stack. Where they do not, a nudge that waits has another
gradient than its reference without a hit, or other parameters, and the result is void.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from relucheck.numerics.dtypes import bits_dtype
from relucheck.training.forking.nudging import drawn, move, record
from relucheck.training.results.result import MemberResult

#: Returns the gradients of all parameters, [members, ...] each, that the next step will have, or None if there is no next
#: step. It changes no state.
LookAhead = Callable[[], Sequence[Tensor] | None]


def unequal(values: Sequence[Tensor], rows: Tensor, others: Tensor) -> Tensor:
    """Return whether rows differ from other rows in any bit, bool [rows].

    The sign of a zero counts, as in ``relucheck.training.forking.same_gradients``.

    Args:
        values: [members, ...] each.
        rows: positions of members, int64 [rows].
        others: for each of them the position of another member.
    """
    found = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    for value in values:
        bits = value.detach().flatten(1).view(bits_dtype(value.dtype))
        found |= (bits[rows] != bits[others]).any(1)
    return found


def finite(positions: Sequence[int], reference_of: Tensor, parameters: Mapping[str, Tensor]) -> list[int]:
    """Those positions whose references have finite parameters.

    Waits for the device if there are any positions.

    Args:
        positions: in the stack.
        reference_of: for each member of the stack the position of its reference, int64 [members].
        parameters: [members, ...] each.
    """
    if not positions:
        return []
    rows = reference_of[torch.tensor(positions, device=reference_of.device)]
    whole = torch.stack([value.detach()[rows].flatten(1).isfinite().all(1) for value in parameters.values()]).all(0)
    return [position for position, good in zip(positions, whole.tolist(), strict=True) if good]


class WaitingNudges:
    """The nudges of a stack that have not met a live hit.

    Args:
        positions: in the stack.
        reference_of: for each member of the stack the position of its reference, int64 [members].

    Attributes:
        positions: as given.
        source: for each member of the stack the position of the one whose gradient updates it.
    """

    def __init__(self, positions: Sequence[int], reference_of: Tensor) -> None:
        self.positions = positions
        self.rows = torch.tensor(positions, dtype=torch.int64, device=reference_of.device)
        self.references = reference_of[self.rows]
        self.source = torch.arange(len(reference_of), device=reference_of.device)
        self.source[self.rows] = self.references

    def probed(self, gradients: Sequence[Tensor], hits: Tensor) -> tuple[list[int], list[int]]:
        """Compare the gradients of the probes with those of the references. Waits for the device.

        Args:
            gradients: of all parameters, [members, ...] each.
            hits: number of hits of each member at this step, int64 [members].

        Returns:
            The positions of the nudges with a live hit, and of those whose gradients differ without a hit. There should be
            none of the latter.
        """
        differs, hit = torch.stack((unequal(gradients, self.rows, self.references), hits[self.rows] > 0)).tolist()
        pairs = list(zip(self.positions, differs, hit, strict=True))
        return [at for at, one, two in pairs if one and two], [at for at, one, two in pairs if one and not two]


def nudge(
    results: dict[int, MemberResult],
    live: Mapping[int, int],
    reference_of: Tensor,
    parameters: Mapping[str, Tensor],
    gradients: Sequence[Tensor],
    step: int,
    look_ahead: LookAhead,
) -> None:
    """Move one parameter of each nudge that has met its first live hit.

    Call it after the update of the step with the hit.

    Args:
        results: by index in the settings, changed in place.
        live: the positions of the nudges in the stack, by index.
        reference_of: for each member of the stack the position of its reference.
        parameters: [members, ...] each, changed in place.
        gradients: of this step.
        step: number of this step.
        look_ahead: computes the gradients of the next step.
    """
    names, values = list(parameters), [value.detach() for value in parameters.values()]
    references = {index: int(reference_of[position]) for index, position in live.items()}

    def effective(elements: Mapping[int, tuple[int, int]]) -> list[int]:
        for index, (parameter, element) in elements.items():
            move(values[parameter][live[index]], element)
        following = look_ahead()
        if following is None:
            return list(elements)
        rows = torch.tensor([live[index] for index in elements], device=reference_of.device)
        moved = unequal(following, rows, reference_of[rows]).tolist()
        for (index, (parameter, _)), changed in zip(elements.items(), moved, strict=True):
            if not changed:
                values[parameter][live[index]].copy_(values[parameter][references[index]])
        return [index for index, changed in zip(elements, moved, strict=True) if changed]

    nudges = {index: results[index].member for index in live}
    own = {index: [gradient[row] for gradient in gradients] for index, row in references.items()}
    record(results, drawn(nudges, own.__getitem__, step, names, effective))
