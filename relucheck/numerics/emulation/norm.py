"""Batch normalisation that is computed in float32 and rounded once, forward and backward."""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def batch_norm(
    x: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """Compute ``F.batch_norm`` in float32 and round the result to the dtype of ``x``.

    The gradients of ``x``, ``weight`` and ``bias`` are computed in float32 and rounded once, too. So are the running
    statistics, which are updated in place.

    Args:
        x: [n, channels, ...], in a 16-bit dtype.
        mean: running means, [channels], in any floating dtype; None as in ``F.batch_norm``.
        var: running variances, likewise.
        weight: [channels], likewise.
        bias: [channels], likewise.
        training: whether the statistics are those of the mini-batch, rather than the running ones.
        momentum: weight of the mini-batch in the running statistics.
        eps: is added to the variance.

    Returns:
        The shape and dtype of ``x``.
    """
    wide_mean, wide_var, scale, offset = (None if one is None else one.float() for one in (mean, var, weight, bias))
    result = F.batch_norm(x.float(), wide_mean, wide_var, scale, offset, training, momentum, eps).to(x.dtype)
    if training:
        with torch.no_grad():
            for statistic, updated in ((mean, wide_mean), (var, wide_var)):
                if statistic is not None and updated is not None:
                    statistic.copy_(updated)
    return result


class RoundedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """A batch norm of torch whose kernels compute in float32; ``emulate`` makes it from one."""

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        momentum = self.momentum or 0.0
        own = self.training or self.running_mean is None
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the running statistics are plain means
                momentum = 1.0 / float(self.num_batches_tracked)
        kept = (self.running_mean, self.running_var) if not self.training or self.track_running_stats else (None, None)
        return batch_norm(input, *kept, self.weight, self.bias, own, momentum, self.eps)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rounded once"


class EmulatedBatchNorm1d(RoundedBatchNorm, nn.BatchNorm1d):
    """``nn.BatchNorm1d``, rounded once."""


class EmulatedBatchNorm2d(RoundedBatchNorm, nn.BatchNorm2d):
    """``nn.BatchNorm2d``, rounded once."""


class EmulatedBatchNorm3d(RoundedBatchNorm, nn.BatchNorm3d):
    """``nn.BatchNorm3d``, rounded once."""


#: The batch norms of torch that ``emulate`` replaces, with what replaces them.
NORMS: Final[dict[type[nn.Module], type[RoundedBatchNorm]]] = {
    nn.BatchNorm1d: EmulatedBatchNorm1d,
    nn.BatchNorm2d: EmulatedBatchNorm2d,
    nn.BatchNorm3d: EmulatedBatchNorm3d,
}
