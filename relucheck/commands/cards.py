"""Kink cards: one small figure an activation, with its value, its derivative and the kinks."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from relucheck.gate.report.diagnoses import diagnose
from relucheck.gate.report.tables import Row, kink_table, number
from relucheck.results.figures import blank, save, wrapped
from relucheck.results.tables import listed

#: Width and height in inches; six cards fill a page of A4 or letter paper.
_SIZE: Final = (3.4, 3.3)
#: How the curve and the subgradient of each dtype are drawn, so that they are told apart without colours.
_LINES: Final = {"float32": "-", "float64": (0, (1, 1.5)), "bfloat16": "--", "float16": "-."}
_MARKERS: Final = {"float32": "o", "float64": "s", "bfloat16": "^", "float16": "D"}
_SMALL: Final = 6.5


def draw_cards(results: Sequence[Row], folder: Path) -> list[Path]:
    """Draw a card for each activation whose curves are known, as ``folder/NAME.png``.

    A card shows the value and the derivative in each dtype. At each kink it shows the one-sided derivatives, the Clarke
    interval between them and the subgradient that backward takes. Crosses mark inputs at which a law fails.

    Args:
        results: verdicts as dictionaries, of a run with ``GateConfig.curves``.
        folder: where to write the files; it is created if it does not exist.

    Returns:
        The files, in the order of the activations.

    Raises:
        relucheck.extras.MissingExtraError: without matplotlib.
        OSError: if a file cannot be written.
    """
    curves: dict[str, dict[str, Mapping[str, Sequence[float]]]] = {}
    for row in results:
        if row["curve"] is not None and row["device"] == results[0]["device"]:
            curves.setdefault(row["activation"], {})[row["dtype"]] = row["curve"]
    kinks = kink_table(results)
    files = []
    folder.mkdir(parents=True, exist_ok=True)
    used: set[str] = set()
    for name, dtypes in curves.items():
        path = folder / f"{_unique(re.sub(r'[^A-Za-z0-9_.-]', '_', name), used)}.png"
        failed = [row for row in results if row["activation"] == name and row["outcome"] == "failed"]
        figure = _card(name, dtypes, [row for row in kinks if row["activation"] == name], failed)
        save(figure, path)
        files.append(path)
    return files


def _unique(stem: str, used: set[str]) -> str:
    """Return the name of a file that differs from those in use by more than capitals, and add it to them."""
    name, number = stem, 1
    while name.lower() in used:
        number += 1
        name = f"{stem}-{number}"
    used.add(name.lower())
    return name


def _card(
    name: str, curves: Mapping[str, Mapping[str, Sequence[float]]], kinks: Sequence[Row], failed: Sequence[Row]
) -> Any:
    figure = blank(*_SIZE)
    value, slope = figure.subplots(2, 1, sharex=True)
    for dtype, curve in curves.items():
        style = {"linestyle": _LINES[dtype], "color": "black", "linewidth": 1.0}
        value.plot(curve["x"], curve["value"], label=dtype, **style)
        slope.plot(curve["x"], curve["gradient"], **style)
    for kink in kinks:
        _kink(slope, kink)
    low, high = value.get_xlim()
    inputs = {float(row["counterexample"]["x"]) for row in failed if (row["counterexample"] or {}).get("x")}
    for panel in (value, slope):
        panel.tick_params(labelsize=_SMALL)
        panel.grid(visible=True, linewidth=0.3, color="0.85")
        panel.margins(y=0.12)
        for x in inputs:
            if low <= x <= high:
                panel.axvline(x, color="black", linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
                panel.plot([x], [0.06], "x", color="black", markersize=6, markeredgewidth=1.8,
                           transform=panel.get_xaxis_transform())  # fmt: skip
    value.set_ylabel("value", fontsize=_SMALL + 1)
    slope.set_ylabel("derivative", fontsize=_SMALL + 1)
    slope.set_xlabel(_below(kinks, failed, inputs, low, high), fontsize=_SMALL)
    value.legend(fontsize=_SMALL - 0.5, handlelength=2.2, frameon=False, loc="best")
    figure.suptitle(wrapped(name, _SIZE[0], 9), fontsize=9)
    return figure


def _kink(panel: Any, kink: Row) -> None:
    """Draw the one-sided derivatives, the Clarke interval and the subgradients at a kink."""
    left, right = kink["left"], kink["right"]
    if left is not None and right is not None and not kink["singular"]:
        panel.plot([kink["at"]] * 2, [left, right], color="0.75", linewidth=5, solid_capstyle="butt", zorder=1)
    for side, marker in ((left, "<"), (right, ">")):
        if side is not None:
            panel.plot([kink["at"]], [side], marker, color="black", markerfacecolor="white", markersize=8, zorder=3)
    taken: dict[float, str] = {}
    for dtype, modes in kink["subgradient"].items():
        subgradient = modes.get("reverse")
        if isinstance(subgradient, float) and math.isfinite(subgradient):
            taken.setdefault(subgradient, dtype)
    for subgradient, dtype in taken.items():
        panel.plot([kink["at"]], [subgradient], _MARKERS[dtype], color="black", markersize=4, zorder=4)


def _below(kinks: Sequence[Row], failed: Sequence[Row], inputs: set[float], low: float, high: float) -> str:
    """Return the lines below a card: what the marks say, and what fails."""
    lines = []
    for kink in kinks[:3]:
        taken = {number(modes.get("reverse")) for modes in kink["subgradient"].values()}
        text = f"at {number(kink['at'])}: left {number(kink['left'])}, right {number(kink['right'])}, taken "
        lines.append(text + " or ".join(sorted(taken)))
    if len(kinks) > 3:
        lines.append(f"and {len(kinks) - 3} more kinks")
    if not kinks:
        lines.append("no kinks")
    if failed:
        faults = diagnose(failed)
        outside = sorted(x for x in inputs if not low <= x <= high)
        far = f" (at {listed(list(dict.fromkeys(map(number, outside)))[:2])} outside)" if outside else ""
        lines.append(f"\N{MULTIPLICATION X} fails {listed(sorted({fault.main['law'] for fault in faults})[:3])}{far}")
    return wrapped("; ".join(lines), 0.85 * _SIZE[0], _SMALL)
