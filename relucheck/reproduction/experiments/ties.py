"""How many random networks lie in the zone of max pooling's ties, by dtype.

Run as ``python -m relucheck.reproduction.experiments.ties``.
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
from relucheck.results.tables import Table
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
    """One row per volume."""
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table, or writes it where ``--out`` says."""
    parser = argparse.ArgumentParser(prog="python -m relucheck.reproduction.experiments.ties", description=__doc__)
    parser.add_argument("--draws", type=int, default=30)
    parser.add_argument("--images", type=int, default=512, help="MNIST training images, in file order")
    parser.add_argument("--data", help="data root with MNIST (default: the environment variable RELUCHECK_DATA)")
    parser.add_argument("--out", type=Path, help="file for the table")
    chosen = parser.parse_args(arguments)
    source = data.load("mnist", root=chosen.data)
    images, targets = source.images[: chosen.images], source.labels[: chosen.images]
    begun, volumes = time.process_time(), []
    for dtype in _DTYPES:
        inputs = data.scale(images, dtype, "image")
        volumes += [volume(inputs, targets, draws=chosen.draws, order=order) for order in LENETS]
    spent = time.process_time() - begun
    here, lines = environment("cpu"), "\n".join(table(volumes).markdown())
    text = (
        f"{lines}\n\n{chosen.draws} draws (seeds 0 to {chosen.draws - 1}), the first {len(images)} training "
        f"images of MNIST, mini-batches of 256 in file order, torch {here.torch} on {here.device}, "
        f"{spent:.0f} s of CPU time.\n"
    )
    if chosen.out is None:
        print(text, end="")
        return 0
    write_atomically(chosen.out, text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
