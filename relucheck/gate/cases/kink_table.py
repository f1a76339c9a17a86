"""The kink table of a case: the subgradient at every kink.

The gate reports it whether or not a law is broken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from relucheck.gate.cases.case import Case
from relucheck.numerics.floats import Floats

#: Points of a curve.
_POINTS: Final = 161


def kink_rows(case: Case) -> list[dict[str, object]]:
    """Compute the rows of the kink table for one case.

    Returns:
        One row per kink, with the keys ``at``, ``left`` and ``right`` (one-sided derivatives), ``jump``, ``singular``,
        ``rounded`` and ``subgradient``. ``rounded`` is None, or the rounded position where the dtype does not represent the
        kink; the subgradient is then that at the rounded position. ``subgradient`` maps the modes ``reverse``, ``forward``
        and ``vmap`` to the gradient for cotangent 1, or to None where the activation does not support the mode.
    """
    rows: list[dict[str, object]] = []
    framework = case.framework
    for kink in case.kinks:
        x = case.rounded([kink.at])
        one = case.rounded([1.0])
        modes: dict[str, float | None] = {
            "reverse": float(case.reverse(x)[0]),
            "forward": _element(framework.forward, case.f, x, one) if "forward_mode" in framework.capabilities else None,
            "vmap": _element(framework.mapped_gradient, case.f, x) if "vmap" in framework.capabilities else None,
        }
        rows.append(
            {
                "at": kink.at,
                "left": kink.left if math.isfinite(kink.left) else None,
                "right": kink.right if math.isfinite(kink.right) else None,
                "jump": kink.jump,
                "singular": kink.singular,
                "rounded": None if case.represents(kink) else float(x[0]),
                "subgradient": {
                    name: (value if value is None or math.isfinite(value) else str(value)) for name, value in modes.items()
                },
            }
        )
    return rows


def curve(case: Case) -> dict[str, tuple[float, ...]]:
    """Compute an activation around its kinks, or around 0 without kinks.

    Returns:
        Inputs ``x``, values ``value`` and gradients ``gradient`` for cotangent 1, of one length and sorted by input. Value
        and gradient are NaN at each kink, where a line is broken.
    """
    places = [kink.at for kink in case.kinks] or [0.0]
    margin = max(2.0, 0.25 * (max(places) - min(places)))
    grid = np.linspace(min(places) - margin, max(places) + margin, _POINTS)
    x = np.unique(
        case.rounded(
            np.concatenate(
                [grid, *(case.format.neighbour(case.rounded([at]), step) for at in places for step in (-1, 0, 1))]
            )
        )
    )
    value, gradient = case.value(x), case.reverse(x)
    for at in places if case.kinks else ():
        hit = x == case.rounded(at)
        value, gradient = np.where(hit, math.nan, value), np.where(hit, math.nan, gradient)
    return {"x": tuple(x.tolist()), "value": tuple(value.tolist()), "gradient": tuple(gradient.tolist())}


def _element(compute: Callable[..., Floats], *arguments: object) -> float | None:
    """Compute an array and return its only element; None if the activation does not support the mode."""
    try:
        return float(compute(*arguments)[0])
    except Exception:
        return None
