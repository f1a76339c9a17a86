"""One activation in one dtype on one device: probe points, allowed gradients, violations.

Each quantity is computed once per case and shared by all laws, so that thousands of items take seconds.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from relucheck.activations.kink_search import FoundKink, derivatives
from relucheck.errors import error_text
from relucheck.gate.cases.natural import unnatural
from relucheck.gate.cases.probed import Probed
from relucheck.gate.cases.probing import wider
from relucheck.gate.cases.violation import Counterexample, LawViolation, Level, NotApplicable, hexadecimal
from relucheck.gate.config import GateConfig
from relucheck.gate.frameworks.exchange import Unsupported
from relucheck.gate.subject import Subject
from relucheck.numerics.floats import FORMATS, Floats, Mask, differs

#: Number of inputs of two calls that must agree, so that a rare random event shows.
_MANY: Final = 8192
#: Up to this input a failure of an argument that seems to be positive is a notice.
_POSITIVE: Final = 1e-3


class Case(Probed):
    """One activation in one dtype on one device, which a law checks.

    It offers probe points, the gradients there, and the gradients that are allowed there. All numbers are float64 arrays of
    NumPy, whatever the dtype under test: they hold its values exactly.

    Attributes:
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
        super().__init__(subject, dtype, device)
        self.config = config or GateConfig()
        self.peers, self.changes = dict(peers or {}), tuple(changes)
        self.law = ""
        self.calling = calling

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
            # and so do those at which both branches round to one value, as 1.01 * x and x do for subnormal numbers
            result |= near & (working.rounded(other) == y) & (distance > 0)
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
        ``|x|``, where correct implementations lose digits, plus ``uncertainty``. A gradient beyond that may still be the
        derivative at an input with the same rounded value (``Resolution.of_rounded_value``).
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
        tolerance = (units * self.eps * (1 + wider(self.x, 8.0) / 4) + 1e-7) * (1 + size) + self.uncertainty
        # this costs many calls, and few gradients need it
        outside = (self.g < low - tolerance) | (self.g > high + tolerance)
        if outside.any():
            tolerance[outside] += self.resolution.of_rounded_value(self.x[outside])
        return low, high, tolerance

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

    def both_sides(self, x: Floats, a: Floats, b: Floats, cotangent: Floats | float = 1.0) -> Mask:
        """Mask of the inputs beside a kink at which two different gradients are both right.

        Kernels for vectors and for single elements may round ``gelu(x) + 0.1`` differently, so that an input beside the
        kink of ``relu(gelu(x) + 0.1)`` falls on either side of it. That is so only at a kink between the numbers of the
        dtype, or in float64 between those of float32. At any other kink the same input has one gradient.

        Args:
            x: the inputs, any shape.
            a: gradients there, of the shape of ``x``.
            b: other gradients there, of the shape of ``x``.
            cotangent: the upstream gradients, of the shape of ``x``, or one for all.
        """
        mask = np.zeros(x.shape, dtype=bool)
        kinds = FORMATS["float32"] if self.dtype == "float64" else self.format
        for kink in self.corners:
            if kinds.rounded(np.array(kink.at)) == kink.at:
                continue
            low, high = kink.hull
            slack = self.tolerance(kink) * np.abs(cotangent)
            least, most = np.minimum(low * cotangent, high * cotangent), np.maximum(low * cotangent, high * cotangent)
            beside = np.abs(x - kink.at) <= 8 * self.eps * max(1.0, abs(kink.at))
            mask |= beside & (np.minimum(a, b) >= least - slack) & (np.maximum(a, b) <= most + slack)
        return mask

    def represents(self, kink: FoundKink) -> bool:
        """Whether the kink's position is a value of the dtype under test."""
        return bool(self.rounded(kink.at) == kink.at)

    def tolerance(self, kink: FoundKink) -> float:
        """Return how far a subgradient may lie outside its interval.

        The tolerance is a few machine epsilons plus the error of the interval's ends, which have few decimals.
        """
        low, high = kink.hull
        curved = 8 if abs(kink.at) > 0 else 4
        size = max(abs(low), abs(high))
        return curved * self.eps * max(size, 0.125) + 10 * kink.error + 2e-9 * max(1.0, size)

    @functools.cached_property
    def unstable(self) -> tuple[str, float, str] | None:
        """What differs between two calls on many inputs; None if nothing does.

        It is ``"value"`` or ``"gradient"``, an input, and both numbers as text.
        """
        x = np.resize(self.x, max(self.x.size, _MANY))
        calls = [(self.value(x), self.reverse(x)) for _ in range(2)]
        for what, a, b in zip(("value", "gradient"), *calls, strict=True):
            different = differs(a, b, signed_zero=True)
            if different.any():
                index = self.example(different, x)
                return what, float(x[index]), f"{float(b[index])!r} after {float(a[index])!r}"
        return None

    # -- violations -----------------------------------------------------------------------------------------------------

    def kink_near(self, x: float) -> FoundKink | None:
        """Return the kink nearest to a number.

        None without kinks, and for a number that is not finite.
        """
        return min(self.kinks, key=lambda kink: abs(kink.at - x), default=None) if math.isfinite(x) else None

    def example(self, mask: Mask, x: Floats) -> int:
        """Return the index of the input that is easiest to understand: a kink, else a round number.

        Args:
            mask: the inputs to choose from, one at least.
            x: all inputs, (n,).
        """
        kinks = self.rounded([kink.at for kink in self.kinks])
        return int(np.where(mask, unnatural(x, np.isin(x, kinks)), 4).argmin())

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
        cause: str = "",
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
            cause: what this violation usually means, if it says more than the law does.
        """
        small = max(_POSITIVE, (2 / self.largest) ** (1 / 3))  # quotients by smaller cubes, as in derivatives, overflow
        if level == "error" and x is not None and x <= small and self.subject.positive:
            level, what = "notice", f"{what}; {self.name} seems to take positive numbers only"
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
            self.name,
            self.law,
            self.dtype,
            what,
            device=self.device,
            level=level,
            counterexample=counterexample,
            cause=cause,
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
