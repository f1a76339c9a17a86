"""The gradient rule of published code, which puts the subgradient itself into the gradient at a kink.

The chain rule has ``subgradient * cotangent`` there. The released ReLU of Bertoin et al. 2021 and, after it, the ReLU and
ReLU6 of the EPFL reproduction 2022 have ``subgradient`` alone. This rule is here to reproduce what they trained with, as a
factor of a comparison; it is wrong, so no public activation offers it.
"""

from __future__ import annotations

from torch import Tensor


def injected(cotangent: Tensor, subgradient: float) -> Tensor:
    """The gradient at hits under the published rule: ``subgradient``, whatever the cotangent.

    Args:
        cotangent: at the hits, any shape.
        subgradient: rounded to the cotangent's dtype.
    """
    return cotangent.new_full(cotangent.shape, subgradient)
