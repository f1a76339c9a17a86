"""The kink table of a case: the subgradient at every kink.

The gate reports it whether or not a law is broken.
"""

from __future__ import annotations

import math

import torch

from relucheck.gate.cases.case import Case


def kink_rows(case: Case) -> list[dict[str, object]]:
    """Compute the rows of the kink table for one case.

    Returns:
        One row per kink, with the keys ``at``, ``left`` and ``right`` (one-sided derivatives), ``jump``, ``singular``,
        ``rounded`` and ``subgradient``. ``rounded`` is None, or the rounded position where the dtype does not represent the
        kink; the subgradient is then that at the rounded position. ``subgradient`` maps the modes ``reverse``, ``forward``
        and ``vmap`` to the gradient for cotangent 1, or to None where the activation does not support the mode.
    """
    rows: list[dict[str, object]] = []
    for kink in case.kinks:
        x = case.tensor([kink.at])
        modes: dict[str, float | None] = {"reverse": float(case.reverse(x)[0])}
        try:
            modes["forward"] = float(torch.func.jvp(case.f, (x,), (torch.ones_like(x),))[1][0])
        except Exception:
            modes["forward"] = None
        try:
            modes["vmap"] = float(torch.func.vmap(torch.func.grad(lambda t: case.f(t.reshape(1)).sum()))(x)[0])
        except Exception:
            modes["vmap"] = None
        rows.append(
            {
                "at": kink.at,
                "left": kink.left if math.isfinite(kink.left) else None,
                "right": kink.right if math.isfinite(kink.right) else None,
                "jump": kink.jump,
                "singular": kink.singular,
                "rounded": None if case.represents(kink) else case.rounded(kink.at),
                "subgradient": {
                    name: (value if value is None or math.isfinite(value) else str(value)) for name, value in modes.items()
                },
            }
        )
    return rows
