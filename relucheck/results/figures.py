"""Figures as PNG files, drawn by matplotlib without a display and without its global state."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any, Final

from relucheck.errors import MISSING, RelucheckError
from relucheck.results.files import write_atomically

#: What to install, as every message on figures that are missing says it.
INSTALL: Final = "pip install 'relucheck[plot]'"
_DPI: Final = 120


class FigureError(RelucheckError, ImportError):
    """Figures cannot be drawn here."""

    exit_code = MISSING


def drawable() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def blank(width: float, height: float) -> Any:
    """Create an empty matplotlib figure with automatic layout.

    Args:
        width: in inches.
        height: in inches.

    Raises:
        FigureError: without matplotlib; says how to install it.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FigureError(f"figures need matplotlib; install it with: {INSTALL}") from error
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
