"""E4: the volume tables of both releases, as frozen data at three scales, and running them into a folder.

The scales: *full* has the published number of draws in every cell, in every arithmetic that a GPU offers; *cpu* takes
less than fifteen minutes on two cores (795 s were measured), with as many draws for each cell as a cost model finds best
spent; *smoke* takes seconds on the shipped digits and proves the way from cells to tables, not the figures.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from relucheck import data
from relucheck.numerics.devices import best_device, environment
from relucheck.numerics.environment import cores
from relucheck.reproduction.published import PublishedCell, volume_cells
from relucheck.reproduction.report.volume_tables import write
from relucheck.reproduction.report.volumes import NAME, Entry, Line, Report
from relucheck.results.store import Store
from relucheck.volume.cell import IN_ORDER, REPLACED, Cell, VolumeError
from relucheck.volume.compensation import Split, splits
from relucheck.volume.estimate import estimate, kept, kept_device
from relucheck.volume.workers import Listener, Step, compute, one_thread

SCALES: Final[tuple[str, ...]] = ("full", "cpu", "smoke")
#: Training images of MNIST.
_ALL: Final = 60_000
_BITS: Final[dict[str, int]] = {"float16": 16, "float32": 32, "float64": 64}


Fields = dict[str, Any]

_NATIVE: Final[tuple[Fields, ...]] = tuple({"dtype": name} for name in ("float16", "bfloat16", "float32", "float64"))
#: PyTorch's default and the strict arithmetic; in float32 and float64 they are one, and TF32 is what older defaults were.
_CUDA: Final[tuple[Fields, ...]] = (
    *_NATIVE,
    *({"dtype": name, "strict": True} for name in ("float16", "bfloat16")),
    {"dtype": "float32", "tf32": True},
)
_ROUNDED: Final[Fields] = {"dtype": "float16", "emulation": "rounded"}
_TF32: Final[Fields] = {"dtype": "float32", "emulation": "tf32"}
_COARSE: Final[tuple[Fields, ...]] = (
    {"dtype": "float16", "emulation": "product"},
    {"dtype": "float16", "emulation": "split-k 4"},
    {"dtype": "bfloat16", "emulation": "product"},
)


@functools.cache
def entries(scale: str) -> tuple[Entry, ...]:
    """Every line of every table of a scale, in the order of the tables.

    Raises:
        VolumeError: for an unknown scale.
    """
    if scale not in SCALES:
        raise VolumeError(f"{NAME}: unknown scale {scale!r}; use one of {', '.join(SCALES)}")
    if scale == "smoke":
        return _smoke()
    made = [
        _entry(published, {**fields, "draws": published.runs})
        for published in _columns()
        for fields in _arithmetics(scale, published)
    ]
    return tuple(made if scale == "full" else _affordable(made))


def cells(scale: str) -> tuple[Cell, ...]:
    """The different cells of a scale (sweeps share some), the most expensive ones first."""
    different = {entry.cell.name: entry.cell for entry in entries(scale)}
    return tuple(sorted(different.values(), key=lambda cell: -cell.draws * seconds(cell)))


def _columns() -> Iterable[PublishedCell]:
    """One published cell for each source, sweep and value."""
    seen = {(cell.source, cell.varied, cell.x): cell for cell in reversed(volume_cells())}
    return reversed(seen.values())


def _arithmetics(scale: str, published: PublishedCell) -> tuple[Fields, ...]:
    shape = published.varied in ("hidden_layers", "neurons")
    if scale == "full":
        return (*_CUDA, _ROUNDED, *(_COARSE if shape else ()))
    # where native float16 is slow and every network bifurcates in it, rounding stands in; a few anchors see the rest
    wide = published.neurons > 256 or (published.source == "B21" and published.varied == "batch_size")
    native = tuple(fields for fields in _NATIVE if not (wide and fields["dtype"] == "float16"))
    tf32 = (_TF32,) if published.source == "B21" and shape else ()
    anchor = (published.source, published.varied) in (("B21", "hidden_layers"), ("R22", "neurons"))
    return (*native, _ROUNDED, *tf32, *(_COARSE if anchor else ()))


def _entry(column: PublishedCell, fields: Fields) -> Entry:
    bits = _BITS.get(fields["dtype"])
    keys = ("source", "varied", "hidden_layers", "neurons", "batch_size", "sample_size")
    same = (other for other in volume_cells() if all(getattr(other, key) == getattr(column, key) for key in keys))
    published = next((other for other in same if other.precision_bits == bits), None)
    drawn = column.varied == "sample_size"
    cell = Cell(
        hidden_layers=column.hidden_layers,
        neurons=column.neurons,
        batch_size=column.batch_size,
        sample_size=column.sample_size if drawn else None,
        sample=REPLACED if drawn else IN_ORDER,
        varied=column.varied,
        **fields,
    )
    return Entry(column.source, column.varied, column.x, cell, published, published is not None and published.computed)


def _smoke() -> tuple[Entry, ...]:
    """Small cells of each kind on the shipped digits: other data, so that nothing is tested against published figures."""
    chosen = {("hidden_layers", 1), ("hidden_layers", 3), ("neurons", 16), ("batch_size", 16), ("sample_size", 10_000)}
    made = []
    for column in _columns():
        if column.source != "R22" or (column.varied, column.x) not in chosen:
            continue
        for fields in (*_NATIVE, _ROUNDED, _COARSE[-1]):
            entry = _entry(column, {**fields, "draws": 4, "data": "digits"})
            size = 500 if column.varied == "sample_size" else None
            x = column.x if size is None else size
            published = entry.published if size is None else None
            cell = dataclasses.replace(entry.cell, sample_size=size)
            made.append(dataclasses.replace(entry, x=x, cell=cell, published=published, comparable=False))
    return tuple(made)


# ---------------------------------------------------------------- what a CPU affords

#: Modelled seconds of one thread that the cpu scale spends, over both processes. Measured on two cores: 1,406 s of
#: computing in 795 s by the clock, splits and figures included; 15 minutes are allowed, which a busy machine may exceed.
_BUDGET: Final = 1500.0
_FEWEST: Final = 10
#: How much a cell's precision matters: float32 is where the publications and this machine can differ.
_IMPORTANCE: Final[dict[str, float]] = {
    "float32": 3.0,
    "float32 emulated (tf32)": 2.5,  # the default of the GPUs and PyTorch versions of 2021
    "float16": 1.5,
    "float16 emulated (product)": 4.0,  # cheap, and what [R22]'s float16 is compared with
    "float16 emulated (split-k 4)": 4.0,
    "float64": 0.5,
}
#: One pass over MNIST, one thread of an AVX-512 server core: seconds of its own, per mini-batch, and FLOP per second.
_COSTS: Final[dict[str, tuple[float, float, float]]] = {
    "float16": (0.07, 40e-6, 8e9),
    "bfloat16": (0.08, 70e-6, 125e9),
    "float32": (0.05, 20e-6, 50e9),
    "float64": (0.05, 30e-6, 36e9),
    "float16 emulated (rounded)": (0.05, 20e-6, 40e9),
    "float32 emulated (tf32)": (0.10, 70e-6, 28e9),
}
_OTHERS: Final = (0.3, 20e-6, 30e9)
#: Hits per million activations at 32 neurons, and the power of the width with which they grow (on such a CPU).
_RATES: Final[dict[str, tuple[float, float]]] = {
    "float16": (0.10, 0.7),
    "bfloat16": (0.02, 0.4),
    "float32": (0.007, 0.2),
    "float64": (0.0, 0.0),
    "float16 emulated (rounded)": (0.10, 0.7),
    "float32 emulated (tf32)": (0.02, 0.4),
}
_COARSE_RATE: Final = (50.0, 0.2)
_CELL: Final = 0.8  # seconds of a cell whatever its draws: scaling the images, proving what may be fused
_DRAWING: Final = (0.01, 100e6)  # seconds to draw a network, and parameters drawn a second


def seconds(cell: Cell) -> float:
    """Modelled seconds of one thread for one draw: of the pass over the data, as far as the first hit is away.

    Hits are modelled as a Poisson process along the pass: with h of them anticipated, (1 - exp(-h)) / h of a pass is looked
    at on average.
    """
    own, per_batch, speed = _COSTS.get(cell.arithmetic, _OTHERS)
    images = cell.sample_size or _ALL
    weights = 784 * cell.neurons + (cell.hidden_layers - 1) * cell.neurons**2 + 10 * cell.neurons
    whole = own * images / _ALL + per_batch * images / cell.batch_size + 2 * weights * images / speed
    hits = _hits(cell)
    return whole * (1 - math.exp(-hits)) / hits + _DRAWING[0] + weights / _DRAWING[1]


def _hits(cell: Cell) -> float:
    """Anticipated hits of a pass: activations times the rate that was measured in such an arithmetic."""
    rate, growth = _RATES.get(cell.arithmetic, _COARSE_RATE)
    activations = (cell.sample_size or _ALL) * cell.neurons * cell.hidden_layers
    return max(1e-3, 1e-6 * rate * (cell.neurons / 32) ** growth * activations)


def _affordable(made: Sequence[Entry]) -> list[Entry]:
    """The entries with as many draws as the budget allows.

    The sum of the intervals' squared lengths, weighted by importance, is least where the draws of a cell go as the root of
    variance over cost. Never more than were published, never fewer than 10.
    """
    different = {entry.cell.name: entry.cell for entry in made}
    weights = {}
    for name, cell in different.items():
        share = min(0.95, max(0.05, -math.expm1(-_hits(cell))))
        weights[name] = _IMPORTANCE.get(cell.arithmetic, 1.0) * math.sqrt(share * (1 - share) / seconds(cell))

    def plan(scale: float) -> dict[str, int]:
        return {
            name: max(_FEWEST, min(cell.draws, 5 * round(scale * weights[name] / 5))) for name, cell in different.items()
        }

    def cost(draws: dict[str, int]) -> float:
        return sum(_CELL + count * seconds(different[name]) for name, count in draws.items())

    low, high = 0.0, 1e5
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(plan(middle)) <= _BUDGET else (low, middle)
    draws = plan(low)
    return [
        dataclasses.replace(entry, cell=dataclasses.replace(entry.cell, draws=draws[entry.cell.name])) for entry in made
    ]


# ---------------------------------------------------------------- running


def reproduce(
    scale: str,
    folder: Path | str,
    *,
    root: data.Root = None,
    device: str | None = None,
    processes: int | None = None,
    listen: Listener | None = None,
) -> Report:
    """Computes every cell of a scale that ``folder`` does not hold yet, and collects all of them.

    Args:
        scale: one of :data:`SCALES`.
        folder: for the cells' files; made if need be.
        root: data root; nothing is downloaded.
        device: None is CUDA where there is one, else the CPU.
        processes: None is 2 for the cpu scale on a machine with two cores or more, else 1.
        listen: is told of every step.

    Raises:
        VolumeError: unknown scale.
        relucheck.results.store.StoreError: an unwritable folder, or a file in it that belongs to something else.
        relucheck.data.DataError: the data are not there.
    """
    begun = time.perf_counter()
    place = best_device() if device is None else device
    todo = cells(scale)
    store = Store(folder)
    dataset = data.load(todo[0].data, "train", root, download=False)
    if processes is None:
        processes = min(2, cores()) if scale == "cpu" and place == "cpu" else 1
    compute(todo, store.folder, root=root, device=place, processes=processes, listen=listen)
    with one_thread(place):
        found = {cell.name: estimate(cell, dataset=dataset, device=place, store=store) for cell in todo}
        where = kept_device(environment(place))
    lines = tuple(Line(entry, found[entry.cell.name]) for entry in entries(scale))
    return Report(scale, lines, time.perf_counter() - begun, where)


def run(
    scale: str,
    folder: Path | str,
    root: data.Root = None,
    device: str | None = None,
    progress: bool = True,
) -> str:
    """Runs E4 into a folder and returns its tables as text: cells/ (one JSON each), E4.json, E4.md and figures/.

    For ``relucheck reproduce E4``; errors are those of :func:`reproduce`.
    """
    folder = Path(folder)
    todo = cells(scale)
    total, done = sum(cell.draws for cell in todo), _done(todo, folder / "cells")
    earlier = _earlier_wall_s(folder, scale) if done == total else None
    if not progress:
        report = reproduce(scale, folder / "cells", root=root, device=device)
        found = _split(report, folder, root)
    else:
        from relucheck.results.progress import Progress

        with Progress(total, NAME, "draws", done=done) as shown:
            listener = _listener(shown.advance, shown.line, len(todo))
            report = reproduce(scale, folder / "cells", root=root, device=device, listen=listener)
        with Progress(len(report.estimates), f"{NAME}, over the reals", "cells") as shown:
            found = _split(report, folder, root, shown.advance)
    if earlier is not None:
        report = dataclasses.replace(report, wall_s=earlier)
    return write(report, folder, found)


def _done(todo: Sequence[Cell], folder: Path) -> int:
    """Draws that an earlier sitting has decided."""
    store = Store(folder)
    return sum(kept(cell, store) for cell in todo)


def _earlier_wall_s(folder: Path, scale: str) -> float | None:
    """Seconds that an earlier report states: they stay where this run only reads cells."""
    try:
        content = json.loads((folder / f"{NAME}.json").read_text(encoding="utf-8"))
        return float(content["wall_s"]) if content["scale"] == scale else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no report of ours: it is written anew


def _split(report: Report, folder: Path, root: data.Root, progress: Callable[[], None] | None = None) -> dict[str, Split]:
    """Bifurcation against compensation for each cell, by its name; finished cells are not looked at again."""
    estimates = report.estimates
    dataset = data.load(estimates[0].cell.data, "train", root, download=False)
    return splits(estimates, dataset=dataset, store=Store(folder / "splits"), progress=progress)


def _listener(advance: Callable[..., None], line: Callable[[str], None], count: int) -> Listener:
    finished = 0

    def listen(step: Step) -> None:
        nonlocal finished
        if step.note:
            line(f"{step.cell.name}: {step.note}")
        elif step.finished:
            finished += 1
            line(f"cell {finished}/{count}: {step.cell.name}")
        else:
            cell = step.cell
            advance(step.draws, f"cell {finished + 1}/{count}: {cell.hidden_layers}x{cell.neurons} {cell.arithmetic}")

    return listen
