"""ReLU, ReLU6 and LeakyReLU with chosen subgradients at their kinks, as functions of tensors.

Forward values are torch's own, computed by torch's own kernels. Backward is torch's own kernel plus a correction at the
hits, the elements whose input equals a kink: there the gradient is ``s * cotangent`` (Bertoin et al. 2021, "Numerical
influence of ReLU'(0) on backpropagation", with the chain rule that their released ReLU drops). At torch's own ``s``
nothing is corrected, so the gradient is torch's own, bit for bit.

One rule has five implementations, because one cannot serve all uses:

* :func:`_hooked`, eager mode on a CPU, is torch's own function in forward and backward. It looks for hits first, before an
  in-place variant overwrites them; only where there are some does a hook on the autograd node correct the gradient there.
* :class:`_Eager` does the same as a custom function, with a mask of the hits, for accelerators, where a branch on data
  synchronises, for views that are overwritten, whose node is another one, and where hits are many or coordinates are not to
  be had (0 dimensions). Beside the mask it saves what torch's own function saves.
* :class:`_Traced` serves ``torch.compile``, where a branch on data is impossible: one byte an element says which slope
  backward takes, as many as torch's own compiled ReLU keeps.
* :class:`_Transformed` selects by ``where`` and serves ``torch.func``, forward-mode AD and tensor subclasses, where values
  cannot be looked at and whatever backward needs must be an input or an output.
* :func:`_composed` is built of differentiable operations and serves ``torch.func`` inside ``torch.compile``, which traces
  a custom function's forward only and would differentiate through torch's own ReLU without a word.

``torch.export`` keeps the forward alone, which is torch's own: an exported program that is trained has torch's subgradient.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Final

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from relucheck.activations.rules import LEAKY_RELU, RELU, RELU6, Rule, SubgradientError, at_hits
from relucheck.numerics.bits import positions_of
from relucheck.numerics.dtypes import compute_dtype

#: The key under which a node's metadata say whether its subgradient is the caller's (any grad_fn has metadata for users).
OWN: Final = "relucheck"
_OWN_FUNCTIONS: Final = ("_EagerBackward", "_TransformedBackward")


def is_own(node: Any) -> bool:
    """Whether an autograd node is of an activation of this module, so that its subgradient can be chosen."""
    mark: bool = node.metadata.get(OWN, type(node).__name__.removeprefix("Vmapped") in _OWN_FUNCTIONS)
    return mark


def _hooked(x: Tensor, rule: Rule, slope: float, inplace: bool, subgradients: Sequence[Tensor]) -> Tensor:
    """torch's own function, and a hook on its node if there are hits; see the module's docstring.

    A subgradient that a setter has since given a shape that does not fit is refused in backward where there are hits, and
    in the next forward.
    """
    hits = [positions_of(x.detach(), at) for at in rule.kinks]
    count = sum(len(hit[0]) for hit in hits if hit is not None)
    # Coordinates cost 8 bytes a dimension and hit and live as long as the node, a mask costs one byte an element and is
    # freed like any saved tensor: few hits only. The input of a second ReLU in a row is half hits.
    if count and count * 8 * x.ndim >= x.numel() // 4:
        return _Eager.apply(x, rule, slope, inplace, *subgradients)
    result = rule.forward_(x, slope) if inplace else rule.forward(x, slope)
    node: Any = result.grad_fn
    if node is None:  # below autograd, where nothing is recorded
        return result
    node.metadata[OWN] = True
    if any(hit is not None for hit in hits):
        # The subgradients by reference, not saved: a setter changes their values between two backwards of one forward,
        # which is the point (DESIGN, semantics 4) and what the version check of saved tensors exists to refuse.
        node.register_hook(functools.partial(_put_right, rule, slope, tuple(hits), tuple(subgradients)))
    return result


def _put_right(
    rule: Rule,
    slope: float,
    hits: Sequence[tuple[Tensor, ...] | None],
    subgradients: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    cotangents: Sequence[Tensor | None],
) -> tuple[Tensor] | None:
    """The hook of :func:`_hooked`: what the node's own backward returned, with the hits put right."""
    (gradient,), (cotangent,) = gradients, cotangents
    if gradient is None or cotangent is None:  # nothing has come from above (a custom function's None), so all is zero
        return None
    _refuse_misfit(rule, subgradients, cotangent.shape)  # a setter may have changed the shape since
    own = slope if rule.leaky else 0.0
    for hit, subgradient in zip(hits, subgradients, strict=True):
        if hit is not None:
            chosen = subgradient.expand(cotangent.shape)[hit] if subgradient.ndim else subgradient
            # in place: torch's own backward has just made the tensor, and its own double backward does not need it
            gradient.index_put_(hit, at_hits(gradient[hit], cotangent[hit], chosen, own))
    return (gradient,)


class _Eager(torch.autograd.Function):
    """The rule with a mask of the hits; see the module's docstring."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: Rule, slope: float, inplace: bool, *subgradients: Tensor) -> Tensor:
        hits = [x == at for at in rule.kinks]
        if inplace:
            ctx.mark_dirty(x)
        result = rule.forward_(x, slope) if inplace else rule.forward(x, slope)
        ctx.rule, ctx.slope, ctx.saved_is_result = rule, slope, inplace or rule.saves_result
        ctx.save_for_backward(result if ctx.saved_is_result else x, *hits)
        ctx.subgradients = subgradients  # by reference, as in _hooked
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (cotangent,) = grad_outputs
        saved, *hits = ctx.saved_tensors
        _refuse_misfit(ctx.rule, ctx.subgradients, cotangent.shape)  # a setter may have changed the shape since
        gradient = ctx.rule.backward(cotangent, saved, ctx.slope, ctx.saved_is_result)
        own = ctx.slope if ctx.rule.leaky else 0.0
        for hit, subgradient in zip(hits, ctx.subgradients, strict=True):
            fixed = at_hits(gradient, cotangent, subgradient, own, hit=hit)
            # where takes the mask's strides, which are the input's; torch's own gradient may have others
            gradient = fixed if fixed.stride() == gradient.stride() else torch.empty_like(gradient).copy_(fixed)
        return (gradient, None, None, None, *[None] * len(hits))


class _Traced(torch.autograd.Function):
    """The rule under ``torch.compile``, for the compiler to fuse; see the module's docstring."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: Rule, slope: float, *subgradients: Tensor) -> Tensor:
        part = (~rule.flat(x)).to(torch.int8)  # 0: flat, 1: the cotangent, 2 on: at a kink
        for kink, at in enumerate(rule.kinks, 2):
            part = torch.where(x == at, kink, part)
        ctx.rule, ctx.slope = rule, slope
        ctx.save_for_backward(part, *subgradients)
        return rule.forward(x, slope)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (cotangent,) = grad_outputs
        part, *subgradients = ctx.saved_tensors
        own = ctx.slope if ctx.rule.leaky else 0.0
        flat = cotangent * ctx.slope if ctx.rule.leaky else torch.zeros_like(cotangent)
        gradient = torch.where(part == 1, cotangent, flat)
        for kink, subgradient in enumerate(subgradients, 2):  # torch's own value at a kink is the flat side's
            gradient = at_hits(gradient, cotangent, subgradient, own, hit=part == kink)
        return (gradient, None, None, *[None] * len(subgradients))


def _product(ctx: Any, vector: Tensor) -> Tensor:
    """Jacobian times ``vector``: the Jacobian of an elementwise function is diagonal, so vjp and jvp are one product."""
    x, *subgradients = ctx.saved_tensors
    product = ctx.rule.backward(vector, x, ctx.slope, False)
    own = ctx.slope if ctx.rule.leaky else 0.0
    for at, subgradient in zip(ctx.rule.kinks, subgradients, strict=True):
        product = at_hits(product, vector, subgradient, own, hit=x == at)
    return product


class _Transformed(torch.autograd.Function):
    """The rule under ``torch.func`` transforms, forward-mode AD and tensor subclasses."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, rule: Rule, slope: float, *subgradients: Tensor) -> Tensor:
        return rule.forward(x, slope)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, ctx.rule, ctx.slope, *subgradients = inputs
        ctx.save_for_backward(x, *subgradients)
        ctx.save_for_forward(x, *subgradients)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return (_product(ctx, grad_outputs[0]), None, None, *[None] * len(ctx.rule.kinks))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _product(ctx, tangents[0])


def _fits(shape: Sequence[int], target: Sequence[int]) -> bool:
    """Whether a shape broadcasts to ``target`` without changing it (``torch.broadcast_shapes`` raises its own error)."""
    more = len(target) - len(shape)
    # by index, as dynamo refuses a zip of unequal lengths in torch 2.4; not `in`, which misses symbolic sizes in torch 2.11
    return more >= 0 and all(shape[at] == 1 or shape[at] == target[more + at] for at in range(len(shape)))


def _refuse_misfit(rule: Rule, subgradients: Sequence[Tensor], shape: Sequence[int]) -> None:
    for subgradient in subgradients:
        if not _fits(subgradient.shape, shape):
            raise SubgradientError(
                f"{rule.name}: a subgradient of shape {tuple(subgradient.shape)} does not broadcast to an input of shape "
                f"{tuple(shape)}; give a number, or one value per member shaped (members, 1, ..., 1)"
            )


def _composed(rule: Rule, x: Tensor, slope: float, subgradients: Sequence[Tensor]) -> Tensor:
    """The rule by differentiable operations: at a hit, torch's own value minus a +0 whose derivative is ``-subgradient``.

    Subtracting +0 keeps the sign of a zero, which adding it would not.
    """
    native = result = rule.forward(x, slope)
    own = slope if rule.leaky else 0.0
    compute = compute_dtype(x.dtype)
    for at, subgradient in zip(rule.kinks, subgradients, strict=True):
        chosen = (x == at) & ~(subgradient.isnan() | (subgradient == own))
        here = torch.where(chosen, x, at).to(compute)
        there = here.detach()
        zero = torch.where(subgradient < 0, here - there, there - here)
        # clamped, as 0 * infinity is NaN and the forward value must not depend on the subgradient
        zero = zero * subgradient.abs().to(compute).clamp(max=torch.finfo(compute).max)
        result = torch.where(chosen, native.detach() - zero.to(x.dtype), result)
    return result


def _transforming() -> bool:
    """Whether a transform of ``torch.func`` is active."""
    return torch._C._are_functorch_transforms_active()


# Dynamo cannot trace the question in torch 2.4. It guards the stack of transforms, so the answer is a constant of a graph.
# This is torch.compiler.assume_constant_result, which would import dynamo.
_transforming._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _apply(rule: Rule, x: Tensor, slope: float, inplace: bool, subgradients: Sequence[Tensor]) -> Tensor:
    tracing = torch.compiler.is_compiling()
    functional = _transforming() or forward_ad._current_level >= 0
    transformed = functional and not tracing
    # while tracing, too: dynamo mistakes the arguments of a custom function with varargs that needs no gradient
    differentiated = functional or (x.requires_grad and torch.is_grad_enabled())
    if not (differentiated and x.is_floating_point()):
        return rule.forward_(x, slope) if inplace else rule.forward(x, slope)
    _refuse_misfit(rule, subgradients, x.shape)
    if inplace and rule.leaky and slope < 0:
        raise SubgradientError(
            f"LeakyReLU(negative_slope={slope}, inplace=True): in-place backward tells the sides apart by the sign of the "
            "result, which a negative slope turns round; use inplace=False (torch has the same limit)"
        )
    if tracing:
        result = _composed(rule, x, slope, subgradients) if functional else _Traced.apply(x, rule, slope, *subgradients)
        return x.copy_(result) if inplace else result
    # subclasses and dispatch modes (fake tensors, make_fx) may have no values to branch on
    plain = type(x) is Tensor or type(x) is nn.Parameter
    if not transformed and plain and torch._C._len_torch_dispatch_stack() == 0:
        base = x._base if x._is_view() else x
        if inplace and (x.is_leaf or (base is not None and base.is_leaf and base.requires_grad)):
            return rule.forward_(x, slope)  # raises torch's own error before, not after, anything is overwritten
        # no coordinates without dimensions; a view that is overwritten has the node of its base
        if x.device.type == "cpu" and x.ndim > 0 and not (inplace and base is not x):
            return _hooked(x, rule, slope, inplace, subgradients)
        return _Eager.apply(x, rule, slope, inplace, *subgradients)
    if inplace:
        return x.copy_(_Transformed.apply(x.clone(), rule, slope, *subgradients))
    return _Transformed.apply(x, rule, slope, *subgradients)


def relu(x: Tensor, subgradient: Tensor, inplace: bool = False) -> Tensor:
    """``max(x, 0)`` with ReLU'(0) = ``subgradient``.

    Args:
        x: any shape, any floating dtype.
        subgradient: 0-dimensional, or broadcasting to ``x``; its values are read when backward runs. NaN: torch's own (0).
        inplace: overwrite ``x``.
    """
    if has_torch_function_unary(x):
        return handle_torch_function(relu, (x,), x, subgradient, inplace=inplace)
    return _apply(RELU, x, 0.0, inplace, (subgradient,))


def relu6(x: Tensor, alpha: Tensor, beta: Tensor, inplace: bool = False) -> Tensor:
    """``min(max(x, 0), 6)`` with subgradient ``alpha`` at 0 and ``beta`` at 6; see :func:`relu`."""
    if has_torch_function_unary(x):
        return handle_torch_function(relu6, (x,), x, alpha, beta, inplace=inplace)
    return _apply(RELU6, x, 0.0, inplace, (alpha, beta))


def leaky_relu(x: Tensor, subgradient: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """``x`` right of 0 and ``negative_slope * x`` left of it, with ``subgradient`` at 0 (NaN: torch's own, the slope)."""
    if has_torch_function_unary(x):
        return handle_torch_function(leaky_relu, (x,), x, subgradient, negative_slope=negative_slope, inplace=inplace)
    return _apply(LEAKY_RELU, x, negative_slope, inplace, (subgradient,))
