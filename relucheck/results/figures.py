"""Figures as PNG files, drawn by matplotlib without a display and without its global state."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Final

from relucheck.extras import require
from relucheck.results.files import write_atomically

_DPI: Final = 120


def blank(width: float, height: float) -> Any:
    """Create an empty matplotlib figure with automatic layout.

    Args:
        width: in inches.
        height: in inches.

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
    """Render a matplotlib figure as the bytes of a PNG file; equal figures give equal bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI, metadata={"Software": "relucheck"})
    return stream.getvalue()


def save(figure: Any, path: Path) -> None:
    """Write a matplotlib figure as a PNG file, either completely or not at all.

    Raises:
        OSError: if the file cannot be written. A file that was there before stays as it was.
    """
    write_atomically(path, png(figure))
