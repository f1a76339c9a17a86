"""The report on max pooling's ties: how many random networks change their gradient with the share of a tie, by dtype.

``python -m relucheck.reproduction.experiments.ties --out FILE`` writes it.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from relucheck import data
from relucheck.bifurcation.decide import ZoneDataError
from relucheck.errors import whole
from relucheck.networks.lenet import LENETS, LeNet, Order
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.devices import environment
from relucheck.numerics.dtypes import dtype_name
from relucheck.results.files import write_atomically
from relucheck.results.proportions import interval
from relucheck.results.tables import Table, listed
from relucheck.volume.ties import THRESHOLDS, decide, equal_in_float64

_DTYPES: Final = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclasses.dataclass(frozen=True)
class TieVolume:
    """Counts over draws of :class:`relucheck.networks.lenet.LeNet`, seeds 0 to ``draws - 1``.

    Attributes:
        dtype, order, draws: what was drawn.
        inside, nonfinite: draws whose two gradients differ on some mini-batch, and those where one is not finite.
        inside_different, nonfinite_different: the same if only ties between different inputs are shared.
        above: draws inside whose first difference is above [M24]'s threshold.
        windows, tied, matter: over the mini-batches up to the first that differs: pooling windows, those with a tie, those
            with a tie that no ReLU kills.
        windows_different, different: the same mini-batches of the second decision: windows, and those with a tie that
            matters between different inputs.
        float64_ties, float64_windows: of such ties in the first mini-batch, those that float64 has too, and all.
    """

    dtype: torch.dtype
    order: Order
    draws: int
    inside: int
    nonfinite: int
    inside_different: int
    nonfinite_different: int
    above: int
    windows: int
    tied: int
    matter: int
    windows_different: int
    different: int
    float64_ties: int
    float64_windows: int


def volume(inputs: Tensor, targets: Tensor, *, draws: int, order: Order = "relu-pool", batch_size: int = 256) -> TieVolume:
    """Decides ``draws`` networks in the dtype of ``inputs`` [n, 1, 28, 28], once with all ties and once with those between
    different inputs.

    Raises:
        ZoneDataError: for a number of draws below 1, and as :func:`relucheck.volume.ties.decide`.
    """
    whole("draws", draws, error=ZoneDataError)
    decisions, restricted, again, total = [], [], 0, 0
    for seed in range(draws):
        model = LENETS[order].draw(seed, Arithmetic(inputs.dtype))
        assert isinstance(model, LeNet)
        decisions.append(decide(model, inputs, targets, batch_size=batch_size, seed=seed))
        restricted.append(
            decide(model, inputs, targets, batch_size=batch_size, kind="different inputs", seed=seed),
        )
        if inputs.dtype != torch.float64:  # which cannot judge itself
            ties, windows = equal_in_float64(model, inputs[:batch_size])
            again, total = again + ties, total + windows
    return TieVolume(
        inputs.dtype,
        order,
        draws,
        inside=sum(decision.outcome == "bifurcate" for decision in decisions),
        nonfinite=sum(decision.outcome == "non-finite" for decision in decisions),
        inside_different=sum(decision.outcome == "bifurcate" for decision in restricted),
        nonfinite_different=sum(decision.outcome == "non-finite" for decision in restricted),
        above=sum(decision.distance > THRESHOLDS[inputs.dtype] for decision in decisions),
        windows=sum(decision.windows for decision in decisions),
        tied=sum(decision.tied for decision in decisions),
        matter=sum(decision.matter for decision in decisions),
        windows_different=sum(decision.windows for decision in restricted),
        different=sum(decision.matter for decision in restricted),
        float64_ties=again,
        float64_windows=total,
    )


def _share(count: int, draws: int) -> str:
    bounds = interval(count, draws)
    return f"{count} ({bounds.low:.3f} to {bounds.high:.3f})"


def table(volumes: Sequence[TieVolume]) -> Table:
    """A row for each volume."""
    numbers = (
        *("draws", "in the zone (95 %)", "above [M24]'s threshold", "in the zone by different inputs (95 %)"),
        *("ties / million windows", "that matter", "between different inputs", "of these, ties in float64 too"),
    )
    rows = []
    for row in volumes:
        million = 1e6 / row.windows
        again = f"{row.float64_ties:,} of {row.float64_windows:,}" if row.dtype != torch.float64 else "-"
        cells = (
            *(dtype_name(row.dtype), row.order, str(row.draws), _share(row.inside, row.draws), str(row.above)),
            *(_share(row.inside_different, row.draws), f"{row.tied * million:,.0f}", f"{row.matter * million:,.0f}"),
            *(f"{row.different * 1e6 / row.windows_different:,.2f}", again),
        )
        rows.append(cells)
    return Table(("dtype", "order", *numbers), rows, right=numbers)


def conclusion(volumes: Sequence[TieVolume]) -> tuple[str, str, str]:
    """Three sentences for a reader who reads nothing else, on the networks with a ReLU before each pooling."""
    own = [row for row in volumes if row.order == "relu-pool"]
    every = listed([f"{row.inside} of {row.draws} in {dtype_name(row.dtype)}" for row in own])
    different = listed([f"{row.inside_different} of {row.draws} in {dtype_name(row.dtype)}" for row in own])
    judged = [row for row in own if row.dtype != torch.float64 and row.float64_windows]
    again = listed([f"{row.float64_ties:,} of {row.float64_windows:,} ({dtype_name(row.dtype)})" for row in judged])
    return (
        "Sharing the gradient among tied maxima, instead of giving it to the first, changes it for some mini-batch of "
        f"these random networks: {every}.",
        f"With only ties between different inputs shared, it changes for {different}.",
        f"Of such ties in the first mini-batches, float64 keeps {again}; whether any tie matters over the reals is "
        "undecided."
        if judged
        else "No tie between different inputs was met in the first mini-batches; over the reals, all of it is undecided.",
    )


def report(volumes: Sequence[TieVolume], made: str) -> str:
    """The report as Markdown; ``made`` says how it was computed."""
    return _TEXT.format(conclusion=" ".join(conclusion(volumes)), table="\n".join(table(volumes).markdown()), made=made)


_TEXT: Final = """# Max pooling's ties: share of random networks in the zone (CPU, subset of MNIST)

{conclusion}

{table}

- in the zone: draws for which the native gradient (the first tied element takes all) and the minimal-norm gradient (equal
  shares) of some mini-batch differ in a bit, up to the sign of zero.
- above [M24]'s threshold: draws whose first difference is above the threshold of [M24], see below.
- by different inputs: the same decision with shares only where tied elements see different inputs.
- ties / million windows, that matter: pooling windows with a tie, and those with a tie that no ReLU removes.
- of these, ties in float64 too: ties between different inputs in the first mini-batch that float64 has from the same
weights.

## How to read it

- **Ties that matter.** A tie at zero or below never matters while ReLU'(0) = 0. A ReLU before the pooling has gradient zero
  at all tied elements, and a ReLU behind it gives the window an upstream gradient of zero. So the order of ReLU and pooling
  changes how many ties there are and nothing else: the ties that matter, both gradients and every decision are the same,
  bit for bit (tested). The order matters once ReLU'(0) is not 0.
- **Identical inputs.** Nearly all ties that matter are background: a channel with a positive bias over blank pixels. The
  tied elements are one function of the weights, so their largest is smooth, and over the reals both choices give one
  gradient. In floating point the sum of four quarters, met in another order, rounds differently than one whole. This alone
  puts draws in the zone in every dtype, float64 included, at differences of a few ulps of the sums. By [M24]'s words this
  is compensation: equal over the reals, different in floating point.
- **Different inputs.** The second decision shares the gradient only where tied elements see different inputs (different
  pixels and, for the second pooling, different values of the layer before in float64). Such ties follow the spacing of the
  dtype: most in bfloat16, fewer in float16, hardly any in float32. That float64 breaks most of them says that they come
  from rounding; it is no proof.
- No tie was shown to be a bifurcation over the reals. Those that float64 has too are undecided.

## Against [M24]

[M24] is Boustany 2024 (arXiv 2401.02736). Its released notebook `volume_estimation_by_architecture.ipynb` (VGG11, CIFAR-10,
batch 128, its own initialisation, one network, GPU) counts *mini-batches* whose sum over parameters of the largest gradient
difference is above a threshold: 391 of 391 at 16 bits (threshold 1e-3), 216 of 391 at 32 bits (1e-7), 0 of 391 at 64 bits
(1e-15). The notebook has no executed LeNet result, so the cells above have no published counterpart, and shares of draws
are not shares of mini-batches. The column "above [M24]'s threshold" applies the same threshold to the first mini-batch at
which a draw's gradients differ. The threshold, not the arithmetic, makes a published share of 0 at 64 bits possible: the
exact comparison finds the difference there too, at the level of the rounding of sums.

## How it was computed

- Network: `relucheck.networks.lenet.LeNet` (conv 1-6 5x5 padding 2, ReLU, pool 2, conv 6-16 5x5, ReLU, pool 2, 120, 84,
  10), PyTorch's default initialisation.
- {made}
- Limits: CPU only, a subset of MNIST, float16 convolutions by torch's CPU kernels. Counts of ties are over the mini-batches
  up to the first one that differs, which is mostly the first.
- `python -m relucheck.reproduction.experiments.ties --draws N --data ROOT --out FILE` writes this file.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report, or write it where ``--out`` says."""
    parser = argparse.ArgumentParser(prog="python -m relucheck.reproduction.experiments.ties", description=__doc__)
    parser.add_argument("--draws", type=int, default=30, help="networks for each dtype and order")
    parser.add_argument("--images", type=int, default=512, help="MNIST training images, in file order")
    parser.add_argument("--data", help="data root with MNIST (default: RELUCHECK_DATA)")
    parser.add_argument("--out", type=Path, help="file for the report (default: print it)")
    chosen = parser.parse_args(arguments)
    source = data.load("mnist", root=chosen.data)
    images, targets = source.images[: chosen.images], source.labels[: chosen.images]
    begun, volumes = time.process_time(), []
    for dtype in _DTYPES:
        inputs = data.scale(images, dtype, "image")
        volumes += [volume(inputs, targets, draws=chosen.draws, order=order) for order in LENETS]
    spent = time.process_time() - begun
    here = environment("cpu")
    made = (
        f"{chosen.draws} draws (seeds 0 to {chosen.draws - 1}), the first {len(images)} training images of MNIST, "
        f"mini-batches of 256 in file order, torch {here.torch} on {here.device}, {spent:.0f} s of CPU time."
    )
    text = report(volumes, made)
    if chosen.out is None:
        print(text, end="")
        return 0
    write_atomically(chosen.out, text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
