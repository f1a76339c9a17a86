"""Max pooling with a chosen gradient at ties: several elements equal a window's maximum.

``max`` has a kink where several arguments equal the maximum. Its Clarke subdifferential there is the set of convex
combinations of the tied arguments' unit vectors. This module offers two of its elements. ``native`` is torch's: the first
tied element, in row-major order of the window, gets the whole cotangent. ``minimal-norm`` is the element of least Euclidean
norm: each tied element gets an equal share. Forward values are those of torch's kernel under both.

Source: Boustany (2024), "On the numerical reliability of nonsmooth autodiff: a MaxPool case study", TMLR (arXiv
2401.02736), which calls them the native and the minimal Jacobian.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relucheck.errors import ModelError, RelucheckError

Choice = Literal["native", "minimal-norm"]
CHOICES: Final[tuple[Choice, ...]] = get_args(Choice)


class PoolingError(RelucheckError, ValueError):
    """A choice that does not exist, or a use of max pooling that the choice does not support."""


def as_choice(value: Any) -> Choice:
    """Validate the name of a choice and return it.

    Raises:
        PoolingError: for any value other than ``"native"`` and ``"minimal-norm"``.
    """
    if value not in CHOICES:
        raise PoolingError(
            f"choice={value!r}: the gradient of max pooling at ties is 'native' or 'minimal-norm'; pass one of them"
        )
    return value


@dataclasses.dataclass(frozen=True)
class Windows:
    """The geometry of two-dimensional pooling; every pair is (rows, columns)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    ceil_mode: bool = False

    @classmethod
    def of(cls, module: nn.MaxPool2d) -> Windows:
        """Read the geometry of a module.

        torch allows a number in place of each pair, and a missing stride stands for the kernel size.
        """
        kernel = _pair(module.kernel_size)
        stride = _pair(module.stride or kernel)
        return cls(kernel, stride, _pair(module.padding), _pair(module.dilation), module.ceil_mode)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The geometry as positional arguments of torch's kernels."""
        return self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode

    def offsets(self) -> list[tuple[int, int]]:
        """Offsets (rows, columns) of a window's elements from its first element, in row-major order."""
        rows, columns = self.dilation
        return [(i * rows, j * columns) for i in range(self.kernel[0]) for j in range(self.kernel[1])]

    def padded(self, x: Tensor, outputs: tuple[int, int], value: float) -> Tensor:
        """Pad ``x`` [..., H, W] with ``value`` so that every window lies inside."""
        ends = [
            max((out - 1) * stride + (kernel - 1) * dilation + 1 - size - padding, 0)
            for out, stride, kernel, dilation, size, padding in zip(
                outputs, self.stride, self.kernel, self.dilation, x.shape[-2:], self.padding, strict=True
            )
        ]
        return F.pad(x, (self.padding[1], ends[1], self.padding[0], ends[0]), value=value)

    def view(self, padded: Tensor, offset: tuple[int, int], outputs: tuple[int, int]) -> Tensor:
        """View one element of every window in a padded tensor, [..., OH, OW].

        The element is the one at ``offset``, and the method ``padded`` returns the tensor.
        """
        (down, right), (rows, columns) = offset, self.stride
        return padded[
            ..., down : down + (outputs[0] - 1) * rows + 1 : rows, right : right + (outputs[1] - 1) * columns + 1 : columns
        ]


def _pair(size: Any) -> tuple[int, int]:
    first, second = (size, size) if isinstance(size, int) else (size * 2 if len(size) == 1 else size)
    return int(first), int(second)


def tied_maxima(x: Tensor, pooled: Tensor, windows: Windows) -> Tensor:
    """Count the elements of each window that equal its maximum; a tie is a count of two or more.

    +0 equals -0, and infinities of one sign are equal. Padding does not count. The count of a window with a NaN is 0.

    Args:
        x: the input, [..., H, W], any floating dtype.
        pooled: its max pooling, [..., OH, OW], same dtype.
        windows: the geometry of the pooling.

    Returns:
        The counts, int16 [..., OH, OW].
    """
    outputs = (pooled.shape[-2], pooled.shape[-1])
    # NaN equals nothing, which gives torch's rule that padding is never the maximum, not even of a window of -inf
    padded = windows.padded(x, outputs, torch.nan)
    count = torch.zeros(pooled.shape, dtype=torch.int16, device=x.device)
    for offset in windows.offsets():
        count += windows.view(padded, offset, outputs) == pooled
    return count


@dataclasses.dataclass
class PoolingSetting:
    """The setting that backward reads.

    Attributes:
        choice: the gradient at ties.
        only: mask of the windows to which the choice applies, bool [..., OH, OW]; None for all windows.
    """

    choice: Choice = "native"
    only: Tensor | None = None


def _shared(
    cotangent: Tensor, x: Tensor, pooled: Tensor, indices: Tensor, windows: Windows, setting: PoolingSetting
) -> Tensor:
    """Divide each cotangent equally among tied maxima; elsewhere the gradient is torch's."""
    native = torch.ops.aten.max_pool2d_with_indices_backward(cotangent, x, *windows.arguments, indices)
    count = tied_maxima(x, pooled, windows)
    tied = count > 1
    if setting.only is not None:
        tied = tied & setting.only.reshape(tied.shape)
    if x.device.type == "cpu" and not bool(tied.any()):
        return native
    outputs = (pooled.shape[-2], pooled.shape[-1])
    share = torch.where(tied, cotangent / count.clamp(min=1), cotangent)
    height, width = x.shape[-2:]
    value = windows.padded(x, outputs, torch.nan)
    place = torch.arange(height * width, device=x.device).view(height, width).expand(x.shape)
    place = windows.padded(place, outputs, -1)
    gradient = torch.zeros(value.shape, dtype=cotangent.dtype, device=x.device)
    near = torch.zeros(value.shape, dtype=torch.bool, device=x.device)
    # From the last offset to the first, each element receives the shares of its windows in the order of the windows. That
    # is the order of torch's kernel, so the sums round alike where no window has a tie.
    for offset in reversed(windows.offsets()):
        maximal = windows.view(value, offset, outputs) == pooled
        wins = torch.where(tied, maximal, windows.view(place, offset, outputs) == indices)
        view = windows.view(gradient, offset, outputs)
        view += torch.where(wins, share, 0)
        view = windows.view(near, offset, outputs)
        view |= tied & maximal
    top, left = windows.padding
    inside = (..., slice(top, top + height), slice(left, left + width))
    return torch.where(near[inside], gradient[inside], native)


class _MaxPool2d(torch.autograd.Function):
    """Max pooling whose backward reads the setting when it runs.

    It is differentiable in the cotangent.
    """

    @staticmethod
    def forward(x: Tensor, windows: Windows, setting: PoolingSetting) -> tuple[Tensor, Tensor]:
        return torch.ops.aten.max_pool2d_with_indices(x, *windows.arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, ctx.windows, ctx.setting = inputs
        pooled, indices = output
        ctx.mark_non_differentiable(indices)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, pooled, indices)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        cotangent = grad_outputs[0]
        if cotangent is None:
            return None, None, None
        x, pooled, indices = ctx.saved_tensors
        x, pooled = x.detach(), pooled.detach()  # double backward has no term in them: the gradient is piecewise constant
        if ctx.setting.choice == "native":
            native = torch.ops.aten.max_pool2d_with_indices_backward(cotangent, x, *ctx.windows.arguments, indices)
            return native, None, None
        return _shared(cotangent, x, pooled, indices, ctx.windows, ctx.setting), None, None


class MaxPool2d(nn.MaxPool2d):
    """``torch.nn.MaxPool2d`` with a chosen gradient at ties.

    The attribute ``choice`` can be read and set at any time. Backward reads it when it runs, so several backwards with
    different choices can share one forward. Pickles and deep copies contain it, the ``state_dict`` does not. Windows
    without a tie, or with a NaN, have torch's gradient bit for bit (on CUDA up to the order in which overlapping windows
    are added). Double backward works. Forward-mode AD and ``vmap`` raise torch's errors. Under ``torch.compile`` only
    ``native`` is supported.

    Source: Boustany (2024), "On the numerical reliability of nonsmooth autodiff: a MaxPool case study", TMLR.

    Args:
        kernel_size: as for ``torch.nn.MaxPool2d``.
        stride: as for ``torch.nn.MaxPool2d``.
        padding: as for ``torch.nn.MaxPool2d``.
        dilation: as for ``torch.nn.MaxPool2d``.
        return_indices: as for ``torch.nn.MaxPool2d``.
        ceil_mode: as for ``torch.nn.MaxPool2d``.
        choice: ``"native"``, torch's gradient bit for bit, or ``"minimal-norm"``, which divides the cotangent of a window
            equally among its tied maxima.

    Raises:
        PoolingError: for any other choice, and for ``"minimal-norm"`` while ``torch.compile`` traces.
    """

    setting: PoolingSetting

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
        *,
        choice: Choice = "native",
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, return_indices, ceil_mode)
        self.setting = PoolingSetting(as_choice(choice))

    @property
    def choice(self) -> Choice:
        """The gradient at ties: ``"native"`` or ``"minimal-norm"``."""
        return self.setting.choice

    @choice.setter
    def choice(self, value: Choice) -> None:
        self.setting.choice = as_choice(value)

    def forward(self, input: Tensor) -> Any:
        if torch.compiler.is_compiling():
            if self.choice != "native":
                raise PoolingError("choice='minimal-norm' is not supported under torch.compile; run the model eagerly")
            return super().forward(input)
        if not (input.requires_grad and torch.is_grad_enabled() and input.is_floating_point()):
            return super().forward(input)
        pooled, indices = _MaxPool2d.apply(input, Windows.of(self), self.setting)
        return (pooled, indices) if self.return_indices else pooled

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, choice={self.choice}"


def set_pooling(model: nn.Module, choice: Choice) -> tuple[str, ...]:
    """Set the gradient at ties of every max pooling module of a model.

    Each ``nn.MaxPool2d`` becomes a relucheck ``MaxPool2d`` in place, so every reference to it sees the change. Functional
    calls (``F.max_pool2d``) take no setting and keep torch's gradient. So do subclasses of torch's module.

    Args:
        model: the model to change.
        choice: ``"native"`` or ``"minimal-norm"``.

    Returns:
        Names of the modules that were set; a module that the model uses in several places counts once.

    Raises:
        PoolingError: for any other choice.
        ModelError: if the model has no such module.
    """
    choice = as_choice(choice)
    reached = []
    for name, module in model.named_modules():
        if type(module) is nn.MaxPool2d:
            module.__class__ = MaxPool2d
            module.__dict__["setting"] = PoolingSetting(choice)
        elif isinstance(module, MaxPool2d):
            module.choice = choice
        else:
            continue
        reached.append(name)
    if not reached:
        raise ModelError(
            f"{type(model).__name__} has no nn.MaxPool2d and no relucheck MaxPool2d, so there is nothing to set; "
            "functional pooling (F.max_pool2d) takes no setting, use modules"
        )
    return tuple(reached)
