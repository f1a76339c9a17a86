"""Functions ReLU, ReLU6 and LeakyReLU with chosen subgradients at their kinks.

Forward values come from torch's kernels. Backward is torch's kernel plus a correction at the hits, the elements whose input
equals a kink. There the gradient is ``s * cotangent``, where ``s`` is the subgradient (Bertoin et al. 2021, "Numerical
influence of ReLU'(0) on backpropagation"; the ReLU released with that paper omits the factor ``cotangent``). If ``s`` is
torch's default, nothing is corrected, and the gradient equals torch's bit for bit.

The rule has five implementations, because none of them serves every use:

* ``_hooked`` serves eager mode on a CPU. It calls torch's function. If the input has hits, a hook on the autograd node
  corrects the gradient at their coordinates. It looks for hits before the forward, because an in-place variant overwrites
  them.
* ``_Eager`` is a custom autograd function with a mask of the hits. It serves accelerators, where a branch on data
  synchronises; views that are overwritten, because autograd gives them another node; inputs with many hits; and
  0-dimensional inputs, whose elements have no coordinates. Besides the mask it saves the tensor that torch's function
  saves.
* ``_Traced`` serves ``torch.compile``, which cannot branch on data. It saves one byte per element, which selects the slope
  in backward. torch's compiled ReLU saves as much.
* ``_Transformed`` selects by ``torch.where``. It serves ``torch.func``, forward-mode AD and tensor subclasses, where code
  cannot read values and backward may use only inputs and outputs.
* ``_composed`` consists of differentiable operations. It serves ``torch.func`` inside ``torch.compile``, which traces only
  the forward of a custom function and would silently differentiate torch's ReLU. It serves ``torch.jit.trace``, too.

``torch.export`` keeps only the forward, so an exported program has torch's subgradient if it is trained.
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

#: Key in the metadata of an autograd node (a dictionary that torch leaves to users) that marks nodes of ``_hooked``.
_MARK: Final = "relucheck"
_CUSTOM_NODES: Final = ("_EagerBackward", "_TransformedBackward")


def has_chosen_subgradient(node: Any) -> bool:
    """Whether an autograd node belongs to a function of this module.

    The subgradient of such a node can be chosen.
    """
    marked: bool = node.metadata.get(_MARK, type(node).__name__.replace("Vmapped", "") in _CUSTOM_NODES)
    return marked


def _hooked(x: Tensor, rule: Rule, slope: float, inplace: bool, subgradients: Sequence[Tensor]) -> Tensor:
    """Call torch's function and, if there are hits, register a hook; see the module's docstring.

    A setter may give the subgradient a shape that does not fit before backward runs. Backward then raises if there are
    hits, and so does the next forward.
    """
    hits = [positions_of(x.detach(), at) for at in rule.kinks]
    count = sum(len(hit[0]) for hit in hits if hit is not None)
    # Coordinates take 8 bytes per dimension and hit and live as long as the node. A mask takes one byte per element and is
    # freed like any saved tensor, so it is better for many hits: half the input of a second ReLU in a row is hits.
    if count and count * 8 * x.ndim >= x.numel() // 4:
        return _Eager.apply(x, rule, slope, inplace, *subgradients)
    result = rule.forward_(x, slope) if inplace else rule.forward(x, slope)
    node: Any = result.grad_fn
    if node is None:  # called below autograd, which records nothing
        return result
    node.metadata[_MARK] = True
    if any(hit is not None for hit in hits):
        # The hook holds the subgradients by reference and does not save them. A setter may change their values between two
        # backwards of one forward (docs/design.md, semantics 4), which the version check of saved tensors would refuse.
        node.register_hook(functools.partial(_correct, rule, slope, tuple(hits), tuple(subgradients)))
    return result


def _correct(
    rule: Rule,
    slope: float,
    hits: Sequence[tuple[Tensor, ...] | None],
    subgradients: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    cotangents: Sequence[Tensor | None],
) -> tuple[Tensor] | None:
    """The hook of ``_hooked``: correct the node's gradient at the hits."""
    (gradient,), (cotangent,) = gradients, cotangents
    if gradient is None or cotangent is None:  # a later custom function returned None, which stands for zeros
        return None
    _refuse_misfit(rule, subgradients, cotangent.shape)  # a setter may have changed the shape since the forward
    default = slope if rule.leaky else 0.0
    for hit, subgradient in zip(hits, subgradients, strict=True):
        if hit is not None:
            chosen = subgradient.expand(cotangent.shape)[hit] if subgradient.ndim else subgradient
            # writing in place is safe: torch's backward has just created the tensor, and double backward does not use it
            gradient.index_put_(hit, at_hits(gradient[hit], cotangent[hit], chosen, default))
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
        ctx.subgradients = subgradients  # held by reference, for the reason given in _hooked
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (cotangent,) = grad_outputs
        saved, *hits = ctx.saved_tensors
        _refuse_misfit(ctx.rule, ctx.subgradients, cotangent.shape)  # a setter may have changed the shape since the forward
        gradient = ctx.rule.backward(cotangent, saved, ctx.slope, ctx.saved_is_result)
        default = ctx.slope if ctx.rule.leaky else 0.0
        for hit, subgradient in zip(hits, ctx.subgradients, strict=True):
            corrected = at_hits(gradient, cotangent, subgradient, default, hit=hit)
            # torch.where returns the strides of the mask, which are the input's; torch's gradient may have others
            same = corrected.stride() == gradient.stride()
            gradient = corrected if same else torch.empty_like(gradient).copy_(corrected)
        return (gradient, None, None, None, *[None] * len(hits))


class _Traced(torch.autograd.Function):
    """The rule in operations that a compiler can fuse; see the module's docstring."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: Rule, slope: float, *subgradients: Tensor) -> Tensor:
        part = (~rule.flat(x)).to(torch.int8)  # 0: flat or leaky branch, 1: cotangent passes, 2 and more: at a kink
        for kink, at in enumerate(rule.kinks, 2):
            part = torch.where(x == at, kink, part)
        ctx.rule, ctx.slope = rule, slope
        ctx.save_for_backward(part, *subgradients)
        return rule.forward(x, slope)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (cotangent,) = grad_outputs
        part, *subgradients = ctx.saved_tensors
        default = ctx.slope if ctx.rule.leaky else 0.0
        flat = cotangent * ctx.slope if ctx.rule.leaky else torch.zeros_like(cotangent)
        gradient = torch.where(part == 1, cotangent, flat)
        for kink, subgradient in enumerate(subgradients, 2):  # at a kink torch takes the derivative of the flat branch
            gradient = at_hits(gradient, cotangent, subgradient, default, hit=part == kink)
        return (gradient, None, None, *[None] * len(subgradients))


def _product(ctx: Any, vector: Tensor) -> Tensor:
    """Multiply the Jacobian by ``vector``; it is diagonal, so vjp and jvp are the same product."""
    x, *subgradients = ctx.saved_tensors
    product = ctx.rule.backward(vector, x, ctx.slope, False)
    default = ctx.slope if ctx.rule.leaky else 0.0
    for at, subgradient in zip(ctx.rule.kinks, subgradients, strict=True):
        product = at_hits(product, vector, subgradient, default, hit=x == at)
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
    """Whether ``shape`` broadcasts to ``target`` without changing it.

    ``torch.broadcast_shapes`` would raise where it does not.
    """
    more = len(target) - len(shape)
    # by index, because dynamo refuses a zip of unequal lengths in torch 2.4; not `in`, which misses symbolic sizes in 2.11
    return more >= 0 and all(shape[at] == 1 or shape[at] == target[more + at] for at in range(len(shape)))


def _refuse_misfit(rule: Rule, subgradients: Sequence[Tensor], shape: Sequence[int]) -> None:
    for subgradient in subgradients:
        if not _fits(subgradient.shape, shape):
            raise SubgradientError(
                f"{rule.name}: a subgradient of shape {tuple(subgradient.shape)} does not broadcast to an input of shape "
                f"{tuple(shape)}; pass a number, or a tensor of shape (members, 1, ..., 1) with one value per member"
            )


def _composed(rule: Rule, x: Tensor, slope: float, subgradients: Sequence[Tensor]) -> Tensor:
    """The rule in differentiable operations.

    At a hit it subtracts a +0 whose derivative is ``-subgradient``.

    Subtracting +0 keeps the sign of a zero, while adding it would turn -0 into +0.
    """
    native = result = rule.forward(x, slope)
    default = slope if rule.leaky else 0.0
    compute = compute_dtype(x.dtype)
    for at, subgradient in zip(rule.kinks, subgradients, strict=True):
        chosen = (x == at) & ~(subgradient.isnan() | (subgradient == default))
        here = torch.where(chosen, x, at).to(compute)
        there = here.detach()
        zero = torch.where(subgradient < 0, here - there, there - here)
        # a float64 subgradient may be infinite in this dtype; 0 * infinity is NaN, and the forward must not depend on it
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
    # torch.jit.trace cannot branch on data, and traces again without gradients to check itself
    if not tracing and torch._C._get_tracing_state() is not None and x.is_floating_point():
        result = _composed(rule, x, slope, subgradients)
        return x.copy_(result) if inplace else result
    functional = _transforming() or forward_ad._current_level >= 0
    transformed = functional and not tracing
    # No custom function for an input that needs no gradient: while tracing, dynamo confuses the arguments of a custom
    # function with *args in that case.
    differentiated = functional or (x.requires_grad and torch.is_grad_enabled())
    if not (differentiated and x.is_floating_point()):
        return rule.forward_(x, slope) if inplace else rule.forward(x, slope)
    _refuse_misfit(rule, subgradients, x.shape)
    if inplace and rule.leaky and slope < 0:
        raise SubgradientError(
            f"LeakyReLU(negative_slope={slope}, inplace=True): in-place backward reads the branch from the sign of the "
            "result, which a negative slope reverses; use inplace=False (torch has the same limit)"
        )
    if tracing:
        result = _composed(rule, x, slope, subgradients) if functional else _Traced.apply(x, rule, slope, *subgradients)
        return x.copy_(result) if inplace else result
    # tensor subclasses and dispatch modes (fake tensors, make_fx) may have no values to branch on
    plain = type(x) is Tensor or type(x) is nn.Parameter
    if not transformed and plain and torch._C._len_torch_dispatch_stack() == 0:
        base = x._base if x._is_view() else x
        if inplace and (x.is_leaf or (base is not None and base.is_leaf and base.requires_grad)):
            return rule.forward_(x, slope)  # raises torch's error before anything is overwritten
        # a 0-dimensional input has no coordinates, and an overwritten view has the autograd node of its base
        if x.device.type == "cpu" and x.ndim > 0 and not (inplace and base is not x):
            return _hooked(x, rule, slope, inplace, subgradients)
        return _Eager.apply(x, rule, slope, inplace, *subgradients)
    if inplace:
        return x.copy_(_Transformed.apply(x.clone(), rule, slope, *subgradients))
    return _Transformed.apply(x, rule, slope, *subgradients)


def relu(x: Tensor, subgradient: Tensor, inplace: bool = False) -> Tensor:
    """Compute ``max(x, 0)`` with ReLU'(0) = ``subgradient``.

    Args:
        x: the input, any shape and floating dtype.
        subgradient: float64 tensor, 0-dimensional or broadcasting to ``x``. Backward reads its values when it runs. NaN
            stands for torch's subgradient, 0.
        inplace: whether to overwrite ``x``.

    Returns:
        A tensor of the shape and dtype of ``x``; ``x`` itself if ``inplace``.

    Raises:
        SubgradientError: for a subgradient whose shape does not broadcast to that of ``x``.
    """
    if has_torch_function_unary(x):
        return handle_torch_function(relu, (x,), x, subgradient, inplace=inplace)
    return _apply(RELU, x, 0.0, inplace, (subgradient,))


def relu6(x: Tensor, alpha: Tensor, beta: Tensor, inplace: bool = False) -> Tensor:
    """Compute ``min(max(x, 0), 6)`` with subgradient ``alpha`` at 0 and ``beta`` at 6.

    Arguments, result and errors are those of ``relu``; torch's subgradients are 0 and 0.
    """
    if has_torch_function_unary(x):
        return handle_torch_function(relu6, (x,), x, alpha, beta, inplace=inplace)
    return _apply(RELU6, x, 0.0, inplace, (alpha, beta))


def leaky_relu(x: Tensor, subgradient: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """Compute LeakyReLU, with ``subgradient`` at 0.

    The value is ``x`` for ``x > 0`` and ``negative_slope * x`` elsewhere.

    Arguments and result are those of ``relu``; torch's subgradient, for which NaN stands, is ``negative_slope``.

    Raises:
        SubgradientError: for a subgradient whose shape does not broadcast to that of ``x``, and for a negative slope in
            place.
    """
    if has_torch_function_unary(x):
        return handle_torch_function(leaky_relu, (x,), x, subgradient, negative_slope=negative_slope, inplace=inplace)
    return _apply(LEAKY_RELU, x, negative_slope, inplace, (subgradient,))
