"""Figures as PNG files, drawn by matplotlib without a display and without its global state."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Final

from relucheck.extras import require
from relucheck.results.files import write_atomically

_DPI: Final = 120
#: Colours that a file keeps: lines, bands and the shades at their edges need fewer.
_COLOURS: Final = 256


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
    """Render a matplotlib figure as the bytes of a PNG file; equal figures give equal bytes.

    The file keeps 256 colours, which makes it a third as large as one with all colours.
    """
    from PIL import Image  # matplotlib depends on it

    drawn, stream = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=_DPI)
    octree = Image.Quantize.FASTOCTREE  # here smaller and closer to the original than the median cut
    picture = Image.open(drawn).convert("RGB").quantize(_COLOURS, octree, dither=Image.Dither.NONE)
    # the octree's white is (254, 254, 254), which is visible on a white page
    picture.putpalette([255 if value >= 254 else value for value in picture.getpalette() or ()])
    picture.save(stream, format="png", optimize=True)
    return stream.getvalue()


def save(figure: Any, path: Path) -> None:
    """Write a matplotlib figure as a PNG file, either completely or not at all.

    Raises:
        OSError: if the file cannot be written. A file that was there before stays as it was.
    """
    write_atomically(path, png(figure))
