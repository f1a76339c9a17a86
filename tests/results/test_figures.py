"""Ticks of logarithmic axes are numbers, and a file has the pixels that matplotlib draws."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from relucheck.results import figures
from relucheck.results.figures import blank, number_ticks

pytest.importorskip("matplotlib", reason="figures need the extra reproduce")


@pytest.mark.parametrize(
    ("low", "high", "scale", "labels"),
    [
        (2, 9, "log", "2 3 4 5 6 7 8 9"),
        (0.9, 25, "log", "1 2 5 10 20"),
        (0.05, 30, "log", "0.1 1 10"),
        (1000, 90_000, "log", "1,000 2,000 5,000 10,000 20,000 50,000"),
        (0, 2000, "symlog", "0 1 10 100 1,000"),
    ],
)
def test_ticks_are_numbers(low: float, high: float, scale: str, labels: str) -> None:
    figure = blank(3, 3)
    panel = figure.subplots()
    panel.set_yscale(scale)
    panel.set_ylim(low, high)
    number_ticks(panel.yaxis)
    figure.canvas.draw()
    ticks = [*panel.yaxis.get_major_ticks(), *panel.yaxis.get_minor_ticks()]
    shown = {(tick.get_loc(), tick.label1.get_text()) for tick in ticks if low <= tick.get_loc() <= high}
    assert " ".join(text for _, text in sorted(shown) if text) == labels


def test_a_file_has_the_pixels_of_savefig() -> None:
    """The layout included, for a title and labels that need room."""
    from PIL import Image

    def drawn() -> Any:
        figure = blank(4.0, 3.0)
        for panel in figure.subplots(1, 2):
            panel.plot([1, 2, 3], [1000, 10, 4000])
            panel.set(title="two lines\nof a title", xlabel="step", ylabel="distance")
        return figure

    figure, stream = drawn(), io.BytesIO()
    before = figure.dpi
    pixels = figures._pixels(figure)
    assert figure.dpi == before
    drawn().savefig(stream, format="png", dpi=figures._DPI)
    assert np.array_equal(pixels, np.asarray(Image.open(stream)))
