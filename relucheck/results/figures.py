"""Figures as PNG files, written whole or not at all, by matplotlib's Agg: no display, no state shared with the caller's."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Final

from relucheck.extras import require
from relucheck.results.files import write_atomically

_DPI: Final = 120


def blank(width: float, height: float) -> Any:
    """An empty matplotlib figure of a size in inches, which lays out its panels itself.

    Raises:
        relucheck.extras.MissingExtraError: without matplotlib.
    """
    require("a figure", "matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Any) -> bytes:
    """A figure as a PNG; equal figures give equal bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI, metadata={"Software": "relucheck"})
    return stream.getvalue()


def save(figure: Any, path: Path) -> None:
    """Writes a figure as a PNG file.

    Raises:
        OSError: it cannot be written; what was there before stays.
    """
    write_atomically(path, png(figure))
