"""The conclusion of E4's report: three sentences that follow from its counts and tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from relucheck.reproduction.report.volume import fit, precision
from relucheck.reproduction.report.volume.summary import Judged, Report
from relucheck.results.tables import counted, listed, with_verb
from relucheck.volume.compensation import Sum


def conclusion(report: Report, judged: Sequence[Judged], sums: Mapping[str, Sum] | None) -> tuple[str, str, str]:
    """Summarise E4's results in three sentences."""
    return (
        precision.sentence(precision.gaps(judged), precision.pairs(report.estimates)),
        fit.sentence(fit.fits(judged)),
        _over_the_reals(sums),
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
