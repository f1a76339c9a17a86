"""Lines of E4 with made-up decisions, beside published cells."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

from relucheck.reproduction.published import PublishedCell, volume_cells
from relucheck.reproduction.report.volume.summary import Entry, Line, Report
from relucheck.volume.cell import Cell, Draw, Estimate
from tests.helpers.uniform import mlp


@functools.cache
def theirs(varied: str, bits: int, x: int, source: str = "B21") -> PublishedCell:
    """A published cell."""
    return next(
        cell
        for cell in volume_cells()
        if (cell.source, cell.varied, cell.precision_bits, cell.x) == (source, varied, bits, x)
    )


def line(beside: PublishedCell, inside: int | Collection[int], arithmetic: str, draws: int = 100, **fields: Any) -> Line:
    """A line of a published cell's network: which draws are in the zone, or how many."""
    chosen = range(inside) if isinstance(inside, int) else inside
    network = mlp(784, beside.neurons, beside.hidden_layers)
    cell = Cell(network=network, batch_size=beside.batch_size, arithmetic=arithmetic, draws=draws)  # type: ignore[arg-type]
    decisions = tuple(Draw(seed, "bifurcate" if seed in chosen else "agree", 0) for seed in range(draws))
    versions = {"torch": "2", "relucheck": "0", "python": "3", "processor": "a CPU"}
    estimate = Estimate(
        *(cell, decisions, fields.get("hits", len(chosen)), fields.get("activations", 10**6)),
        *(1.0, "0", "cpu", versions, ""),
    )
    bits = {"float16": 16, "float32": 32, "float64": 64}.get(arithmetic.split()[0])
    published = beside if beside.precision_bits == bits else None
    return Line(Entry(beside.source, beside.varied, beside.x, cell, published, published is not None), estimate)


def report(*lines: Line) -> Report:
    """A report of these lines."""
    return Report("cpu", lines)
