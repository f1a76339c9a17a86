"""The published figures that this project's own are set beside, as data with their sources."""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.resources
from typing import Final

#: Sources by the short names that tables use.
SOURCES: Final[dict[str, str]] = {
    "B21": 'D. Bertoin, J. Bolte, S. Gerchinovitz, E. Pauwels, "Numerical influence of ReLU\'(0) on backpropagation", '
    "NeurIPS 2021 (arXiv 2106.12915)",
    "R22": 'Martorella, Ramirez Contreras, Cerezo Garcia, "Reproducibility Challenge of the paper: Numerical influence of '
    "ReLU'(0) on backpropagation\", EPFL CS-433, 2022",
}


@dataclasses.dataclass(frozen=True)
class PublishedCell:
    """One cell of a published volume table: how many of ``runs`` random networks bifurcated.

    Attributes:
        source: "B21" or "R22", see :data:`SOURCES`.
        varied: the sweep that it belongs to, one of :data:`relucheck.volume.cell.SWEEPS`.
        precision_bits: 16 (float16), 32 or 64.
        hidden_layers, neurons: of a fully connected network 784 - neurons x hidden_layers - 10.
        batch_size: of mini-batches in file order.
        sample_size: training images; in the sample-size sweep drawn with replacement.
        runs, bifurcated: counts.
    """

    source: str
    varied: str
    precision_bits: int
    hidden_layers: int
    neurons: int
    batch_size: int
    sample_size: int
    runs: int
    bifurcated: int

    @property
    def computed(self) -> bool:
        """Whether the release computed the figure: the float64 loop of both depth sweeps is left before any computing."""
        return not (self.precision_bits == 64 and self.varied == "hidden_layers")

    @property
    def x(self) -> int:
        """The value of what the sweep varies."""
        value: int = getattr(self, self.varied)
        return value


_COUNTS: Final = tuple(field.name for field in dataclasses.fields(PublishedCell)[2:])


@functools.cache
def volume_cells() -> tuple[PublishedCell, ...]:
    """Both published volume tables, in their order: 40 cells of [B21] and 60 of [R22]."""
    text = (importlib.resources.files("relucheck") / "_data" / "published_volume.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return tuple(PublishedCell(row["source"], row["varied"], *(int(row[name]) for name in _COUNTS)) for row in rows)
