"""The gradient rule of published code, which puts the subgradient itself into the gradient at a kink.

The chain rule has ``subgradient * cotangent`` there. The released ReLU of Bertoin et al. 2021 and, after it, the ReLU and
ReLU6 of the EPFL reproduction 2022 have ``subgradient`` alone. This rule is here to reproduce what they trained with, as a
factor of a comparison; it is wrong, so no public activation offers it.

Under a gradient scaler (mixed precision in float16) the published code would put ``subgradient`` itself into the backward
of the scaled loss, and the scaler then divides every gradient by its scale: what reaches the optimiser is ``subgradient /
scale``, with a scale of 65536 at the start. It is run as such and not corrected;
:meth:`relucheck.training_parts.Precision.rule_name` labels it "injected / loss scale".
"""

from __future__ import annotations

from torch import Tensor


def injected(cotangent: Tensor, subgradient: float | Tensor) -> Tensor:
    """The gradient at hits under the published rule: ``subgradient``, whatever the cotangent.

    Args:
        cotangent: at the hits, any shape.
        subgradient: rounded to the cotangent's dtype; a tensor that broadcasts to the cotangent's shape gives each
            member its own, and the result is a view then.
    """
    if isinstance(subgradient, Tensor):
        return subgradient.to(cotangent.dtype).expand(cotangent.shape)
    return cotangent.new_full(cotangent.shape, subgradient)
