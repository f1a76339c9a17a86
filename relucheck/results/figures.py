"""Figures as PNG files, written whole or not at all, by matplotlib's Agg: no display, no state shared with the caller's."""

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
    """An empty matplotlib figure of a size in inches, which lays out its panels itself.

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
