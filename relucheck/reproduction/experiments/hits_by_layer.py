"""The report on predicted and counted hits behind batch norm and residual sums.

``python -m relucheck.reproduction.experiments.hits_by_layer --out FOLDER`` writes it.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import operator
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from relucheck.data import load
from relucheck.hits.normed import Expected, Forecast, forecast, fuses
from relucheck.hits.rates import poisson_interval
from relucheck.networks.mobilenet import MOBILENET_V3_SMALL
from relucheck.networks.network import Network
from relucheck.networks.resnets import RESNET_20
from relucheck.networks.sites import RESIDUAL_SUM, Site
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.reproduction.experiments.results_files import reading
from relucheck.results.files import write_atomically
from relucheck.results.tables import Table, counted

#: Version of the JSON's layout.
SCHEMA: Final = 1
_BATCH: Final = 128
#: Predicted hits from which on a layer is compared.
LEAST: Final = 10
#: A prediction is close if it is within this factor of the count.
FACTOR: Final = 2.0


@dataclasses.dataclass(frozen=True)
class Run:
    """One network that is trained for a few steps.

    Attributes:
        name: what it is, in words.
        network: its description.
        arithmetic: in which it trains.
        seeds: one network is drawn and trained for each.
        after: numbers of steps after which hits are predicted and counted.
        batches: the number of mini-batches for that, each in one forward.
    """

    name: str
    network: Network
    arithmetic: str
    seeds: tuple[int, ...]
    after: tuple[int, ...]
    batches: int


@dataclasses.dataclass(frozen=True)
class Cell:
    """The hits of one site at one kink after some steps, pooled over seeds and mini-batches.

    Attributes:
        run: the name of the run.
        arithmetic: its arithmetic.
        after: the number of steps.
        forecast: predicted and counted hits.
    """

    run: str
    arithmetic: str
    after: int
    forecast: Forecast


_ROUNDED: Final = "bfloat16 emulated (rounded)"
_AFTER: Final = (0, 13, 50)
_PUBLISHED: Final = "20 layers, 3x3 convolutions on all skips"


def runs() -> tuple[Run, ...]:
    """The networks of E5 and E6, on MNIST, with Adam."""
    published = Network("resnet-convolved-skips", RESNET_20, batch_norm=True)
    usual = dataclasses.replace(published, kind="resnet")
    mobile = Network("mobilenet-v3-small", MOBILENET_V3_SMALL, activation="relu6", batch_norm=True)
    return (
        Run(_PUBLISHED, published, _ROUNDED, (0, 1, 2), _AFTER, 1),
        Run("20 layers, identity skips", usual, _ROUNDED, (0,), _AFTER, 1),
        Run(_PUBLISHED, published, "float32", (0,), _AFTER, 20),
        Run("MobileNetV3-small, ReLU6", mobile, _ROUNDED, (0,), _AFTER, 10),
    )


def carry_out(run: Run, images: Tensor, labels: Tensor) -> list[Cell]:
    """Train the networks of a run, and predict and count their hits.

    Args:
        run: what to do.
        images: float32 [n, channels, height, width]. Mini-batches are taken in order, and the first follows the last.
        labels: [n].
    """
    arithmetic, found = Arithmetic.parse(run.arithmetic), dict[tuple[int, int], Forecast]()
    images = images.to(arithmetic.dtype)

    def batches(start: int) -> Iterator[tuple[Tensor, Tensor]]:
        many = len(images) // _BATCH
        for number in range(start, start + run.after[-1] + run.batches):
            rows = slice(number % many * _BATCH, (number % many + 1) * _BATCH)
            yield images[rows], labels[rows]

    for seed in run.seeds:
        model = run.network.draw(seed, arithmetic, drawn=torch.float32).train()
        optimiser = torch.optim.Adam(model.parameters(), 1e-3, fused=False)
        for step, (x, y) in enumerate(batches(0)):
            if step in run.after:
                for _, (inputs, _) in zip(range(run.batches), batches(step), strict=False):
                    for index, one in enumerate(forecast(model, inputs)):
                        before = found.get((step, index))
                        found[step, index] = one if before is None else before + one
            if step == run.after[-1]:
                break
            optimiser.zero_grad()
            F.cross_entropy(model(x).float(), y).backward()
            optimiser.step()
    return [Cell(run.name, run.arithmetic, step, one) for (step, _), one in found.items()]


# ---------------------------------------------------------------- tables


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def ratio(expected: float, hits: int) -> str:
    """Predicted divided by counted hits, with the exact Poisson interval of the count.

    "-" without hits.
    """
    if not hits:
        return "-"
    low, high = poisson_interval(hits)
    return f"{expected / hits:.2f} ({expected / high:.2f}-{expected / low:.2f})"


def _named(cell: Cell) -> tuple[str, str]:
    return cell.run, cell.arithmetic


def pooled(cells: Sequence[Cell]) -> Forecast:
    """The sum of the predicted and counted hits of cells with a prediction."""
    return functools.reduce(operator.add, (cell.forecast for cell in cells))


def by_source_table(cells: Sequence[Cell]) -> Table:
    """Tabulate predicted and counted hits by network, what is before the activation, and kink."""
    header = ("network", "arithmetic", "before", "kink", "layers", "pre-activations", "hits", "predicted", "ratio (95 %)")
    rows = []
    for key, mine in _groups(cells, lambda c: (*_named(c), c.forecast.site.before, c.forecast.kink)).items():
        whole = pooled(mine)
        numbers = (f"{len({c.forecast.site.module for c in mine})}", f"{whole.activations:,}", f"{whole.hits:,}")
        predicted = ("not predicted", "-")
        if whole.expected is not None:
            predicted = (_number(whole.expected.hits), ratio(whole.expected.hits, whole.hits))
        rows.append((*map(str, key[:3]), f"{key[3]:g}", *numbers, *predicted))
    return Table(header, rows, right=header[3:])


def by_layer_table(cells: Sequence[Cell]) -> Table:
    """Tabulate predicted and counted hits of the residual sums, by network, layer and step."""
    header = ("layer", "after", "hits", "predicted", "ratio", "of repeated pairs", "predicted of them", "ratio of the rest",
              "ratio if independent")  # fmt: skip
    rows = []
    for cell in cells:
        one = cell.forecast
        if one.expected is not None and one.expected.independent is not None:
            rest = (one.expected.hits - one.expected.repeated, one.hits - one.repeated)
            rows.append(
                (one.site.module, f"{cell.after} steps", f"{one.hits:,}", _number(one.expected.hits),
                 _plain(one.expected.hits, one.hits), f"{one.repeated:,}", _number(one.expected.repeated), _plain(*rest),
                 _plain(one.expected.independent, one.hits))
            )  # fmt: skip
    return Table(header, rows, right=header[2:])


def _plain(expected: float, hits: int) -> str:
    return f"{expected / hits:.2f}" if hits else "-"


def _groups(cells: Sequence[Cell], key: Callable[[Cell], Any]) -> dict[Any, list[Cell]]:
    found: dict[Any, list[Cell]] = {}
    for cell in cells:
        found.setdefault(key(cell), []).append(cell)
    return found


# ---------------------------------------------------------------- the report


@dataclasses.dataclass(frozen=True)
class Results:
    """The data behind the report, as hits.json holds it.

    Attributes:
        cells: predicted and counted hits.
        fused: whether the processor's batch norm adds products that are not rounded.
        seconds: CPU time.
        torch: version that computed all of it.
    """

    cells: list[Cell]
    fused: bool
    seconds: float
    torch: str

    def json(self) -> str:
        """The file's text."""
        return json.dumps({"schema": SCHEMA, **dataclasses.asdict(self)}, indent=1)


def read_results(path: Path) -> Results:
    """Read the results from a file.

    Raises:
        ReportError: the file is of another version or no such file.
    """
    with reading(path, SCHEMA, "hits by layer") as content:
        cells = [Cell(**{**cell, "forecast": _forecast(cell["forecast"])}) for cell in content["cells"]]
        return Results(cells, bool(content["fused"]), float(content["seconds"]), str(content["torch"]))


def _forecast(content: Mapping[str, Any]) -> Forecast:
    site = Site(**{**content["site"], "kinks": tuple(content["site"]["kinks"])})
    expected = content["expected"] and Expected(**content["expected"])
    return Forecast(**{**content, "site": site, "expected": expected})


def compared(cells: Sequence[Cell]) -> list[tuple[Cell, bool, bool]]:
    """The cells with at least ``LEAST`` predicted hits, and whether they are close.

    Each comes with whether its prediction is close, and whether that of the rest is. The rest are the hits that are not due
    to repeated pairs.
    """
    found = []
    for cell in cells:
        one = cell.forecast
        if one.expected is not None and one.expected.hits >= LEAST:
            rest = (one.expected.hits - one.expected.repeated, one.hits - one.repeated)
            found.append((cell, _close(one.expected.hits, one.hits), _close(*rest)))
    return found


def _close(expected: float, hits: int) -> bool:
    return hits / FACTOR <= expected <= hits * FACTOR


def conclusion(results: Results) -> list[str]:
    """Summarise the results in sentences."""
    judged = compared(results.cells)
    sums = [one for one in judged if one[0].forecast.site.before == RESIDUAL_SUM]
    far = [cell for cell, close, _ in sums if not close]
    said = [
        f"{len(sums) - len(far)} of {counted(len(sums), 'residual sum')} with at least {LEAST} predicted hits have a "
        f"prediction within a factor of {FACTOR:g} of the count. Each is one layer after a number of steps."
    ]
    if far:
        names = ", ".join(f"{c.forecast.site.module} after {c.after} steps ({c.run})" for c in far)
        closer = sum(rest for _, close, rest in sums if not close)
        said.append(
            f"Not so close: {names}. There, many elements of a channel share one pair of summands, because the border of "
            "the images is blank. They are hits together or not at all. Without these pairs, "
            f"{closer} of the {len(far)} predictions {'is' if closer == 1 else 'are'} within that factor."
        )
    norms = [cell for cell in results.cells if cell.forecast.site.before == "batch norm" and cell.forecast.kink == 0]
    if norms:
        whole = pooled(norms)
        expected = "-" if whole.expected is None else _number(whole.expected.hits)
        said.append(
            f"Behind batch norm, {counted(whole.hits, 'hit')} at 0 among {whole.activations:,} pre-activations "
            f"{'was' if whole.hits == 1 else 'were'} counted and {expected} predicted."
        )
    return said


def report(results: Results) -> str:
    """Format the report as Markdown."""
    lines = ["# Hits behind batch norm and residual sums: predicted against counted", "", " ".join(conclusion(results)), ""]
    lines += ["## By what computes the pre-activation", "", *by_source_table(results.cells).markdown(), "", _NOTES, ""]
    lines += ["## Residual sums by layer", ""]
    for (name, arithmetic), cells in _groups(results.cells, _named).items():
        table = by_layer_table(cells)
        if table.rows and any(cell.forecast.hits >= LEAST for cell in cells):
            lines += [f"### {name}, {arithmetic}", "", *table.markdown(), ""]
    how = "does not round" if results.fused else "rounds"
    return "\n".join([*lines, _TEXT.format(how=how, seconds=f"{results.seconds:,.0f}", torch=results.torch)])


_NOTES: Final = """\
- predicted: no hit is counted to predict it.
- ratio: predicted divided by counted hits, with the exact Poisson interval of the count. Hits cluster, so the true interval
  is wider.
- not predicted: convolutions and linear layers, for which these rules do not hold. Those that are rounded once have hits at
  0 as rarely as those of [hit rates](../volume/hit_rates.md)."""

_TEXT: Final = """\
- repeated pairs: pairs of summands that more than 1 % of a channel's elements share, and hits due to them. The border of a
  digit is blank, so in the first blocks many elements of a channel are one number. If its summands cancel, thousands of
  hits appear at once. If not, there are none. So the prediction for these pairs can be far off in one network.
- ratio of the rest: the same without repeated pairs.
- ratio if independent: predicted from the distributions of the two summands alone. It is wrong where the summands depend on
  each other.

## How it was computed

- Residual sums: P(hit) = density of the sum at 0, relative to the size of the summands, times the spacing of the dtype
  (`relucheck/hits/normed.py`).
- Batch norm at 0: the density of its output at 0 times the spacing of float32 at the offset of the channel. This
  processor's batch norm {how} the product before it adds the offset, which a probe shows.
- Batch norm at another kink: the density there times the spacing of the dtype there, for example 1/32 for bfloat16 at 6.
- MNIST's training images in file order, mini-batches of 128, Adam. After 0, 13 and 50 steps the next mini-batches are
  passed forward in training mode.
- torch {torch}, CPU, one thread, {seconds} s of CPU time.
- `python -m relucheck.reproduction.experiments.hits_by_layer --out FOLDER` computes all of it and writes this file and
  `hits.json`. With `--cells hits.json` it writes the report again without computing.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict and count hits by layer or read earlier ones, and write the report and its data."""
    parser = argparse.ArgumentParser(
        prog="python -m relucheck.reproduction.experiments.hits_by_layer", description=main.__doc__
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the two files")
    parser.add_argument("--root", help="data root with MNIST (default: RELUCHECK_DATA)")
    parser.add_argument("--cells", type=Path, help="an earlier hits.json: write the report again without computing")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.cells:
        results = read_results(given.cells)
    else:
        split, begin, cells = load("mnist", "train", given.root), time.process_time(), list[Cell]()
        images = split.scaled(torch.float32)[:10_240].view(-1, 1, 28, 28)
        for run in runs():
            cells += carry_out(run, images, split.labels)
            print(f"{run.name}, {run.arithmetic}: {time.process_time() - begin:.0f} s", file=sys.stderr, flush=True)
        results = Results(cells, fuses(), time.process_time() - begin, torch.__version__)
    write_atomically(given.out / "hits.json", results.json() + "\n")
    write_atomically(given.out / "hits.md", report(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
