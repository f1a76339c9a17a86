"""The report on hit rates: predictions beside counts, and plans for large networks.

``python -m relucheck.reproduction.experiments.hit_rates --out FOLDER`` writes it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from relucheck.data import load
from relucheck.hits import plans as hits_plans
from relucheck.hits.plans import Planned, PlannedNetwork
from relucheck.hits.rates import poisson_interval, probe
from relucheck.hits.validation import DEPTHS, WIDTHS, Agreement, ValidatedLayer, agreement, carry_out, resnet50_hits, runs
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.dtypes import dtype_name
from relucheck.reproduction.experiments.results_files import ReportError, reading
from relucheck.results.figures import blank, save
from relucheck.results.files import write_atomically
from relucheck.results.tables import Table, counted

#: Version of the JSON's layout.
SCHEMA: Final = 2


# ---------------------------------------------------------------- tables


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
        _number(all_of.expected),
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


def plan_table(planned: Sequence[Planned]) -> Table:
    """Tabulate the expected hits per step: one row for each pair of format and rounding."""
    header = ("network", "factors", "output", "rounding", "hits per million", "hits per step")
    rows = [(p.network, p.factors, p.output, p.kind, _number(p.per_million), _number(p.per_step)) for p in planned]
    return Table(header, rows, right=header[-2:])


def _number(value: float) -> str:
    return f"{value:,.0f}" if 100 <= value < 1e7 else f"{value:.3g}"


# ---------------------------------------------------------------- the runs


def networks() -> tuple[PlannedNetwork, ...]:
    """The networks for which hits are planned."""
    return hits_plans.resnet50(), hits_plans.relu_transformer(0.0), hits_plans.relu_transformer(0.05)


def plans() -> list[Planned]:
    """Plan the hits of every network in every rounding that makes a difference for it."""
    return [hits_plans.plan(network, how) for network in networks() for how in hits_plans.roundings_of(network)]


def resnet_rows() -> list[tuple[str, ...]]:
    """Count a ResNet-50's hits by kind of activation, beside the plan for the same arithmetic."""
    rows: list[tuple[str, ...]] = []
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
    return rows


def kernel_rows() -> list[tuple[str, ...]]:
    """Tabulate what :func:`relucheck.hits.rates.probe` returns for this machine's kernels."""
    rows: list[tuple[str, ...]] = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        probes = [probe(Arithmetic(dtype), inputs, 64) for inputs in (784, 256, 64)]
        blocks = [", ".join(map(str, how.blocks)) for how in probes]
        rows.append((dtype_name(dtype), probes[0].accumulator.name, probes[0].bias, *blocks))
    return rows


def validation(root: str | None, say: Callable[[str], None]) -> tuple[list[ValidatedLayer], float]:
    """Run the validation on MNIST's training images; return its layers and the CPU seconds."""
    images = load("mnist", "train", root).scaled(torch.float32)
    begin = time.process_time()
    cells: list[ValidatedLayer] = []
    for run in runs():
        some = carry_out(run, images)
        cells += some
        both = agreement(some)
        say(
            f"{some[0].arithmetic} {some[0].data} {run.depth} x {run.width}: {both.hits} hits, "
            f"{both.expected:.2f} predicted"
        )
    return cells, time.process_time() - begin


# ---------------------------------------------------------------- files


@dataclasses.dataclass(frozen=True)
class Results:
    """The data behind the report, as hit_rates.json holds it.

    Attributes:
        cells: the validation's layers.
        seconds: CPU time of the validation.
        torch: version that computed all of it.
        planned: expected hits of large networks.
        kernels, resnet: rows of :func:`kernel_rows` and :func:`resnet_rows`.
        remark: on how the cells came about.
    """

    cells: list[ValidatedLayer]
    seconds: float
    torch: str
    planned: list[Planned]
    kernels: list[tuple[str, ...]]
    resnet: list[tuple[str, ...]]
    remark: str = ""

    def json(self) -> str:
        """The file's text."""
        return json.dumps({"schema": SCHEMA, **dataclasses.asdict(self)}, indent=1)


def read_results(path: Path) -> Results:
    """Read the results from a file.

    Raises:
        ReportError: the file is of another version or no such file.
    """
    with reading(path, SCHEMA, "results of hit rates") as content:
        remark = content["remark"]
        if not isinstance(remark, str):
            raise ReportError(f"{path}: remark {remark!r} is not text; write it as a JSON string")
        return Results(
            [ValidatedLayer(**cell) for cell in content["cells"]],
            float(content["seconds"]),
            str(content["torch"]),
            [Planned(**plan) for plan in content["planned"]],
            [tuple(row) for row in content["kernels"]],
            [tuple(row) for row in content["resnet"]],
            remark,
        )


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


def conclusion(results: Results) -> tuple[str, str, str]:
    """Summarise the results in three sentences."""
    all_of = agreement(results.cells)
    if all_of.median is None:
        ratio = "No layer has 10 predicted hits, which is too few to test the prediction."
    else:
        ratio = (
            f"Over the {counted(all_of.informative, 'layer')} with at least 10 predicted hits, predicted / measured has "
            f"the median {all_of.median:.2f}, and 80 % of them lie between {all_of.tenth:.2f} and {all_of.ninetieth:.2f}."
        )
    if all_of.testable:
        share = all_of.surprising / all_of.testable
        exact = "where an exact prediction of Poisson counts would give about 5 %"
        tested = (
            f"Of the {counted(all_of.testable, 'layer')} with at least 20 predicted hits, {all_of.surprising} "
            f"({share:.0%}) have a count whose p-value under the prediction is below 0.05, {exact}."
        )
    else:
        tested = "No layer has 20 predicted hits, which is too few to test its count."
    return ratio, tested, _planned(results.planned)


def _planned(planned: Sequence[Planned]) -> str:
    """The least and the most hits a step that are planned for the first network."""
    if not planned:
        return "No network is planned for."
    ordered = sorted((one for one in planned if one.network == planned[0].network), key=lambda one: one.per_step)
    least, most = ordered[0], ordered[-1]
    return (
        f"By prediction alone, a training step of {least.network} meets between {_number(least.per_step)} hits "
        f"({least.output}, {least.kind}) and {_number(most.per_step)} ({most.output}, {most.kind}), by format and rounding."
    )


def report(results: Results) -> str:
    """Format the report as Markdown."""
    assumed = [f"- {n.name}: {n.step}, {n.activations:,} activations. Assumed: {n.assumptions}." for n in networks()]
    kernels = ("dtype", "accumulates in", "bias", "blocks of K for K = 784", "K = 256", "K = 64")
    resnet = ("dtype", "batch norm in", "activations", "count", "hits", "per million", "planned", "planned / measured")
    return _TEXT.format(
        conclusion=" ".join(conclusion(results)),
        agreement="\n".join(agreement_table(results.cells).markdown()),
        shapes="\n".join(shape_table(results.cells).markdown()),
        plans="\n".join(plan_table(results.planned).markdown()),
        resnet="\n".join(Table(resnet, results.resnet, right=resnet[3:]).markdown()),
        kernels="\n".join(Table(kernels, results.kernels).markdown()),
        assumed="\n".join(assumed),
        notes=_NOTES.strip(),
        headroom=f"{hits_plans.HEADROOM:g}",
        seconds=f"{results.seconds:,.0f}",
        torch=results.torch,
        cells=len(results.cells),
        remark=f"- {results.remark}\n" if results.remark else "",
    )


_NOTES: Final = """
- Counts are not Poisson in deep, narrow networks. Behind several layers of 16 units, the pre-activations of a unit hardly
  vary between images, so a unit near 0 makes thousands of hits and most units make none. On 100 other draws of 6 x 16
  (bfloat16, rounded product, 10,000 images) 51,890 hits were predicted and 49,005 counted. There the variance of counted
  less predicted was 1.0, 1.4, 1.4, 4, 11 and 320 times the mean in layers 1 to 6. So single cells miss their Poisson
  interval while the sums agree.
- The prediction takes the mean over biases. A single known bias either lies on the grid of a sum or does not; with few
  units that shows as spread between draws.
- The window of the density must be wider than the widths. With a window of the nearest 500 pairs, which is about the width
  in bfloat16 with a rounded product and 256 units, predictions were 5 to 29 % too low. It now grows until it is twice the
  99th percentile of widths.
- Factors of 2 significand bits give sums that lie in lumps on a coarse grid. There predictions are 20 % too high
  (tests/hits/test_rates.py, "exact products"). For float8 this matters only where both factors are that coarse.
- Rare hits test little: in float32, native and tf32, and in float64 the check is weak or none, as the intervals show.
- Products inside a block are taken in file order. bfloat16's dot-product instruction adds pairs, odd first. No difference
  was seen, because the last addition, that of the bias, decides.
"""

_TEXT: Final = """# Hit rates: predicted against measured on a CPU, and planned for large networks

{conclusion}

![predicted against measured](hit_rates.png)

## Validation

{agreement}

- images: MNIST's training images, grey or thresholded to 0 and 1.
- predicted: expected hits; no hit is counted to predict them.
- predicted / measured: of the sums over all layers, with the exact Poisson interval of the hits.
- cells: one cell is one layer of one network in one arithmetic, pooled over its draws.
- with 10 expected, with 20 expected: cells with at least so many predicted hits.
- median (10-90 %): of predicted / measured over the cells with 10 expected hits.
- of them p < 0.05: cells whose count has a p-value below 0.05 under a Poisson prediction.

By hidden layers x units, grey images, "hits: predicted / measured":

{shapes}

### The linear layers of the CPU that counted

{kernels}

- bias: whether it joins the sum first or last.
- blocks of K: how the sum over K inputs is cut. Crafted inputs show both (`relucheck.hits.rates.probe`).

## Plans: hits at the kink 0 per training step

{plans}

- *single*: all in float32, bias and residual addition included, rounded once.
- *operator*: each operator rounds once; batch norm keeps float32 statistics (autocast).
- *product*: the product, too, is rounded before the bias is added; batch norm's statistics are held in the output's format
  (`model.to(torch.bfloat16)`).
- *split-k*: K is also split in 4, and the partial sums are rounded and added in the output's format. Batch norm hides
  this, so it is not listed for ResNet-50.

### The plan for ResNet-50 against counted hits

{resnet}

One forward in training mode, 4 images of noise at 224 x 224, PyTorch's default initialisation, CPU.

### Assumptions

{assumed}
- Float8 tensors carry a power-of-two scale that keeps {headroom} standard deviations finite.

## Where the prediction is off, and why

{notes}

## How it was computed

- P(hit) = density of the real pre-activation at 0 times the width of the set of real values that the arithmetic turns into
  0 (`relucheck/hits/rates.py`).
- ReLU networks of PyTorch's default initialisation on MNIST's training images, 1, 3 and 6 hidden layers of 16, 64 and 256
  units: {cells} cells.
- torch {torch}, CPU, one thread; the validation took {seconds} s of CPU time.
{remark}- `python -m relucheck.reproduction.experiments.hit_rates --out FOLDER` computes all of it and writes this file, the
  figure and `hit_rates.json`. With `--cells hit_rates.json` it writes the report again without computing.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compute hit rates or read earlier ones, and write the report, its figure and its data."""
    parser = argparse.ArgumentParser(
        prog="python -m relucheck.reproduction.experiments.hit_rates", description=main.__doc__
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the three files")
    parser.add_argument("--root", help="data root with MNIST (default: RELUCHECK_DATA)")
    parser.add_argument("--cells", type=Path, help="an earlier hit_rates.json: write the report again without computing")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.cells:
        results = read_results(given.cells)
    else:
        cells, seconds = validation(given.root, lambda line: print(line, file=sys.stderr, flush=True))
        results = Results(cells, seconds, torch.__version__, plans(), kernel_rows(), resnet_rows())
    write_atomically(given.out / "hit_rates.json", results.json() + "\n")
    save(figure(results.cells), given.out / "hit_rates.png")
    write_atomically(given.out / "hit_rates.md", report(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
