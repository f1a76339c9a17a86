"""Compare branches with the reference after a step.

It is seen which are finite, which differ, and by how much.

``now`` waits for the device and returns what it saw. ``later`` leaves the same on the device, and ``read`` fetches it for
many steps at once, so that the host never waits within a step. Both give the same numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from relucheck.training.forking.branch import Branch

#: L1 norm, L2 norm and absolute value of the sum of the differences.
Row = tuple[float, float, float]
_SAME: Row = (0.0, 0.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Group:
    """The branches that are compared after one step.

    Attributes:
        number: number of the step.
        branches: all branches.
        reference: the one of the reference, or None if it has diverged.
        control: the one of the control, or None if it has diverged.
        measured: whether distances are recorded at this step.
    """

    number: int
    branches: list[Branch]
    reference: Branch | None
    control: Branch | None
    measured: bool

    @property
    def others(self) -> list[Branch]:
        """The branches that may differ from the reference; none without a reference."""
        if self.reference is None:
            return []
        return [branch for branch in self.branches if branch is not self.reference and branch is not self.control]


@dataclasses.dataclass(frozen=True)
class Seen:
    """What was seen of a group. If the control differs, nothing else need be there.

    Attributes:
        group: the branches.
        unequal: name of the first parameter or buffer in which the control differs from the reference, or None.
        finite: for each branch, whether all its parameters are finite.
        differs: for each branch, whether it differs from the reference in a bit, or has done so before. It is False for the
            reference and the control.
        rows: for each branch its distances to the reference; empty if they are not recorded. Those of a branch that is not
            finite mean nothing.
    """

    group: Group
    unequal: str | None
    finite: list[bool]
    differs: list[bool]
    rows: list[Row]


def now(group: Group) -> Seen:
    """Compare a group. Waits for the device."""
    reference, control, others = group.reference, group.control, group.others
    if reference is not None and control is not None:
        unequal = control.flat.first_unequal(reference.flat)
        if unequal is not None:
            return Seen(group, unequal, [], [], [])
    finite = [branch.flat.finite() for branch in group.branches]
    # once different is enough: then the distance says the rest
    differs = [
        reference is not None and branch in others and (branch.differs or not branch.flat.same_bits(reference.flat))
        for branch in group.branches
    ]
    rows: list[Row] = []
    if group.measured and reference is not None and finite[group.branches.index(reference)]:
        distance = None
        for branch, whole, different in zip(group.branches, finite, differs, strict=True):
            if whole and different:
                distance = distance or Distance(reference.flat.values)
                first, second, third = distance.of(branch.flat.values).tolist()
                rows.append((first, second, third))
            else:
                rows.append(_SAME)
    return Seen(group, None, finite, differs, rows)


@dataclasses.dataclass(frozen=True)
class Unread:
    """What ``later`` left on the device.

    Attributes:
        group: the branches.
        flags: int64 [2 * branches + 1]: whether each is finite; the first place in ``Branch.bits`` at which each differs
            from the reference, or -1; and the first place in ``Branch.bits_of_buffers`` at which the control does, or -1.
        rows: float64 [branches that may differ, 3], the distances; None if they are not recorded.
    """

    group: Group
    flags: Tensor
    rows: Tensor | None


def later(group: Group) -> Unread:
    """Compare a group on the device, without waiting for it."""
    low, high = torch.stack([branch.flat.values for branch in group.branches]).aminmax(dim=1)
    finite = low.isfinite() & high.isfinite()  # a NaN is in both
    places = torch.full_like(finite, -1, dtype=torch.int64)
    in_buffers = places[:1]
    rows = None
    if group.reference is not None:
        bits = torch.stack([branch.bits() for branch in group.branches])
        places = _first(bits != bits[group.branches.index(group.reference)])
        if group.control is not None and group.control.flat.buffers:
            in_buffers = _first((group.control.bits_of_buffers() != group.reference.bits_of_buffers())[None])
        if group.measured and group.others:
            distance = Distance(group.reference.flat.values)
            rows = torch.stack([distance.of(branch.flat.values) for branch in group.others])
    return Unread(group, torch.cat((finite.long(), places, in_buffers)), rows)


def _first(differs: Tensor) -> Tensor:
    """The place of the first True in each row, or -1."""
    return torch.where(differs.any(1), differs.to(torch.uint8).argmax(1), -1)


def read(unread: Sequence[Unread]) -> list[Seen]:
    """Fetch what ``later`` left on the device. Waits for it once."""
    if not unread:
        return []
    flags = iter(torch.cat([one.flags for one in unread]).tolist())
    measured = [one.rows for one in unread if one.rows is not None]
    rows = iter(torch.cat(measured).tolist() if measured else [])
    seen = []
    for one in unread:
        group, others = one.group, one.group.others
        finite = [bool(next(flags)) for _ in group.branches]
        places = [next(flags) for _ in group.branches]
        in_buffers = next(flags)
        found = {id(branch): tuple(next(rows)) for branch in others} if one.rows is not None else {}
        differs = [branch in others and place >= 0 for branch, place in zip(group.branches, places, strict=True)]
        unequal = None
        if group.control is not None and group.reference is not None:
            place = places[group.branches.index(group.control)]
            if place >= 0 or in_buffers >= 0:
                unequal = group.control.name_of(place) if place >= 0 else group.control.buffer_of(in_buffers)
        recorded = [found.get(id(branch), _SAME) for branch in group.branches] if group.measured else []
        seen.append(Seen(group, unequal, finite, differs, recorded))
    return seen


class Distance:
    """Distances of parameters to one reference, accumulated in float64.

    Args:
        reference: all parameters of the reference, [n].
    """

    def __init__(self, reference: Tensor) -> None:
        self._reference = _wide(reference)

    def of(self, values: Tensor) -> Tensor:
        """L1 norm, L2 norm and absolute value of the sum of the differences: float64 [3]."""
        difference = _wide(values).sub_(self._reference)
        total, l2 = difference.sum().abs(), torch.dot(difference, difference).sqrt()
        l1 = difference.abs_().sum()  # much faster than torch.linalg.vector_norm(difference, 1)
        return torch.stack((l1, l2, total))


def _wide(values: Tensor) -> Tensor:
    # 16-bit tensors go through float32, as torch's direct conversion to float64 is not vectorised
    return (
        values.float().double()
        if values.element_size() == 2
        else values.double()
        if values.element_size() == 4
        else values.clone()
    )
