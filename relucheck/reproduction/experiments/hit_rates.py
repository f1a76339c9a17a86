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
from relucheck.hits import states as hits_states
from relucheck.hits import trained as hits_trained
from relucheck.hits.architectures import relu_transformer, resnet50
from relucheck.hits.plans import Planned, PlannedNetwork
from relucheck.hits.rates import probe
from relucheck.hits.states import State
from relucheck.hits.trained import Measured, trainings
from relucheck.hits.validation import ValidatedLayer, agreement, carry_out, resnet50_hits, runs
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.dtypes import dtype_name
from relucheck.reproduction.experiments.results_files import ReportError, reading
from relucheck.reproduction.report import rates
from relucheck.results.figures import save
from relucheck.results.files import write_atomically
from relucheck.results.tables import Table, counted

#: Version of the JSON's layout.
SCHEMA: Final = 3


# ---------------------------------------------------------------- the runs


def networks() -> tuple[PlannedNetwork, ...]:
    """The networks for which hits are planned from assumptions."""
    return resnet50(), relu_transformer(0.0), relu_transformer(0.05)


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
            for part in resnet50().parts:
                (hits, seen), chance = counts[part.kind], hits_plans.rate(part, how).value
                rows.append(
                    (dtype_name(dtype), "float32" if mixed else dtype_name(dtype), part.name, f"{seen:,}", f"{hits:,}",
                     f"{1e6 * hits / seen:.4g}", f"{1e6 * chance:.3g}", rates.ratio(chance * seen, hits))
                )  # fmt: skip
    return rows


def measured(root: str | None, say: Callable[[str], None]) -> list[Measured]:
    """Train the networks whose states are planned with."""
    images = load("mnist", "train", root)
    found = []
    for training in trainings():
        for one in hits_trained.carry_out(training, images.scaled(torch.float32), images.labels):
            found.append(one)
            say(f"{one.name}, seed {one.seed}, after {one.after} steps: {one.hits} hits, {one.planned:.0f} planned")
    return found


def trained_plans(found: Sequence[Measured]) -> list[Planned]:
    """Plan the large networks with the states of a training at each step."""
    mlp, residual = trainings()
    planned_networks = []
    for training, network in ((residual, resnet50()), (mlp, relu_transformer(0.0))):
        for after in training.after:
            states = [one.states for one in found if (one.name, one.after) == (training.name, after)]
            name = network.name.removesuffix(" (at initialisation: biases 0)")
            as_trained = dataclasses.replace(network, name=f"{name}, as {training.name} after {after:,} steps")
            ways = [how for how in hits_plans.roundings_of(network) if how.factors == how.output and how.output.bits >= 8]
            planned_networks += [hits_states.plan(as_trained, how, states) for how in ways]
    return planned_networks


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
        torch: version that computed the validation.
        planned: expected hits of large networks, from assumptions.
        measured: states along trainings.
        trained: expected hits of large networks with these states.
        planned_by: version of torch that computed the plans and the states.
        kernels, resnet: rows of :func:`kernel_rows` and :func:`resnet_rows`.
        remark: on how the cells came about.
    """

    cells: list[ValidatedLayer]
    seconds: float
    torch: str
    planned: list[Planned]
    measured: list[Measured]
    trained: list[Planned]
    kernels: list[tuple[str, ...]]
    resnet: list[tuple[str, ...]]
    planned_by: str
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
            [_measured(one) for one in content["measured"]],
            [Planned(**plan) for plan in content["trained"]],
            [tuple(row) for row in content["kernels"]],
            [tuple(row) for row in content["resnet"]],
            str(content["planned_by"]),
            remark,
        )


def _measured(content: dict[str, Any]) -> Measured:
    """Read a measurement from JSON, where tuples are lists."""
    lists = ("offsets", "sizes")
    states = (State(**{**one, **{name: tuple(one[name]) for name in lists}}) for one in content["states"])
    return Measured(**{**content, "states": tuple(states)})


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
    return ratio, tested, rates.plans_sentence(results.planned, results.trained)


def report(results: Results) -> str:
    """Format the report as Markdown."""
    assumed = [f"- {n.name}: {n.step}, {n.activations:,} activations. Assumed: {n.assumptions}." for n in networks()]
    kernels = ("dtype", "accumulates in", "bias", "blocks of K for K = 784", "K = 256", "K = 64")
    resnet = ("dtype", "batch norm in", "activations", "count", "hits", "per million", "planned", "planned / measured")
    return _TEXT.format(
        conclusion=" ".join(conclusion(results)),
        agreement="\n".join(rates.agreement_table(results.cells).markdown()),
        shapes="\n".join(rates.shape_table(results.cells).markdown()),
        plans="\n".join(rates.plan_table(results.planned).markdown()),
        trained="\n".join(rates.plan_table(results.trained).markdown()),
        states="\n".join(rates.state_table(results.measured).markdown()),
        checked=rates.states_sentence(results.measured),
        resnet="\n".join(Table(resnet, results.resnet, right=resnet[3:]).markdown()),
        kernels="\n".join(Table(kernels, results.kernels).markdown()),
        assumed="\n".join(assumed),
        notes=_NOTES.strip(),
        headroom=f"{hits_plans.HEADROOM:g}",
        seconds=f"{results.seconds:,.0f}",
        torch=results.torch,
        planned_by=results.planned_by,
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
- Biases near 0 have fewer bits than their format, because PyTorch's uniform numbers of float32 have 24 bits. Predictions
  that took all bits for random were too low where the bias is added last to a sum on a coarse grid: by 15 % for TF32 with
  256 units. Now the prediction takes the coarsest grid on which all biases of a layer lie.
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

- ±: two standard errors of the computation, as a part of the number. What the assumptions are wrong by is not in it.
- *single*: all in float32, bias and residual addition included, rounded once.
- *operator*: each operator rounds once; batch norm keeps float32 statistics (autocast).
- *product*: the product, too, is rounded before the bias is added; batch norm's statistics are held in the output's format
  (`model.to(torch.bfloat16)`).
- *split-k*: K is also split in 4, and the partial sums are rounded and added in the output's format. Batch norm hides
  this, so it is not listed for ResNet-50.

### Trained networks

{checked}

{trained}

- ±: the half-width of the 95 % interval over the networks that were trained, as a part of the number.
- Assumed: the pre-activations of the large network are those of the small one, in proportion: their density at 0, and the
  sizes of the terms that cancel there. ResNet-50 takes those of the 20-layer residual network behind batch norm and in
  residual sums; the transformer takes the densities and the biases, relative to the sums, of the MLP's layers.

The states that these plans use:

{states}

- density at 0: of linear layers, relative to a Gaussian's with the same standard deviation; of batch norm (alone, or where
  the other summand is 0), per unit; of sums, the part of pre-activations within a sixteenth of the terms that cancel.
- cancelling terms: the median size of what cancels near 0, over the standard deviation of the pre-activations.
- planned, counted: hits in bfloat16 at the same weights, of linear layers (product rounded before the bias) and of residual
  sums.

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
- The validation ran with torch {torch}, on a CPU with one thread, and took {seconds} s of CPU time. Plans and states were
  computed with torch {planned_by}. E2's and E5's networks were trained in float32 with Adam, three seeds each.
{remark}- `python -m relucheck.reproduction.experiments.hit_rates --out FOLDER` computes all of it and writes this file, the
  figure and `hit_rates.json`. With `--cells hit_rates.json` it writes the report again without computing;
  with `--plan` besides, it computes the plans anew.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compute hit rates or read earlier ones, and write the report, its figure and its data."""
    parser = argparse.ArgumentParser(
        prog="python -m relucheck.reproduction.experiments.hit_rates", description=main.__doc__
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the three files")
    parser.add_argument("--root", help="data root with MNIST (default: RELUCHECK_DATA)")
    parser.add_argument("--cells", type=Path, help="an earlier hit_rates.json: write the report again without computing")
    parser.add_argument("--plan", action="store_true", help="with --cells: compute the plans anew")
    given = parser.parse_args(arguments)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    torch.set_num_threads(1)
    if given.cells:
        results = read_results(given.cells)
    else:
        cells, seconds = validation(given.root, say)
        results = Results(cells, seconds, torch.__version__, [], [], [], kernel_rows(), resnet_rows(), "")
    if given.plan or not given.cells:
        found = measured(given.root, say)
        results = dataclasses.replace(
            results, planned=plans(), measured=found, trained=trained_plans(found), planned_by=torch.__version__
        )
    write_atomically(given.out / "hit_rates.json", results.json() + "\n")
    save(rates.figure(results.cells), given.out / "hit_rates.png")
    write_atomically(given.out / "hit_rates.md", report(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
