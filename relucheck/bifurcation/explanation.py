"""The explanation of a mini-batch as data, with its text, its table and its JSON."""

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

#: The version of the JSON format.
SCHEMA: Final = 2
_SHOWN: Final = 12  # how many hits the table of an explanation lists

#: Why a pre-activation equals a kink. ``_MEANINGS`` explains each reason.
Reason = Literal[
    "zero input",
    "dead previous layer",
    "dead unit",
    "no live product",
    "exact cancellation",
    "rounding cancellation",
    "underflow",
    "exact saturation",
    "rounded saturation",
    "unknown",
]
_MEANINGS: Final[dict[Reason, str]] = {
    "zero input": "every feature of the sample is 0 and the bias equals the kink",
    "dead previous layer": "every activation of the layer before is 0 and the bias equals the kink",
    "dead unit": "every weight of the unit is 0 and the bias equals the kink",
    "no live product": "every product of weight and activation is 0 and the bias equals the kink",
    "exact cancellation": "equal to the kink over the reals, too",
    "rounding cancellation": "different from the kink over the reals, but rounded to it",
    "underflow": "different from 0, but so small that the dtype rounds it to 0",
    "exact saturation": "equal to the upper kink over the reals, too",
    "rounded saturation": "different from the upper kink over the reals, but rounded to it",
    "unknown": "reasons cannot be determined for this kind of network",
}


@dataclasses.dataclass(frozen=True)
class Hit:
    """One pre-activation that equals a kink.

    Attributes:
        site: the name of the activation call, as in ``relucheck.bifurcation.interception.Call``.
        call: the index of the call in the forward, from 0.
        position: the position in the input of the activation: (sample, unit, ...).
        kink: the position of the kink.
        reason: why the pre-activation equals the kink.
        real: the exact pre-activation over the reals, computed from the inputs; None if it was not evaluated.
        local: the exact pre-activation computed from the stored activations of the layer before; None if it was not
            evaluated. If it equals the kink and ``real`` does not, an earlier layer has rounded.
        cotangent: the upstream gradient of the activation, with every hit at the first subgradient; None if autograd did
            not record the call.
        changed: how the gradients change if this hit alone uses the second subgradient; None if it was not measured.
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
        """The index of the sample in the mini-batch (the first dimension)."""
        return self.position[0] if self.position else 0

    @property
    def unit(self) -> tuple[int, ...]:
        """The index of the unit in the layer (the other dimensions)."""
        return self.position[1:]

    @property
    def exact(self) -> bool | None:
        """Whether it is a hit over the reals, too; None if that was not evaluated."""
        return None if self.real is None else self.real == Fraction(self.kink)


@dataclasses.dataclass(frozen=True)
class Missed:
    """A pre-activation at a kink over the reals but not in floating point, as in ``Hit``."""

    site: str
    call: int
    position: tuple[int, ...]
    kink: float


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The hits of a mini-batch, their reasons and their effects.

    ``str`` gives a summary and a table of hits.

    Attributes:
        comparison: the comparison of the two gradients in floating point.
        hits: all hits, in the order of the forward.
        missed: the hits over the reals that are not hits in floating point.
        reals: the evaluation over the reals; None if it does not support the network.
        unserved: why ``reals`` is None; else None.
        limit: the largest number of hits whose effects were measured.
        unmeasured: the number of hits with a non-zero upstream gradient that were not measured because of the limit.
        jointly: the names of the parameters whose gradients differ although no measured hit alone changes them.
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
        """The zone of the mini-batch: "bifurcation", "compensation" or "undecided".

        None if the gradients do not bifurcate in floating point, or the network cannot be evaluated over the reals.
        """
        if self.comparison.outcome != "bifurcate" or self.reals is None:
            return None
        return self.reals.zone

    @property
    def reasons(self) -> dict[tuple[str, Reason], int]:
        """The number of hits by site and reason."""
        return dict(collections.Counter((hit.site, hit.reason) for hit in self.hits))

    def table(self, most: int = _SHOWN) -> Table:
        """Return a table of the first ``most`` hits, one per row."""
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
            lines.append(
                f"  equal to a kink over the reals, but not in floating point: {len(self.missed)} pre-activations, "
                f"the first at {first.site} {first.position}"
            )
        if self.unmeasured:
            lines.append(f"  the effects of {self.unmeasured} further hits are not measured (limit={self.limit})")
        if self.jointly:
            lines.append("  changed by all hits together, but by no measured hit alone: " + ", ".join(self.jointly))
        text = "\n".join(lines)
        return text + ("\n" + render(self.table().rich(), width=150, color=False).rstrip() if self.hits else "")

    def _verdict(self) -> str:
        assert self.reals is not None
        count = self.reals.hit_count
        meanings = {
            "differs": f"the gradients differ over the reals, too ({count} exact hits)",
            "equal": f"the gradients are equal over the reals ({count} exact hits)",
            "undecided": f"{count} exact hits, but no difference of gradients beyond the proven error bound",
        }
        return meanings[self.reals.verdict]

    def data(self) -> dict[str, Any]:
        """Convert to plain data for JSON; exact numbers become fractions in text ("3/8")."""
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
        """Return ``data`` as JSON text."""
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
