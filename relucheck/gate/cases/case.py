"""One activation in one dtype on one device: the points at which laws look, and what is true there.

Everything here is computed once per case and shared by all laws, which is what makes thousands of items take seconds.
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

#: Length of tensors that have a vector body and a scalar tail on every vector width up to 64 elements.
TAIL_LENGTH: Final = 83
#: Points at which activations tend to be special: knots, and where implementations divide or compare.
ISOLATED: Final = (0.0, -0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0)


class Case:
    """An activation under one dtype and device, with probe points, gradients and the truth about them.

    Attributes:
        subject: the activation.
        dtype: the dtype under test.
        device: the device under test.
        config: what the run was configured to do.
        peers: other activations of the run that are numerically the same function, by name.
        changes: the global state that making the activation and a first call changed.
        script: the lines of scripts that reproduce a violation.
        law: name of the law that runs; failures carry it.
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
        return self.subject.activation

    @property
    def name(self) -> str:
        return self.subject.name

    @property
    def eps(self) -> float:
        return float(torch.finfo(self.dtype).eps)

    @property
    def tiny(self) -> float:
        """Smallest normal number."""
        return float(torch.finfo(self.dtype).tiny)

    @functools.cached_property
    def f(self) -> Callable[[Tensor], Tensor]:
        """The activation as a function (n,) to (n,) in the dtype under test."""
        return self.subject.function(self.dtype, self.device)

    @functools.cached_property
    def exact(self) -> Callable[[Tensor], Tensor]:
        return self.subject.truth(self.dtype)[0]

    @functools.cached_property
    def kinks(self) -> list[FoundKink]:
        """Kinks of the exact function; the singular ones among them have no Clarke interval."""
        return self.subject.truth(self.dtype)[1]

    @property
    def corners(self) -> list[FoundKink]:
        """Kinks with a Clarke interval."""
        return [kink for kink in self.kinks if not kink.singular]

    # -- tensors and gradients --------------------------------------------------------------------------------------

    def tensor(self, values: Sequence[float]) -> Tensor:
        """A vector in the dtype and on the device under test."""
        return torch.tensor(values, dtype=torch.float64).to(dtype=self.dtype, device=self.device)

    def rounded(self, value: float) -> float:
        """A real number rounded to the dtype under test."""
        return float(torch.tensor(value, dtype=torch.float64).to(self.dtype))

    def value(self, x: Tensor) -> Tensor:
        """Forward without a graph."""
        with torch.no_grad():
            return self.f(x.detach().clone())

    def reverse(self, x: Tensor, cotangent: Tensor | None = None, f: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Reverse-mode gradient: cotangent times derivative, shape and dtype of ``x``; the cotangent defaults to ones.

        Raises:
            ~relucheck.gate.subject.Disconnected: where no gradient reaches the input.
        """
        # (not `f or self.f`: asking a compiled module whether it is true asks it for its length)
        y, pullback = self.subject.pullback(self.f if f is None else f, x)
        return pullback(torch.ones_like(y) if cotangent is None else cotangent)

    # -- probe points -----------------------------------------------------------------------------------------------

    @functools.cached_property
    def finite_values(self) -> Tensor:
        """Every finite value of a 16-bit dtype; a logarithmic grid over the whole range of a wider one."""
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
        return torch.cat([values, self.near_kinks]).unique().to(self.device)

    @functools.cached_property
    def near_kinks(self) -> Tensor:
        """Every kink rounded to the dtype, and its neighbours up to two steps away on both sides."""
        if not self.kinks:
            return self.tensor([])
        at = self.tensor([kink.at for kink in self.kinks])
        steps = [neighbour(at.cpu(), step) for step in (-2, -1, 0, 1, 2)]
        near = torch.cat(steps)
        return near[near.isfinite()].to(self.device)

    @functools.cached_property
    def x(self) -> Tensor:
        """The probe points: kinks, their neighbours, isolated points, an ordinary grid and powers of two; finite, (n,)."""
        isolated = torch.tensor([*ISOLATED, *(-value for value in ISOLATED)], dtype=torch.float64)
        ordinary = torch.linspace(-12, 12, 97, dtype=torch.float64) + 0.0137
        # powers of two of the dtype's range are far apart: what saturates at 100 needs points of its own
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
        return self.value(self.x)

    @functools.cached_property
    def g(self) -> Tensor:
        """Gradients at the probe points for cotangent 1."""
        return self.reverse(self.x)

    # -- what is true there -----------------------------------------------------------------------------------------

    @functools.cached_property
    def nearest(self) -> tuple[Tensor, Tensor]:
        """Index of the nearest kink for every probe point (-1 without kinks), and the real distance to it (float64)."""
        x = self.x.to(torch.float64).cpu()
        if not self.kinks:
            return torch.full(x.shape, -1), torch.full_like(x, math.inf)
        distance = (x[:, None] - torch.tensor([kink.at for kink in self.kinks], dtype=torch.float64)).abs()
        smallest, index = distance.min(1)
        return index, smallest

    @functools.cached_property
    def undecided(self) -> Tensor:
        """Mask of the probe points beside a kink that the forward may take for the kink itself.

        "Equal to the kink" is decided as the forward decides it: a bound that the dtype cannot represent, and arithmetic
        before the comparison (``x + 3`` in 16 bits), widen the kink to a few representable values. A point within eight of
        them counts as decided only where its value is told apart from what the other side would give.
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
            told_apart = (y - expected).abs() < 0.25 * (y - other).abs()
            result |= near & (distance > 0) & ~told_apart
            # the value nearest to a kink that the dtype cannot represent is the kink as far as the dtype goes
            result |= near & (x == self.rounded(kink.at)) & (distance > 0)
        return result

    def _limit(self, kink: FoundKink) -> float:
        """The value at a kink (float64)."""
        return float(self.exact(torch.tensor([kink.at], dtype=torch.float64)))

    @functools.cached_property
    def allowed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Lowest and highest derivative at every probe point and the tolerance, float64 (n,) each; NaN where unknown.

        At a kink the two bounds are its Clarke interval; elsewhere they are the two one-sided derivatives of the exact
        function, which agree but for an unknown kink. The tolerance is 8 units of a 16-bit dtype and 64 of a wider one,
        more for larger |x|, where sound implementations lose digits, and 10 times the error of the finite differences.
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
        """How far gradients for cotangent 1 lie outside their bounds, at each probe point or the worst of eight beside it.

        Polynomials and quotients that cancel lose digits, and lose others for other cotangents or in other modes: laws that
        compare two gradients allow for it, and the law ``derivative`` says how much is too much. 0 for surrogates.
        """
        low, high, _ = self.allowed
        g = self.g.to(torch.float64).cpu()
        outside = torch.maximum(low - g, g - high).clamp(min=0.0)
        outside = torch.nan_to_num(outside, nan=0.0, posinf=0.0)
        if self.activation.surrogate:
            return torch.zeros_like(outside)
        # at a kink the bounds are an interval and say nothing about rounding: only its neighbours do
        order = self.x.to(torch.float64).cpu().argsort()
        smooth = torch.nn.functional.max_pool1d(outside[order][None, None], 9, stride=1, padding=4)[0, 0]
        return torch.empty_like(outside).scatter(0, order, smooth).clamp(max=0.25)

    @functools.cached_property
    def on_kink(self) -> Tensor:
        """Mask of the probe points that are a kink, exactly or as the forward may decide it."""
        return (self.nearest[1] == 0) | self.undecided

    def represents(self, kink: FoundKink) -> bool:
        """Whether the kink's position is a value of the dtype under test."""
        return self.rounded(kink.at) == kink.at

    def tolerance(self, kink: FoundKink) -> float:
        """How far a subgradient may lie outside an interval: a few units of the dtype and the error of its ends."""
        low, high = kink.hull
        curved = 8 if abs(kink.at) > 0 else 4
        return curved * self.eps * max(abs(low), abs(high), 0.125) + 10 * kink.error + 2e-9

    # -- failing ----------------------------------------------------------------------------------------------------

    def kink_near(self, x: float) -> FoundKink | None:
        """The kink nearest to a number."""
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
        """The violation of the law that runs, ready to be raised."""
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
        """A notice: a mode that the activation does not support, with what it said."""
        return self.fail(f"{mode} is not supported: {error_text(error)}", level="notice")

    def skip_surrogate(self) -> None:
        """Skips a law about derivatives for an activation whose gradient is declared a surrogate."""
        if self.activation.surrogate:
            raise NotApplicable("declared surrogate=True: its gradient is not its derivative on purpose")
