"""What E4 reports, as plain data: the lines of its tables. Scales make it; tables and figures show it."""

from __future__ import annotations

import dataclasses
from typing import Final

from relucheck.reproduction.published import PublishedCell
from relucheck.volume.cell import Cell, Estimate

NAME: Final = "E4"
#: The dtypes of tables and figures, in the order in which they appear.
DTYPE_NAMES: Final = ("float16", "bfloat16", "float32", "float64")
SWEEP_TITLES: Final[dict[str, str]] = {
    "hidden_layers": "hidden layers",
    "neurons": "neurons",
    "batch_size": "batch size",
    "sample_size": "sample size",
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of a table: our cell, beside the published one where there is one.

    Attributes:
        source: whose table it is, "B21" or "R22".
        varied: the sweep.
        x: the value of what the sweep varies.
        cell: ours.
        published: the published cell of this network and arithmetic, or None.
        comparable: whether both estimate the same thing (data, sizes, arithmetic), so that a test between them means
            something, and the release computed its figure.
    """

    source: str
    varied: str
    x: int
    cell: Cell
    published: PublishedCell | None
    comparable: bool


@dataclasses.dataclass(frozen=True)
class Line:
    """An entry and its estimate."""

    entry: Entry
    estimate: Estimate


@dataclasses.dataclass(frozen=True)
class Report:
    """The lines of a scale whose cells are finished.

    Attributes:
        scale: its name.
        lines: one for each entry, in the order of the tables.
    """

    scale: str
    lines: tuple[Line, ...]

    @property
    def devices(self) -> str:
        """Where it was computed: devices and processors."""
        where = dict.fromkeys(f"{one.device} ({one.versions['processor']})" for one in self.estimates)
        return "; ".join(where)

    @property
    def estimates(self) -> tuple[Estimate, ...]:
        """Of the different cells."""
        return tuple({line.estimate.cell.name: line.estimate for line in self.lines}.values())
