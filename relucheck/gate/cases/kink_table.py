"""The kink table of a case: the subgradient at every kink.

The gate reports it whether or not a law is broken.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from relucheck.gate.cases.case import Case
from relucheck.numerics.floats import Floats


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


def _element(compute: Callable[..., Floats], *arguments: object) -> float | None:
    """Compute an array and return its only element; None if the activation does not support the mode."""
    try:
        return float(compute(*arguments)[0])
    except Exception:
        return None
