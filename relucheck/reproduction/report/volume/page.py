"""The page, the JSON and the terminal's view of E4's report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from rich.text import Text

from relucheck.reproduction.published import SOURCES
from relucheck.reproduction.report.volume import fit, precision, trends
from relucheck.reproduction.report.volume.conclusion import conclusion
from relucheck.reproduction.report.volume.figures import draw
from relucheck.reproduction.report.volume.summary import NAME, Judged, Report, judge
from relucheck.reproduction.report.volume.tables import LEGEND, question_table, tables
from relucheck.reproduction.scenario import SCALE_NAMES
from relucheck.results.proportions import draws_for
from relucheck.results.store import FINISHED, SCHEMA, write_atomically
from relucheck.results.tables import Table, columns, counted
from relucheck.volume import compensation as volume_compensation
from relucheck.volume.cell import Estimate
from relucheck.volume.compensation import Sum, ZoneSplit

#: The columns of a table that a terminal leaves out where they do not fit.
_LEFT_OUT: Final = ("±", "hits / M", "published share, 95 %", "p", "Holm p")
#: The first column of a narrow terminal's tables, whose titles name the sweep.
_SHORT: Final = {"hidden layers": "layers", "batch size": "batch", "sample size": "sample"}
_WANTED: Final = 0.05  # the half-width that the notes plan for


def title(report: Report) -> str:
    """The title of the report, which names a reduced scale."""
    return f"{NAME}: volume of the bifurcation zone ({SCALE_NAMES[report.scale]})"


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
    asked = question_table(judged)
    if asked.rows:
        lines += ["", f"## {asked.title}", "", *asked.markdown()]
    lines += ["", "## Limits", "", *(f"- {limit}" for limit in limits(report, judged))]
    for heading, sentences, shown in _findings(report, judged):
        lines += ["", f"## {heading}", "", *sentences]
        for table in shown:
            lines += ["", *table.markdown()]
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


def _findings(report: Report, judged: Sequence[Judged]) -> Iterable[tuple[str, list[str], list[Table]]]:
    """The heading, the sentences and the tables of each finding that the lines allow."""
    gaps, pairs = precision.gaps(judged), precision.pairs(report.estimates)
    if gaps or pairs:
        shown = [precision.gap_table(gaps)] * bool(gaps) + [precision.pair_table(pairs, report.predicted)] * bool(pairs)
        said = [precision.sentence(gaps, pairs), *precision.rates_sentence(precision.rates(pairs, report.predicted))]
        yield "float32: how large is the gap to [B21], and is it TF32?", [" ".join(said)], shown
    if found := fit.fits(judged):
        said = [fit.sentence(found), *fit.releases(found), *fit.like_e2(found)]
        yield (
            "float16: which arithmetic gives the published counts?",
            [" ".join(said)],
            [
                fit.total_table(found),
                *map(fit.cell_table, found),
            ],
        )
    for varied, rows in trends.changes(report).items():
        table = trends.table(varied, rows)
        yield table.title, [trends.sentence(rows)], [table]


def limits(report: Report, judged: Sequence[Judged]) -> list[str]:
    """What the results do not show, in a sentence or two each."""
    widths = sorted(estimate.interval().half_width for estimate in report.estimates)
    said = [
        f"Few draws: half-widths of the intervals (±) are {widths[0]:.3f} to {widths[-1]:.3f}, their median is "
        f"{widths[len(widths) // 2]:.3f}. Not distinguished does not mean equal.",
        "An emulated arithmetic is not a GPU's (relucheck.numerics.emulation). Published 16 bits are float16, on GPUs.",
    ]
    if {"hidden_layers", "neurons"} & {one.line.entry.varied for one in judged}:
        said.append(
            "In the sweeps by hidden layers and by neurons every cell draws the same seeds, and networks of one seed and "
            "width begin with the same layers. So these cells are not independent of each other, and tests of a trend "
            "there find a change less often than their level says."
        )
    if precision.pairs(report.estimates):
        said.append(
            "Hits are counted up to the mini-batch that decides. So networks with many hits are looked at for fewer "
            "mini-batches, and counted hits per activation are below those of whole passes, which the hit model expects."
        )
    if fit.fits(judged):
        said.append(
            "The fit says which of the arithmetics that were drawn are left, not that one of them is the published one. A "
            "kernel that is chosen by shape and another GPU for some cells explain the same counts. E2's is the rounding "
            f"that fits E2's published counts best: {fit.E2_ROUNDING}."
        )
    return said


def notes(report: Report, judged: Iterable[Judged]) -> list[str]:
    """Notes on the method, in a sentence or two each."""
    judged = tuple(judged)
    estimates = report.estimates
    computing = sum(estimate.wall_s for estimate in estimates)
    data = ", ".join(sorted({estimate.cell.data for estimate in estimates}))
    drawn = sum(estimate.draws for estimate in estimates)
    facts = [
        *_where(estimates),
        f"{len(estimates)} cells, {drawn:,} random networks on {data}, {computing:,.0f} s of computing.",
        f"Draws that a half-width of {_WANTED} needs at the shares found (the worst cell's): {_needed(estimates)}.",
        "Cells of one shape, mini-batch and sample share their networks, whatever the arithmetic. Other cells of the "
        "sweeps by batch size and sample size have other networks.",
        "The releases did not compute the float64 figures of both depth sweeps: they leave that loop early.",
        "Cells of the sample-size sweep draw their images with replacement, as [R22] did, once a cell by a seeded "
        "generator.",
    ]
    sources = [
        f"[{name}] {text}." for name, text in SOURCES.items() if any(one.line.entry.source == name for one in judged)
    ]
    return [*facts, *sources]


def _where(estimates: Sequence[Estimate]) -> list[str]:
    """Say where the cells were computed, and which ones where, if there are several places."""
    places: dict[str, list[str]] = {}
    for one in estimates:
        place = f"{one.device} ({one.versions['processor']}); torch {one.versions['torch']}"
        places.setdefault(place, []).append(one.cell.arithmetic.name)
    if len(places) == 1:
        return [f"Device: {next(iter(places))}."]
    said = []
    for place, names in places.items():
        each = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
        said.append(f"Device of {counted(len(names), 'cell')} ({each}): {place}.")
    return said


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
                "file": f"cells/{ours.cell.name}{FINISHED}" if ours.cell.name == entry.cell.name else None,
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
    pairs = [
        {"cell": one.tf32.cell.deciding, **dataclasses.asdict(one.test), "holm_p": one.adjusted}
        for one in precision.pairs(report.estimates)
    ]
    tests = {
        varied: [
            {**dataclasses.asdict(one.of), **dataclasses.asdict(one.trend), "holm_p": one.adjusted, "one_share_p": one.same}
            for one in rows
        ]
        for varied, rows in trends.changes(report).items()
    }
    fitted = {
        one.source: {
            "single": one.single,
            "by_shape": [{"shape": shape, "chances": chances} for shape, chances in one.shapes.items()],
        }
        for one in fit.fits(judged)
    }
    more = {"tf32": pairs, "trends": tests, "fit": fitted, "predicted_hits_per_million": dict(report.predicted)}
    head = {"schema": SCHEMA, "scenario": NAME, "scale": report.scale, "device": report.devices, "versions": versions}
    return {**head, "computing_s": sum(e.wall_s for e in report.estimates), "rows": rows, **more}


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
