"""How finely an activation resolves its values and gradients.

This bounds how closely two right implementations agree.

Two right results differ for two reasons. Each is rounded to the precision in which the activation computes. This may be
lower than that of its dtype: code that casts its input to float32 has the precision and the range of float32. And each
belongs to an input that was rounded inside, as ``a * x`` is. So the results differ by as much as the function moves between
inputs that are neighbours in that precision. For ``sin(30 * x)`` in bfloat16, this is the whole range of the derivative,
from -30 to 30, already at x = 12.

Both are measured. Tolerances of laws come from here, and not from the dtype alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from relucheck.activations.kink_search import FoundKink, derivatives, resolution
from relucheck.numerics.floats import FORMATS, FloatFormat, Floats, differs

#: Distances, in machine epsilons, of the inputs that count as neighbours. Few operations precede a nonlinear one.
#: No simple fractions, at which a periodic function could take the same value again.
_NEIGHBOURS: Final = (-1.91, -1.23, -0.53, 0.53, 1.23, 1.91)
#: The same at large inputs, where all that is known of a gradient is how far it moves.
_DISTANT: Final = (-19, -12, -9, -5, -3, -1, 0, 1, 2, 4, 7, 13, 17)
#: Distances, relative to an input, of others that may have the same value after rounding.
_FURTHER: Final = 2.0 ** np.arange(-24.0, 2.0, 0.5)
#: Factors by which the neighbours of an input are further apart, when it is seen what cancels.
_COARSER: Final = 2.0 ** np.array([0, 1, 2, 4, 8])
#: Steps, in machine epsilons, by which the input moves for that.
_STEPS: Final = (-1.5, -0.5, 0, 1)
#: Inputs with full significands, whose results would not fit in a narrower format by chance.
_GENERIC: Final = np.linspace(-6.0, 6.0, 200) * 0.9973 + 0.0137


class Resolution:
    """The resolution of one activation in one dtype.

    Args:
        format: the format of the dtype.
        value: the activation in the dtype, (n,) to (n,).
        gradient: its gradient for cotangent 1, (n,) to (n,).
        exact: the function of real numbers that it approximates, (n,) to (n,).
        kinks: the kinks of the exact function.
    """

    def __init__(
        self,
        format: FloatFormat,
        value: Callable[[Floats], Floats],
        gradient: Callable[[Floats], Floats],
        exact: Callable[[Floats], Floats],
        kinks: Callable[[], Sequence[FoundKink]],
    ) -> None:
        self._dtype, self._value, self._gradient, self._exact, self._kinks = format, value, gradient, exact, kinks

    @functools.cached_property
    def format(self) -> FloatFormat:
        """The format in which the activation computes.

        It is that of its dtype, or float32 if its values are float32 numbers. It is float32, too, if its gradients are, and
        its values do not change where the input is rounded to float32: they are products of float32 numbers then. A
        backward that alone computes in float32 loses digits and a range that the values have, which is a fault.
        """
        narrow = FORMATS["float32"]
        if self._dtype.eps >= narrow.eps:
            return self._dtype
        x = self._dtype.rounded(_GENERIC)
        try:
            y = self._value(x)
            if resolution(y) >= narrow.eps:
                return narrow
            if not differs(y, self._value(narrow.rounded(x))).any() and resolution(self._gradient(x)) >= narrow.eps:
                return narrow
        except Exception:  # another law reports why it does not run
            pass
        return self._dtype

    @functools.cached_property
    def exact_format(self) -> FloatFormat:
        """The format in which the exact function is computed, which is float32 if it casts inside."""
        narrow = FORMATS["float32"]
        return narrow if resolution(self._exact(_GENERIC)) >= narrow.eps else FORMATS["float64"]

    @property
    def exact_eps(self) -> float:
        """The machine epsilon of the exact function's values."""
        return self.exact_format.eps

    @property
    def decidable(self) -> float:
        """The size of inputs up to which values show the derivative.

        Beyond it, their differences cannot distinguish an oscillation from rounding.
        """
        return min(1e6, 5e-5 / self.exact_eps)

    def neighbours(self, x: Floats, eps: float | None = None) -> Floats:
        """Return the points (n,) and their neighbours, (1 + neighbours, n).

        A neighbour is on the same side of every kink as its point; otherwise the point takes its place.

        Args:
            x: the points, (n,).
            eps: machine epsilon of the rounding inside; that of ``format`` if None.
        """
        distances = np.array([0.0, *_NEIGHBOURS])[:, None]
        near = x * (1 + distances * (self.format.eps if eps is None else eps))
        for kink in self._kinks():
            near = np.where((np.minimum(x, near) <= kink.at) & (kink.at <= np.maximum(x, near)), x, near)
        return near

    def of_value(self, x: Floats, eps: float | None = None) -> Floats:
        """Return how far the exact value moves between neighbours of each point, (n,).

        The arguments are those of ``neighbours``.
        """
        near = self.neighbours(x, eps)
        values = self._exact(near.ravel()).reshape(near.shape)
        return np.fmax.reduce(np.abs(values - values[0]), axis=0, initial=0.0)

    def of_cancellation(self, f: Callable[[Floats], Floats], x: Floats) -> Floats:
        """Return how much a sum loses to cancellation where float64 is as coarse as this format.

        A term such as ``x - (x - 3)`` is lost at inputs whose neighbours are further apart than 3, in whatever format. So
        the function in float64 is compared with itself at larger inputs, whose neighbours in float64 are as far apart as
        those of the given one are in this format, and up to 256 times as far. A function that grows moves between the two
        as well, so the result, (n,), is at most 16 machine epsilons of the input. An overflow leaves no trace here, because
        float64 has room for it.

        Args:
            f: the function in float64, (n,) to (n,).
            x: the points, (n,).
        """
        most = 16 * self.format.eps * np.maximum(np.abs(x), 1.0)
        large = self.format.eps / self.exact_eps * _COARSER[:, None] * x
        # two sums may be rounded alike, and cancel, except beside a power of two
        power = np.copysign(2.0 ** np.ceil(np.log2(np.abs(large))), large)
        points = np.concatenate([side * (1 + step * self.exact_eps) for side in (large, power) for step in _STEPS])
        moved = np.abs(f(points.ravel()).reshape(points.shape) - f(x)).max(axis=0)
        return np.where(np.isfinite(moved), np.minimum(8 * moved, most), most)

    def of_noise(self, f: Callable[[Floats], Floats], x: Floats) -> Floats:
        """Return how much rounding inside moves a value, from its roughness in float64, (n,).

        ``100 * sigmoid(x) - 50`` is small around 0, where both of its terms are not, so it has the rounding error of 50.
        In float64 the function is a straight line on intervals so short, up to that error. The result is four times the
        largest distance from the line, in machine epsilons of this format in place of those of float64.

        Args:
            f: the function in float64, (n,) to (n,).
            x: the points, (n,).
        """
        steps = np.arange(-8.0, 9.0)
        points = x * (1 + 64 * self.exact_eps * steps[:, None])
        y = f(points.ravel()).reshape(points.shape)
        y = y - y[8]
        line = steps[:, None] * (steps @ y / (steps @ steps)) + y.mean(axis=0)
        rough = np.abs(y - line).max(axis=0)
        return np.where(np.isfinite(rough), 4 * rough * self.format.eps / self.exact_eps, 0.0)

    def of_gradient(self, x: Floats, eps: float | None = None) -> Floats:
        """Return how far the exact derivative moves between neighbours of each point, (n,).

        The arguments are those of ``neighbours``. A derivative that is not known does not move.
        """
        near = self.neighbours(x, eps)
        left, right, error = (side.reshape(near.shape) for side in derivatives(self._exact, near.ravel(), self._kinks()))
        moved = np.fmax(np.abs(left - left[0]), np.abs(right - right[0])) + error
        return np.fmax.reduce(moved, axis=0, initial=0.0)

    def of_rounded_value(self, x: Floats) -> Floats:
        """Return how far the exact derivative moves among inputs with one rounded value, (n,).

        Many a backward computes the derivative from the saved value y, as torch's tanh does with 1 - y**2. It is then the
        derivative at any input whose value is y after rounding. So the error of 100 * tanh(x) in bfloat16 is a part of the
        largest slope, 100, and not of the slope at x. Inputs beyond a kink do not count.

        Args:
            x: the points, (n,), of each of which the value is meant.
        """
        moved = np.zeros(x.shape)
        at, _, _ = derivatives(self._exact, x, self._kinks())
        y = self._exact(x)
        for side in (-1, 1):
            points = x * (1 + side * _FURTHER[:, None])
            same = np.abs(self._exact(points.ravel()).reshape(points.shape) - y) <= self.format.eps * np.abs(y)
            for kink in self._kinks():
                same &= (np.minimum(x, points) > kink.at) | (np.maximum(x, points) < kink.at)
            same = np.logical_and.accumulate(same)  # no input with another value lies between
            if same.any():
                there, _, error = derivatives(self._exact, points[same], self._kinks())
                further = np.full(points.shape, np.nan)
                further[same] = np.where(np.isfinite(error), there, np.nan)
                moved = np.fmax(moved, np.fmax.reduce(np.abs(further - at), axis=0, initial=0.0))
        return moved

    def of_distant_gradient(self, x: Floats) -> Floats:
        """Return how far the gradient itself moves between neighbours beyond ``decidable``; else 0.

        There, values do not show the derivative. The result is twice the range of the gradients at 13 neighbours without
        the lowest and the highest, so that it does not depend on one wrong gradient.
        """
        result = np.zeros(x.shape)
        far = np.abs(x) > self.decidable
        if far.any():
            points = self._dtype.rounded(x[far][:, None] * (1 + self.format.eps * np.array(_DISTANT)))
            gradients = np.sort(self._gradient(points.ravel()).reshape(points.shape), axis=1)
            moved = gradients[:, -2] - gradients[:, 1]
            result[far] = 2 * np.where(np.isfinite(moved), moved, np.inf)
        return result
