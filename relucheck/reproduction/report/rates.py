"""The tables, the figure and the sentences of the report on hit rates and plans."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, Final

from relucheck.hits.plans import Planned
from relucheck.hits.rates import poisson_interval
from relucheck.hits.states import State
from relucheck.hits.trained import Measured
from relucheck.hits.validation import DEPTHS, WIDTHS, Agreement, ValidatedLayer, agreement
from relucheck.results.figures import blank
from relucheck.results.tables import Table, counted, listed


def agreement_table(cells: Sequence[ValidatedLayer]) -> Table:
    """Tabulate predicted / measured hits by arithmetic and kind of images."""
    header = (
        *("arithmetic", "images", "activations", "hits", "per million", "predicted", "predicted / measured (95 %)"),
        *("cells", "with 10 expected", "median (10-90 %)", "with 20 expected", "of them p < 0.05"),
    )
    rows = []
    for name, data in dict.fromkeys((cell.arithmetic, cell.data) for cell in cells):
        mine = [cell for cell in cells if (cell.arithmetic, cell.data) == (name, data)]
        all_of = agreement(mine)
        rows.append((name, data, *_agreement_row(all_of)))
    return Table(header, rows, right=header[2:])


def _agreement_row(all_of: Agreement) -> tuple[str, ...]:
    ratio = "-" if all_of.ratio is None else f"{all_of.ratio:.3f} ({all_of.low:.3f}-{all_of.high:.3f})"
    spread = "-" if all_of.median is None else f"{all_of.median:.3f} ({all_of.tenth:.3f}-{all_of.ninetieth:.3f})"
    return (
        f"{all_of.activations:,}",
        f"{all_of.hits:,}",
        f"{1e6 * all_of.hits / all_of.activations:.3g}",
        number(all_of.expected),
        ratio,
        str(all_of.cells),
        str(all_of.informative),
        spread,
        str(all_of.testable),
        str(all_of.surprising),
    )


def shape_table(cells: Sequence[ValidatedLayer]) -> Table:
    """Tabulate hits and predicted / measured hits by width and depth, on grey images."""
    shapes = [(width, depth) for width in WIDTHS for depth in DEPTHS]
    rows = []
    for name in dict.fromkeys(cell.arithmetic for cell in cells):
        row = [name]
        for shape in shapes:
            mine = [c for c in cells if (c.arithmetic, c.data, c.width, c.depth) == (name, "grey", *shape)]
            both = agreement(mine) if mine else None
            row.append(
                "-" if both is None else f"{both.hits:,}: {'-' if both.ratio is None else format(both.ratio, '.2f')}"
            )
        rows.append(row)
    return Table(("arithmetic", *(f"{depth} x {width}" for width, depth in shapes)), rows)


def figure(cells: Sequence[ValidatedLayer]) -> Any:
    """Plot predicted against measured hits per million, with exact Poisson intervals."""
    canvas = blank(7.5, 6)
    axes = canvas.subplots()
    names = list(dict.fromkeys(cell.arithmetic for cell in cells if cell.hits))
    for index, name in enumerate(names):
        mine = [cell for cell in cells if cell.arithmetic == name and cell.hits]
        predicted = [1e6 * cell.expected / cell.activations for cell in mine]
        measured = [1e6 * cell.hits / cell.activations for cell in mine]
        ends = [poisson_interval(cell.hits) for cell in mine]
        errors = [
            [1e6 * (cell.hits - low) / cell.activations for cell, (low, _) in zip(mine, ends, strict=True)],
            [1e6 * (high - cell.hits) / cell.activations for cell, (_, high) in zip(mine, ends, strict=True)],
        ]
        axes.errorbar(predicted, measured, errors, fmt=".", color=f"C{index % 10}", label=name, elinewidth=0.7, alpha=0.8)
    line = [1e-3, 2e3]
    axes.plot(line, line, color="black", linewidth=0.8, label="predicted = measured")
    axes.set(
        xscale="log", yscale="log", xlabel="predicted hits per million activations",
        ylabel="measured hits per million activations", title="Hits at the kink of ReLU, by layer (layers with hits)",
    )  # fmt: skip
    axes.legend(fontsize=7)
    return canvas


# ---------------------------------------------------------------- plans


_STATE: Final = ", as "  # between a network and the training whose states it takes


def number(value: float) -> str:
    """A number in a table: whole if it has three to seven digits, else three significant ones."""
    return f"{value:,.0f}" if 100 <= value < 1e7 else f"{value:.3g}"


def ratio(planned: float, hits: int) -> str:
    """Planned divided by counted hits; "-" without hits."""
    return f"{planned / hits:.2f}" if hits else "-"


def plan_table(planned: Sequence[Planned]) -> Table:
    """Tabulate the expected hits per step with their errors, by format and rounding."""
    header = ("network", "factors", "output", "rounding", "hits per million", "hits per step", "±")
    rows = [(p.network, p.factors, p.output, p.kind, number(p.per_million), number(p.per_step), _error(p)) for p in planned]
    return Table(header, rows, right=header[-3:])


def _error(one: Planned) -> str:
    return "0" if one.error == 0 else "<0.1 %" if one.error < 1e-3 else f"{100 * one.error:.1f} %"


def state_table(measured: Sequence[Measured]) -> Table:
    """Tabulate the states of trainings, and planned beside counted hits."""
    header = (
        "training",
        "after",
        "seed",
        "states",
        "density at 0",
        "cancelling terms",
        "planned",
        "counted",
        "planned / counted",
    )
    rows = []
    for one in measured:
        for index, state in enumerate(one.states):
            hits = (number(one.planned), f"{one.hits:,}", ratio(one.planned, one.hits)) if index == 0 else ("", "", "")
            name = f"layer {index + 1}" if state.kind == "linear" else state.kind
            rows.append((one.name, f"{one.after:,} steps", str(one.seed), name, _densities(state), _terms(state), *hits))
    return Table(header, rows, right=header[2:3] + header[4:])


def _densities(state: State) -> str:
    parts = [f"{state.density:.3f}"] * bool(state.offsets) + [f"{100 * state.near:.2f} % of sums"] * bool(state.sizes)
    return ", ".join(parts)


def _terms(state: State) -> str:
    return ", ".join(f"{statistics.median(sizes) / state.spread:.3f}" for sizes in (state.offsets, state.sizes) if sizes)


def states_sentence(measured: Sequence[Measured]) -> str:
    """Say how well states plan the hits of their own networks."""
    known = [one.planned / one.hits for one in measured if one.hits]
    if not known:
        return "No hit was counted beside a state."
    return (
        f"Planned from their own states, the networks' hits are {min(known):.2f} to {max(known):.2f} times the counted "
        f"ones, in {counted(len(known), 'state')} with {sum(one.hits for one in measured):,} hits."
    )


def plans_sentence(planned: Sequence[Planned], trained: Sequence[Planned]) -> str:
    """Say what is planned for the first network, at initialisation and trained."""
    if not planned:
        return "No network is planned for."
    first = planned[0].network
    ordered = sorted((one for one in planned if one.network == first), key=lambda one: one.per_step)
    least, most = ordered[0], ordered[-1]
    said = (
        f"By prediction alone, a training step of {first} meets between {number(least.per_step)} hits "
        f"({least.output}, {least.kind}) and {number(most.per_step)} ({most.output}, {most.kind}), by format and rounding"
    )
    changes = []
    for name in dict.fromkeys(one.network.partition(_STATE)[0] for one in trained):
        mine = [one for one in trained if one.network.partition(_STATE)[0] == name]
        start, end = ([one for one in mine if one.network == mine[at].network] for at in (0, -1))
        pairs = zip(start, end, strict=True)  # each state has the same roundings in the same order
        factors = sorted(late.per_step / early.per_step for early, late in pairs if early.per_step)
        changes += [f"{factors[0]:.2g} to {factors[-1]:.2g} for {name}"] * bool(factors)
    if not changes:
        return f"{said}."
    return f"{said}; from random to trained pre-activations, hits change by the factors {listed(changes)}."
