"""E7's own sections: what pairs of draws and the response surface say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from relucheck.reproduction.report.pairs.differences import POWER, Effect, effects, groups
from relucheck.reproduction.report.pairs.figures import pairs_figure, surface_figure
from relucheck.reproduction.report.pairs.surface import Surface, surfaces
from relucheck.reproduction.report.pairs.tables import (
    DRAW_LEGEND,
    EFFECT_LEGEND,
    SURFACE_LEGEND,
    WIDE,
    effect_table,
    pair_tables,
    surface_table,
)
from relucheck.reproduction.report.summary import Reproduction, Section
from relucheck.reproduction.report.tables import difference_text
from relucheck.results.figures import save
from relucheck.results.tables import counted

_NAMED: Final = {"injected": "the injected rule of the published code", "chain": "the chain rule"}


def sections(made: Reproduction) -> tuple[Section, ...]:
    """The sections on pairs, on the surface, and on every draw.

    There are only those with a finished and valid comparison.
    """
    pairs, grids = groups(made.runs), surfaces(made.runs)
    found = effects(pairs)
    shown = []
    if found:
        data = [one.as_dict() for one in found]
        tables = (effect_table(found),)
        shown.append(Section("Pairs", tuple(_pair_sentences(found)), tables, EFFECT_LEGEND, WIDE, data))
    if grids:
        data = [one.as_dict() for one in grids]
        wide = ("seeds", "verdict", "nudges")
        title, said = "Response surface", tuple(_surface_sentences(grids))
        shown.append(Section(title, said, (surface_table(grids),), SURFACE_LEGEND, wide, data))
    if pairs:
        shown.append(Section("Every draw", (), tuple(pair_tables(pairs)), DRAW_LEGEND, on_terminal=False))
    return tuple(shown)


def _pair_sentences(found: Sequence[Effect]) -> list[str]:
    """A sentence or two for each network, arithmetic and rule."""
    said = []
    for one in found:
        pairs = _of_pairs(one)
        head = f"{one.part.removesuffix(', pairs')}, {one.arithmetic}, under {_NAMED[one.rule]}"
        if one.found.identical and not one.found.lost:
            said.append(f"{head}: tuned subgradients change no bit of any run in {pairs}.")
            continue
        if one.found.difference.mean is None:
            said.append(f"{head}: undecided, because a run of every pair that differs diverged.")
            continue
        beyond = one.beyond.paired
        nudges = (
            f", and by {difference_text(beyond)} more than a change of one bit does ({beyond.verdict})" if beyond.n else ""
        )
        power = (
            f"; without correction, so many such pairs show a true difference of {one.shown:.2f} points with a "
            f"probability of {100 * POWER:g} %"
            if one.shown is not None
            else ""
        )
        lost = f", {one.found.lost} more lost to a diverged run" if one.found.lost else ""
        said.append(
            f"{head}: tuned subgradients change a bit of the run in {one.departed} of {pairs}. There they change the "
            f"validation accuracy by {difference_text(one.found)} points ({one.found.verdict}{lost}){nudges}{power}."
        )
    return said


def _of_pairs(one: Effect) -> str:
    """The number of pairs behind an effect, and what became of the others."""
    left = one.planned - one.pairs - one.void
    others = [f"{one.void} more void"] * bool(one.void) + [f"{left} more not run yet"] * bool(left)
    return counted(one.pairs, "pair") + (f" ({', '.join(others)})" if others else "")


def _surface_sentences(found: Sequence[Surface]) -> list[str]:
    said = []
    for one in found:
        head = f"Over the grid of (alpha, beta), {one.part.removesuffix(', response surface')}, {one.arithmetic}"
        for rule, grid in one.differences.items():
            mean = one.means[rule]
            if mean.identical:
                said.append(f"{head}, under {_NAMED[rule]}: no subgradient changes a bit of any run.")
                continue
            runs = len(one.runs(rule))
            outside = (
                f"; {one.outside(rule)} of the {counted(runs, 'run')} that differ between its {len(grid)} points "
                f"{'lies' if one.outside(rule) == 1 else 'lie'} outside of what nudges do in the same seeds, and about "
                f"{one.by_chance(rule):.0f} would if subgradients did only what nudges do"
                if one.nudges and runs
                else ""
            )
            said.append(
                f"{head}, under {_NAMED[rule]}: the validation accuracy differs from that of (0, 0) by "
                f"{difference_text(mean)} points on average ({mean.verdict}; {counted(one.seeds, 'seed')}){outside}."
            )
    return said


def draw(made: Reproduction, folder: Path) -> list[Path]:
    """Draw the pairs and the surfaces; return the paths."""
    written = []
    pairs, grids = groups(made.runs), surfaces(made.runs)
    for name, figure in (
        ("pairs", pairs_figure(pairs) if pairs else None),
        ("surface", surface_figure(grids) if grids else None),
    ):
        if figure is not None:
            save(figure, folder / f"{name}.png")
            written.append(folder / f"{name}.png")
    return written
