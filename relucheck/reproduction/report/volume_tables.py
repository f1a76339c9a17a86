"""Tables of E4: our shares beside the published ones, both with exact intervals, and what a test allows to say."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from rich.text import Text

from relucheck.reproduction.published import SOURCES
from relucheck.reproduction.report.volume_figures import draw
from relucheck.reproduction.report.volumes import NAME, SWEEP_TITLES, Entry, Line, Report
from relucheck.results.holm import holm
from relucheck.results.proportions import CONFIDENCE, LEVEL, Interval, draws_for, exact_test, interval, verdict
from relucheck.results.store import SCHEMA, write_atomically
from relucheck.results.tables import Table
from relucheck.volume import compensation as volume_compensation
from relucheck.volume.cell import Estimate
from relucheck.volume.compensation import ZoneSplit

NOT_COMPUTED: Final = "not computed by the release"
NOT_PUBLISHED: Final = "no published figure"
OTHER_DATA: Final = "other data"
_NUMBERS: Final = ("ours", "share, 95 %", "±", "hits / M", "published", "published share, 95 %", "p", "Holm p")
#: Columns of a terminal from which on every column of a table is shown, and what a narrower one leaves out.
_WIDE: Final = 180
_LEFT_OUT: Final = ("±", "hits / M", "published share, 95 %", "p", "Holm p")
#: The first column of a narrow terminal's tables, whose titles name the sweep.
_SHORT: Final = {"hidden layers": "layers", "batch size": "batch", "sample size": "sample"}
_WANTED: Final = 0.05  # the half-width that the notes plan for


@dataclasses.dataclass(frozen=True)
class Judged:
    """A line with its test.

    Attributes:
        line: entry and estimate.
        p: of Fisher's exact test against the published count, or None where there is nothing to test.
        adjusted: ``p`` after Holm's correction over every test of the report.
        text: "differs", "not distinguished", or why there is no test.
    """

    line: Line
    p: float | None
    adjusted: float | None
    text: str


def judge(report: Report) -> tuple[Judged, ...]:
    """Every line with its test, in order; the correction is over the whole report."""
    tests: dict[int, float] = {}
    for index, line in enumerate(report.lines):
        entry, ours = line.entry, line.estimate
        if entry.comparable and entry.published is not None:
            tests[index] = exact_test(ours.bifurcated, ours.draws, entry.published.bifurcated, entry.published.runs)
    adjusted = dict(zip(tests, holm(list(tests.values())), strict=True))
    return tuple(
        Judged(line, tests[index], adjusted[index], verdict(adjusted[index]))
        if index in tests
        else Judged(line, None, None, _why_not(line.entry))
        for index, line in enumerate(report.lines)
    )


def _why_not(entry: Entry) -> str:
    if entry.published is None:
        return NOT_PUBLISHED
    return OTHER_DATA if entry.published.computed else NOT_COMPUTED


def groups(judged: Iterable[Judged]) -> dict[tuple[str, str], list[Judged]]:
    """Lines by source and sweep, in order: a table each."""
    found: dict[tuple[str, str], list[Judged]] = {}
    for one in judged:
        found.setdefault((one.line.entry.source, one.line.entry.varied), []).append(one)
    return found


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


def markdown(report: Report, judged: Iterable[Judged]) -> str:
    """The report as a Markdown page: where and how it was computed, what to know, a table for each source and sweep."""
    judged = tuple(judged)
    lines = [f"# {NAME}: volume of the bifurcation zone ({report.scale} scale)", "", *notes(report, judged)]
    for table in tables(judged):
        lines += ["", f"## {table.title}", "", *table.markdown()]
    return "\n".join(lines) + "\n"


def notes(report: Report, judged: Iterable[Judged]) -> list[str]:
    """What a reader has to know, in Markdown."""
    judged = tuple(judged)
    estimates = report.estimates
    tested = [one for one in judged if one.p is not None]
    computing = sum(estimate.wall_s for estimate in estimates)
    versions = estimates[0].versions
    widths = sorted(estimate.interval().half_width for estimate in estimates)
    data = ", ".join(sorted({estimate.cell.data for estimate in estimates}))
    said = f"{sum(one.text == 'differs' for one in tested)} differ" if tested else "none"
    drawn = sum(estimate.draws for estimate in estimates)
    facts = [
        f"- Device: {report.devices}; torch {versions['torch']}.",
        f"- {len(estimates)} cells, {drawn:,} random networks on {data}, {computing:,.0f} s of computing. Half-widths (±): "
        f"{widths[0]:.3f} to {widths[-1]:.3f}, median {widths[len(widths) // 2]:.3f}.",
        "- A network counts as soon as one mini-batch of a pass gives first-layer gradients that differ between backprop_0 "
        f"and backprop_1. Intervals are Clopper-Pearson, {CONFIDENCE:.0%}. Hits per million activations (hits / M) are "
        "over the mini-batches looked at.",
        "- Tests are Fisher's exact test of our count against the published one, two-sided, with Holm's correction over "
        f"all {len(tested)} tests here, at level {LEVEL}: {said}. *Not distinguished* says that these draws do not tell "
        "them apart, not that they are equal.",
        f"- Draws that a half-width of {_WANTED} needs at the shares found (the worst cell's): {_needed(estimates)}.",
        "- The same seeds are drawn in every cell: cells of one shape share their networks, whatever the arithmetic, and "
        "networks of one seed and width begin with the same layers, so cells are not independent of each other.",
        "- *Emulated* arithmetics are not the device's own (relucheck.numerics.emulation); published 16 bits are "
        "float16, on GPUs.",
        "- Published float64 figures of both depth sweeps were not computed by the releases, which leave that loop early.",
        "- Sample-size cells draw their images with replacement, as [R22] did, once a cell by a seeded generator.",
    ]
    sources = [
        f"- [{name}] {text}." for name, text in SOURCES.items() if any(one.line.entry.source == name for one in judged)
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
    """The report as plain JSON: one row for each line, without the decisions (these are in the cells' files)."""
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
                "file": f"cells/{ours.cell.name}.json",
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
    """What a terminal shows of E4: tables, and what to know of them.

    Called with a number of columns, it gives the parts for :func:`relucheck.results.tables.render`. A narrow terminal gets
    the counts, our share and the verdict; the page has the other columns.
    """

    tables: tuple[Table, ...]
    notes: tuple[str, ...]

    def __call__(self, width: int) -> list[Any]:
        if width >= _WIDE:
            return [*(table.rich(wrap=False) for table in self.tables), *map(Text, self.notes)]
        narrow = (table.without(*_LEFT_OUT) for table in self.tables)
        return [*(_renamed(table).rich(first=True) for table in narrow), *map(Text, self.notes)]


def _renamed(table: Table) -> Table:
    first, *others = table.header
    return dataclasses.replace(table, header=(_SHORT.get(first, first), *others), right=(*table.right, *_SHORT.values()))


def write(report: Report, folder: Path, found: Mapping[str, ZoneSplit] | None = None, *, figures: bool = True) -> Shown:
    """Writes E4.json, E4.md and figures/ into a folder, and returns what a terminal shows.

    Args:
        report: all lines of a scale.
        folder: made if need be.
        found: bifurcation against compensation by cell name, where it was looked at.
        figures: whether to draw them.

    Raises:
        relucheck.results.store.StoreError: a file cannot be written.
    """
    judged = judge(report)
    sums = None if found is None else volume_compensation.by_arithmetic(report.estimates, found)
    content, page, shown = summary(report, judged), markdown(report, judged), [*tables(judged)]
    if sums is not None:
        content["split"] = volume_compensation.as_json(sums)
        page += "\n" + "\n".join(volume_compensation.markdown(sums)) + "\n"
        shown.append(volume_compensation.table(sums))
    write_atomically(folder / f"{NAME}.json", json.dumps(content, indent=1) + "\n")
    write_atomically(folder / f"{NAME}.md", page)
    said = notes(report, judged)
    if figures:
        said.append(f"- Figures: {', '.join(str(path) for path in draw(report, folder / 'figures'))}")
    return Shown(tuple(shown), tuple(said))
