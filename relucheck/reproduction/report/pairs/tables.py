"""The tables of pairs and of the response surface, and what their columns mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from relucheck.reproduction.report.pairs.differences import POWER, Effect, Group, Pair
from relucheck.reproduction.report.pairs.surface import Surface
from relucheck.reproduction.report.tables import difference_text, number
from relucheck.results.statistics import LEVEL, MARGIN
from relucheck.results.tables import Table
from relucheck.search.space import Draw

#: Columns that a terminal leaves out.
WIDE: Final = ("live", "p", "departed", "nudges", "beyond nudges")
EFFECT_LEGEND: Final = (
    "departed: pairs in which the tuned run differs from (0, 0) in any bit.",
    "tuned less default: of the validation accuracy after the last epoch, in points, with the same batch size, learning "
    "rate and seed: mean over the pairs that depart ± half its 95 % interval (Student's t). The others have the same run "
    "twice.",
    "p: of a paired t-test that this mean is 0, corrected by Holm over this table.",
    f"verdict: differs, if p is below {LEVEL:g}; else equivalent, if a test of equivalence within {MARGIN:g} points "
    "(TOST), corrected in the same way, is significant; identical, if no bit of any run differs; else undecided.",
    "live: pairs with a live hit, in which nudges run.",
    "nudges: what a change of one bit does instead: mean difference from (0, 0), least to greatest.",
    "beyond nudges: tuned less default, less the mean difference of the nudges of the same pair, tested in the same way "
    "over the pairs with a live hit.",
    f"can show: the true mean difference that so many departing pairs show with a probability of {100 * POWER:g} % (a "
    f"t-test at {LEVEL:g}, uncorrected), if their differences spread as they do here.",
)
SURFACE_LEGEND: Final = (
    "mean over the grid: of the differences from (0, 0) at all other points, tested over seeds and corrected over both "
    "rules.",
    "least, greatest: of the differences of the points, each a mean over seeds.",
    "outside of nudges: runs whose difference is less or greater than that of every nudge, a mean over the same seeds; in "
    "brackets, about how many would be if subgradients did only what nudges do. Points count together where all numbers of "
    "their runs are equal (without a hit at 6, beta has no effect), and not at all where no bit differs from (0, 0).",
)
DRAW_LEGEND: Final = (
    "injected, chain: tuned less (0, 0), in points; 0 exactly: the same run, bit for bit.",
    "nudges: each nudge less (0, 0), in points; none without a live hit.",
)


def effect_table(found: Sequence[Effect]) -> Table:
    """A row for each network, arithmetic and rule."""
    header = (
        "pairs of",
        "rule",
        "departed",
        "tuned less default",
        "p",
        "verdict",
        "live",
        "nudges",
        "beyond nudges",
        "can show",
    )
    rows, before = [], ""
    for one in found:
        beyond = one.beyond.paired
        nudges = "-" if one.nudges is None else f"{one.nudges[0]:+.2f} ({one.nudges[1]:+.2f} to {one.nudges[2]:+.2f})"
        planned = f" of {one.planned}" if one.pairs < one.planned else ""
        name = f"{one.part.removesuffix(', pairs')}, {one.arithmetic}: {one.pairs}{planned}"
        lost = f" ({one.found.lost} lost)" if one.found.lost else ""
        p = "-" if one.found.adjusted_difference is None else f"{one.found.adjusted_difference:.2g}"
        rows.append(
            (
                *("" if name == before else name, one.rule, f"{one.departed} of {one.pairs}"),
                *(f"{difference_text(one.found)}{lost}", p, one.found.verdict, str(beyond.n + beyond.lost), nudges),
                *(
                    f"{difference_text(beyond)} ({beyond.verdict})" if beyond.n + beyond.lost else "-",
                    "-" if one.shown is None else f"{one.shown:.2f}",
                ),
            )
        )
        before = name
    ends = [place - 1 for place, row in enumerate(rows) if row[0] and place]
    return Table(header, rows, right=("tuned less default", "can show"), sections=ends)


def pair_tables(found: Sequence[Group]) -> list[Table]:
    """Every pair of every group."""
    header = ("draw", "batch", "lr", "alpha", "beta", "seed", "(0, 0) %", "injected", "chain", "nudges")
    tables = []
    for group in found:
        rows = [
            (
                *_drawn(one.draw),
                *(number(one.default), _difference(one, "injected"), _difference(one, "chain"), _nudges(one)),
            )
            for one in group.pairs
        ]
        tables.append(Table(header, rows, f"{group.part}, {group.arithmetic}", right=header))
    return tables


def _drawn(one: Draw) -> tuple[str, ...]:
    sizes = f"{one.lr:.3g}", f"{one.alpha:.3f}", f"{one.beta:.3f}"
    return str(one.number + 1), str(one.batch_size), *sizes, str(one.seed)


def _difference(one: Pair, rule: str) -> str:
    if not one.departed[rule]:
        return "0 exactly"
    difference = one.difference(rule)
    return "diverged" if difference is None else f"{difference:+.2f}"


def _nudges(one: Pair) -> str:
    return "no live hit" if one.nudges is None else ", ".join(f"{difference:+.2f}" for difference in one.nudged) or "-"


def surface_table(found: Sequence[Surface]) -> Table:
    """A row for each surface and rule."""
    header = (
        "surface",
        "seeds",
        "rule",
        "mean over the grid",
        "verdict",
        "least",
        "greatest",
        "outside of nudges",
        "nudges",
    )
    rows = []
    for one in found:
        for rule, grid in one.differences.items():
            known = [difference for difference in grid.values() if difference is not None]
            runs = len(one.runs(rule))
            ends = [f"{end(known):+.2f}" if known else "-" for end in (min, max)]
            nudges = f"{min(one.nudges):+.2f} to {max(one.nudges):+.2f}" if one.nudges else "no live hit"
            chance = f"{one.by_chance(rule):.0f} by chance"
            outside = f"{one.outside(rule)} of {runs} ({chance})" if one.nudges and runs else "-"
            name = f"{one.part.removesuffix(', response surface')}, {one.arithmetic}"
            mean = one.means[rule]
            rows.append((name, str(one.seeds), rule, difference_text(mean), mean.verdict, *ends, outside, nudges))
    return Table(header, rows, right=("seeds", "mean over the grid", "least", "greatest"))
