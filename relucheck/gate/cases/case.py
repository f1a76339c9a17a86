"""One activation in one dtype on one device, with probe points and the allowed gradients.

Each quantity is computed once per case and shared by all laws, so that thousands of items take seconds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from relucheck.activations.kink_search import FoundKink, derivatives
from relucheck.activations.kinks import Activation
from relucheck.errors import error_text
from relucheck.gate.cases.script import Script
from relucheck.gate.cases.violation import Counterexample, LawViolation, Level, NotApplicable, hexadecimal, ulps_between
from relucheck.gate.config import GateConfig
from relucheck.gate.subject import Subject
from relucheck.numerics.bits import all_values, neighbour

#: Length of a tensor that a vectorised kernel splits into a vector body and a scalar tail, for widths up to 64 elements.
TAIL_LENGTH: Final = 83
#: Points that activations often treat specially: knots of splines, and numbers with which implementations compare.
ISOLATED: Final = (0.0, -0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0)


class Case:
    """One activation in one dtype on one device, which a law checks.

    It offers probe points, the gradients there, and the gradients that are allowed there.

    Attributes:
        subject: the activation.
        dtype: the dtype under test.
        device: the device under test.
        config: the settings of the run.
        peers: other activations that are numerically the same function, by name.
        changes: the global state that the activation's construction and a first call changed.
        script: builds the scripts that reproduce violations.
        law: name of the law that is being checked; violations carry it.
    """

    def __init__(
        self,
        subject: Subject,
        dtype: torch.dtype,
        device: str = "cpu",
        config: GateConfig | None = None,
        *,
        peers: Mapping[str, Subject] | None = None,
        changes: Sequence[str] = (),
    ) -> None:
        self.subject, self.dtype, self.device = subject, dtype, device
        self.config = config or GateConfig()
        self.peers, self.changes = dict(peers or {}), tuple(changes)
        self.script = Script(subject, dtype, device)
        self.law = ""

    @property
    def activation(self) -> Activation:
        """The activation and its declarations."""
        return self.subject.activation

    @property
    def name(self) -> str:
        """Name of the activation."""
        return self.subject.name

    @property
    def eps(self) -> float:
        """The machine epsilon of the dtype."""
        return float(torch.finfo(self.dtype).eps)

    @property
    def tiny(self) -> float:
        """The smallest positive normal number of the dtype."""
        return float(torch.finfo(self.dtype).tiny)

    @functools.cached_property
    def f(self) -> Callable[[Tensor], Tensor]:
        """The activation in the dtype under test, as a function from shape (n,) to shape (n,)."""
        return self.subject.function(self.dtype, self.device)

    @functools.cached_property
    def exact(self) -> Callable[[Tensor], Tensor]:
        """The function of real numbers that the activation approximates.

        It maps float64 vectors (n,) to float64 vectors (n,).
        """
        return self.subject.exact_and_kinks(self.dtype)[0]

    @functools.cached_property
    def kinks(self) -> list[FoundKink]:
        """Kinks of the exact function; singular kinks among them have no Clarke interval."""
        return self.subject.exact_and_kinks(self.dtype)[1]

    @property
    def corners(self) -> list[FoundKink]:
        """The kinks with a Clarke interval."""
        return [kink for kink in self.kinks if not kink.singular]

    # -- tensors and gradients --------------------------------------------------------------------------------------

    def tensor(self, values: Sequence[float]) -> Tensor:
        """Build a vector in the dtype and on the device under test."""
        return torch.tensor(values, dtype=torch.float64).to(dtype=self.dtype, device=self.device)

    def rounded(self, value: float) -> float:
        """Round a real number to the dtype under test."""
        return float(torch.tensor(value, dtype=torch.float64).to(self.dtype))

    def value(self, x: Tensor) -> Tensor:
        """Compute the values at a vector (n,), without an autograd graph."""
        with torch.no_grad():
            return self.f(x.detach().clone())

    def reverse(self, x: Tensor, cotangent: Tensor | None = None, f: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Compute the reverse-mode gradient at a vector: the cotangent times the derivative.

        Args:
            x: the vector, (n,).
            cotangent: the upstream gradient, (n,); ones if None.
            f: function to differentiate; the activation if None.

        Returns:
            The gradient, of the shape and dtype of ``x``.

        Raises:
            Disconnected: if no gradient reaches the input.
        """
        # not `f or self.f`, because the truth value of a compiled module calls its __len__
        y, pullback = self.subject.pullback(self.f if f is None else f, x)
        return pullback(torch.ones_like(y) if cotangent is None else cotangent)

    # -- probe points -----------------------------------------------------------------------------------------------

    @functools.cached_property
    def finite_values(self) -> Tensor:
        """Finite inputs over the whole range of the dtype, (n,).

        These are all values of a 16-bit dtype, and a logarithmic grid of a wider one.
        """
        if self.dtype in (torch.float16, torch.bfloat16):
            every = all_values(self.dtype)
            return every[every.isfinite()].to(self.device)
        info = torch.finfo(self.dtype)
        low, high = (-149, 128) if self.dtype == torch.float32 else (-1074, 1024)
        step = 1 if self.dtype == torch.float32 else 4
        powers = [
            math.ldexp(m, e) for e in range(low, high, step) for m in (1.0, 1.25, 1.7) if math.ldexp(m, e) <= info.max
        ]
        grid = torch.cat([torch.tensor([0.0, info.max], dtype=torch.float64), torch.tensor(powers, dtype=torch.float64)])
        dense = torch.linspace(-128, 128, 2049, dtype=torch.float64)
        values = torch.cat([grid, -grid, dense]).to(self.dtype)
        return torch.cat([values, self.near_kinks.cpu()]).unique().to(self.device)

    @functools.cached_property
    def near_kinks(self) -> Tensor:
        """Each kink rounded to the dtype, and its two nearest values on each side, (n,)."""
        if not self.kinks:
            return self.tensor([])
        at = self.tensor([kink.at for kink in self.kinks])
        steps = [neighbour(at.cpu(), step) for step in (-2, -1, 0, 1, 2)]
        near = torch.cat(steps)
        return near[near.isfinite()].to(self.device)

    @functools.cached_property
    def x(self) -> Tensor:
        """The probe points, finite, (n,).

        Kinks and their neighbours come first, then special points, a grid and powers of two.
        """
        isolated = torch.tensor([*ISOLATED, *(-value for value in ISOLATED)], dtype=torch.float64)
        ordinary = torch.linspace(-12, 12, 97, dtype=torch.float64) + 0.0137
        # the powers of two below are sparse in wide dtypes, and a function may saturate at 100
        beyond = 12.71 * 1.6 ** torch.arange(0, 16, dtype=torch.float64)
        ordinary = torch.cat([ordinary, beyond, -beyond])
        info = torch.finfo(self.dtype)
        lowest, highest = math.frexp(info.tiny)[1] - 1, math.frexp(info.max)[1] - 1
        exponents = range(lowest, highest + 1, max(1, (highest - lowest) // 48))
        powers = torch.tensor([1.19 * math.ldexp(1.0, e) for e in exponents], dtype=torch.float64).clamp(max=info.max)
        one = neighbour(torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=self.dtype), 1), self.tensor([1.0, -1.0]).cpu()
        points = torch.cat([isolated, ordinary, powers, -powers]).to(self.dtype)
        subnormal = torch.tensor([info.smallest_normal / 4, -info.smallest_normal / 4], dtype=torch.float64).to(self.dtype)
        return torch.cat([self.near_kinks.cpu(), *one, subnormal, points]).to(self.device)

    @functools.cached_property
    def y(self) -> Tensor:
        """Values at the probe points, (n,)."""
        return self.value(self.x)

    @functools.cached_property
    def g(self) -> Tensor:
        """Gradients at the probe points for cotangent 1, (n,)."""
        return self.reverse(self.x)

    # -- the right gradients there --------------------------------------------------------------------------------------

    @functools.cached_property
    def nearest(self) -> tuple[Tensor, Tensor]:
        """Index of the kink nearest to each probe point, and its distance, (n,) each.

        The index is -1 without kinks, the distance is float64.
        """
        x = self.x.to(torch.float64).cpu()
        if not self.kinks:
            return torch.full(x.shape, -1), torch.full_like(x, math.inf)
        distance = (x[:, None] - torch.tensor([kink.at for kink in self.kinks], dtype=torch.float64)).abs()
        smallest, index = distance.min(1)
        return index, smallest

    @functools.cached_property
    def undecided(self) -> Tensor:
        """Mask of the probe points near a kink that the forward may treat as the kink.

        The forward decides which inputs equal the kink. Where the dtype does not represent the kink, or where arithmetic
        precedes the comparison (``x + 3`` in 16 bits), that may be several representable values. A point within 8 machine
        epsilons of the kink counts as decided only if its value differs clearly from that of the other branch.
        """
        index, distance = self.nearest
        x = self.x.to(torch.float64).cpu()
        y = self.y.to(torch.float64).cpu()
        result = torch.zeros_like(x, dtype=torch.bool)
        expected = self.exact(x)
        for number, kink in enumerate(self.kinks):
            near = (index == number) & (distance <= 8 * self.eps * max(1.0, abs(kink.at)))
            if not bool(near.any()):
                continue
            base = expected.new_tensor(self._limit(kink))
            other = base + (x - kink.at) * torch.where(x > kink.at, kink.left, kink.right)
            distinguished = (y - expected).abs() < 0.25 * (y - other).abs()
            result |= near & (distance > 0) & ~distinguished
            # the value nearest to a kink that the dtype cannot represent stands for the kink in this dtype
            result |= near & (x == self.rounded(kink.at)) & (distance > 0)
        return result

    def _limit(self, kink: FoundKink) -> float:
        """Compute the exact value at a kink, in float64."""
        return float(self.exact(torch.tensor([kink.at], dtype=torch.float64)))

    @functools.cached_property
    def allowed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Lowest and highest allowed gradient, and tolerance, at each probe point.

        All three are float64, (n,), for cotangent 1. At a kink the bounds are the ends of its Clarke interval. Elsewhere
        they are the two one-sided derivatives of the exact function, which agree unless the search missed a kink, or NaN
        where they are unknown. The tolerance is 8 machine epsilons of a 16-bit dtype and 64 of a wider one, more for larger
        ``|x|``, where correct implementations lose digits, plus 10 times the error of the finite differences.
        """
        x = self.x.to(torch.float64).cpu()
        left, right, error = derivatives(self.exact, x, self.kinks)
        low, high = torch.minimum(left, right), torch.maximum(left, right)
        index, _ = self.nearest
        for number, kink in enumerate(self.kinks):
            here = self.undecided & (index == number)
            low = torch.where(here, torch.minimum(low, low.new_tensor(kink.hull[0])), low)
            high = torch.where(here, torch.maximum(high, high.new_tensor(kink.hull[1])), high)
        size = torch.maximum(low.abs(), high.abs())
        units = 8 if self.eps > 1e-4 else 64
        tolerance = (units * self.eps * (1 + x.abs().clamp(max=8.0) / 4) + 1e-7) * (1 + size) + 10 * error
        return low, high, tolerance

    @functools.cached_property
    def inaccuracy(self) -> Tensor:
        """Distance of the gradients from their bounds, the largest of 9 adjacent points.

        The result is float64, (n,), for cotangent 1. A polynomial or quotient with cancellation loses digits, and not the
        same ones for another cotangent or in another mode. Laws that compare two gradients therefore allow for this
        inaccuracy, while the law ``derivative`` limits it. It is 0 for surrogates.
        """
        low, high, _ = self.allowed
        g = self.g.to(torch.float64).cpu()
        outside = torch.maximum(low - g, g - high).clamp(min=0.0)
        outside = torch.nan_to_num(outside, nan=0.0, posinf=0.0)
        if self.activation.surrogate:
            return torch.zeros_like(outside)
        # at a kink the bounds are an interval, which hides rounding errors; the neighbours show them
        order = self.x.to(torch.float64).cpu().argsort()
        smooth = torch.nn.functional.max_pool1d(outside[order][None, None], 9, stride=1, padding=4)[0, 0]
        return torch.empty_like(outside).scatter(0, order, smooth).clamp(max=0.25)

    @functools.cached_property
    def on_kink(self) -> Tensor:
        """Mask of the probe points that equal a kink, or that the forward may treat as one."""
        return (self.nearest[1] == 0) | self.undecided

    def represents(self, kink: FoundKink) -> bool:
        """Whether the kink's position is a value of the dtype under test."""
        return self.rounded(kink.at) == kink.at

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
            ulp=ulps_between(x, kink.at, self.dtype) if kink and x is not None else None,
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

    def unsupported(self, mode: str, error: BaseException) -> LawViolation:
        """Build a notice that the activation does not support a mode, with the error that it raised."""
        return self.fail(f"{mode} is not supported: {error_text(error)}", level="notice")

    def skip_surrogate(self) -> None:
        """Skip a law about derivatives if the activation's gradient is declared a surrogate.

        Raises:
            NotApplicable: for such an activation.
        """
        if self.activation.surrogate:
            raise NotApplicable("declared with surrogate=True, so its gradient deliberately differs from the derivative")
