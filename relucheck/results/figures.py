"""Figures as PNG files, drawn by matplotlib without a display and without its global state."""

from __future__ import annotations

import io
import math
import textwrap
from pathlib import Path
from typing import Any, Final

import numpy as np

from relucheck.extras import require
from relucheck.results.files import write_atomically

_DPI: Final = 120
#: Colours that a file keeps: lines, bands and the shades at their edges need fewer.
_COLOURS: Final = 256
#: About how many inches a sign of matplotlib's font is wide, for each point of its size.
_SIGN: Final = 0.0072
#: A space at which no line is broken.
_TOGETHER: Final = "\N{NO-BREAK SPACE}"


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


def wrapped(text: str, width: float, points: float = 9) -> str:
    """Break the title of a panel into lines, at semicolons and within long clauses.

    Args:
        text: the title, for example the name of an arithmetic.
        width: of the panel, in inches.
        points: the size of the font.
    """
    signs = max(1, int(width / (points * _SIGN)))
    options: dict[str, Any] = {"width": signs, "break_long_words": False, "break_on_hyphens": False}
    kept = "; ".join(clause.replace(" ", _TOGETHER) for clause in text.split("; "))
    lines = [line.replace(_TOGETHER, " ") for line in textwrap.wrap(kept, **options)]
    return "\n".join(part for line in lines for part in textwrap.wrap(line, **options))


def shade(place: float) -> str:
    """The colour of a number from 0 to 1, darker for larger ones.

    Numbers beyond have the colour of the end.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return str(to_hex(colormaps["viridis"](1 - min(1.0, max(0.0, place)))))


def number_ticks(axis: Any) -> None:
    """Label the ticks of a logarithmic axis with numbers.

    They are 6 and 2,000, for example, in place of 6 × 10⁰ and 2 × 10³. An axis that spans less than two powers of 10 has
    labels between them, too.

    Args:
        axis: ``panel.xaxis`` or ``panel.yaxis``, after its scale was set.
    """
    from matplotlib.ticker import FuncFormatter

    def major(value: float, position: int | None) -> str:
        return f"{value:,.0f}" if abs(value) >= 1 or value == 0 else f"{value:g}"

    def minor(value: float, position: int | None) -> str:
        low, high = sorted(axis.get_view_interval())
        powers = math.log10(high / low) if low > 0 else math.inf
        digit = f"{value:e}"[0]
        return major(value, position) if digit in ("23456789" if powers < 1 else "25" if powers < 2 else "") else ""

    axis.set_major_formatter(FuncFormatter(major))
    axis.set_minor_formatter(FuncFormatter(minor))


def _pixels(figure: Any) -> Any:
    """Draw a figure once, as uint8 [height, width, RGBA].

    ``savefig`` would draw it twice, because other formats than PNG need its layout before they are drawn.
    """
    before = figure.dpi
    figure.dpi = _DPI
    try:
        figure.canvas.draw()
        return np.array(figure.canvas.buffer_rgba())
    finally:
        figure.dpi = before


def png(figure: Any) -> bytes:
    """Render a matplotlib figure as the bytes of a PNG file; equal figures give equal bytes.

    The file keeps 256 colours, which makes it a third as large as one with all colours.
    """
    from PIL import Image  # matplotlib depends on it

    stream = io.BytesIO()
    octree = Image.Quantize.FASTOCTREE  # here smaller and closer to the original than the median cut
    drawn = Image.fromarray(_pixels(figure)).convert("RGB")
    picture = drawn.quantize(_COLOURS, octree, dither=Image.Dither.NONE)
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
