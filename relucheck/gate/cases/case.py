"""One activation in one dtype on one device, with probe points and the allowed gradients.

Each quantity is computed once per case and shared by all laws, so that thousands of items take seconds.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relucheck.activations.bands import Band
from relucheck.activations.kink_search import FoundKink, derivatives
from relucheck.activations.kinks import Activation
from relucheck.errors import error_text
from relucheck.gate.cases.probing import BESIDE, ISOLATED, NEAR_ZERO, THRESHOLDS, wider
from relucheck.gate.cases.resolution import Resolution
from relucheck.gate.cases.violation import Counterexample, LawViolation, Level, NotApplicable, hexadecimal
from relucheck.gate.config import GateConfig
from relucheck.gate.frameworks.exchange import Function, Unsupported
from relucheck.gate.frameworks.port import Framework
from relucheck.gate.frameworks.script import Script
from relucheck.gate.subject import Subject
from relucheck.numerics.floats import FORMATS, Floats, Mask


class Case:
    """One activation in one dtype on one device, which a law checks.

    It offers probe points, the gradients there, and the gradients that are allowed there. All numbers are float64 arrays of
    NumPy, whatever the dtype under test: they hold its values exactly.

    Attributes:
        subject: the activation.
        dtype: name of the dtype under test.
        format: the limits and the rounding of the dtype, which probe points have.
        device: the device under test.
        config: the settings of the run.
        peers: other activations that are numerically the same function, by name.
        changes: the global state that the activation's construction and a first call changed.
        law: name of the law that is being checked; violations carry it.
        calling: returns a context manager in which the peer of a name is called; it raises what the peer does, or that the
            peer took too long.
    """

    def __init__(
        self,
        subject: Subject,
        dtype: str,
        device: str = "cpu",
        config: GateConfig | None = None,
        *,
        peers: Mapping[str, Subject] | None = None,
        changes: Sequence[str] = (),
        calling: Callable[[str], AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        self.subject, self.dtype, self.device = subject, dtype, device
        self.format = FORMATS[dtype]
        self.config = config or GateConfig()
        self.peers, self.changes = dict(peers or {}), tuple(changes)
        self.law = ""
        self.calling = calling

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

    @functools.cached_property
    def script(self) -> Script:
        """Writes the scripts that reproduce violations."""
        return self.framework.script(self.subject, self.dtype, self.device, self.eps)

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

    @functools.cached_property
    def finite_values(self) -> Floats:
        """Finite inputs over the whole range of the dtype, (n,).

        These are all values of a 16-bit dtype, and a logarithmic grid of a wider one.
        """
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
        return np.concatenate([self.near_kinks, one, points, near_zero, self.thresholds, self.rounded(beside)])

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

    # -- the right gradients there --------------------------------------------------------------------------------------

    @functools.cached_property
    def nearest(self) -> tuple[NDArray[np.int64], Floats]:
        """Index of the kink nearest to each probe point, and its distance, (n,) each.

        The index is -1 without kinks.
        """
        if not self.kinks:
            return np.full(self.x.shape, -1), np.full(self.x.shape, math.inf)
        distance = np.abs(self.x[:, None] - np.array([kink.at for kink in self.kinks]))
        return distance.argmin(1), distance.min(1)

    @functools.cached_property
    def undecided(self) -> Mask:
        """Mask of the probe points near a kink that the forward may treat as the kink.

        The forward decides which inputs equal the kink. Where the dtype does not represent the kink, or where arithmetic
        precedes the comparison (``x + 3`` in 16 bits), that may be several representable values. A point within 8 machine
        epsilons of the kink counts as decided only if its value differs clearly from that of the other branch. Where the
        exact value lies below the subnormal numbers and was lost, the same may have happened inside. See also
        ``_rounded_onto``.
        """
        index, distance = self.nearest
        x, y = self.x, self.y
        result = np.zeros(x.shape, dtype=bool)
        expected = self.exact(x)
        working = self.resolution.format
        for number, kink in enumerate(self.kinks):
            near = (index == number) & (distance <= 8 * self.eps * max(1.0, abs(kink.at)))
            if not near.any():
                continue
            limit, away = self._limit(kink), x - kink.at
            other = limit + away * np.where(away > 0, kink.left, kink.right)
            deviation = np.abs(y - expected)
            rounded_once = deviation <= 4 * working.eps * np.abs(y)
            if not kink.singular and not kink.jump:
                # the exact value may be rounded as well, but not the straight line from the kink
                deviation = np.maximum(deviation, np.abs(y - limit - away * np.where(away > 0, kink.right, kink.left)))
            distinguished = (deviation < 0.25 * np.abs(y - other)) & rounded_once
            rise = np.abs(expected - limit)
            lost = (rise < 4 * working.tiny * working.eps) & (np.abs(y - expected) > 0.25 * rise)
            result |= near & (distance > 0) & (~distinguished | lost)
            # the values that round to the kink where it computes stand for the kink
            result |= near & (working.rounded(x) == working.rounded(kink.at)) & (distance > 0)
            result |= self._rounded_onto(kink, near & (distance > 0) & ~result)
        return result

    def _rounded_onto(self, kink: FoundKink, near: Mask) -> Mask:
        """Mask of the probe points near a kink that an expression inside puts on it, although their values do not show it.

        In ``x * min(1, (x + 1) / 2)`` the quotient rounds to 1 just above 1, where the value is x on either branch. The
        gradient shows it: it lies in the Clarke interval, away from the slope of its side. That float64, whose rounding is
        finer, has the slope of the side at the same input tells rounding from a backward that treats a range as the kink.
        """
        if kink.at == 0 or kink.singular or kink.jump or self.activation.surrogate or not near.any():
            return np.zeros_like(near)
        low, high = kink.hull
        slope, slack = (self.estimates[0] + self.estimates[1]) / 2, self.tolerance(kink)
        close = 0.05 * (high - low)
        result = near & (self.g >= low - slack) & (self.g <= high + slack) & (np.abs(self.g - slope) > close)
        if result.any() and self.dtype != "float64":
            result[result] = np.abs(self.reverse(self.x[result], f=self.wide) - slope[result]) <= close
        return result

    def _limit(self, kink: FoundKink) -> float:
        """Compute the exact value at a kink."""
        return float(self.exact(np.array([kink.at]))[0])

    @functools.cached_property
    def estimates(self) -> tuple[Floats, Floats, Floats]:
        """One-sided derivatives of the exact function, left and right, and their error, (n,) each."""
        return derivatives(self.exact, self.x, self.kinks)

    @functools.cached_property
    def uncertainty(self) -> Floats:
        """How little is known of the derivative at each probe point, (n,).

        It is 10 times the error of the finite differences, plus how far the derivative moves between neighbouring inputs.
        """
        return 10 * self.estimates[2] + self.resolution.of_gradient(self.x)

    @functools.cached_property
    def allowed(self) -> tuple[Floats, Floats, Floats]:
        """Lowest and highest allowed gradient, and tolerance, at each probe point.

        All three have shape (n,), for cotangent 1. At a kink the bounds are the ends of its Clarke interval. Elsewhere
        they are the two one-sided derivatives of the exact function, which agree unless the search missed a kink, or NaN
        where they are unknown. The tolerance is 8 machine epsilons of a 16-bit dtype and 64 of a wider one, more for larger
        ``|x|``, where correct implementations lose digits, plus ``uncertainty``.
        """
        left, right, _ = self.estimates
        low, high = np.minimum(left, right), np.maximum(left, right)
        index, _ = self.nearest
        for number, kink in enumerate(self.kinks):
            here = self.undecided & (index == number)
            low = np.where(here, np.minimum(low, kink.hull[0]), low)
            high = np.where(here, np.maximum(high, kink.hull[1]), high)
        size = np.maximum(np.abs(low), np.abs(high))
        units = 8 if self.eps > 1e-4 else 64
        tolerance = (units * self.eps * (1 + wider(self.x, 8.0) / 4) + 1e-7) * (1 + size)
        return low, high, tolerance + self.uncertainty

    @functools.cached_property
    def inaccuracy(self) -> Floats:
        """Distance of the gradients from their bounds, the largest of 9 adjacent points.

        The result has shape (n,), for cotangent 1. A polynomial or quotient with cancellation loses digits, and not the
        same ones for another cotangent or in another mode. Laws that compare two gradients therefore allow for this
        inaccuracy, while the law ``derivative`` limits it. It is 0 for surrogates.
        """
        if self.activation.surrogate:
            return np.zeros(self.x.shape)
        low, high, _ = self.allowed
        outside = np.maximum(np.maximum(low - self.g, self.g - high), 0.0)
        outside = np.where(np.isfinite(outside), outside, 0.0)
        # at a kink the bounds are an interval, which hides rounding errors; the neighbours show them
        order = self.x.argsort(kind="stable")
        around = np.lib.stride_tricks.sliding_window_view(np.pad(outside[order], 4), 9)
        smooth = np.empty_like(outside)
        smooth[order] = around.max(-1)
        return np.minimum(smooth, 0.25)

    @functools.cached_property
    def on_kink(self) -> Mask:
        """Mask of the probe points that equal a kink, or that the forward may treat as one."""
        return (self.nearest[1] == 0) | self.undecided

    def represents(self, kink: FoundKink) -> bool:
        """Whether the kink's position is a value of the dtype under test."""
        return bool(self.rounded(kink.at) == kink.at)

    def tolerance(self, kink: FoundKink) -> float:
        """Return how far a subgradient may lie outside its interval.

        The tolerance is a few machine epsilons plus the error of the interval's ends.
        """
        low, high = kink.hull
        curved = 8 if abs(kink.at) > 0 else 4
        return curved * self.eps * max(abs(low), abs(high), 0.125) + 10 * kink.error + 2e-9

    # -- violations -----------------------------------------------------------------------------------------------------

    def kink_near(self, x: float) -> FoundKink | None:
        """Return the kink nearest to a number.

        None without kinks, and for a number that is not finite.
        """
        return min(self.kinks, key=lambda kink: abs(kink.at - x), default=None) if math.isfinite(x) else None

    def fail(
        self,
        what: str,
        *,
        x: float | None = None,
        cotangent: float | str = "",
        got: Any = "",
        allowed: str = "",
        script: str = "",
        level: Level = "error",
    ) -> LawViolation:
        """Build a violation of the law that is being checked, for the caller to raise.

        Args:
            what: one sentence that says what is wrong.
            x: the input element.
            cotangent: the upstream gradient at the element, or text that describes it.
            got: the computed value.
            allowed: what the law allows.
            script: a Python script that ends in an AssertionError while the violation exists.
            level: ``"error"`` or ``"notice"``.
        """
        kink = self.kink_near(x) if x is not None else None
        counterexample = Counterexample(
            x="" if x is None else repr(x),
            x_hex="" if x is None else hexadecimal(x),
            kink=kink.at if kink else None,
            ulp=self.format.distance(x, kink.at) if kink and x is not None else None,
            left=kink.left if kink else None,
            right=kink.right if kink else None,
            cotangent=str(cotangent),
            got=str(got),
            allowed=allowed,
            script=script,
        )
        return LawViolation(
            self.name, self.law, self.dtype, what, device=self.device, level=level, counterexample=counterexample
        )

    def unsupported(self, error: BaseException, what: str = "") -> LawViolation:
        """Build a notice that something is not supported, for the caller to raise.

        Args:
            error: the error that says so.
            what: what is not supported; the mode of an ``Unsupported`` if empty.
        """
        if isinstance(error, Unsupported):
            what, error = what or error.mode, error.raised
        return self.fail(f"{what} is not supported: {error_text(error)}", level="notice")

    def skip_surrogate(self) -> None:
        """Skip a law about derivatives if the activation's gradient is declared a surrogate.

        Raises:
            NotApplicable: for such an activation.
        """
        if self.activation.surrogate:
            raise NotApplicable("declared with surrogate=True, so its gradient deliberately differs from the derivative")
