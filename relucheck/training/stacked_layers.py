"""The layers of stacked members: tensors [members, ...], of which each member's part is treated like any other's."""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relucheck.activations.rules import Rule, at_hits
from relucheck.numerics.bits import has_value
from relucheck.numerics.dtypes import as_dtype

_ALIGNMENT: Final = 256  # bytes, of CUDA's allocations: cuBLASLt chooses its kernels by the alignment of what it is given


def _parts(stacked: Tensor) -> tuple[Tensor, ...]:
    """Each member's part of [members, ...], all aligned alike; gradients flow back."""
    if stacked.stride(0) == 0:  # one for all
        return stacked.unbind()
    rows, shape = stacked.flatten(1), stacked.shape[1:]
    length = rows.shape[1]
    padded = F.pad(rows, (0, -length % (_ALIGNMENT // stacked.element_size())))
    return tuple(row[:length].view(shape) for row in padded.unbind())


def linear_apart(x: Tensor, weight: Tensor, bias: Tensor, mixed: str | None = None) -> Tensor:
    """A linear layer, member by member, by ``nn.Linear``'s own kernels: bit for bit what each would get alone.

    Args:
        x: [members, n, inputs]; weight: [members, outputs, inputs]; bias: [members, outputs].
        mixed: the dtype of autocast, or None.
    """
    if mixed:  # once for all; autocast would cast each member's part by itself
        x, weight, bias = (tensor.to(as_dtype(mixed)) for tensor in (x, weight, bias))
    results = [F.linear(*own) for own in zip(_parts(x), _parts(weight), _parts(bias), strict=True)]
    for result in results:
        if result.is_cuda and result.requires_grad:
            result.register_hook(_aligned)
    return torch.stack(results)


def _aligned(cotangent: Tensor) -> Tensor:
    """The same, where it is a part of a stack that begins at an odd place in memory of its own."""
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
    """Batch norm of x [members, n, features] with each member's own statistics, which are updated in training.

    Args:
        x, mean, var, weight, bias: the last four [members, features].
        module: whose momentum and eps are taken.
        training: whether the batch's own statistics are used.
        apart: whether member by member.
    """
    momentum = module.momentum or 0.0
    if apart:
        own = zip(x.unbind(), mean.unbind(), var.unbind(), weight.unbind(), bias.unbind(), strict=True)
        return torch.stack([F.batch_norm(h, m, v, w, b, training, momentum, module.eps) for h, m, v, w, b in own])
    count, samples, features = x.shape
    flat = x.transpose(0, 1).reshape(samples, -1)  # a feature of a member is a feature
    flat = F.batch_norm(flat, mean.view(-1), var.view(-1), weight.flatten(), bias.flatten(), training, momentum, module.eps)
    return flat.view(samples, count, features).transpose(0, 1)


class StackedKinked(torch.autograd.Function):
    """A piecewise linear activation of x [members, n, width] whose gradient at hits is each member's own."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, rule: Rule, slope: float, subgradients: Tensor, injects: Tensor, counts: Tensor | None
    ) -> Tensor:
        hits = []
        for kink, at in enumerate(rule.kinks):
            # only on the CPU is looking cheaper than comparing
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
        own = slope if rule.leaky else 0.0
        for hit, subgradient in zip(ctx.hits, ctx.subgradients, strict=False):
            if hit is not None:
                gradient = at_hits(gradient, cotangent, subgradient, own, ctx.injects, hit=hit)
        return gradient, None, None, None, None, None
