"""Which arithmetic gives the published float16 counts, for all cells or by shape.

The product of the first layer sums 784 terms for each pair of a sample and a neuron. A GPU's library chooses by the numbers
of samples and neurons whether it splits such a sum. So there are two hypotheses for a release: one arithmetic for all
cells, or one for each of these shapes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from relucheck.numerics.arithmetic import Arithmetic
from relucheck.reproduction.published import ARITHMETICS, PublishedCell
from relucheck.reproduction.report.volume.summary import SWEEP_TITLES, Judged
from relucheck.results.holm import holm
from relucheck.results.proportions import LEVEL, exact_test
from relucheck.results.statistics import log_chance
from relucheck.results.tables import Table, counted, listed, with_verb
from relucheck.volume.cell import Estimate

#: The bits of the published cells that are fitted.
BITS: Final = 16
#: Two arithmetics are told apart if one makes the counts more likely than the other by this factor, in logarithms: 20.
TOLD: Final = math.log(20)
_PREFIX: Final = "float16 emulated "
#: The arithmetic that rounds every sum once, without its dtype.
ONCE: Final = "(rounded)"
#: The rounding that fits E2's published counts best, in bfloat16.
E2_ROUNDING: Final = Arithmetic.parse(ARITHMETICS["E2"]).emulation
_E2: Final = f"({E2_ROUNDING})"
#: Mini-batch and neurons of E2, the shape of its first product.
E2_SHAPE: Final = 128, 200


@dataclasses.dataclass(frozen=True)
class FittedCell:
    """A published cell, and how likely each arithmetic makes its count.

    Attributes:
        published: the cell.
        draws: how many of our networks are used in each arithmetic: the same ones, and equally many.
        ours: by arithmetic, how many of them are in the zone.
        chances: by arithmetic, the logarithm of the probability of the published count, given ours.
    """

    published: PublishedCell
    draws: int
    ours: Mapping[str, int]
    chances: Mapping[str, float]

    @property
    def shape(self) -> tuple[int, int]:
        """Mini-batch and neurons: the shape of the first layer's product."""
        return self.published.batch_size, self.published.neurons


@dataclasses.dataclass(frozen=True)
class Fit:
    """How well arithmetics explain the float16 cells of a release.

    Attributes:
        source: the release.
        cells: its cells, each with the same arithmetics.
    """

    source: str
    cells: tuple[FittedCell, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The arithmetics, without their dtype."""
        return tuple(self.cells[0].chances)

    @property
    def single(self) -> dict[str, float]:
        """By arithmetic, the log-likelihood of all cells."""
        return {name: sum(cell.chances[name] for cell in self.cells) for name in self.names}

    @property
    def best(self) -> str:
        """The likeliest single arithmetic."""
        return max(self.single, key=lambda name: self.single[name])

    @property
    def shapes(self) -> dict[tuple[int, int], dict[str, float]]:
        """The log-likelihood of cells by shape of the first product and by arithmetic."""
        by_shape: dict[tuple[int, int], dict[str, float]] = {}
        for cell in self.cells:
            mine = by_shape.setdefault(cell.shape, dict.fromkeys(self.names, 0.0))
            for name in self.names:
                mine[name] += cell.chances[name]
        return by_shape

    @property
    def left(self) -> dict[tuple[int, int], tuple[str, ...]]:
        """By shape, the arithmetics that its cells do not tell from the likeliest."""
        return {
            shape: tuple(name for name, chance in chances.items() if max(chances.values()) - chance < TOLD)
            for shape, chances in self.shapes.items()
        }

    def by_shape(self, *names: str) -> float:
        """The log-likelihood where each shape has the likeliest of some arithmetics (none: of all)."""
        return sum(max(chances[name] for name in names or self.names) for chances in self.shapes.values())

    @property
    def gain(self) -> float:
        """How much higher the log-likelihood is with one arithmetic a shape than with one in all."""
        return self.by_shape() - self.single[self.best]

    @property
    def price(self) -> float:
        """The gain that the choice by shape has to exceed: log of the ways to choose, less ``TOLD``.

        With a uniform prior over the choices, a choice by shape is the likelier hypothesis from there on.
        """
        return math.log(len(self.names)) * (len(self.shapes) - 1) + TOLD

    @property
    def by_shape_is_needed(self) -> bool:
        """Whether one arithmetic a shape is told from one in all, at the price of its choices."""
        return self.gain > self.price

    @property
    def unexplained(self) -> tuple[FittedCell, ...]:
        """The cells that differ from ours even in their shape's likeliest arithmetic (Fisher, Holm)."""
        chosen = {shape: max(chances, key=lambda name: chances[name]) for shape, chances in self.shapes.items()}
        p_values = [
            exact_test(cell.ours[chosen[cell.shape]], cell.draws, cell.published.bifurcated, cell.published.runs)
            for cell in self.cells
        ]
        return tuple(cell for cell, p in zip(self.cells, holm(p_values), strict=True) if p <= LEVEL)

    def groups(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]], list[tuple[int, int]]]:
        """Shapes that must round once, shapes that must not, and shapes that leave both."""
        once = [shape for shape, left in self.left.items() if left == (ONCE,)]
        coarse = [shape for shape, left in self.left.items() if ONCE not in left]
        return once, coarse, [shape for shape in self.left if shape not in once and shape not in coarse]


def fits(judged: Iterable[Judged]) -> tuple[Fit, ...]:
    """Fit the emulated arithmetics to the float16 cells of each release.

    A release has a fit if some of its cells were drawn in rounding once and in another arithmetic. An arithmetic counts if
    it was drawn in all of these.
    """
    drawn: dict[PublishedCell, dict[str, Estimate]] = {}
    for one in judged:
        theirs, ours = one.line.entry.published, one.line.estimate
        if theirs is None or not one.line.entry.comparable or theirs.precision_bits != BITS:
            continue
        if (name := ours.cell.arithmetic.name).startswith(_PREFIX):
            drawn.setdefault(theirs, {})[name.removeprefix(_PREFIX)] = ours
    made = []
    for source in dict.fromkeys(cell.source for cell in drawn):
        mine = {cell: some for cell, some in drawn.items() if cell.source == source and ONCE in some and len(some) > 1}
        names = [
            name
            for name in dict.fromkeys(n for some in mine.values() for n in some)
            if all(name in some for some in mine.values())
        ]
        if len(names) > 1:
            made.append(
                Fit(source, tuple(_cell(cell, {name: some[name] for name in names}) for cell, some in mine.items()))
            )
    return tuple(made)


def _cell(published: PublishedCell, estimates: Mapping[str, Estimate]) -> FittedCell:
    draws = min(one.draws for one in estimates.values())
    ours = {name: sum(draw.outcome == "bifurcate" for draw in one.decisions[:draws]) for name, one in estimates.items()}
    chances = {name: log_chance(published.bifurcated, published.runs, count, draws) for name, count in ours.items()}
    return FittedCell(published, draws, ours, chances)


def like_e2(found: Sequence[Fit]) -> list[str]:
    """Say whether the coarse shapes leave E2's rounding, and what the counts cannot tell."""
    mine = [fit for fit in found if _E2 in fit.names and fit.groups()[1]]
    if not mine:
        return []
    said = []
    for fit in mine:
        _, coarse, _ = fit.groups()
        there = sum(_E2 in fit.left[shape] for shape in coarse)
        loss = fit.by_shape() - fit.by_shape(ONCE, _E2)
        said.append(
            f"{there} of [{fit.source}]'s {counted(len(coarse), 'shape')} with coarser rounding "
            f"{'leaves' if there == 1 else 'leave'} {_short(_E2)}; the choice between it and rounding once is less likely "
            f"than the choice among all by {loss:.1f} in the logarithm."
        )
    near = [_told(fit, shape) for fit in mine for shape in fit.shapes if shape[0] == E2_SHAPE[0] and shape != E2_SHAPE]
    same = [f"[{fit.source}]" for fit in mine if E2_SHAPE in fit.shapes]
    whose = f"{listed(same)} {'has' if len(same) == 1 else 'have'} a" if same else "No release has a"
    said.append(
        f"E2's first product is {_shape(E2_SHAPE)}, in bfloat16. {whose} float16 cell of this shape"
        f"{f'; with as many samples, {listed(near)}' if near else ''}. A kernel is chosen by shape and dtype, so these "
        "counts cannot tell whether E2 and E4 ran on one machine."
    )
    return said


def releases(found: Sequence[Fit]) -> list[str]:
    """Say whether the releases agree at the shapes that several of them have."""
    both = [
        shape for shape in dict.fromkeys(s for one in found for s in one.shapes) if all(shape in f.shapes for f in found)
    ]
    if len(found) < 2 or not both:
        return []
    apart = [shape for shape in both if not set.intersection(*(set(one.left[shape]) for one in found))]
    if not apart:
        return [f"At {_shapes(both)}, which the releases share, one rounding is left for all."]
    told = listed([_told(one, shape) for shape in apart for one in found])
    return [f"{told}, so the releases do not have one choice by shape: their machines or versions differ."]


def _told(fit: Fit, shape: tuple[int, int]) -> str:
    left = fit.left[shape]
    what = "leaves both" if ONCE in left and len(left) > 1 else "takes rounding once" if ONCE in left else "excludes it"
    return f"[{fit.source}]'s {_shape(shape)} {what.replace('excludes it', 'takes coarser rounding')}"


def cell_table(fit: Fit) -> Table:
    """Tabulate the cells: published counts, ours and log-likelihoods by arithmetic."""
    header = ("sweep", "value", "first product", "published", "our networks", *map(_short, fit.names), "left")
    rows = [
        (
            SWEEP_TITLES[cell.published.varied],
            f"{cell.published.x:,}",
            _shape(cell.shape),
            f"{cell.published.bifurcated}/{cell.published.runs}",
            str(cell.draws),
            *(f"{cell.ours[name]} ({cell.chances[name]:.1f})" for name in fit.names),
            listed([_short(name) for name in fit.left[cell.shape]]),
        )
        for cell in fit.cells
    ]
    title = f"[{fit.source}], float16: our networks in the zone, and the log-likelihood of the published count"
    return Table(header, rows, title, header[1:-1])


def total_table(found: Sequence[Fit]) -> Table:
    """Tabulate the log-likelihoods of the hypotheses."""
    rows = []
    for fit in found:
        rows += [
            (f"[{fit.source}]", f"{_short(name)} everywhere", f"{value:.1f}", "0") for name, value in fit.single.items()
        ]
        coarse = [name for name in fit.names if name != ONCE]
        rows += [
            (
                f"[{fit.source}]",
                f"rounding once or {_short(name)}, by shape",
                f"{fit.by_shape(ONCE, name):.1f}",
                f"{math.log(2) * len(fit.shapes):.1f}",
            )
            for name in coarse
        ]
        free = math.log(len(fit.names)) * len(fit.shapes)
        rows.append((f"[{fit.source}]", "any of them, by shape", f"{fit.by_shape():.1f}", f"{free:.1f}"))
    header = ("cells of", "arithmetic", "log-likelihood", "logarithm of the number of choices")
    return Table(header, rows, "Log-likelihoods of the published float16 counts", header[2:])


def _shape(shape: tuple[int, int]) -> str:
    return f"{shape[0]} x {shape[1]}"


def _short(name: str) -> str:
    """What sentences and headings call a rounding."""
    names = {ONCE: "rounding once", _E2: "E2's"}
    return names.get(name, name.removeprefix("(").removesuffix(")"))


def sentence(found: Sequence[Fit]) -> str:
    """Say what the float16 cells of each release leave."""
    if not found:
        return "No arithmetic was fitted to published float16 cells."
    return f"In float16, {'; '.join(_said(fit) for fit in found)}."


def _said(fit: Fit) -> str:
    odd = fit.unexplained
    still = f"; even by shape, {with_verb(len(odd), 'cell differs', 'cells differ')}" if odd else ""
    if not fit.by_shape_is_needed:
        near = [_short(name) for name, value in fit.single.items() if fit.single[fit.best] - value < TOLD]
        others = len(fit.names) - len(near)
        rest = f", and {with_verb(others, 'other rounding does', 'other roundings do')} not" if others else ""
        return (
            f"{listed(near)} in all cells {'explains' if len(near) == 1 else 'explain'} [{fit.source}]'s "
            f"{counted(len(fit.cells), 'cell')} as well as a choice by shape{rest}{still}"
        )
    once, coarse, both = fit.groups()
    parts = [f"rounding once at {_shapes(once)}"] * bool(once) + [f"coarser rounding at {_shapes(coarse)}"] * bool(coarse)
    parts += [f"either at {_shapes(both)}"] * bool(both)
    return (
        f"no single rounding explains [{fit.source}]'s {counted(len(fit.cells), 'cell')} (log-likelihood "
        f"{fit.single[fit.best]:.0f}, against {fit.by_shape():.0f} with one for each shape of the first product), which "
        f"take {listed(parts)}{still}"
    )


def _shapes(shapes: Sequence[tuple[int, int]]) -> str:
    return listed([_shape(shape) for shape in shapes])
