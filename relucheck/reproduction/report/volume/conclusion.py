"""The conclusion of E4's report: three sentences that follow from its counts and tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from relucheck.reproduction.report.volume.summary import DTYPE_NAMES, Judged, Report
from relucheck.results.proportions import LEVEL
from relucheck.results.tables import counted, listed, with_verb
from relucheck.volume.compensation import Sum


def conclusion(report: Report, judged: Sequence[Judged], sums: Mapping[str, Sum] | None) -> tuple[str, str, str]:
    """Summarise E4's results in three sentences."""
    return _shares(report), _tests(judged), _over_the_reals(sums)


def _shares(report: Report) -> str:
    """Summarise the shares by dtype, in the device's default arithmetic, over all cells."""
    counts: list[str] = []
    for name in reversed(DTYPE_NAMES):
        estimates = [estimate for estimate in report.estimates if estimate.cell.arithmetic.name == name]
        drawn = sum(estimate.draws for estimate in estimates)
        if estimates:
            noun = "" if counts else " random networks"
            counts.append(f"{sum(estimate.bifurcated for estimate in estimates):,} of {drawn:,}{noun} in {name}")
    if not counts:
        return "No cell was run in the default arithmetic of this device."
    return f"On this device, the gradients of backprop_0 and backprop_1 differ for {listed(counts)}, all cells together."


def _tests(judged: Sequence[Judged]) -> str:
    tested = [one for one in judged if one.p is not None]
    if not tested:
        return "No share was tested against a published one, because data or sizes are others."
    parts = []
    for source in dict.fromkeys(one.line.entry.source for one in tested):
        lines = [line for line in tested if line.line.entry.source == source]
        parts.append(f"{sum(line.differs for line in lines)} of {len(lines)} for [{source}]")
    differ = sum(one.differs for one in tested)
    rest = len(tested) - differ
    others = f"; the other {with_verb(rest, 'is', 'are')} undecided: these draws do not distinguish them" if rest else ""
    return (
        f"Of {counted(len(tested), 'test')} of a share against the published one, {with_verb(differ, 'differs', 'differ')} "
        f"at level {LEVEL:g} after Holm's correction ({listed(parts)}){others}."
    )


def _over_the_reals(sums: Mapping[str, Sum] | None) -> str:
    looked = {} if sums is None else {name: total for name, total in sums.items() if total.networks}
    if not looked:
        return "Whether any of these differences exists over the reals too was not looked at."
    real = {name: total.bifurcation for name, total in looked.items() if total.bifurcation}
    networks, open_ = (sum(getattr(total, what) for total in looked.values()) for what in ("networks", "undecided"))
    rounding = sum(total.compensation for total in looked.values())
    where = f" ({listed([f'{count} in {name}' for name, count in real.items()])})" if real else ""
    unknown = f", and {with_verb(open_, 'is', 'are')} undecided" if open_ else ""
    return (
        f"Of {counted(networks, 'network')} with such a difference, native or emulated, that "
        f"{'was' if networks == 1 else 'were'} evaluated over the reals (each counted once an arithmetic), "
        f"{with_verb(sum(real.values()), 'differs', 'differ')} there too{where}; for {rounding:,} it is rounding "
        f"alone{unknown}."
    )
