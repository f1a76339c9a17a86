"""What an explanation of a mini-batch holds, and how it reads: as text, as a table, as JSON."""

from __future__ import annotations

import collections
import dataclasses
import json
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any, Final, Literal

from relucheck.bifurcation.compare import Comparison, Difference
from relucheck.bifurcation.exact_forward import Reals, Zone
from relucheck.results.tables import Table, render

SCHEMA: Final = 2  # of the JSON
_SHOWN: Final = 12

Reason = Literal[
    "zero input",  # all features of the sample are 0, and the bias is the kink
    "dead previous layer",  # all activations of the layer before are 0, and the bias is the kink
    "dead unit",  # all weights of the unit are 0, and the bias is the kink
    "no live product",  # every weight that is not 0 meets an activation that is, and the bias is the kink
    "exact cancellation",  # exactly the kink over the reals, from the inputs on
    "rounding cancellation",  # not the kink over the reals
    "underflow",  # not 0, over the reals or given the layer before, but nearer to 0 than to the least number above it
    "exact saturation",  # at the upper kink, over the reals too
    "rounded saturation",  # at the upper kink by rounding
    "unknown",  # the reals do not serve this kind of network
]
_MEANINGS: Final[dict[Reason, str]] = {
    "zero input": "every feature of the sample is 0 and the bias is the kink",
    "dead previous layer": "every activation of the layer before is 0 and the bias is the kink",
    "dead unit": "every weight of the unit is 0 and the bias is the kink",
    "no live product": "every product of weight and activation is 0 and the bias is the kink",
    "exact cancellation": "exactly the kink over the reals",
    "rounding cancellation": "not the kink over the reals, but rounded to it",
    "underflow": "not 0, but too small for the dtype",
    "exact saturation": "exactly the upper kink over the reals",
    "rounded saturation": "rounded to the upper kink",
    "unknown": "no reason is known for this kind of network",
}


@dataclasses.dataclass(frozen=True)
class Hit:
    """One pre-activation that equals a kink.

    Attributes:
        site: of the activation call; call: its number in the forward, from 0.
        position: in the input of the activation: (sample, unit, ...).
        kink: which.
        reason: why, as in :data:`Reason`.
        real: the pre-activation over the reals, from the inputs on, exactly (None: not evaluated).
        local: the same given the stored activations of the layer before: where it is the kink and ``real`` is not, an
            earlier layer rounded (None: not evaluated).
        cotangent: the upstream gradient at the activation's output, with every hit at the first subgradient.
        changed: how the gradients change when this hit alone takes the second subgradient; None: not measured.
    """

    site: str
    call: int
    position: tuple[int, ...]
    kink: float
    reason: Reason
    real: Fraction | None
    local: Fraction | None
    cotangent: float | None
    changed: tuple[Difference, ...] | None

    @property
    def sample(self) -> int:
        """Index in the mini-batch (the first dimension)."""
        return self.position[0] if self.position else 0

    @property
    def unit(self) -> tuple[int, ...]:
        """Index within the layer (the other dimensions)."""
        return self.position[1:]

    @property
    def exact(self) -> bool | None:
        """Whether it is a hit over the reals as well."""
        return None if self.real is None else self.real == Fraction(self.kink)


@dataclasses.dataclass(frozen=True)
class Missed:
    """A pre-activation exactly at a kink over the reals that rounding moved off it."""

    site: str
    call: int
    position: tuple[int, ...]
    kink: float


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What a mini-batch does at kinks, and why.

    Attributes:
        comparison: the two backprops in the model's own arithmetic.
        hits: all of them, in the order of the forward; missed: exact hits that floating point lacks.
        reals: the mini-batch over the reals, None where ``unserved`` says why not.
        limit: most hits whose effect is measured; ``unmeasured``: how many with a non-zero cotangent went past it.
        jointly: parameters whose gradients differ though no measured hit changes them alone.
    """

    comparison: Comparison
    hits: tuple[Hit, ...]
    missed: tuple[Missed, ...]
    reals: Reals | None
    unserved: str | None
    limit: int
    unmeasured: int
    jointly: tuple[str, ...]

    @property
    def zone(self) -> Zone | None:
        """Bifurcation, compensation (Boustany 2024) or undecided; None: the gradients agree, or no reals are served."""
        if self.comparison.outcome != "bifurcate" or self.reals is None:
            return None
        return self.reals.zone

    @property
    def reasons(self) -> dict[tuple[str, Reason], int]:
        """How many hits have which reason, by site."""
        return dict(collections.Counter((hit.site, hit.reason) for hit in self.hits))

    def table(self, most: int = _SHOWN) -> Table:
        """The first hits, one a row."""
        header = (
            *("layer", "sample", "unit", "kink", "reason", "over the reals", "given the layer before"),
            "gradients changed",
        )
        shown = self.hits[:most]
        rows = []
        for hit in shown:
            unit = ", ".join(map(str, hit.unit))
            cells = (hit.site, str(hit.sample), unit, f"{hit.kink:g}", hit.reason, _number(hit.real), _number(hit.local))
            rows.append((*cells, _effect(hit)))
        return Table(header, rows, f"hits ({len(shown)} of {len(self.hits)})")

    def __str__(self) -> str:
        comparison = self.comparison
        s, t = comparison.settings
        lines = [
            f"backprop_{s} and backprop_{t} in {comparison.arithmetic}: {comparison.outcome}",
            f"  hits: {comparison.hit_count} of {comparison.activation_count} activations",
        ]
        for (site, reason), count in self.reasons.items():
            lines.append(f"    {site}: {count} x {reason} ({_MEANINGS[reason]})")
        if self.zone is not None:
            lines.append(f"  zone: {self.zone}: " + self._verdict())
        elif self.reals is not None:
            lines.append("  over the reals: " + self._verdict())
        else:
            lines.append(f"  over the reals: not evaluated ({self.unserved})")
        if self.missed:
            first = self.missed[0]
            lines.append(f"  {len(self.missed)} exact hits missed by rounding, the first at {first.site} {first.position}")
        if self.unmeasured:
            lines.append(f"  effects of {self.unmeasured} further hits not measured (limit={self.limit})")
        if self.jointly:
            lines.append("  changed by no single measured hit, but by all together: " + ", ".join(self.jointly))
        text = "\n".join(lines)
        return text + ("\n" + render(self.table().rich(), width=150, color=False).rstrip() if self.hits else "")

    def _verdict(self) -> str:
        assert self.reals is not None
        count = self.reals.hit_count
        meanings = {
            "differs": f"the gradients differ over the reals too ({count} exact hits)",
            "equal": f"the gradients are equal over the reals ({count} exact hits)",
            "undecided": f"{count} exact hits, but no difference of gradients beyond the proven error bound",
        }
        return meanings[self.reals.verdict]

    def data(self) -> dict[str, Any]:
        """Everything as plain data for JSON; exact numbers as fractions ("3/8")."""
        return {
            "schema": SCHEMA,
            "arithmetic": self.comparison.arithmetic.name,
            "subgradients": [list(s) if isinstance(s, tuple) else s for s in self.comparison.settings],
            "outcome": self.comparison.outcome,
            "zone": self.zone,
            "activations": self.comparison.activation_count,
            "differences": [dataclasses.asdict(difference) for difference in self.comparison.differences],
            "hits": [
                {
                    **dataclasses.asdict(hit),
                    "real": None if hit.real is None else str(hit.real),
                    "local": None if hit.local is None else str(hit.local),
                    "cotangent": None if hit.cotangent is None else repr(hit.cotangent),  # JSON knows no NaN
                    "exact": hit.exact,
                }
                for hit in self.hits
            ],
            "missed": [dataclasses.asdict(missed) for missed in self.missed],
            "reals": self.reals
            and {"verdict": self.reals.verdict, "hits": self.reals.hit_count, "exact": self.reals.exact},
            "unserved": self.unserved,
            "limit": self.limit,
            "unmeasured": self.unmeasured,
            "jointly": list(self.jointly),
        }

    def json(self) -> str:
        """:meth:`data` as JSON text."""
        return json.dumps(self.data(), indent=1, allow_nan=False)


def _number(value: Fraction | None) -> str:
    if value is None:
        return "-"
    context = Context(prec=6, Emin=-99999, Emax=99999)
    return f"{context.divide(Decimal(value.numerator), Decimal(value.denominator)):.6g}" if value else "0"


def _effect(hit: Hit) -> str:
    if hit.changed is None:
        return "not measured"
    if not hit.changed:
        return "none (cotangent 0)" if hit.cotangent == 0 else "none (rounded away)"
    return ", ".join(f"{difference.parameter} ({difference.entries})" for difference in hit.changed)
