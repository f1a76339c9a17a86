"""One activation in one dtype on one device, at probe points."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from relucheck.activations.bands import Band
from relucheck.activations.kink_search import FoundKink
from relucheck.activations.kinks import Activation
from relucheck.gate.cases.probing import BESIDE, ISOLATED, NEAR_ZERO, TAIL_LENGTH, THRESHOLDS
from relucheck.gate.cases.resolution import Resolution
from relucheck.gate.frameworks.exchange import Function, View
from relucheck.gate.frameworks.port import Framework
from relucheck.gate.frameworks.script import Script
from relucheck.gate.subject import Subject
from relucheck.numerics.floats import FORMATS, Floats, Mask, differs


class Probed:
    """One activation in one dtype on one device, and what it computes at probe points.

    All numbers are float64 arrays of NumPy, whatever the dtype under test: they hold its values exactly.

    Attributes:
        subject: the activation.
        dtype: name of the dtype under test.
        format: the limits and the rounding of the dtype, which probe points have.
        device: the device under test.
    """

    def __init__(self, subject: Subject, dtype: str, device: str = "cpu") -> None:
        self.subject, self.dtype, self.device = subject, dtype, device
        self.format = FORMATS[dtype]

    @property
    def framework(self) -> Framework:
        """The framework that computes the activation."""
        return self.subject.framework

    @property
    def activation(self) -> Activation:
        """The activation and its declarations."""
        return self.subject.activation

    @property
    def name(self) -> str:
        """Name of the activation."""
        return self.subject.name

    @property
    def view(self) -> View:
        """How the callable is a function of one array.

        Only laws about callables of several arrays ask for it.
        """
        assert self.subject.view is not None
        return self.subject.view

    @functools.cached_property
    def script(self) -> Script:
        """Writes the scripts that reproduce violations."""
        script = self.framework.script(self.subject, self.dtype, self.device, self.eps)
        with contextlib.suppress(Exception):  # a script about an activation that does not run needs no number of elements
            other = self._other_in_vectors()
            if other.any():
                script.times, script.position = TAIL_LENGTH, int(other.argmax())
        return script

    def _other_in_vectors(self) -> Mask:
        """Return a mask of the positions of a vector at which elements have another gradient than alone."""
        # at -95 the exponential is a subnormal number, which vector code may flush to 0
        x = self.rounded([0.0, 1.0, -1.0, 2.5, -2.5, -95.0, 95.0])
        alone = np.array([self.reverse(one)[0] for one in x[:, None]])
        return differs(self.reverse(np.resize(x, TAIL_LENGTH)), np.resize(alone, TAIL_LENGTH))

    @functools.cached_property
    def resolution(self) -> Resolution:
        """How finely the activation resolves values and gradients in this dtype."""
        return Resolution(self.format, self.value, self.reverse, lambda x: self.exact(x), lambda: self.kinks)

    @property
    def eps(self) -> float:
        """The machine epsilon of the precision in which the activation computes."""
        return self.resolution.format.eps

    @property
    def tiny(self) -> float:
        """The smallest positive normal number of the precision in which the activation computes."""
        return self.resolution.format.tiny

    @property
    def largest(self) -> float:
        """The largest finite number of the precision in which the activation computes."""
        return self.resolution.format.largest

    @functools.cached_property
    def f(self) -> Function:
        """The activation in the dtype under test, as a function from shape (n,) to shape (n,)."""
        return self.subject.function(self.dtype, self.device)

    @functools.cached_property
    def wide(self) -> Function:
        """The activation in float64, with its parameters rounded to the dtype under test."""
        return self.subject.widened(self.dtype, self.device)

    @functools.cached_property
    def exact(self) -> Callable[[Floats], Floats]:
        """The function of real numbers that the activation approximates, (n,) to (n,)."""
        return self.subject.exact_and_kinks(self.dtype)[0]

    @functools.cached_property
    def kinks(self) -> list[FoundKink]:
        """Kinks of the exact function; singular kinks among them have no Clarke interval."""
        return self.subject.exact_and_kinks(self.dtype)[1]

    @property
    def bands(self) -> list[Band]:
        """Narrow bands of the exact function, in which the gradient fits neither side."""
        return self.subject.exact_and_kinks(self.dtype)[2]

    @property
    def corners(self) -> list[FoundKink]:
        """The kinks with a Clarke interval."""
        return [kink for kink in self.kinks if not kink.singular]

    # -- values and gradients ---------------------------------------------------------------------------------------

    def rounded(self, numbers: Sequence[float] | Floats | float) -> Floats:
        """Round real numbers to values of the dtype under test."""
        return self.format.rounded(np.asarray(numbers, dtype=np.float64))

    def value(self, x: Floats) -> Floats:
        """Compute the values at a vector (n,)."""
        return self.framework.value(self.f, x)

    def reverse(self, x: Floats, cotangent: Floats | None = None, f: Function | None = None) -> Floats:
        """Compute the reverse-mode gradient at a vector: the cotangent times the derivative.

        Args:
            x: the vector, (n,).
            cotangent: the upstream gradient, (n,); ones if None.
            f: function to differentiate; the activation if None.

        Returns:
            The gradient, (n,).

        Raises:
            Disconnected: if no gradient reaches the input.
        """
        y, pullback = self.framework.pullback(f or self.f, x)
        return pullback(np.ones_like(y) if cotangent is None else cotangent)

    # -- probe points -----------------------------------------------------------------------------------------------

    @property
    def reach(self) -> float:
        """The size of the largest inputs.

        It is the dtype's largest number, or for rows one whose squares have room for sums.
        """
        return math.sqrt(self.largest) / 4 if self.subject.by_rows else self.format.largest

    @functools.cached_property
    def finite_values(self) -> Floats:
        """Finite inputs over the whole range of the dtype, up to ``reach``, (n,).

        These are all values of a 16-bit dtype, and a logarithmic grid of a wider one.
        """
        values = self._all_finite_values()
        return values[np.abs(values) <= self.reach]

    def _all_finite_values(self) -> Floats:
        if self.format.width == 16:
            return self.format.all_finite_values()
        largest = self.format.largest
        low, high = (-149, 128) if self.dtype == "float32" else (-1074, 1024)
        step = 1 if self.dtype == "float32" else 4
        powers = [math.ldexp(m, e) for e in range(low, high, step) for m in (1.0, 1.25, 1.7) if math.ldexp(m, e) <= largest]
        grid = np.array([0.0, largest, *powers])
        dense = np.linspace(-128, 128, 2049)
        values = np.concatenate([self.rounded(np.concatenate([grid, -grid, dense])), self.near_kinks, self.thresholds])
        return np.unique(values + 0.0)  # both zeros are +0 then

    @functools.cached_property
    def everywhere(self) -> tuple[Floats, Floats]:
        """Sorted inputs over the whole range of the dtype, and the values there, (n,) each.

        The probe points are among them. Zero is +0.
        """
        x = self.finite_values if self.format.width == 16 else np.concatenate([self.finite_values, self.x])
        x = np.unique(x + 0.0)
        return x, self.value(x)

    @functools.cached_property
    def thresholds(self) -> Floats:
        """Inputs where exponentials and squares leave the range of some dtype, (n,).

        They are those inputs, of both signs, and their neighbours."""
        near = self.rounded(THRESHOLDS)
        return near[np.isfinite(near) & (near != 0)]

    @functools.cached_property
    def near_kinks(self) -> Floats:
        """Each kink rounded to the dtype, and its two nearest values on each side, (n,)."""
        if not self.kinks:
            return np.array([])
        at = self.rounded([kink.at for kink in self.kinks])
        near = np.concatenate([self.format.neighbour(at, step) for step in (-2, -1, 0, 1, 2)])
        return near[np.isfinite(near)]

    @functools.cached_property
    def x(self) -> Floats:
        """The probe points, finite, (n,).

        Kinks and their neighbours come first, then special points, a grid, powers of two, points near 0 on a logarithmic
        scale, the thresholds, and points beside the kinks. Of these, those at 6 machine epsilons may be undecided, see
        ``on_kink``, and the others are far enough to be decided.
        """
        ordinary = np.linspace(-12, 12, 97) + 0.0137
        # the powers of two below are sparse in wide dtypes, and a function may saturate at 100
        beyond = 12.71 * 1.6 ** np.arange(0.0, 16.0)
        lowest, highest = self.format.lowest, self.format.highest
        exponents = range(lowest, highest + 1, max(1, (highest - lowest) // 48))
        powers = np.minimum([1.19 * math.ldexp(1.0, e) for e in exponents], self.format.largest)
        one = self.format.neighbour(np.array([1.0, 1.0, -1.0, -1.0]), 1)
        more = [1.0, -1.0, self.tiny / 4, -self.tiny / 4, *ISOLATED, *(-value for value in ISOLATED)]
        points = self.rounded(np.concatenate([more, ordinary, beyond, -beyond, powers, -powers]))
        near_zero = self.rounded(np.concatenate([NEAR_ZERO, -NEAR_ZERO]))
        distances = [6 * self.eps, 12 * self.eps, *(distance for distance in BESIDE if distance > 12 * self.eps)]
        sizes = [(kink.at, max(1.0, abs(kink.at))) for kink in self.kinks]
        beside = [at + side * size * far for at, size in sizes for far in distances for side in (-1, 1)]
        further = np.concatenate([one, points, near_zero, self.thresholds, self.rounded(beside)])
        return np.concatenate([self.near_kinks, further[np.abs(further) <= self.reach]])

    @functools.cached_property
    def y(self) -> Floats:
        """Values at the probe points, (n,)."""
        return self.value(self.x)

    @functools.cached_property
    def g(self) -> Floats:
        """Gradients at the probe points for cotangent 1, (n,)."""
        return self.reverse(self.x)

    @property
    def has_gradients(self) -> bool:
        """Whether the gradients at the probe points are there, so that a plain call returns."""
        return "g" in self.__dict__
