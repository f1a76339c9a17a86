"""Every kind of emulated arithmetic by its name, and strategies for all of them."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from relucheck.numerics.emulation import Emulation, EmulationError, Override, Rounding
from relucheck.numerics.emulation.emulation import DIRECTIONS

_LABELS = {
    torch.bfloat16: (
        "rounded", "product", "split-k 4", "split-k 4 wide", "split-k 4 in place", "split-k 1000", "split-k 3 by 6",
        "split-k 4 bias joined", "split-k 4 wide bias joined", "split-k 4 by 3 in place bias joined",
        "rounded; forward: split-k 4 wide", "rounded; input gradient: split-k 3",
        "rounded; weight gradient: split-k 2 in place", "product; K from 20: split-k 4", "rounded; K from 28: split-k 4",
        "split-k 4; K from 20 weight gradient: split-k 4 wide; K from 30: rounded",
    ),
    torch.float16: ("product", "split-k 3", "split-k 5 wide"),
    torch.float32: ("tf32",),
}  # fmt: skip
#: The emulations of one layer that tests go through.
KINDS: dict[str, Emulation] = {
    f"{label}{' float16' * (dtype == torch.float16)}": Emulation.parse(dtype, label)
    for dtype, labels in _LABELS.items()
    for label in labels
}


def roundings(most: int = 7) -> st.SearchStrategy[Rounding]:
    """Roundings of 16-bit dtypes."""
    split = st.builds(
        Rounding,
        parts=st.integers(2, most),
        cut=st.sampled_from([0, 2, 3, 5]),
        reduction=st.sampled_from(["narrow", "wide", "in place"]),
        bias=st.sampled_from(["joined", "after"]),
    )
    return st.builds(Rounding, bias=st.sampled_from(["joined", "after"])) | split


@st.composite
def overrides(draw: Any) -> Override:
    directions = draw(st.lists(st.sampled_from(DIRECTIONS), min_size=1, max_size=3, unique=True))
    rounding = draw(roundings())
    layers = tuple(draw(st.lists(st.integers(1, 4), max_size=2)))
    terms = draw(st.sampled_from([0, 0, 3, 6, 9]))
    if not layers and not terms and len(directions) == 3:
        layers = (1,)
    return Override(rounding if "forward" in directions else rounding.without_bias, layers, terms, tuple(directions))


@st.composite
def emulations(draw: Any, dtype: torch.dtype = torch.bfloat16) -> Emulation:
    """Emulations with up to four overrides; overrides that change nothing are left out."""
    made = Emulation(dtype, draw(roundings()))
    for override in draw(st.lists(overrides(), max_size=4)):
        try:
            made = Emulation(dtype, made.rounding, (*made.overrides, override))
        except EmulationError:
            continue
    return made
