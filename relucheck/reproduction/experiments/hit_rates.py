"""The report on hit rates: validation runs, plans, tables, a figure.

``python -m relucheck.reproduction.experiments.hit_rates --out FOLDER`` writes it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from relucheck.data import load
from relucheck.errors import RelucheckError
from relucheck.hits import plans as hits_plans
from relucheck.hits.plans import Planned, PlannedNetwork
from relucheck.hits.rates import poisson_interval, probe
from relucheck.hits.validation import DEPTHS, WIDTHS, Agreement, ValidatedLayer, agreement, carry_out, resnet50_hits, runs
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.dtypes import dtype_name
from relucheck.results.figures import blank, save
from relucheck.results.files import write_atomically
from relucheck.results.tables import Table

#: Version of the JSON's layout.
SCHEMA: Final = 1


class ReportError(RelucheckError, ValueError):
    """A results file of another version, or none."""


# ---------------------------------------------------------------- tables


def agreement_table(cells: Sequence[ValidatedLayer]) -> Table:
    """Predicted / measured by arithmetic and data."""
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
        _number(all_of.expected),
        ratio,
        str(all_of.cells),
        str(all_of.informative),
        spread,
        str(all_of.testable),
        str(all_of.surprising),
    )


def shape_table(cells: Sequence[ValidatedLayer]) -> Table:
    """Hits and predicted / measured by width and depth, on grey images."""
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


def plan_table(planned: Sequence[Planned]) -> Table:
    """Expected hits per step: one row for each pair of formats and rounding."""
    header = ("network", "factors", "output", "rounding", "hits per million", "hits per step")
    rows = [(p.network, p.factors, p.output, p.kind, _number(p.per_million), _number(p.per_step)) for p in planned]
    return Table(header, rows, right=header[-2:])


def _number(value: float) -> str:
    return f"{value:,.0f}" if 100 <= value < 1e7 else f"{value:.3g}"


# ---------------------------------------------------------------- the runs


def networks() -> tuple[PlannedNetwork, ...]:
    """The networks that are planned for."""
    return hits_plans.resnet50(), hits_plans.relu_transformer(0.0), hits_plans.relu_transformer(0.05)


def plans() -> list[Planned]:
    """Every network in every rounding that differs for it."""
    return [hits_plans.plan(network, how) for network in networks() for how in hits_plans.roundings_of(network)]


def resnet_table() -> Table:
    """A ResNet-50's counted hits against what the plan says of the same arithmetic, by kind of activation."""
    header = ("dtype", "batch norm in", "activations", "count", "hits", "per million", "planned", "planned / measured")
    rows = []
    for dtype in (torch.bfloat16, torch.float16):
        for mixed, kind in ((True, "operator"), (False, "product")):
            counts = resnet50_hits(dtype, mixed=mixed)
            how = next(
                r for r in hits_plans.roundings() if r.kind == kind and r.factors.name == r.output.name == dtype_name(dtype)
            )
            for part in hits_plans.resnet50().parts:
                (hits, seen), rate = counts[part.kind], hits_plans.rate(part, how)
                rows.append(
                    (dtype_name(dtype), "float32" if mixed else dtype_name(dtype), part.name, f"{seen:,}", f"{hits:,}",
                     f"{1e6 * hits / seen:.4g}", f"{1e6 * rate:.3g}", f"{rate * seen / hits:.2f}" if hits else "-")
                )  # fmt: skip
    return Table(header, rows, right=header[3:])


def kernel_table() -> Table:
    """What :func:`relucheck.hits.rates.probe` finds of this machine's linear layers."""
    rows = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        found = [probe(Arithmetic(dtype), inputs, 64) for inputs in (784, 256, 64)]
        blocks = [", ".join(map(str, how.blocks)) for how in found]
        rows.append((dtype_name(dtype), found[0].accumulator.name, found[0].bias, *blocks))
    return Table(("dtype", "accumulates in", "bias", "blocks of K for K = 784", "K = 256", "K = 64"), rows)


def validation(root: str | None, tell: Callable[[str], None]) -> tuple[list[ValidatedLayer], float]:
    """All of :func:`relucheck.hits.validation.runs` on MNIST's training images, and the CPU seconds they took."""
    images = load("mnist", "train", root).scaled(torch.float32)
    begin = time.process_time()
    cells: list[ValidatedLayer] = []
    for run in runs():
        some = carry_out(run, images)
        cells += some
        both = agreement(some)
        tell(
            f"{some[0].arithmetic} {some[0].data} {run.depth} x {run.width}: {both.hits} hits, "
            f"{both.expected:.2f} predicted"
        )
    return cells, time.process_time() - begin


# ---------------------------------------------------------------- files


@dataclasses.dataclass(frozen=True)
class Results:
    """What hit_rates.json holds: the cells, the CPU seconds that they took, and a remark on how they came about."""

    cells: list[ValidatedLayer]
    seconds: float
    remark: str = ""

    def json(self) -> str:
        """The file's text."""
        cells = [dataclasses.asdict(cell) for cell in self.cells]
        return json.dumps({"schema": SCHEMA, "cpu_seconds": self.seconds, "remark": self.remark, "cells": cells}, indent=1)


def read_results(path: Path) -> Results:
    """The results of a file; it may lack the remark.

    Raises:
        ReportError: the file is of another version or no such file.
    """
    try:
        found: Any = json.loads(path.read_text())
        if found["schema"] != SCHEMA:
            raise ReportError(f"{path} has schema {found['schema']!r}, this version reads {SCHEMA}; run it again")
        remark = found.get("remark", "")
        if not isinstance(remark, str):
            raise ReportError(f"{path}: remark {remark!r} is no text; write it as a JSON string")
        return Results([ValidatedLayer(**cell) for cell in found["cells"]], float(found["cpu_seconds"]), remark)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ReportError):
            raise
        raise ReportError(f"{path} holds no results of hit rates: {error}; run without --cells") from error


def figure(cells: Sequence[ValidatedLayer]) -> Any:
    """Predicted against measured hits per million, a point a layer, with exact Poisson intervals."""
    canvas = blank(7.5, 6)
    axes = canvas.subplots()
    names = list(dict.fromkeys(cell.arithmetic for cell in cells if cell.hits))
    for index, name in enumerate(names):
        mine = [cell for cell in cells if cell.arithmetic == name and cell.hits]
        predicted = [1e6 * cell.expected / cell.activations for cell in mine]
        counted = [1e6 * cell.hits / cell.activations for cell in mine]
        ends = [poisson_interval(cell.hits) for cell in mine]
        errors = [
            [1e6 * (cell.hits - low) / cell.activations for cell, (low, _) in zip(mine, ends, strict=True)],
            [1e6 * (high - cell.hits) / cell.activations for cell, (_, high) in zip(mine, ends, strict=True)],
        ]
        axes.errorbar(predicted, counted, errors, fmt=".", color=f"C{index % 10}", label=name, elinewidth=0.7, alpha=0.8)
    line = [1e-3, 2e3]
    axes.plot(line, line, color="black", linewidth=0.8, label="predicted = measured")
    axes.set(
        xscale="log", yscale="log", xlabel="predicted hits per million activations",
        ylabel="measured hits per million activations", title="Hits at the kink of ReLU, by layer (layers with hits)",
    )  # fmt: skip
    axes.legend(fontsize=7)
    return canvas


def report(found: Results, planned: Sequence[Planned], resnet: Table) -> str:
    """The Markdown report."""
    cells = found.cells
    everything = agreement(cells)
    assumed = [f"- {n.name}: {n.step}, {n.activations:,} activations. Assumed: {n.assumptions}." for n in networks()]
    return _TEXT.format(
        agreement="\n".join(agreement_table(cells).markdown()),
        shapes="\n".join(shape_table(cells).markdown()),
        plans="\n".join(plan_table(planned).markdown()),
        resnet="\n".join(resnet.markdown()),
        kernels="\n".join(kernel_table().markdown()),
        assumed="\n".join(assumed),
        notes=_NOTES.strip(),
        headroom=f"{hits_plans.HEADROOM:g}",
        seconds=f"{found.seconds:,.0f}",
        torch=torch.__version__,
        cells=everything.cells,
        informative=everything.informative,
        spread=""
        if everything.median is None
        else f"{everything.median:.2f} ({everything.tenth:.2f} to {everything.ninetieth:.2f})",
        testable=everything.testable,
        surprising=f"{everything.surprising} ({everything.surprising / max(1, everything.testable):.0%})",
        remark=f"\n{textwrap.fill(found.remark, 120)}\n" if found.remark else "",
    )


_NOTES: Final = """
### Where the prediction is off, and why
- Counts are not Poisson in deep, narrow networks. Behind several layers of 16 units, a unit's pre-activations hardly
  vary between images, so a unit that is near 0 makes thousands of hits and most make none. On 100 other draws of 6 x
  16 (bfloat16, rounded product, 10,000 images) 51,890 hits were predicted and 49,005 counted, and the variance of
  counted less predicted was 1.0, 1.4, 1.4, 4, 11 and 320 times the mean in layers 1 to 6. So single cells there miss
  their Poisson interval while the sums agree.
- Means over units hide that a known bias either lies on the grid of a sum or does not. The prediction takes the mean
  over biases; few units make that visible as spread between draws.
- The window must be wider than the widths. With a window of the nearest 500 pairs (about the width itself in bfloat16
  with a rounded product, 256 units) predictions were 5 to 29 % too low; it now grows until it is twice the 99th
  percentile of widths.
- Factors of 2 significand bits make sums that are lumps on a coarse grid: there predictions are 20 % too high
  (tests/hits/test_rates.py, "exact products"), which matters for float8 only where both factors are that coarse.
- Rare arithmetics have few hits: in float32, native and tf32, and in float64 the check is weak or none; see the
  intervals.
- The order of products inside a block is taken as file order. bfloat16's dot-product instruction adds pairs, odd
  first: no difference was seen, as the last addition, that of the bias, decides.
"""

_TEXT: Final = """# Hit rates: predicted against measured, and planned

`python -m relucheck.reproduction.experiments.hit_rates --out reports/volume` writes this file, the figure and
`hit_rates.json` (torch {torch}, CPU, one thread; the validation took {seconds} s of CPU time). P(hit) = density of the
real pre-activation at 0 times the width of the set of real values that the arithmetic turns into 0; no
hit is counted to predict (`relucheck/hits/rates.py`).

## Validation
ReLU networks of PyTorch's default initialisation on MNIST's training images, 1, 3, 6 hidden layers of 16, 64, 256
units; a cell is one layer of one network in one arithmetic, pooled over its draws. {cells} cells. Over the
{informative} cells with at least 10 expected hits, predicted / measured has the median (10 to 90 %) {spread}. Of the
{testable} cells with at least 20 expected hits {surprising} have a count whose p-value under the prediction is below
0.05; a little under 5 % would be if counts were Poisson, and they are not quite: they cluster (below). "Predicted /
measured" is of the sums, its interval the hits' exact Poisson one.
{remark}
{agreement}

![predicted against measured](hit_rates.png)

By hidden layers x units, grey images, "hits: predicted / measured":

{shapes}

### What this CPU's linear layers do
Found by crafted inputs (`hit_rates.probe`): where the bias joins the sum, and how K is cut.

{kernels}

{notes}

## Plans
Hits at the kink 0 per training step. Assumptions:

{assumed}
- Float8 tensors carry a power-of-two scale that keeps {headroom} standard deviations finite.
- Rounding: *single*: all in float32, bias and residual addition included, rounded once. *operator*: each operator
  rounds once, batch norm keeps float32 statistics (autocast). *product*: also the product is rounded before the bias
  is added; batch norm's statistics are held in the output's format (`model.to(torch.bfloat16)`). *split-k*: also K is
  split in 4, whose sums are rounded and added in the output's format (hidden by batch norm, so not listed for
  ResNet-50).

{plans}

### The plan for ResNet-50, checked on what fits this machine
One forward in training mode, 4 images of noise at 224 x 224, PyTorch's default initialisation, CPU.

{resnet}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the validation (or reads it), plans, and writes hit_rates.md, hit_rates.png and hit_rates.json."""
    parser = argparse.ArgumentParser(
        prog="python -m relucheck.reproduction.experiments.hit_rates", description=main.__doc__
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the three files")
    parser.add_argument("--root", help="data root with MNIST (default: RELUCHECK_DATA)")
    parser.add_argument("--cells", type=Path, help="an earlier hit_rates.json, to write the report again without the runs")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.cells:
        found = read_results(given.cells)
    else:
        found = Results(*validation(given.root, lambda line: print(line, file=sys.stderr, flush=True)))
    write_atomically(given.out / "hit_rates.json", found.json() + "\n")
    save(figure(found.cells), given.out / "hit_rates.png")
    write_atomically(given.out / "hit_rates.md", report(found, plans(), resnet_table()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
