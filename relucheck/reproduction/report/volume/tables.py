"""The report of E4: our shares beside the published ones, with exact intervals and tests."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from rich.text import Text

from relucheck.reproduction.published import SOURCES
from relucheck.reproduction.report.volume.conclusion import conclusion
from relucheck.reproduction.report.volume.figures import draw
from relucheck.reproduction.report.volume.summary import NAME, SWEEP_TITLES, Judged, Report, judge
from relucheck.reproduction.scenario import SCALE_NAMES
from relucheck.results.proportions import CONFIDENCE, LEVEL, Interval, draws_for, interval
from relucheck.results.store import FINISHED, SCHEMA, write_atomically
from relucheck.results.tables import Table, columns
from relucheck.volume import compensation as volume_compensation
from relucheck.volume.cell import Estimate
from relucheck.volume.compensation import Sum, ZoneSplit

_NUMBERS: Final = ("ours", "share, 95 %", "±", "hits / M", "published", "published share, 95 %", "p", "Holm p")
#: The columns of a table that a terminal leaves out where they do not fit.
_LEFT_OUT: Final = ("±", "hits / M", "published share, 95 %", "p", "Holm p")
#: The first column of a narrow terminal's tables, whose titles name the sweep.
_SHORT: Final = {"hidden layers": "layers", "batch size": "batch", "sample size": "sample"}
_WANTED: Final = 0.05  # the half-width that the notes plan for
#: What the columns mean, a sentence or two each.
LEGEND: Final[Mapping[str, str]] = {
    "ours": "networks in the bifurcation zone, of those drawn: some mini-batch of one pass over the data gives first-layer "
    "gradients that differ between backprop_0 and backprop_1.",
    "share, 95 %": f"that share with its Clopper-Pearson interval ({CONFIDENCE:.0%}).",
    "±": "half the width of the interval.",
    "hits / M": "hits per million activations, over the mini-batches looked at.",
    "published share, 95 %": "the published share with the same kind of interval.",
    "p": "of Fisher's exact test, two-sided, of our count against the published one.",
    "Holm p": "the same with Holm's correction over all tests of this report.",
    "verdict": f"differs if Holm's p is below {LEVEL:g}. Not distinguished means undecided: these draws do not tell the "
    "two shares apart, which does not make them equal.",
}


def title(report: Report) -> str:
    """The title of the report, which names a reduced scale."""
    return f"{NAME}: volume of the bifurcation zone ({SCALE_NAMES[report.scale]})"


def groups(judged: Iterable[Judged]) -> dict[tuple[str, str], list[Judged]]:
    """Group the lines by source and sweep, in order; each group is a table."""
    by_table: dict[tuple[str, str], list[Judged]] = {}
    for one in judged:
        by_table.setdefault((one.line.entry.source, one.line.entry.varied), []).append(one)
    return by_table


def _title(source: str, varied: str) -> str:
    return f"{NAME}, [{source}], by {SWEEP_TITLES[varied]}: share of random networks in the bifurcation zone"


def _cells(one: Judged) -> tuple[str, ...]:
    entry, ours = one.line.entry, one.line.estimate
    bounds = ours.interval()
    counted = f"{ours.bifurcated}/{ours.draws}" + (f" ({ours.non_finite} non-finite)" if ours.non_finite else "")
    published = ("", "")
    if entry.published is not None:
        runs = entry.published.runs
        published = (
            f"{entry.published.bifurcated}/{runs}",
            _share(entry.published.bifurcated / runs, interval(entry.published.bifurcated, runs)),
        )
        if not entry.published.computed:
            published = published[0], ""
    return (
        *(str(entry.x), ours.cell.arithmetic.name, counted, _share(ours.share, bounds)),
        *(f"{bounds.half_width:.3f}", f"{ours.hits_per_million:.3g}", *published, _p(one.p), _p(one.adjusted), one.text),
    )


def _share(share: float, bounds: Interval) -> str:
    return f"{share:.3f} [{bounds.low:.3f}, {bounds.high:.3f}]"


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "<1e-6" if value < 1e-6 else f"{value:.2g}"


def tables(judged: Iterable[Judged]) -> list[Table]:
    """One table for each source and sweep."""
    shown = []
    for (source, varied), lines in groups(judged).items():
        xs = [one.line.entry.x for one in lines]
        ends = [index for index, (x, following) in enumerate(itertools.pairwise(xs)) if x != following]
        sweep = SWEEP_TITLES[varied]
        header = (sweep, "arithmetic", *_NUMBERS, "verdict")
        shown.append(Table(header, [_cells(one) for one in lines], _title(source, varied), (sweep, *_NUMBERS), ends))
    return shown


def markdown(
    report: Report,
    judged: Sequence[Judged],
    sums: Mapping[str, Sum] | None = None,
    figures: Sequence[str] = (),
) -> str:
    """The report as a Markdown page: conclusion, figure, tables, and then what to know of them.

    Args:
        report, judged: its lines, and the same with their tests.
        sums: bifurcation against compensation by arithmetic, where it was looked at.
        figures: paths of the figures, relative to the page.
    """
    pictures = [f"![{PurePosixPath(path).stem}]({path})" for path in figures]
    lines = [f"# {title(report)}", "", " ".join(conclusion(report, judged, sums)), ""]
    lines += pictures[:1]
    for table in tables(judged):
        lines += ["", f"## {table.title}", "", *table.markdown()]
    if sums is not None:
        lines += ["", *volume_compensation.markdown(sums)]
    lines += ["", "## How to read the tables", "", *(f"- {column}: {meaning}" for column, meaning in LEGEND.items())]
    if pictures[1:]:
        lines += ["", "## More figures"]
        for picture in pictures[1:]:
            lines += ["", picture]
    lines += ["", "## How it was run", "", *(f"- {note}" for note in notes(report, judged))]
    return "\n".join(lines) + "\n"


def notes(report: Report, judged: Iterable[Judged]) -> list[str]:
    """Notes on the method, in a sentence or two each."""
    judged = tuple(judged)
    estimates = report.estimates
    computing = sum(estimate.wall_s for estimate in estimates)
    versions = estimates[0].versions
    widths = sorted(estimate.interval().half_width for estimate in estimates)
    data = ", ".join(sorted({estimate.cell.data for estimate in estimates}))
    drawn = sum(estimate.draws for estimate in estimates)
    facts = [
        f"Device: {report.devices}; torch {versions['torch']}.",
        f"{len(estimates)} cells, {drawn:,} random networks on {data}, {computing:,.0f} s of computing.",
        f"Half-widths of the intervals (±) are {widths[0]:.3f} to {widths[-1]:.3f}, their median is "
        f"{widths[len(widths) // 2]:.3f}.",
        f"Draws that a half-width of {_WANTED} needs at the shares found (the worst cell's): {_needed(estimates)}.",
        "Every cell draws the same seeds. Cells of one shape share their networks, whatever the arithmetic, and networks "
        "of one seed and width begin with the same layers, so cells are not independent of each other.",
        "An emulated arithmetic is not the device's (relucheck.numerics.emulation). Published 16 bits are float16, on "
        "GPUs.",
        "The releases did not compute the float64 figures of both depth sweeps: they leave that loop early.",
        "Cells of the sample-size sweep draw their images with replacement, as [R22] did, once a cell by a seeded "
        "generator.",
    ]
    sources = [
        f"[{name}] {text}." for name, text in SOURCES.items() if any(one.line.entry.source == name for one in judged)
    ]
    return [*facts, *sources]


def _needed(estimates: Iterable[Estimate]) -> str:
    """Planned draws by arithmetic, each for the cell whose share is nearest to one half."""
    shares: dict[str, float] = {}
    for estimate in estimates:
        name = estimate.cell.arithmetic.name
        shares[name] = min(shares.get(name, estimate.share), estimate.share, key=lambda share: abs(share - 0.5))
    return "; ".join(f"{name} {draws_for(_WANTED, share):,}" for name, share in shares.items())


def summary(report: Report, judged: Iterable[Judged]) -> dict[str, Any]:
    """Build the report's JSON, without the single decisions, which are in the cells' files."""
    rows = []
    for one in judged:
        entry, ours = one.line.entry, one.line.estimate
        bounds, published = ours.interval(), entry.published
        rows.append(
            {
                "source": entry.source,
                "varied": entry.varied,
                "x": entry.x,
                "cell": ours.cell.deciding,
                "file": f"cells/{ours.cell.name}{FINISHED}",
                "arithmetic": ours.cell.arithmetic.name,
                "bifurcated": ours.bifurcated,
                "agree": ours.agree,
                "non_finite": ours.non_finite,
                "draws": ours.draws,
                "share": ours.share,
                "low": bounds.low,
                "high": bounds.high,
                "hits_per_million": ours.hits_per_million,
                "published": None
                if published is None
                else {**dataclasses.asdict(published), "computed": published.computed},
                "p": one.p,
                "holm_p": one.adjusted,
                "verdict": one.text,
            }
        )
    versions = dict(report.estimates[0].versions)
    head = {"schema": SCHEMA, "scenario": NAME, "scale": report.scale, "device": report.devices, "versions": versions}
    return {**head, "computing_s": sum(e.wall_s for e in report.estimates), "rows": rows}


@dataclasses.dataclass(frozen=True)
class Shown:
    """E4's conclusion, tables and notes, as a terminal shows them.

    Called with a number of columns, it gives the parts for :func:`relucheck.results.tables.render`. A narrow terminal gets
    the counts, our share and the verdict; the page has the other columns.
    """

    head: tuple[str, ...]
    tables: tuple[Table, ...]
    notes: tuple[str, ...]

    def __call__(self, width: int) -> list[Any]:
        full = [table.rich(wrap=False) for table in self.tables]
        fits = all(columns(table) <= width for table in full)
        left_out = () if fits else _LEFT_OUT
        legend = [f"{column}: {meaning}" for column, meaning in LEGEND.items() if column not in left_out]
        shown = full
        if not fits:
            shown = [_renamed(table.without(*_LEFT_OUT)).rich(first=True) for table in self.tables]
        return [*map(Text, self.head), *shown, *map(Text, (*legend, *self.notes))]


def _renamed(table: Table) -> Table:
    first, *others = table.header
    return dataclasses.replace(table, header=(_SHORT.get(first, first), *others), right=(*table.right, *_SHORT.values()))


def write(report: Report, folder: Path, splits: Mapping[str, ZoneSplit] | None = None, *, figures: bool = True) -> Shown:
    """Write E4.json, E4.md and figures/ into a folder; return what a terminal shows.

    Args:
        report: all lines of a scale.
        folder: made if need be.
        splits: bifurcation against compensation by cell name, where it was looked at.
        figures: whether to draw them.

    Raises:
        relucheck.results.store.StoreError: a file cannot be written.
    """
    judged = judge(report)
    sums = None if splits is None else volume_compensation.by_arithmetic(report.estimates, splits)
    paths = draw(report, folder / "figures") if figures else ()
    content, shown = summary(report, judged), [*tables(judged)]
    if sums is not None:
        content["split"] = volume_compensation.as_json(sums)
        shown.append(volume_compensation.table(sums))
    write_atomically(folder / f"{NAME}.json", json.dumps(content, indent=1) + "\n")
    page = markdown(report, judged, sums, [path.relative_to(folder).as_posix() for path in paths])
    write_atomically(folder / f"{NAME}.md", page)
    said = notes(report, judged)
    if paths:
        said.append(f"Figures: {', '.join(map(str, paths))}")
    head = (title(report), "", " ".join(conclusion(report, judged, sums)), "")
    return Shown(head, tuple(shown), tuple(said))
