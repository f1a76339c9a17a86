"""What commands print to."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType


def width() -> int:
    """Return how many columns tables may take: those of the terminal, and at least 80."""
    return max(80, shutil.get_terminal_size((120, 24)).columns)


def show(parts: Iterable[RenderableType]) -> None:
    """Print text and tables, in colour on a terminal."""
    from relucheck.results.tables import render

    sys.stdout.write(render(*parts, width=width(), color=sys.stdout.isatty()))
