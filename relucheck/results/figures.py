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
#: Colours that a file keeps: lines, bands and the shades at their edges need fewer.
_COLOURS: Final = 256


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
    """A figure as a PNG of 256 colours, a third as large as one of all colours; equal figures give equal bytes."""
    from PIL import Image  # matplotlib needs it

    drawn, stream = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=_DPI)
    octree = Image.Quantize.FASTOCTREE  # here smaller and closer to the original than the median cut
    picture = Image.open(drawn).convert("RGB").quantize(_COLOURS, octree, dither=Image.Dither.NONE)
    # the octree's white is (254, 254, 254), which is seen on a white page
    picture.putpalette([255 if value >= 254 else value for value in picture.getpalette() or ()])
    picture.save(stream, format="png", optimize=True)
    return stream.getvalue()


def save(figure: Any, path: Path) -> None:
    """Writes a figure as a PNG file.

    Raises:
        OSError: it cannot be written; what was there before stays.
    """
    write_atomically(path, png(figure))
