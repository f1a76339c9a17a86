"""The published results that reports compare with, as data with their sources.

Results of training runs were read off [R22]'s figures.
"""

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


@functools.cache
def cpu_draws() -> dict[tuple[int, int, int, int | None, str], int]:
    """How many networks E4 draws at scale cpu, by hidden layers, neurons, batch size, sample size (None: all), arithmetic.

    A cell without an entry is not estimated at that scale.
    """
    text = (importlib.resources.files("relucheck") / "_data" / "volume_draws.csv").read_text(encoding="utf-8")
    found: dict[tuple[int, int, int, int | None, str], int] = {}
    for row in csv.DictReader(line for line in text.splitlines() if not line.startswith("#")):
        layers, neurons, batch_size = (int(row.pop(name)) for name in ("hidden_layers", "neurons", "batch_size"))
        sample = row.pop("sample_size")
        size = int(sample) if sample else None
        found |= {(layers, neurons, batch_size, size, name): int(draws) for name, draws in row.items() if draws}
    return found


# ---------------------------------------------------------------- training

#: E2's non-zero subgradients; the reference s = 0 and its control come with every seed.
SUBGRADIENTS: Final[tuple[float, ...]] = (-0.5, 0.5, 0.8, 1.0)
#: Epochs of the run whose final errors were published, and how exactly they can be read off the figure, in points.
PUBLISHED_EPOCHS: Final = 50
READ_OFF: Final = 1.0


@dataclasses.dataclass(frozen=True)
class PublishedError:
    """A published final test error.

    Attributes:
        source: the publication and its figure.
        comparison: name of the comparison that measures it.
        rule, subgradient: of the members that the figure is about.
        value, spread: in %; read off to within ``spread``.
    """

    source: str
    comparison: str
    rule: str
    subgradient: float
    value: float
    spread: float


#: Final test error in %, read off [R22]'s Figure 3 (50 epochs, one run each, injected rule).
_BFLOAT16_ERRORS: Final = {0.0: 2.0, -0.5: 4.0, 0.5: 7.0, 0.8: 9.0, 1.0: 11.0}
#: Published test errors by comparison and subgradient. The coarse emulations stand for what the published GPU may have
#: computed in bfloat16; the one that rounds once stands for the same without coarse rounding.
ERRORS: Final = {
    "float32": dict.fromkeys((0.0, *SUBGRADIENTS), 2.0),
    **{
        f"bfloat16{arithmetic}{epochs}": _BFLOAT16_ERRORS
        for arithmetic in ("", "-rounded", "-product", "-split-k-4")
        for epochs in ("", "-3-epochs", "-15-epochs")
    },
}
