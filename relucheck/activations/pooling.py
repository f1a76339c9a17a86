"""Max pooling with a chosen gradient at ties, where the largest value of a window is there more than once.

``max`` has a kink where two arguments tie for the largest: its Clarke subdifferential is the set of convex weights on the
tied ones. Two of its elements are offered: ``native`` is torch's own (the first of the tied elements, in row-major order of
the window, takes the whole cotangent), ``minimal-norm`` gives each of them an equal share (the element of least Euclidean
norm). Forward values are torch's own, by torch's own kernel, whatever the choice.

Source: Boustany (2024), "On the numerical reliability of nonsmooth autodiff: a MaxPool case study", TMLR (arXiv
2401.02736), where these are the native and the minimal Jacobian.
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
    """A choice that does not exist, or a use of max pooling that the choice cannot serve."""


def as_choice(value: Any) -> Choice:
    """The choice that a name means.

    Raises:
        PoolingError: for anything but the two names.
    """
    if value not in CHOICES:
        raise PoolingError(
            f"choice={value!r}: max pooling's gradient at ties is 'native' or 'minimal-norm'; pass one of them"
        )
    return value


@dataclasses.dataclass(frozen=True)
class Windows:
    """The geometry of 2-d pooling, (rows, columns) each."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    ceil_mode: bool = False

    @classmethod
    def of(cls, module: nn.MaxPool2d) -> Windows:
        """The geometry of a module; torch lets every size be a number or a pair, and the stride default to the kernel."""
        kernel = _pair(module.kernel_size)
        stride = _pair(module.stride or kernel)
        return cls(kernel, stride, _pair(module.padding), _pair(module.dilation), module.ceil_mode)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """As torch's kernels take them."""
        return self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode

    def offsets(self) -> list[tuple[int, int]]:
        """Of the elements of a window from its first element, row-major."""
        rows, columns = self.dilation
        return [(i * rows, j * columns) for i in range(self.kernel[0]) for j in range(self.kernel[1])]

    def padded(self, x: Tensor, outputs: tuple[int, int], value: float) -> Tensor:
        """``x`` [..., H, W] framed with ``value`` such that every window lies inside."""
        ends = [
            max((out - 1) * stride + (kernel - 1) * dilation + 1 - size - padding, 0)
            for out, stride, kernel, dilation, size, padding in zip(
                outputs, self.stride, self.kernel, self.dilation, x.shape[-2:], self.padding, strict=True
            )
        ]
        return F.pad(x, (self.padding[1], ends[1], self.padding[0], ends[0]), value=value)

    def view(self, padded: Tensor, offset: tuple[int, int], outputs: tuple[int, int]) -> Tensor:
        """The element at one offset of every window, [..., OH, OW], as a view of what :meth:`padded` returned."""
        (down, right), (rows, columns) = offset, self.stride
        return padded[
            ..., down : down + (outputs[0] - 1) * rows + 1 : rows, right : right + (outputs[1] - 1) * columns + 1 : columns
        ]


def _pair(size: Any) -> tuple[int, int]:
    first, second = (size, size) if isinstance(size, int) else (size * 2 if len(size) == 1 else size)
    return int(first), int(second)


def tied_maxima(x: Tensor, pooled: Tensor, windows: Windows) -> Tensor:
    """How many elements of each window equal its largest value, int16 [..., OH, OW]; a tie is a count of two or more.

    Both zeros are equal, so are infinities; padding is no element; a window with a NaN has no largest value (0).

    Args:
        x: [..., H, W], any floating dtype.
        pooled: its max pooling, [..., OH, OW].
        windows: the geometry of the pooling.
    """
    outputs = (pooled.shape[-2], pooled.shape[-1])
    # a frame of NaN, which equals nothing, is torch's rule that padding is never the largest, not even of -inf
    padded = windows.padded(x, outputs, torch.nan)
    count = torch.zeros(pooled.shape, dtype=torch.int16, device=x.device)
    for offset in windows.offsets():
        count += windows.view(padded, offset, outputs) == pooled
    return count


@dataclasses.dataclass
class PoolingSetting:
    """What backward reads: the choice, and optionally the only windows (bool [..., OH, OW]) to which it applies."""

    choice: Choice = "native"
    only: Tensor | None = None


def _shared(
    cotangent: Tensor, x: Tensor, pooled: Tensor, indices: Tensor, windows: Windows, setting: PoolingSetting
) -> Tensor:
    """The gradient with each cotangent divided equally among the tied maxima, and torch's own where no tie is near."""
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
    # From the last offset to the first: an element then takes its windows' shares in the order of the windows, as torch's
    # own kernel adds them, so that a window without a tie adds exactly what it adds there.
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
    """Max pooling whose backward reads the setting when it runs, and is itself differentiable in the cotangent."""

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
        x, pooled = x.detach(), pooled.detach()  # only compared: the gradient is piecewise constant in them
        if ctx.setting.choice == "native":
            own = torch.ops.aten.max_pool2d_with_indices_backward(cotangent, x, *ctx.windows.arguments, indices)
            return own, None, None
        return _shared(cotangent, x, pooled, indices, ctx.windows, ctx.setting), None, None


class MaxPool2d(nn.MaxPool2d):
    """``torch.nn.MaxPool2d`` with a chosen gradient at ties.

    Args:
        kernel_size, stride, padding, dilation, return_indices, ceil_mode: as torch's own.
        choice: ``native``, torch's own gradient bit for bit (the default), or ``minimal-norm``: the cotangent of a window
            divided equally among its tied maxima.

    The choice can be read and set at any time, and backward reads it when it runs: several backwards, each with its own
    choice, can share one forward. It is part of pickles and deep copies, not of the ``state_dict``. Windows without a tie,
    or with a NaN, have torch's own gradient bit for bit (on CUDA up to the order in which overlapping windows are added).
    Double backward works. Forward-mode AD and ``vmap`` raise torch's own errors; under ``torch.compile`` only ``native``
    is served.

    Raises:
        PoolingError: for another choice, and for ``minimal-norm`` while ``torch.compile`` traces.
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
        """The gradient at ties that is in force."""
        return self.setting.choice

    @choice.setter
    def choice(self, value: Choice) -> None:
        self.setting.choice = as_choice(value)

    def forward(self, input: Tensor) -> Any:
        if torch.compiler.is_compiling():
            if self.choice != "native":
                raise PoolingError("choice='minimal-norm' is not served under torch.compile; run the model eagerly")
            return super().forward(input)
        if not (input.requires_grad and torch.is_grad_enabled() and input.is_floating_point()):
            return super().forward(input)
        pooled, indices = _MaxPool2d.apply(input, Windows.of(self), self.setting)
        return (pooled, indices) if self.return_indices else pooled

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, choice={self.choice}"


def set_pooling(model: nn.Module, choice: Choice) -> tuple[str, ...]:
    """Gives every max pooling module of a model one gradient at ties.

    Plain ``nn.MaxPool2d`` modules become :class:`MaxPool2d` in place, under every name and reference that leads to them.
    Functional calls (``F.max_pool2d``) hold no setting and are not reached, nor are subclasses of torch's module.

    Returns:
        the names reached (a module used in several places counts once).

    Raises:
        PoolingError: for a choice that does not exist.
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
            f"{type(model).__name__} has no nn.MaxPool2d (nor relucheck's): nothing to set; functional pooling "
            "(F.max_pool2d) takes no setting: use modules"
        )
    return tuple(reached)
