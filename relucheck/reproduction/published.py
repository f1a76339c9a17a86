"""The published results that reports compare with, as data with their sources.

Results of training runs were read off [R22]'s figures.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.resources
from collections.abc import Iterator
from typing import Final, Literal

#: Sources by the short names that tables use.
SOURCES: Final[dict[str, str]] = {
    "B21": 'D. Bertoin, J. Bolte, S. Gerchinovitz, E. Pauwels, "Numerical influence of ReLU\'(0) on backpropagation", '
    "NeurIPS 2021 (arXiv 2106.12915)",
    "R22": 'Martorella, Ramirez Contreras, Cerezo Garcia, "Reproducibility Challenge of the paper: Numerical influence of '
    "ReLU'(0) on backpropagation\", EPFL CS-433, 2022",
    "M24": 'R. Boustany, "On the numerical reliability of nonsmooth autodiff: a MaxPool case study", TMLR 2024 '
    "(arXiv 2401.02736)",
}


@dataclasses.dataclass(frozen=True)
class PublishedCell:
    """One cell of a published volume table: how many of ``runs`` random networks bifurcated.

    Attributes:
        source: "B21" or "R22", see :data:`SOURCES`.
        varied: the sweep that it belongs to, one of :data:`relucheck.volume.cell.SWEEPS`.
        precision_bits: 16 (float16), 32 or 64.
        hidden_layers, neurons: of a fully connected network 784 - neurons x hidden_layers - 10.
        batch_size: of mini-batches in file order.
        sample_size: training images; in the sample-size sweep drawn with replacement.
        runs, bifurcated: counts.
    """

    source: str
    varied: str
    precision_bits: int
    hidden_layers: int
    neurons: int
    batch_size: int
    sample_size: int
    runs: int
    bifurcated: int

    @property
    def computed(self) -> bool:
        """Whether the release computed the figure; both depth sweeps leave float64 uncomputed."""
        return not (self.precision_bits == 64 and self.varied == "hidden_layers")

    @property
    def x(self) -> int:
        """The value of the quantity that the sweep varies."""
        value: int = getattr(self, self.varied)
        return value


_COUNTS: Final = tuple(field.name for field in dataclasses.fields(PublishedCell)[2:])


@functools.cache
def volume_cells() -> tuple[PublishedCell, ...]:
    """Both published volume tables, in their order: 40 cells of [B21] and 60 of [R22]."""
    rows = _rows("published_volume.csv")
    return tuple(PublishedCell(row["source"], row["varied"], *(int(row[name]) for name in _COUNTS)) for row in rows)


def _rows(name: str) -> Iterator[dict[str, str]]:
    """The rows of a table of the package, without its comments."""
    text = (importlib.resources.files("relucheck") / "_data" / name).read_text(encoding="utf-8")
    return csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))


@functools.cache
def cpu_draws() -> dict[tuple[int, int, int, int | None, str], int]:
    """Read how many networks E4 draws at scale cpu, by cell.

    The keys are hidden layers, neurons, batch size, sample size (None: all samples) and arithmetic. A cell
    without an entry is not estimated at that scale.
    """
    draws_by_cell: dict[tuple[int, int, int, int | None, str], int] = {}
    for row in _rows("volume_draws.csv"):
        layers, neurons, batch_size = (int(row.pop(name)) for name in ("hidden_layers", "neurons", "batch_size"))
        sample = row.pop("sample_size")
        size = int(sample) if sample else None
        draws_by_cell |= {(layers, neurons, batch_size, size, name): int(draws) for name, draws in row.items() if draws}
    return draws_by_cell


# ---------------------------------------------------------------- searches

#: The published searches by the model in the released files, in words.
SEARCHED: Final = {"mobilenet_v3_small": "MobileNetV3-small", "mlp_2000": "MLP 784-2000-10"}


@dataclasses.dataclass(frozen=True)
class PublishedTrial:
    """A trial of a published random search.

    Attributes:
        model: one of :data:`SEARCHED`.
        subgradients: "tuned", where alpha and beta were drawn, or "default", where both are 0. In the tuned search of the
            MobileNet they never reached the model.
        trial: its name in the released files.
        batch_size, lr, alpha, beta: what it trained with.
        loss, accuracy: of the images held out, after its last epoch; the accuracy in %.
        epochs: how many it trained. Trials with fewer than the others were stopped by ASHA.
    """

    model: str
    subgradients: str
    trial: str
    batch_size: int
    lr: float
    alpha: float
    beta: float
    loss: float
    accuracy: float
    epochs: int


@functools.cache
def search_trials(model: str, subgradients: str) -> tuple[PublishedTrial, ...]:
    """The trials of a published search, from the best to the worst.

    Args:
        model: one of :data:`SEARCHED`.
        subgradients: "tuned" or "default".
    """
    trials = [
        PublishedTrial(
            model=row["model"],
            subgradients=row["subgradients"],
            trial=row["trial"],
            batch_size=int(row["batch_size"]),
            lr=float(row["lr"]),
            alpha=float(row["alpha"]),
            beta=float(row["beta"]),
            loss=float(row["val_loss"]),
            accuracy=float(row["val_accuracy_percent"]),
            epochs=int(row["epochs"]),
        )
        for row in _rows("published_search.csv")
        if (row["model"], row["subgradients"]) == (model, subgradients)
    ]
    return tuple(sorted(trials, key=lambda trial: -trial.accuracy))


# ---------------------------------------------------------------- training

#: E2's non-zero subgradients; the reference s = 0 and its control come with every seed.
SUBGRADIENTS: Final[tuple[float, ...]] = (-0.5, 0.5, 0.8, 1.0)
#: Epochs of the run whose final errors were published, and how exactly they can be read off the figure, in points.
PUBLISHED_EPOCHS: Final = 50
READ_OFF: Final = 1.0
#: How far from a published error a mean over seeds may be and still agree with it, in points. The published errors of
#: neighbouring subgradients are 2 points or more apart. With this margin, and an error of reading of 1 point, a mean that
#: agrees is within 1 point of the value read, so that no mean agrees with two of them.
AGREEMENT: Final = 2.0


@dataclasses.dataclass(frozen=True)
class PublishedError:
    """A published final test error.

    Attributes:
        source: the publication and its figure.
        comparison: name of the comparison that measures it.
        rule, subgradient: of the members that the figure is about.
        value, spread: in %; read off to within ``spread``.
        margin: how far a mean over seeds may be from the published value and agree with it, in points.
    """

    source: str
    comparison: str
    rule: str
    subgradient: float
    value: float
    spread: float
    margin: float


#: Final test error in %, read off [R22]'s Figure 3 (50 epochs, one run each, injected rule).
_BFLOAT16_ERRORS: Final = {0.0: 2.0, -0.5: 4.0, 0.5: 7.0, 0.8: 9.0, 1.0: 11.0}
#: Published test errors by comparison and subgradient. The coarse emulations stand for what the published GPU may have
#: computed in bfloat16; the one that rounds once stands for the same without coarse rounding.
ERRORS: Final = {
    "float32": dict.fromkeys((0.0, *SUBGRADIENTS), 2.0),
    **{
        f"bfloat16{arithmetic}{epochs}": _BFLOAT16_ERRORS
        for arithmetic in ("", "-rounded", "-product", "-split-k-4", "-published", "-layer-1-split-k-4")
        for epochs in ("", "-3-epochs", "-15-epochs")
    },
}


@dataclasses.dataclass(frozen=True)
class PublishedCount:
    """A published count of hits: pre-activations that equal a kink during training.

    [R22]'s notebooks print these counts, from the backward passes.

    The runs use the injected rule: the published code takes s itself as the gradient at a hit.

    Attributes:
        experiment: "E1", "E2", "E5" or "E9".
        dtype: of weights and activations, "bfloat16" or "float32".
        network: the layers of an MLP, as "784-128-10", or the name of a network.
        activation: "relu" or "relu6".
        member: the run: "s = 1", or for ReLU6 "default" (alpha = beta = 0) or "custom" (both above 0); "all" where the
            source says the same of every run.
        subgradients: (s,) or (alpha, beta); None where the source does not give them.
        kink: whose hits are counted, 0 or 6.
        epoch: the epoch, from 1 on; "each" where the source gives bounds for the count of every epoch, and "run" for the
            count of the whole run.
        hits: the count, or its lower bound.
        most: the upper bound of the count; equal to ``hits`` where the count is exact.
        accuracy: after the epoch, in %; None where none is printed.
        whole: False for a run that was broken off within the epoch.
    """

    experiment: str
    dtype: str
    network: str
    activation: str
    member: str
    subgradients: tuple[float, ...] | None
    kink: float
    epoch: int | Literal["each", "run"]
    hits: int
    most: int
    accuracy: float | None
    whole: bool

    @property
    def images(self) -> int:
        """Number of images in an epoch: all training images of MNIST, or 80 % of them in E9."""
        return 48_000 if self.experiment == "E9" else 60_000


@dataclasses.dataclass(frozen=True)
class PublishedRun:
    """A published training of the best configuration of a search (E8).

    It is one run in bfloat16 with the injected rule.

    Attributes:
        network: "MLP" for 784-128-10, or "MobileNet" for MobileNetV3-small.
        member: "default" (alpha = beta = 0) or "custom".
        comparisons: how the names of the comparisons begin that have this learning rate and batch size.
        subgradients: (alpha, beta), at 0 and at 6.
        lr, batch_size, epochs: as published; 48,000 images are trained on, and 12,000 are held out.
        accuracy: on the images held out, after the last epoch, in %.
    """

    network: str
    member: str
    comparisons: str
    subgradients: tuple[float, float]
    lr: float
    batch_size: int
    epochs: int
    accuracy: float


#: (alpha, beta) of the best trial of each published search with tuned subgradients.
TUNED_MLP: Final = (0.37238068772818855, 0.31806467118888126)
TUNED_MOBILENET: Final = (0.4964223539245872, 0.45524949449837515)
#: The published trainings of E8: for each network, default and custom.
FURTHER: Final[tuple[PublishedRun, ...]] = (
    PublishedRun("MLP", "default", "mlp-default-", (0.0, 0.0), 0.0027, 128, 30, 97.14),
    PublishedRun("MLP", "custom", "mlp-custom-", TUNED_MLP, 0.0009, 32, 30, 93.68),
    PublishedRun("MobileNet", "default", "mobilenet-", (0.0, 0.0), 0.001, 64, 10, 95.42),
    PublishedRun("MobileNet", "custom", "mobilenet-", TUNED_MOBILENET, 0.001, 64, 10, 93.17),
)


#: The likeliest arithmetic of each experiment, given its published counts: ``relucheck.reproduction.experiments.counts``.
#: It is not identified: E2's counts leave three others, and those of s = 1 deviate from all four. That of E5 and E6 was not
#: fitted: it is the plainest one that meets about as many hits as are published.
ARITHMETICS: Final = {
    "E1": "bfloat16 emulated (rounded)",
    "E2": "bfloat16 emulated (rounded; layer 1 forward: split-k 3 wide bias joined)",
    "E5": "bfloat16 emulated (rounded)",
    "E6": "bfloat16 emulated (rounded)",
    "E8": "bfloat16 emulated (rounded)",
    "E9": "bfloat16 emulated (rounded)",
}


@functools.cache
def counts() -> tuple[PublishedCount, ...]:
    """All published counts, in the order of experiments, runs and epochs.

    The file ``published_counts.csv`` names their source.
    """
    return tuple(
        PublishedCount(
            experiment=row["experiment"],
            dtype=row["dtype"],
            network=row["network"],
            activation=row["activation"],
            member=row["member"],
            subgradients=tuple(map(float, row["subgradients"].split())) or None,
            kink=float(row["kink"]),
            epoch=int(row["epoch"]) if row["epoch"].isdecimal() else row["epoch"],  # type: ignore[arg-type]
            hits=int(row["hits"]),
            most=int(row["most"] or row["hits"]),
            accuracy=float(row["accuracy"]) if row["accuracy"] else None,
            whole=row["whole"] == "yes",
        )
        for row in _rows("published_counts.csv")
    )
