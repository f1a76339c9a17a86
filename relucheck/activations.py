"""ReLU, ReLU6 and LeakyReLU with chosen subgradients at their kinks: drop-in modules and the functions behind them.

Forward values are torch's own, computed by torch's own kernels. Backward is torch's own kernel plus a correction at the
hits, the elements whose input equals a kink: there the gradient is ``s * cotangent`` (Bertoin et al. 2021, "Numerical
influence of ReLU'(0) on backpropagation", with the chain rule that their released ReLU drops). At torch's own ``s``
nothing is corrected, so the gradient is torch's own, bit for bit.

One rule has two implementations, because one cannot serve both uses:

* :class:`_Eager` finds the hits in forward, before an in-place variant overwrites them, and keeps coordinates (CPU, where
  one bit test mostly shows that there are none) or a mask (accelerators and ``torch.compile``, where a branch on data
  synchronises or is impossible). Beside these it saves what torch's own function saves.
* :class:`_Transformed` selects by ``where`` and serves ``torch.func``, forward-mode AD and tensor subclasses, where values
  cannot be looked at and whatever backward needs must be an input or an output.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from relucheck.kinks import CATALOGUE, Activation, Kink
from relucheck.numerics import compute_dtype, has_value

#: A subgradient as users give it: a real number, or a tensor with one per ensemble member that broadcasts to the input.
Subgradient = float | Tensor


class SubgradientError(ValueError):
    """A value that cannot be a subgradient, or whose shape does not fit the input."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a piecewise linear activation does forward and backward; every function here is torch's own kernel.

    Attributes:
        name: as in :data:`relucheck.kinks.CATALOGUE`.
        kinks: where the kinks are.
        names: what the subgradients at the kinks are called, in the same order.
        forward: out-of-place forward, ``(x, slope)``.
        forward_: in-place forward, ``(x, slope)``.
        backward: torch's own backward, ``(cotangent, saved, slope, saved_is_result)``.
        saves_result: whether torch's own function saves its result rather than its input (in-place always does).
        leaky: whether the part left of 0 has a slope, which is also torch's own subgradient there.
    """

    name: str
    kinks: tuple[float, ...]
    names: tuple[str, ...]
    forward: Callable[[Tensor, float], Tensor]
    forward_: Callable[[Tensor, float], Tensor]
    backward: Callable[[Tensor, Tensor, float, bool], Tensor]
    saves_result: bool
    leaky: bool = False


RELU: Final = Rule(
    "ReLU",
    (0.0,),
    ("subgradient",),
    lambda x, slope: torch.relu(x),
    lambda x, slope: torch.relu_(x),
    lambda g, saved, slope, is_result: torch.ops.aten.threshold_backward(g, saved, 0),
    saves_result=True,
)
RELU6: Final = Rule(
    "ReLU6",
    (0.0, 6.0),
    ("alpha", "beta"),
    lambda x, slope: F.relu6(x),
    lambda x, slope: F.relu6(x, inplace=True),
    lambda g, saved, slope, is_result: torch.ops.aten.hardtanh_backward(g, saved, 0, 6),
    saves_result=False,
)
LEAKY_RELU: Final = Rule(
    "LeakyReLU",
    (0.0,),
    ("subgradient",),
    lambda x, slope: F.leaky_relu(x, slope),
    lambda x, slope: F.leaky_relu_(x, slope),
    lambda g, saved, slope, is_result: torch.ops.aten.leaky_relu_backward(g, saved, slope, is_result),
    saves_result=False,
    leaky=True,
)


def _corrected(native: Tensor, cotangent: Tensor, subgradient: Tensor, own: float) -> Tensor:
    """The gradient at a hit: ``subgradient * cotangent``, or ``native`` where the subgradient is torch's own.

    The product is taken in the compute dtype and rounded once, as ATen multiplies a tensor by a number. Torch's own value
    (stored as NaN, or equal to ``own``) keeps torch's own result, because 0 * cotangent is not 0 for an infinite cotangent.
    """
    compute = compute_dtype(cotangent.dtype)
    scaled = (cotangent.to(compute) * subgradient.to(compute)).to(cotangent.dtype)
    return torch.where(subgradient.isnan() | (subgradient == own), native, scaled)


class _Eager(torch.autograd.Function):
    """The rule in eager mode and, without ``mark_dirty``, under ``torch.compile``; see the module's docstring."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: Rule, slope: float, inplace: bool, *subgradients: Tensor) -> Tensor:
        tracing = torch.compiler.is_compiling()
        ctx.sparse = x.device.type == "cpu" and not tracing
        hits: list[tuple[Tensor, ...]]
        if ctx.sparse:
            hits = [(x == at).nonzero(as_tuple=True) if has_value(x, at) else () for at in rule.kinks]
        else:
            hits = [(x == at,) for at in rule.kinks]
        if inplace and not tracing:
            ctx.mark_dirty(x)
            result = rule.forward_(x, slope)
        else:
            result = rule.forward(x, slope)
        ctx.rule, ctx.slope, ctx.saved_is_result = rule, slope, inplace or rule.saves_result
        ctx.lengths = [len(hit) for hit in hits]
        saved = (result if ctx.saved_is_result else x, *[part for hit in hits for part in hit])
        if tracing:
            ctx.save_for_backward(*saved, *subgradients)
        else:
            ctx.save_for_backward(*saved)
            # By reference, not saved: a setter changes their values between two backwards of one forward, which is the
            # point (DESIGN, semantics 4) and what the version check of saved tensors exists to refuse.
            ctx.subgradients = subgradients
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (cotangent,) = grad_outputs
        saved, *parts = ctx.saved_tensors
        kinks = len(ctx.rule.kinks)
        if torch.compiler.is_compiling():
            parts, subgradients = parts[:-kinks], parts[-kinks:]
        else:
            subgradients = ctx.subgradients
        gradient = ctx.rule.backward(cotangent, saved, ctx.slope, ctx.saved_is_result)
        own = ctx.slope if ctx.rule.leaky else 0.0
        for subgradient, length in zip(subgradients, ctx.lengths, strict=True):
            hit, parts = tuple(parts[:length]), parts[length:]
            if ctx.sparse and hit:
                at_hits = subgradient.expand(cotangent.shape)[hit] if subgradient.ndim else subgradient
                gradient = gradient.index_put(hit, _corrected(gradient[hit], cotangent[hit], at_hits, own))
            elif hit:
                gradient = torch.where(hit[0], _corrected(gradient, cotangent, subgradient, own), gradient)
        return (gradient, None, None, None, *[None] * kinks)


def _product(ctx: Any, vector: Tensor) -> Tensor:
    """Jacobian times ``vector``: the Jacobian of an elementwise function is diagonal, so vjp and jvp are one product."""
    x, *subgradients = ctx.saved_tensors
    product = ctx.rule.backward(vector, x, ctx.slope, False)
    own = ctx.slope if ctx.rule.leaky else 0.0
    for at, subgradient in zip(ctx.rule.kinks, subgradients, strict=True):
        product = torch.where(x == at, _corrected(product, vector, subgradient, own), product)
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


def _apply(rule: Rule, x: Tensor, slope: float, inplace: bool, subgradients: Sequence[Tensor]) -> Tensor:
    tracing = torch.compiler.is_compiling()
    transformed = not tracing and (torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0)
    if not (tracing or transformed or (x.requires_grad and torch.is_grad_enabled())):
        return rule.forward_(x, slope) if inplace else rule.forward(x, slope)
    for subgradient in subgradients:
        if subgradient.ndim and torch.broadcast_shapes(subgradient.shape, x.shape) != x.shape:
            raise SubgradientError(
                f"{rule.name}: a subgradient of shape {tuple(subgradient.shape)} does not broadcast to an input of shape "
                f"{tuple(x.shape)}; give a number, or one value per member shaped (members, 1, ..., 1)"
            )
    if inplace and rule.leaky and slope < 0:
        raise SubgradientError(
            f"LeakyReLU(negative_slope={slope}, inplace=True): in-place backward tells the sides apart by the sign of the "
            "result, which a negative slope turns round; use inplace=False (torch has the same limit)"
        )
    if tracing:
        result = _Eager.apply(x, rule, slope, inplace, *subgradients)
        return x.copy_(result) if inplace else result
    # zero-dimensional tensors have no coordinates to keep; subclasses and dispatch modes (fake tensors, make_fx) may have
    # no values to branch on
    plain = type(x) is Tensor or type(x) is nn.Parameter
    if not transformed and plain and x.ndim > 0 and torch._C._len_torch_dispatch_stack() == 0:
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


def as_subgradient(value: Any, *, owner: str = "subgradient", optional: bool = False) -> Tensor:
    """A subgradient as the float64 tensor that modules keep (NaN for None, torch's own value).

    Args:
        value: a finite real number, or a tensor of finite real numbers (one per ensemble member).
        owner: what the error calls the input.
        optional: whether None is allowed.

    Raises:
        SubgradientError: for anything else.
    """
    if value is None and optional:
        return torch.tensor(math.nan, dtype=torch.float64)
    if isinstance(value, Tensor):
        number = value.detach().to(torch.float64).clone() if not value.is_complex() and value.dtype != torch.bool else None
    elif not isinstance(value, bool) and isinstance(value, numbers.Real):
        number = torch.tensor(float(value), dtype=torch.float64, device="cpu")
    else:
        number = None
    if number is None or number.numel() == 0 or not bool(number.isfinite().all()):
        raise SubgradientError(
            f"{owner}={value!r}: a subgradient is a finite real number, or a tensor of them, one per ensemble member; "
            "pass a float such as 0.0, 0.5 or -0.5"
        )
    return number


def _subgradient_property(name: str, at: float) -> Any:
    def get(self: ChosenSubgradient) -> Subgradient | None:
        value = self._buffers[f"{name}_tensor"]
        assert value is not None
        if value.ndim:
            return value
        number = float(value)
        return None if math.isnan(number) else number

    def set_(self: ChosenSubgradient, value: Subgradient | None) -> None:
        self._set(name, value)

    return property(get, set_, doc=f"The subgradient in force at {at:g}: a float, or a tensor with one per member.")


class ChosenSubgradient(nn.Module):
    """Base of the modules whose subgradients can be chosen: keeps, validates, moves and shows them.

    Each subgradient lives in a non-persistent buffer ``<name>_tensor`` (float64, 0-dimensional or one value per member):
    ``torch.func.functional_call`` and ``stack_module_state`` can swap it, it follows the module's device but not its dtype
    (0.8 stays 0.8 in a bfloat16 model), and ``state_dict`` does not hold it, so that checkpoints stay interchangeable with
    the plain torch module's; like ``negative_slope`` it is part of the model's code, and of its pickles and deep copies.
    """

    rule: ClassVar[Rule]

    def _init_subgradients(self, **values: Subgradient | None) -> None:
        for name, value in values.items():
            owner = f"{type(self).__name__}({name})"
            self.register_buffer(
                f"{name}_tensor", as_subgradient(value, owner=owner, optional=self.rule.leaky), persistent=False
            )

    def _set(self, name: str, value: Subgradient | None) -> None:
        buffer = self._buffers[f"{name}_tensor"]
        assert buffer is not None
        new = as_subgradient(value, owner=f"{type(self).__name__}.{name}", optional=self.rule.leaky)
        new = new.to(buffer.device, buffer.dtype)
        # through .data: graphs recorded earlier hold this very tensor and read the new value, with no version clash
        if new.shape == buffer.shape:
            buffer.data.copy_(new)
        else:
            buffer.data = new

    @property
    def subgradient_tensors(self) -> tuple[Tensor, ...]:
        """The tensors that backward reads, in the order of the kinks."""
        return tuple(getattr(self, f"{name}_tensor") for name in self.rule.names)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # fn casts as well as moves, and a cast would round the subgradient: only follow the device
        kept = {f"{name}_tensor": self._buffers.pop(f"{name}_tensor") for name in self.rule.names}
        try:
            super()._apply(fn, recurse)
        finally:
            self._buffers.update(kept)
        for name, buffer in kept.items():
            assert buffer is not None
            device = fn(torch.empty(0, device=buffer.device)).device
            if device != buffer.device and device.type != "meta":  # meta has no values to keep
                self._buffers[name] = buffer.to(device, torch.float32 if device.type == "mps" else torch.float64)
        return self

    def extra_repr(self) -> str:
        chosen = [f"{name}={getattr(self, name)}" for name in self.rule.names]
        return ", ".join([*chosen, *filter(None, [super().extra_repr()])])


class ReLU(ChosenSubgradient, nn.ReLU):
    """``torch.nn.ReLU`` with ReLU'(0) = ``subgradient``.

    Args:
        subgradient: any finite real number (the Clarke interval is [0, 1]; torch's own value, the default, is 0), or a
            tensor with one value per ensemble member that broadcasts to the input.
        inplace: overwrite the input.

    The value can be read and set at any time, and backward reads it when it runs: several backwards, each with its own
    value, can share one forward. Forward values never depend on it.

    Raises:
        SubgradientError: for NaN, infinities and values that are not real numbers.
    """

    rule = RELU
    subgradient = _subgradient_property("subgradient", 0.0)
    subgradient_tensor: Tensor

    def __init__(self, subgradient: Subgradient = 0.0, inplace: bool = False) -> None:
        super().__init__(inplace)
        self._init_subgradients(subgradient=subgradient)

    def forward(self, input: Tensor) -> Tensor:
        return relu(input, self.subgradient_tensor, inplace=self.inplace)


class ReLU6(ChosenSubgradient, nn.ReLU6):
    """``torch.nn.ReLU6`` with subgradient ``alpha`` at 0 and ``beta`` at 6 (torch's own are 0 and 0); see :class:`ReLU`."""

    rule = RELU6
    alpha = _subgradient_property("alpha", 0.0)
    beta = _subgradient_property("beta", 6.0)
    alpha_tensor: Tensor
    beta_tensor: Tensor

    def __init__(self, alpha: Subgradient = 0.0, beta: Subgradient = 0.0, inplace: bool = False) -> None:
        super().__init__(inplace)
        self._init_subgradients(alpha=alpha, beta=beta)

    def forward(self, input: Tensor) -> Tensor:
        return relu6(input, self.alpha_tensor, self.beta_tensor, inplace=self.inplace)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, beta={self.beta}" + (", inplace=True" if self.inplace else "")


class LeakyReLU(ChosenSubgradient, nn.LeakyReLU):
    """``torch.nn.LeakyReLU`` with a chosen subgradient at 0 (None: torch's own, the negative slope); see :class:`ReLU`."""

    rule = LEAKY_RELU
    subgradient = _subgradient_property("subgradient", 0.0)
    subgradient_tensor: Tensor

    def __init__(self, negative_slope: float = 0.01, subgradient: Subgradient | None = None, inplace: bool = False) -> None:
        super().__init__(negative_slope, inplace)
        self._init_subgradients(subgradient=subgradient)

    def forward(self, input: Tensor) -> Tensor:
        return leaky_relu(input, self.subgradient_tensor, self.negative_slope, inplace=self.inplace)


#: The modules of this room by the plain torch module that each one replaces.
REPLACEMENTS: Final[dict[type[nn.Module], type[ChosenSubgradient]]] = {
    nn.ReLU: ReLU,
    nn.ReLU6: ReLU6,
    nn.LeakyReLU: LeakyReLU,
}


def describe(module: ChosenSubgradient) -> Activation:
    """The :class:`~relucheck.kinks.Activation` that a module is, with the subgradients in force (scalar ones only)."""
    plain = CATALOGUE[module.rule.name]
    left = module.negative_slope if isinstance(module, LeakyReLU) else 0.0
    kinks = []
    for kink, name in zip(plain.kinks, module.rule.names, strict=True):
        value = getattr(module, name)
        if isinstance(value, Tensor):
            raise SubgradientError(f"{name} holds one value per member; describe() needs a single number")
        own = left if kink.at == 0.0 else 0.0
        kinks.append(Kink(kink.at, left if kink.at == 0.0 else kink.left, kink.right, own if value is None else value))
    return Activation(module.rule.name, lambda: module, tuple(kinks))
