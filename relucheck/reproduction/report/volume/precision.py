"""float32: how far our shares are from [B21]'s, and what TF32 changes on the same networks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Final

from relucheck.reproduction.published import PublishedCell
from relucheck.reproduction.report.volume.summary import Judged
from relucheck.results.holm import holm
from relucheck.results.proportions import LEVEL, Interval, interval
from relucheck.results.statistics import Matched, matched, share_difference
from relucheck.results.tables import Table
from relucheck.volume.cell import Estimate

NATIVE: Final = "float32"
#: TF32 as an emulation, and as a device's own.
TF32: Final = ("float32 emulated (tf32)", "float32 TF32")
_SOURCE: Final = "B21"


@dataclasses.dataclass(frozen=True)
class Gap:
    """A published float32 share, and ours in one arithmetic.

    Attributes:
        published: the cell of the release.
        ours: our estimate.
        adjusted: Holm's p of the test against the published share, see ``summary.judge``.
        bounds: the 95 % interval of ours less the published share.
    """

    published: PublishedCell
    ours: Estimate
    adjusted: float
    bounds: Interval

    @property
    def difference(self) -> float:
        """Our share less the published one."""
        return self.ours.share - self.published.bifurcated / self.published.runs


@dataclasses.dataclass(frozen=True)
class Pair:
    """The same networks in float32 and with TF32 factors.

    Attributes:
        native, tf32: our estimates.
        test: McNemar's test of the networks that both have; ``second`` is TF32.
        adjusted: its p-value after Holm's correction over all pairs of the report.
    """

    native: Estimate
    tf32: Estimate
    test: Matched
    adjusted: float


def gaps(judged: Sequence[Judged]) -> dict[str, tuple[Gap, ...]]:
    """The gaps to the float32 shares of [B21], by arithmetic."""
    found: dict[str, list[Gap]] = {}
    for one in judged:
        entry, ours = one.line.entry, one.line.estimate
        theirs, name = entry.published, ours.cell.arithmetic.name
        if one.adjusted is None or theirs is None or entry.source != _SOURCE or name not in (NATIVE, *TF32):
            continue
        bounds = share_difference(ours.bifurcated, ours.draws, theirs.bifurcated, theirs.runs)
        found.setdefault(name, []).append(Gap(theirs, ours, one.adjusted, bounds))
    return {name: tuple(some) for name, some in found.items()}


def pairs(estimates: Sequence[Estimate]) -> tuple[Pair, ...]:
    """Compare TF32 with native float32 on the same networks, corrected over all cells."""
    native = {_others(one): one for one in estimates if one.cell.arithmetic.name == NATIVE}
    both = []
    for tf32 in estimates:
        mine = native.get(_others(tf32)) if tf32.cell.arithmetic.name in TF32 else None
        if mine is None:
            continue
        decided = {draw.seed: draw.outcome == "bifurcate" for draw in mine.decisions}
        shared = [draw for draw in tf32.decisions if draw.seed in decided]
        test = matched([decided[draw.seed] for draw in shared], [draw.outcome == "bifurcate" for draw in shared])
        both.append((mine, tf32, test))
    adjusted = holm([test.p for _, _, test in both])
    return tuple(Pair(*one, p) for one, p in zip(both, adjusted, strict=True))


def _others(estimate: Estimate) -> tuple[object, ...]:
    """What two estimates share that differ in their arithmetic and their number of draws alone."""
    cell = estimate.cell
    return cell.network, cell.batch_size, cell.sample_size, cell.sample, cell.first_seed, cell.data, cell.subgradients


def shape(estimate: Estimate) -> str:
    """The shape of a cell's networks, for example "3 x 256"."""
    return f"{estimate.cell.hidden_layers} x {estimate.cell.neurons}"


def gap_table(found: Mapping[str, Sequence[Gap]]) -> Table:
    """Tabulate the gaps by arithmetic and cell."""
    header = (
        "networks",
        "batch size",
        "published in",
        "arithmetic",
        "ours",
        "published",
        "ours - published, 95 %",
        "Holm p",
    )
    rows = [
        (
            shape(one.ours),
            str(one.published.batch_size),
            f"sweep by {one.published.varied.replace('_', ' ')}",
            name,
            f"{one.ours.bifurcated}/{one.ours.draws} = {one.ours.share:.3f}",
            f"{one.published.bifurcated / one.published.runs:.3f}",
            f"{one.difference:+.3f} [{one.bounds.low:+.3f}, {one.bounds.high:+.3f}]",
            f"{one.adjusted:.2g}",
        )
        for name, some in found.items()
        for one in some
    ]
    title = "float32: how far are our shares from [B21]'s?"
    return Table(header, rows, title, ("batch size", *header[4:]))


def pair_table(found: Sequence[Pair], predicted: Mapping[str, float]) -> Table:
    """Tabulate TF32 against native float32.

    Args:
        found: the pairs.
        predicted: by name of cell, the hits per million activations that the hit model predicts.
    """
    header = (
        *("networks", "TF32", "pairs", "native", "TF32 share", "TF32 only", "native only", "TF32 - native, 95 %"),
        *("McNemar p", "Holm p", "hits / M native", "predicted", "hits / M TF32", "predicted TF32"),
    )
    rows = []
    for one in found:
        test = one.test
        rows.append(
            (
                shape(one.native),
                "emulated" if one.tf32.cell.arithmetic.emulation else "the device's own",
                str(test.pairs),
                f"{one.native.share:.3f}",
                f"{one.tf32.share:.3f}",
                str(test.second),
                str(test.first),
                f"{test.difference:+.3f} [{test.low:+.3f}, {test.high:+.3f}]",
                f"{test.p:.2g}",
                f"{one.adjusted:.2g}",
                *_rates(one.native, predicted),
                *_rates(one.tf32, predicted),
            )
        )
    return Table(header, rows, "TF32 against native float32 on the same networks", header[2:])


def _rates(estimate: Estimate, predicted: Mapping[str, float]) -> tuple[str, str]:
    """The counted and the predicted hits per million activations."""
    rate = predicted.get(estimate.cell.name)
    return f"{estimate.hits_per_million:.4f}", "-" if rate is None else f"{rate:.4f}"


def sentence(found: Mapping[str, Sequence[Gap]], both: Sequence[Pair]) -> str:
    """Say how far native float32 is from [B21], and what TF32 changes."""
    native = found.get(NATIVE, ())
    if not native:
        return "float32 was not compared with [B21]."
    differ = [one for one in native if one.adjusted <= LEVEL]
    if differ:
        far = max(differ, key=lambda one: abs(one.difference))
        low = sum(one.difference < 0 for one in differ)
        side = "lower" if low == len(differ) else "higher" if not low else "lower or higher"
        text = (
            f"In float32 our shares are {side} than [B21]'s in {len(differ)} of {len(native)} tests, by "
            f"{abs(far.difference):.2f} at {shape(far.ours)} with mini-batches of {far.published.batch_size} "
            f"(95 %: {_range(far)}) and less elsewhere"
        )
    else:
        far = max(native, key=lambda one: abs(one.difference))
        text = (
            f"In float32 none of {len(native)} tests tells our shares from [B21]'s; the largest gap is "
            f"{far.difference:+.2f} at {shape(far.ours)} (95 %: {far.bounds.low:+.2f} to {far.bounds.high:+.2f})"
        )
    return f"{text}; {tf32_clause(both)}."


def _range(one: Gap) -> str:
    bounds = sorted((abs(one.bounds.low), abs(one.bounds.high)))
    return f"{bounds[0]:.2f} to {bounds[1]:.2f}"


def tf32_clause(both: Sequence[Pair]) -> str:
    """Say what TF32 changes on the same networks."""
    if not both:
        return "TF32 was not run on the same networks"
    shown = [one for one in both if one.adjusted <= LEVEL]
    if not shown:
        return f"TF32 is not shown to change the share on the same networks, in any of {len(both)} cells"
    up = [one for one in shown if one.test.difference > 0]
    far = max(shown, key=lambda one: abs(one.test.difference))
    way = "raises" if len(up) == len(shown) else "lowers" if not up else "changes"
    return (
        f"TF32 {way} the share on the same networks in {len(shown)} of {len(both)} cells, by "
        f"{abs(far.test.difference):.2f} at {shape(far.native)}"
    )


@dataclasses.dataclass(frozen=True)
class Rates:
    """Counted and expected hits of the same networks in native float32 and in TF32, over cells.

    Attributes:
        hits: counted, native and TF32, in the mini-batches that were looked at.
        expected: by the hit model, in the same ones.
        activations: in the same ones.
    """

    hits: tuple[int, int]
    expected: tuple[float, float]
    activations: tuple[int, int]

    @property
    def ratio(self) -> float | None:
        """Hits per activation in TF32 over those in native float32."""
        if not self.hits[0]:
            return None
        return self.hits[1] / self.hits[0] * self.activations[0] / self.activations[1]

    @property
    def bounds(self) -> Interval:
        """The 95 % interval of ``ratio``, from TF32's binomial part of all hits."""
        part, exposed = interval(self.hits[1], sum(self.hits)), self.activations[0] / self.activations[1]
        return Interval(*(exposed * one / (1 - one) if one < 1 else math.inf for one in (part.low, part.high)))

    @property
    def expected_ratio(self) -> float:
        """The same ratio by the hit model."""
        return self.expected[1] / self.expected[0] * self.activations[0] / self.activations[1]


def rates(both: Sequence[Pair], predicted: Mapping[str, float]) -> Rates | None:
    """Sum the hits of the pairs for which both predictions are there; None if there is no hit."""
    known = [one for one in both if one.native.cell.name in predicted and one.tf32.cell.name in predicted]
    sides = ([one.native for one in known], [one.tf32 for one in known])
    hits, seen = ([sum(getattr(one, what) for one in side) for side in sides] for what in ("hits", "activations"))
    expected = [sum(predicted[one.cell.name] * one.activations / 1e6 for one in side) for side in sides]
    return Rates((hits[0], hits[1]), (expected[0], expected[1]), (seen[0], seen[1])) if sum(hits) else None


def rates_sentence(found: Rates | None) -> list[str]:
    """Say whether TF32 has more hits per activation, and whether the hit model expects that."""
    if found is None or found.ratio is None:
        return []
    bounds, expected = found.bounds, found.expected_ratio
    verdict = "which agrees" if bounds.low <= expected <= bounds.high else "which does not agree"
    return [
        f"Over these cells, TF32 has {found.ratio:.2f} times the hits per activation of native float32 (95 %: "
        f"{bounds.low:.2f} to {bounds.high:.2f}; {found.hits[1]} and {found.hits[0]} hits). The hit model, which counts "
        f"none, expects {expected:.2f} times, {verdict}. It expects {found.expected[0]:.0f} hits in native float32 and "
        f"{found.expected[1]:.0f} in TF32."
    ]
