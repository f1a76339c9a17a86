"""One explained network per dtype, as Markdown: the first bifurcating mini-batch of a fresh draw on MNIST.

RELUCHECK_DATA=ROOT python -m relucheck.reproduction.experiments.explained reports/volume/explained.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
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
from relucheck.volume.engine import Engine

_BATCH: Final = 256
_SEEDS: Final = 200  # draws to try
#: In the middle of every sweep of the published volume tables.
NETWORK: Final = Network("mlp", (256, 256, 256))


def shifted(dtype: torch.dtype, inputs: Tensor, seed: int = 0) -> MLP:
    """The draw of a seed with one bias moved: a unit of the first layer cancels for one sample, but for rounding.

    float64 draws hardly ever bifurcate by themselves. The bias is minus the product of weights and sample as a forward
    computes it; the unit and the sample are the first of 256 for which the sum of the two is 0 as a forward computes that.

    Raises:
        ModelError: on this machine no such bias makes a hit.
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


def _lines(images: data.DataSet, dtypes: Sequence[torch.dtype]) -> Iterator[str]:
    yield "# Why a network bifurcates: one explained network per dtype"
    yield ""
    yield "784-256-256-256-10, ReLU, mini-batches of 256 of MNIST's training file in file order, backprop_0 against"
    yield "backprop_1. bfloat16, float16 and float32: the lowest seed whose draw bifurcates, at its first bifurcating"
    yield "mini-batch. float64 draws hardly ever do, so there one bias of draw 0 is minus the rest of its pre-activation"
    yield "for one sample (`relucheck.reproduction.experiments.explained.shifted`)."
    yield ""
    here = environment("cpu")
    yield f"torch {here.torch} on {here.device}."
    yield "Another machine rounds otherwise and may find other mini-batches."
    yield ""
    command = "python -m relucheck.reproduction.experiments.explained reports/volume/explained.md"
    yield f"    RELUCHECK_DATA=ROOT OMP_NUM_THREADS=1 {command}"
    yield ""
    yield "Each program below starts with"
    yield ""
    yield "```python"
    yield "import torch"
    yield "from relucheck import data"
    yield "from relucheck.bifurcation.explain import explain"
    yield "from relucheck.numerics.arithmetic import Arithmetic"
    yield "from relucheck.reproduction.experiments.explained import NETWORK, shifted"
    yield "```"
    for dtype in dtypes:
        command, explanation = _example(dtype, images)
        yield from ("", f"## {dtype_name(dtype)}", "", "```python", command, "```", "", "```text")
        yield from (line.rstrip() for line in str(explanation).splitlines())
        yield "```"


def write(
    path: Path | str, *, images: data.DataSet | None = None, dtypes: Sequence[torch.dtype] = tuple(reversed(DTYPES))
) -> None:
    """Writes the report, through a temporary file.

    Args:
        path: of the Markdown file.
        images: the data set; by default MNIST's training file.
        dtypes: one explanation for each, in this order.
    """
    images = data.load("mnist") if images is None else images
    write_atomically(Path(path), "\n".join(_lines(images, dtypes)) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m relucheck.reproduction.experiments.explained PATH")
    write(sys.argv[1])
