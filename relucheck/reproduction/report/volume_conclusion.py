"""The conclusion of E4's report: three sentences that follow from its counts and tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from relucheck.reproduction.report.volumes import DTYPE_NAMES, Judged, Report
from relucheck.results.proportions import LEVEL
from relucheck.results.tables import counted, listed, with_verb
from relucheck.volume.compensation import Sum


def conclusion(report: Report, judged: Sequence[Judged], sums: Mapping[str, Sum] | None) -> tuple[str, str, str]:
    """Three sentences for a reader who reads nothing else."""
    return _shares(report), _tests(judged), _over_the_reals(sums)


def _shares(report: Report) -> str:
    """By dtype, in the device's default arithmetic, over the draws of all cells together."""
    counts: list[str] = []
    for name in reversed(DTYPE_NAMES):
        own = [estimate for estimate in report.estimates if estimate.cell.arithmetic.name == name]
        drawn = sum(estimate.draws for estimate in own)
        if own:
            noun = "" if counts else " random networks"
            counts.append(f"{sum(estimate.bifurcated for estimate in own):,} of {drawn:,}{noun} in {name}")
    if not counts:
        return "No cell was run in the default arithmetic of this device."
    return f"On this device, the gradients of backprop_0 and backprop_1 differ for {listed(counts)}, all cells together."


def _tests(judged: Sequence[Judged]) -> str:
    tested = [one for one in judged if one.p is not None]
    if not tested:
        return "No share was tested against a published one, because data or sizes are others."
    parts = []
    for source in dict.fromkeys(one.line.entry.source for one in tested):
        own = [one for one in tested if one.line.entry.source == source]
        parts.append(f"{sum(one.differs for one in own)} of {len(own)} for [{source}]")
    differ = sum(one.differs for one in tested)
    rest = len(tested) - differ
    others = f"; the other {with_verb(rest, 'is', 'are')} undecided: these draws do not distinguish them" if rest else ""
    return (
        f"Of {counted(len(tested), 'test')} of a share against the published one, {with_verb(differ, 'differs', 'differ')} "
        f"at level {LEVEL:g} after Holm's correction ({listed(parts)}){others}."
    )


def _over_the_reals(sums: Mapping[str, Sum] | None) -> str:
    looked = {} if sums is None else {name: found for name, found in sums.items() if found.networks}
    if not looked:
        return "Whether any of these differences exists over the reals too was not looked at."
    real = {name: found.bifurcation for name, found in looked.items() if found.bifurcation}
    networks, open_ = (sum(getattr(found, what) for found in looked.values()) for what in ("networks", "undecided"))
    rounding = sum(found.compensation for found in looked.values())
    where = f" ({listed([f'{count} in {name}' for name, count in real.items()])})" if real else ""
    unknown = f", and {with_verb(open_, 'is', 'are')} undecided" if open_ else ""
    return (
        f"Of {counted(networks, 'network')} with such a difference, native or emulated, that "
        f"{'was' if networks == 1 else 'were'} evaluated over the reals (each counted once an arithmetic), "
        f"{with_verb(sum(real.values()), 'differs', 'differ')} there too{where}; for {rounding:,} it is rounding "
        f"alone{unknown}."
    )
