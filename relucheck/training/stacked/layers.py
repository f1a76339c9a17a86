"""Layers on tensors [members, ...] in which the members do not affect each other."""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relucheck.activations.rules import Rule, at_hits
from relucheck.numerics import emulation
from relucheck.numerics.bits import has_value
from relucheck.numerics.dtypes import as_dtype

_ALIGNMENT: Final = 256  # bytes, as in CUDA's allocations; cuBLASLt chooses kernels by the alignment of its operands


def _parts(stacked: Tensor) -> tuple[Tensor, ...]:
    """Each member's part of [members, ...], all with the same alignment; gradients flow back."""
    if stacked.stride(0) == 0:  # one tensor shared by all members
        return stacked.unbind()
    rows, shape = stacked.flatten(1), stacked.shape[1:]
    length = rows.shape[1]
    padded = F.pad(rows, (0, -length % (_ALIGNMENT // stacked.element_size())))
    return tuple(row[:length].view(shape) for row in padded.unbind())


def linear_apart(x: Tensor, weight: Tensor, bias: Tensor, mixed: str | None = None) -> Tensor:
    """A linear layer computed member by member, by the kernels of ``nn.Linear``.

    Each member gets, bit for bit, the result that it would get alone.

    Args:
        x: [members, n, inputs].
        weight: [members, outputs, inputs].
        bias: [members, outputs].
        mixed: name of the dtype of autocast, or None.

    Returns:
        [members, n, outputs].
    """
    if mixed:  # one conversion for all members; autocast would convert each member's part
        x, weight, bias = (tensor.to(as_dtype(mixed)) for tensor in (x, weight, bias))
    results = [F.linear(*operands) for operands in zip(_parts(x), _parts(weight), _parts(bias), strict=True)]
    for result in results:
        if result.is_cuda and result.requires_grad:
            result.register_hook(_aligned)
    return torch.stack(results)


def _aligned(cotangent: Tensor) -> Tensor:
    """The cotangent, copied to an aligned address if it is an unaligned part of a stack."""
    return cotangent.clone() if cotangent.data_ptr() % _ALIGNMENT else cotangent


def batch_norm(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    module: nn.BatchNorm1d,
    *,
    training: bool,
    apart: bool,
) -> Tensor:
    """Batch norm with each member's statistics, which are updated in training.

    Args:
        x: [members, n, features].
        mean: running means, [members, features].
        var: running variances, [members, features].
        weight: [members, features].
        bias: [members, features].
        module: whose momentum and eps are used.
        training: whether the mini-batch's statistics are used, rather than the running ones.
        apart: whether to compute member by member.

    Returns:
        [members, n, features].
    """
    momentum = module.momentum or 0.0
    normalised = emulation.batch_norm if isinstance(module, emulation.RoundedBatchNorm) else F.batch_norm
    if apart:
        parts = zip(x.unbind(), mean.unbind(), var.unbind(), weight.unbind(), bias.unbind(), strict=True)
        return torch.stack([normalised(h, m, v, w, b, training, momentum, module.eps) for h, m, v, w, b in parts])
    count, samples, features = x.shape
    flat = x.transpose(0, 1).reshape(samples, -1)  # batch norm treats features separately, so members can be features
    flat = normalised(flat, mean.view(-1), var.view(-1), weight.flatten(), bias.flatten(), training, momentum, module.eps)
    return flat.view(samples, count, features).transpose(0, 1)


class StackedKinked(torch.autograd.Function):
    """A piecewise linear activation of stacked members, each with its gradient at hits.

    The input is [members, n, width]. ``counts``, int64 [kinks, members], is increased by the numbers of hits.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, rule: Rule, slope: float, subgradients: Tensor, injects: Tensor, counts: Tensor | None
    ) -> Tensor:
        hits = []
        for kink, at in enumerate(rule.kinks):
            # on a CPU, a search for one value is cheaper than comparing all; elsewhere it would wait for the device
            hit = None if x.device.type == "cpu" and not has_value(x, at) else x == at
            if hit is not None and counts is not None:
                counts[kink] += hit.sum((1, 2))
            hits.append(hit)
        result = rule.forward(x, slope)
        ctx.save_for_backward(result if rule.saves_result else x)
        ctx.rule, ctx.slope, ctx.hits, ctx.subgradients, ctx.injects = rule, slope, hits, subgradients, injects
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (cotangent,) = grad_outputs
        (saved,) = ctx.saved_tensors
        rule, slope = ctx.rule, ctx.slope
        gradient = rule.backward(cotangent, saved, slope, rule.saves_result)
        torch_subgradient = slope if rule.leaky else 0.0
        for hit, subgradient in zip(ctx.hits, ctx.subgradients, strict=False):
            if hit is not None:
                gradient = at_hits(gradient, cotangent, subgradient, torch_subgradient, ctx.injects, hit=hit)
        return gradient, None, None, None, None, None
