"""The rows of training experiments: an arithmetic, its optimiser, and a name for files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

from relucheck.numerics.arithmetic import Arithmetic
from relucheck.reproduction.published import ARITHMETICS
from relucheck.reproduction.scenario import Comparison
from relucheck.training.members import Member
from relucheck.training.settings import Optimiser, Settings

#: Adam for float16 parameters, where 1e-8 rounds to 0 and a gradient of 0 gives 0 / 0.
ADAM_FLOAT16: Final = Optimiser("adam", 1e-3, eps=1e-4, fused=False)
#: torch's default kernels, which the published runs used. They round after every operation; the fused ones round once.
ADAM: Final = Optimiser("adam", 1e-3, fused=False)

#: (name in files, arithmetic, optimiser): what PyTorch computes on the device at hand, by its defaults.
Row = tuple[str, Arithmetic, Optimiser]
NATIVE: Final[tuple[Row, ...]] = (
    ("float64", Arithmetic.parse("float64"), ADAM),
    ("float32", Arithmetic.parse("float32"), ADAM),
    ("bfloat16", Arithmetic.parse("bfloat16"), ADAM),
    ("float16", Arithmetic.parse("float16"), ADAM),
    ("float16-eps1e-4", Arithmetic.parse("float16"), ADAM_FLOAT16),
    ("mixed-bfloat16", Arithmetic.parse("mixed bfloat16"), ADAM),
    ("mixed-float16", Arithmetic.parse("mixed float16"), ADAM),
)
#: The other side of the switches; no switch changes a CPU's products, so these are for CUDA. float32 is strict by default.
SWITCHED: Final[tuple[Row, ...]] = (
    ("float32-tf32", Arithmetic.parse("float32 TF32"), ADAM),
    ("bfloat16-strict", Arithmetic.parse("bfloat16 strict"), ADAM),
    ("float16-eps1e-4-strict", Arithmetic.parse("float16 strict"), ADAM_FLOAT16),
    ("mixed-bfloat16-strict", Arithmetic.parse("mixed bfloat16 strict"), ADAM),
    ("mixed-float16-strict", Arithmetic.parse("mixed float16 strict"), ADAM),
)
EMULATED: Final[tuple[Row, ...]] = (
    ("bfloat16-product", Arithmetic.parse("bfloat16 emulated (product)"), ADAM),
    ("bfloat16-split-k-4", Arithmetic.parse("bfloat16 emulated (split-k 4)"), ADAM),
)
#: The other two states of the switches for 16-bit products, of which the default is the row "bfloat16" above.
REDUCED: Final[tuple[Row, ...]] = (
    ("bfloat16-full-precision-reduction", Arithmetic.parse("bfloat16 full-precision reduction"), ADAM),
)
#: The arithmetic that gives the counts of hits that the published notebook of E2 prints (scenario E9).
FITTED: Final[tuple[Row, ...]] = (("bfloat16-published", Arithmetic.parse(ARITHMETICS["E2"]), ADAM),)
#: One that comes near to these counts with another way to add the parts.
NEAR: Final[tuple[Row, ...]] = (
    (
        "bfloat16-layer-1-split-k-4",
        Arithmetic.parse("bfloat16 emulated (rounded; layer 1 forward: split-k 4 bias joined)"),
        ADAM,
    ),
)
#: The same, rounded once, as a CPU with bfloat16 instructions computes. Hits are rare then, so what differs between this
#: one and those above is an effect of coarse rounding.
ROUNDED: Final[tuple[Row, ...]] = (("bfloat16-rounded", Arithmetic.parse("bfloat16 emulated (rounded)"), ADAM),)
EMULATED_FLOAT16: Final[tuple[Row, ...]] = (
    ("float16-product", Arithmetic.parse("float16 emulated (product)"), ADAM_FLOAT16),
)


#: The places of a split into 4 parts: which layers, and forward or backward.
ABLATION: Final[tuple[Row, ...]] = tuple(
    (name, Arithmetic.parse(f"bfloat16 emulated (rounded; {where}: split-k 4)"), ADAM)
    for name, where in (
        ("layer-1", "layer 1"),
        ("layer-2", "layer 2"),
        ("layer-3", "layer 3"),
        ("layers-2-3", "layers 2, 3"),
        ("forward", "forward"),
        ("backward", "backward"),
        ("layer-1-forward", "layer 1 forward"),
        ("layers-2-3-forward", "layers 2, 3 forward"),
    )
)


def rows(*names: str) -> tuple[Row, ...]:
    emulated = (*FITTED, *NEAR, *EMULATED, *ROUNDED, *EMULATED_FLOAT16)
    every = {row[0]: row for row in (*NATIVE, *SWITCHED, *REDUCED, *emulated)}
    return tuple(every[name] for name in names)


def made(part: str, rows: Sequence[Row], base: Settings, prefix: str = "", suffix: str = "") -> tuple[Comparison, ...]:
    """Build one comparison per arithmetic; Adam takes the arithmetic's eps."""

    def optimiser(row: Row) -> Optimiser:
        own = base.optimiser
        return dataclasses.replace(own, eps=row[2].eps) if own.name == "adam" else own

    return tuple(
        Comparison(
            f"{prefix}{row[0]}{suffix}", part, dataclasses.replace(base, arithmetic=row[1], optimiser=optimiser(row))
        )
        for row in rows
    )


def with_seeds(settings: Settings, seeds: Sequence[int]) -> tuple[Member, ...]:
    first = settings.seeds[0]
    return tuple(
        dataclasses.replace(member, seed=seed) for seed in seeds for member in settings.members if member.seed == first
    )
