"""The report on explained networks: why one network per dtype bifurcates, on a mini-batch of MNIST.

Written by

    RELUCHECK_DATA=ROOT python -m relucheck.reproduction.experiments.explained reports/volume/explained.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relucheck import data
from relucheck.bifurcation.decide import decide
from relucheck.bifurcation.explain import explain
from relucheck.bifurcation.explanation import Explanation
from relucheck.errors import ModelError
from relucheck.networks.mlp import MLP
from relucheck.networks.network import Network
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.devices import environment
from relucheck.numerics.dtypes import DTYPES, dtype_name
from relucheck.results.files import write_atomically
from relucheck.results.tables import counted, listed
from relucheck.volume.engine import Engine

_BATCH: Final = 256
_SEEDS: Final = 200  # draws to try
#: In the middle of every sweep of the published volume tables.
NETWORK: Final = Network("mlp", (256, 256, 256))


def shifted(dtype: torch.dtype, inputs: Tensor, seed: int = 0) -> MLP:
    """The network of a seed, with one bias moved so that a unit of its first layer is 0 for one sample, but for rounding.

    float64 draws hardly ever bifurcate by themselves. The bias is minus the product of weights and sample as a forward
    computes it. Unit and sample have one number, the first of 256 for which a forward computes the sum of the two as 0.

    Args:
        dtype: of the network.
        inputs: float [n, 784] in that dtype, at least 256 samples.
        seed: of the draw.

    Raises:
        ModelError: no such bias makes a hit on this machine.
    """
    model = NETWORK.draw(seed, Arithmetic(dtype))
    assert isinstance(model, MLP)
    layer = model.layers[1]
    assert isinstance(layer, nn.Linear)
    x = inputs[:_BATCH]
    with torch.no_grad():
        biases = -F.linear(x, layer.weight, torch.zeros_like(layer.bias)).diagonal()
        units = (F.linear(x, layer.weight, biases).diagonal() == 0).nonzero().squeeze(1)
        if not len(units):
            raise ModelError("shifted: no bias gives a hit in this arithmetic; try another seed")
        layer.bias[units[0]] = biases[units[0]]
    return model


def _example(dtype: torch.dtype, images: data.DataSet) -> tuple[str, Explanation]:
    """The command that explains a dtype's network, and what it prints."""
    inputs, targets = images.scaled(dtype), images.labels
    model: nn.Module
    if dtype == torch.float64:
        model, batch = shifted(dtype, inputs), 0
        making = "model = shifted(torch.float64, x)  # relucheck.reproduction.experiments.explained"
    else:
        decisions = Engine(NETWORK, Arithmetic(dtype), inputs, targets, batch_size=_BATCH).decide(range(_SEEDS))
        decision = next(decision for decision in decisions if decision.outcome == "bifurcate")
        assert decision.seed is not None
        assert decision.batch is not None
        model, batch = NETWORK.draw(decision.seed, Arithmetic(dtype)), decision.batch
        making = f'model = NETWORK.draw({decision.seed}, Arithmetic.parse("{dtype_name(dtype)}"))'
    part = slice(batch * _BATCH, (batch + 1) * _BATCH)
    x, y = inputs[part], targets[part]
    command = (
        f'mnist = data.load("mnist")\nx, y = mnist.scaled("{dtype_name(dtype)}")[{part.start}:{part.stop}], '
        f"mnist.labels[{part.start}:{part.stop}]\n{making}\nprint(explain(model, x, y))"
    )
    assert decide(model, x, y).outcome == "bifurcate"
    return command, explain(model, x, y)


def conclusion(explained: Mapping[str, Explanation]) -> tuple[str, str, str]:
    """Three sentences for a reader who reads nothing else; explanations of bifurcating networks by dtype."""
    zones: dict[str, list[str]] = {}
    for name, one in explained.items():
        zones.setdefault(_ZONES.get(one.zone or "", "not evaluated over the reals"), []).append(name)
    hits = [f"{counted(one.comparison.hit_count, 'hit')} in {name}" for name, one in explained.items()]
    reasons: dict[str, list[str]] = {}
    for name, one in explained.items():
        for reason in dict.fromkeys(reason for _, reason in one.reasons):
            reasons.setdefault(reason, []).append(name)
    zone = "; ".join(f"{what} in {listed(names)}" for what, names in zones.items())
    why = "; ".join(f"{reason} in {listed(names)}" for reason, names in reasons.items())
    return (
        f"The gradients of backprop_0 and backprop_1 of each network here differ in floating point; they are {zone}.",
        f"The mini-batches have {listed(hits)}, for these reasons: {why}.",
        "These are chosen examples, one network for each dtype: they say nothing of how often networks bifurcate.",
    )


_ZONES: Final = {
    "compensation": "equal over the reals, so that rounding alone makes the difference,",
    "bifurcation": "different over the reals too",
    "undecided": "undecided over the reals",
}


def _lines(images: data.DataSet, dtypes: Sequence[torch.dtype]) -> Iterator[str]:
    examples = {dtype_name(dtype): _example(dtype, images) for dtype in dtypes}
    yield "# Why a network bifurcates: one explained network per dtype (chosen examples)"
    yield ""
    yield " ".join(conclusion({name: explanation for name, (_, explanation) in examples.items()}))
    for name, (command, explanation) in examples.items():
        yield from ("", f"## {name}", "", "```python", command, "```", "", "```text")
        yield from (line.rstrip() for line in str(explanation).splitlines())
        yield "```"
    here = environment("cpu")
    yield from (
        "",
        "## How it was computed",
        "",
        "- Networks: 784-256-256-256-10 with ReLU, on mini-batches of 256 of MNIST's training file in file order.",
        "- bfloat16, float16 and float32: the lowest seed whose draw bifurcates, at its first bifurcating mini-batch.",
        "- float64: draws hardly ever bifurcate, so one bias of draw 0 is set to minus the rest of its pre-activation for "
        "one",
        "  sample (`relucheck.reproduction.experiments.explained.shifted`).",
        f"- torch {here.torch} on {here.device}. Another machine rounds differently and may have other mini-batches here.",
        "- This file is written by",
        "  `RELUCHECK_DATA=ROOT OMP_NUM_THREADS=1 python -m relucheck.reproduction.experiments.explained FILE`.",
        "- Each program above starts with",
        "",
        "```python",
        "import torch",
        "from relucheck import data",
        "from relucheck.bifurcation.explain import explain",
        "from relucheck.numerics.arithmetic import Arithmetic",
        "from relucheck.reproduction.experiments.explained import NETWORK, shifted",
        "```",
    )


def write(
    path: Path | str, *, images: data.DataSet | None = None, dtypes: Sequence[torch.dtype] = tuple(reversed(DTYPES))
) -> None:
    """Write the report, through a temporary file.

    Args:
        path: the Markdown file to write.
        images: the data set; None means MNIST's training file.
        dtypes: the dtypes to explain a network in, in this order.
    """
    images = data.load("mnist") if images is None else images
    write_atomically(Path(path), "\n".join(_lines(images, dtypes)) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m relucheck.reproduction.experiments.explained PATH")
    write(sys.argv[1])
