"""E4: the volume tables of both releases, as cells at three scales.

*full* has the published number of draws in every cell, in every arithmetic that a GPU offers; *cpu* has as many draws of
each cell as a quarter of an hour on two cores allows; *smoke* takes seconds on the shipped digits and proves the way from
cells to tables, not the figures.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from relucheck import data
from relucheck.hits.drawn import predicted_rate
from relucheck.networks.network import Network
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.devices import environment
from relucheck.numerics.dtypes import dtype_name
from relucheck.reproduction import TITLES
from relucheck.reproduction.published import ARITHMETICS, PublishedCell, cpu_draws, volume_cells
from relucheck.reproduction.report.volume.page import write
from relucheck.reproduction.report.volume.precision import pairs
from relucheck.reproduction.report.volume.summary import DTYPE_NAMES, NAME, Entry, Line, Report
from relucheck.reproduction.scenario import FITTED, Place, Reported, ScenarioError, check_scale, selected
from relucheck.results.progress import Progress
from relucheck.results.store import Store
from relucheck.volume import units as volume_units
from relucheck.volume.cell import IN_ORDER, REPLACED, Cell, Estimate
from relucheck.volume.compensation import splits as volume_splits
from relucheck.work import Unit, torch_threads

_BITS: Final[dict[str, int]] = {"float16": 16, "float32": 32, "float64": 64}


_NATIVE: Final = tuple(map(Arithmetic.parse, DTYPE_NAMES))
#: PyTorch's default and the strict arithmetic; in float32 and float64 they are one, and TF32 is what older defaults were.
_CUDA: Final = (*_NATIVE, *map(Arithmetic.parse, ("float16 strict", "bfloat16 strict", "float32 TF32")))
_ROUNDED: Final = Arithmetic.parse("float16 emulated (rounded)")
_TF32: Final = Arithmetic.parse("float32 emulated (tf32)")
#: Coarse roundings of float16: of every layer, and of the first layer only, as E2's published counts have it in bfloat16.
_COARSE: Final = (
    *map(Arithmetic.parse, ("float16 emulated (product)", "float16 emulated (split-k 4)", "bfloat16 emulated (product)")),
    Arithmetic(torch.float16, emulation=Arithmetic.parse(ARITHMETICS["E2"]).emulation),
)
#: The mini-batches of the sweeps by depth and width, whose cells have the seeds from 0 on.
_USUAL_BATCH: Final = 256
#: The first seeds of cells whose networks must differ are so far apart; no cell draws more networks.
_APART: Final = 1000


@functools.cache
def entries(scale: str) -> tuple[Entry, ...]:
    """List the lines of all tables of a scale, in the order of the tables.

    Raises:
        ScenarioError: for an unknown scale.
    """
    check_scale(scale)
    if scale == "smoke":
        return _smoke()
    every = [
        _entry(published, arithmetic, draws=published.runs)
        for published in _columns()
        for arithmetic in _arithmetics(scale)
    ]
    return tuple(every) if scale == "full" else tuple(entry for one in every if (entry := _with_cpu_draws(one)) is not None)


def cells(scale: str) -> tuple[Cell, ...]:
    """List the different cells of a scale, those with the most work first; sweeps share some."""
    different = {entry.cell.name: entry.cell for entry in entries(scale)}
    return tuple(sorted(different.values(), key=lambda cell: -cell.draws * cell.hidden_layers * cell.neurons))


def _with_cpu_draws(entry: Entry) -> Entry | None:
    """An entry with its draws at scale cpu, or None where that scale leaves it out."""
    cell = entry.cell
    key = cell.hidden_layers, cell.neurons, cell.batch_size, cell.sample_size, cell.arithmetic.name
    draws = cpu_draws().get(key)
    return None if draws is None else dataclasses.replace(entry, cell=dataclasses.replace(cell, draws=draws))


def _columns() -> Iterable[PublishedCell]:
    """One published cell for each source, sweep and value."""
    seen = {(cell.source, cell.varied, cell.x): cell for cell in reversed(volume_cells())}
    return reversed(seen.values())


def _arithmetics(scale: str) -> tuple[Arithmetic, ...]:
    """The arithmetics of a scale; at scale cpu, a cell is estimated in those for which it has draws."""
    return (*_CUDA, _ROUNDED, *_COARSE) if scale == "full" else (*_NATIVE, _ROUNDED, _TF32, *_COARSE)


def _first_seed(column: PublishedCell) -> int:
    """The seed of a cell's first network.

    The cells of the sweeps by batch size and sample size differ in the images alone. With the same seeds they would have
    the same networks, and nearly the same decisions, so each has networks of its own.
    """
    if column.batch_size == _USUAL_BATCH:
        return 0
    others = [
        (other.varied, other.x)
        for other in _columns()
        if other.source == column.source and other.batch_size != _USUAL_BATCH
    ]
    return _APART * (1 + others.index((column.varied, column.x)))


def _entry(column: PublishedCell, arithmetic: Arithmetic, **others: Any) -> Entry:
    bits = _BITS.get(dtype_name(arithmetic.dtype))
    keys = ("source", "varied", "hidden_layers", "neurons", "batch_size", "sample_size")
    same = (other for other in volume_cells() if all(getattr(other, key) == getattr(column, key) for key in keys))
    published = next((other for other in same if other.precision_bits == bits), None)
    drawn = column.varied == "sample_size"
    cell = Cell(
        network=Network("mlp", (column.neurons,) * column.hidden_layers),
        batch_size=column.batch_size,
        sample_size=column.sample_size if drawn else None,
        sample=REPLACED if drawn else IN_ORDER,
        arithmetic=arithmetic,
        first_seed=_first_seed(column),
        varied=column.varied,
        **others,
    )
    return Entry(column.source, column.varied, column.x, cell, published, published is not None and published.computed)


def _smoke() -> tuple[Entry, ...]:
    """Small cells of each kind on the shipped digits; none is tested against published figures."""
    chosen = {("hidden_layers", 1), ("hidden_layers", 3), ("neurons", 16), ("batch_size", 16), ("sample_size", 10_000)}
    small = []
    for column in _columns():
        if column.source != "R22" or (column.varied, column.x) not in chosen:
            continue
        for arithmetic in (*_NATIVE, _ROUNDED, _COARSE[2]):
            entry = _entry(column, arithmetic, draws=4, data="digits")
            size = 500 if column.varied == "sample_size" else None
            x = column.x if size is None else size
            published = entry.published if size is None else None
            cell = dataclasses.replace(entry.cell, sample_size=size)
            small.append(dataclasses.replace(entry, x=x, cell=cell, published=published, comparable=False))
    return tuple(small)


# ---------------------------------------------------------------- the scenario


class VolumeScenario:
    """The scenario E4, with a unit of work for each block of a cell's draws.

    Its folder has cells/ (a file each), splits/ (bifurcation against compensation), E4.json, E4.md and figures/.
    """

    name = NAME
    title = TITLES[NAME]
    source = "[B21] and [R22], volume tables"
    version = 2
    unit = "draws"
    trains = False
    shares: tuple[str, ...] = ()

    def parts(self, scale: str, only: Sequence[str] = ()) -> tuple[str, ...]:
        """The names of the cells."""
        if FITTED in only:
            raise ScenarioError(f"{NAME}: {FITTED} is for trainings; {NAME} has none, so leave it out")
        return selected(NAME, scale, {cell.name: cell.arithmetic.name for cell in cells(scale)}, only)

    def data_sets(self, scale: str, only: Sequence[str] = ()) -> tuple[tuple[str, str], ...]:
        """The training split of the cells' data."""
        chosen = set(self.parts(scale, only))
        return tuple((name, "train") for name in dict.fromkeys(c.data for c in cells(scale) if c.name in chosen))

    def units(self, place: Place, only: Sequence[str] = ()) -> tuple[Unit, ...]:
        """The blocks of draws that the folder lacks."""
        chosen = set(self.parts(place.scale, only))
        todo = [cell for cell in cells(place.scale) if cell.name in chosen]
        return volume_units.units(todo, place.folder / "cells", root=place.root, device=place.device)

    def adopt(self, place: Place, other: Path, only: Sequence[str] = ()) -> tuple[str, ...]:
        """Copy nothing, because E4 shares no cells with other scenarios."""
        return ()

    def report(self, place: Place, *, progress: bool = True) -> Reported:
        """Evaluate finished cells over the reals, and write E4.json, E4.md and the figures.

        Raises:
            relucheck.results.store.StoreError: for what cannot be written, and for a file of something else.
        """
        by_name = volume_units.collect(cells(place.scale), place.folder / "cells", root=place.root, so_far=True)
        lines = tuple(Line(entry, by_name[entry.cell.name]) for entry in entries(place.scale) if entry.cell.name in by_name)
        done = {name for name, one in by_name.items() if one.cell.name == name}  # the others have fewer draws so far
        missing = tuple(cell.name for cell in cells(place.scale) if cell.name not in done)
        page = place.folder / f"{NAME}.md"
        estimates = Report(place.scale, lines).estimates
        dataset = data.load(estimates[0].cell.data, "train", place.root, download=False)
        store = Store(place.folder / "splits")
        predicted = _predictions(estimates, dataset, Store(place.folder / "predictions"), place.device)
        report = Report(place.scale, lines, predicted)
        with Progress(len(estimates), f"{NAME}, over the reals", "cells", enabled=progress) as shown, torch_threads(1):
            splits = volume_splits(estimates, dataset=dataset, store=store, progress=shown.advance)
        terminal = write(report, place.folder, splits)
        return Reported(place.folder, page, missing, (), terminal, report)


#: The networks and the images from which hits are predicted, for each cell; the images are evenly spaced.
_PREDICTED_DRAWS, _PREDICTED_IMAGES, _PREDICTED_PAIRS = 8, 1000, 500


def _predictions(estimates: Sequence[Estimate], dataset: data.DataSet, store: Store, device: str) -> dict[str, float]:
    """The hits per million activations that the hit model expects, of the cells in native float32 and in TF32.

    The model knows a processor's own kernels and emulations. It knows no GPU's, so on a GPU there is no prediction.
    """
    if not device.startswith("cpu"):
        return {}
    rates = {}
    both = {one.cell.name: one for pair in pairs(estimates) for one in (pair.native, pair.tf32)}
    for name, one in both.items():
        cell = one.cell
        identity = {"cell": cell.deciding, "data": one.checksum, "draws": _PREDICTED_DRAWS, "images": _PREDICTED_IMAGES}
        stored = store.finished(f"rate-{name}", identity)
        if stored is None:
            inputs = dataset.scaled(cell.arithmetic.dtype)[:: max(1, len(dataset) // _PREDICTED_IMAGES)]
            seeds = range(cell.first_seed, cell.first_seed + _PREDICTED_DRAWS)
            with torch_threads(1):
                rate = predicted_rate(
                    *(cell.network, cell.arithmetic, inputs, seeds), pairs=_PREDICTED_PAIRS, batch_size=cell.batch_size
                )
            here = environment("cpu")
            origin = {"device": here.device, "torch": here.torch}
            store.finish(f"rate-{name}", identity, origin, {"per_million": rate})
            rates[name] = rate
        else:
            rates[name] = stored.result["per_million"]
    return rates


E4: Final = VolumeScenario()
