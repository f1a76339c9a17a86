"""Cells and estimates of volume tables, as plain data.

A cell is everything that decides an estimated volume. An estimate is that volume with the decisions behind it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from relucheck import data
from relucheck.bifurcation.compare import Outcome
from relucheck.errors import RelucheckError, instance, one_of, whole
from relucheck.networks.mlp import is_plain
from relucheck.networks.network import Network
from relucheck.numerics.arithmetic import Arithmetic, UnsupportedArithmeticError
from relucheck.results.proportions import CONFIDENCE, Interval, interval
from relucheck.results.store import Json

_FLOAT32: Final = Arithmetic.parse("float32")
#: The network from which every sweep of the published tables varies one quantity.
_MIDDLE: Final = Network("mlp", (256, 256, 256))
_LETTERS: Final[dict[Outcome, str]] = {"agree": "a", "bifurcate": "b", "non-finite": "n"}
_OUTCOMES: Final[dict[str, Outcome]] = {letter: outcome for outcome, letter in _LETTERS.items()}
IN_ORDER: Final = "file order"
REPLACED: Final = "with replacement"
#: Number of draws in one unit of work.
BLOCK: Final = 100
#: The quantities that sweeps vary.
SWEEPS: Final[tuple[str, ...]] = ("hidden_layers", "neurons", "batch_size", "sample_size")


class VolumeError(RelucheckError, ValueError):
    """A cell that cannot be estimated, or an estimate that does not fit its cell."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell of a volume table: everything that decides its estimate.

    Attributes:
        network: an MLP with biases, without batch norm and dropout, with PyTorch's default initialisation.
        batch_size: samples of a mini-batch, in file order. The last mini-batch may be smaller; a batch size above the
            number of samples means one mini-batch of all samples.
        sample_size: number of training images used, or None for all.
        sample: which images are used. "file order" takes the first ones. "with replacement" draws indices uniformly, as
            in the published sample-size sweep; a smaller sample is the beginning of a larger one.
        sample_seed: seed of the indices drawn with replacement.
        arithmetic: in which the networks compute, or its name ("float16 emulated (split-k 4)"); no mixed precision.
        draws: number of random networks.
        first_seed: seed of the first network; the others follow as ``first_seed + 1``, ``first_seed + 2`` and so on.
        data: the data set whose training split is used: "mnist", "fashionmnist" or "digits".
        watch: which gradients count: "all", or those of the "first layer" only, as in the published tables.
        subgradients: the two subgradients that are compared.
        varied: the sweep for which the cell is computed, or "". It is a label and decides nothing.

    Raises:
        VolumeError: a field has a value that cannot be estimated.
    """

    network: Network = _MIDDLE
    batch_size: int = 256
    sample_size: int | None = None
    sample: Literal["file order", "with replacement"] = "file order"
    sample_seed: int = 0
    arithmetic: Arithmetic = _FLOAT32
    draws: int = 1000
    first_seed: int = 0
    data: str = "mnist"
    watch: Literal["all", "first layer"] = "first layer"
    subgradients: tuple[float, float] = (0.0, 1.0)
    varied: str = ""

    def __post_init__(self) -> None:
        instance("cell: network", self.network, Network, 'Network("mlp", (256, 256, 256))', error=VolumeError)
        if not is_plain(self.network):
            raise VolumeError(f"cell: network={self.network}: must be an mlp with biases, without batch norm and dropout")
        for name in ("batch_size", "draws"):
            whole(f"cell: {name}", getattr(self, name), 1, error=VolumeError)
        for name in ("first_seed", "sample_seed"):
            whole(f"cell: {name}", getattr(self, name), 0, error=VolumeError)
        if self.sample_size is not None:
            whole("cell: sample_size", self.sample_size, 1, error=VolumeError)
        one_of("cell: sample", self.sample, (IN_ORDER, REPLACED), error=VolumeError)
        one_of("cell: watch", self.watch, ("all", "first layer"), error=VolumeError)
        one_of("cell: varied", self.varied, ("", *SWEEPS), error=VolumeError)
        one_of("cell: data", self.data, data.NAMES, error=VolumeError)
        if self.sample == REPLACED and self.sample_size is None:
            raise VolumeError("cell: sample='with replacement' needs a sample_size, the number of images to draw")
        object.__setattr__(self, "arithmetic", _arithmetic(self.arithmetic))
        object.__setattr__(self, "subgradients", tuple(float(value) for value in self.subgradients))
        if len(self.subgradients) != 2:
            raise VolumeError(f"cell: subgradients={self.subgradients!r} must be two subgradients, for example (0.0, 1.0)")

    @property
    def hidden_layers(self) -> int:
        """Number of hidden layers of the networks."""
        return len(self.network.widths)

    @property
    def neurons(self) -> int:
        """Number of units in the networks' widest hidden layer."""
        return max(self.network.widths)

    @property
    def deciding(self) -> Json:
        """What decides the estimate, as plain JSON: every field but the label ``varied``."""
        content = dataclasses.asdict(self)
        del content["varied"]
        plain = {
            "network": self.network.to_json(),
            "arithmetic": self.arithmetic.name,
            "subgradients": list(self.subgradients),
        }
        return {**content, **plain}

    @property
    def name(self) -> str:
        """A readable file name without extension, unique by a digest of what decides the estimate."""
        digest = hashlib.sha256(json.dumps(self.deciding, sort_keys=True).encode()).hexdigest()[:8]
        size = "all" if self.sample_size is None else f"{self.sample_size}{'r' if self.sample == REPLACED else ''}"
        words = "".join(
            letter if letter.isalnum() else "-" for letter in self.arithmetic.name.replace("(", "").replace(")", "")
        )
        return f"{self.data}-{self.hidden_layers}x{self.neurons}-b{self.batch_size}-n{size}-{words}-d{self.draws}-{digest}"

    def blocks(self, size: int = BLOCK) -> tuple[Cell, ...]:
        """Split the draws into cells of at most ``size`` draws, which can be computed separately."""
        starts = range(0, self.draws, size)
        return tuple(
            dataclasses.replace(self, first_seed=self.first_seed + at, draws=min(size, self.draws - at)) for at in starts
        )

    @classmethod
    def from_json(cls, content: Mapping[str, Any], varied: str = "") -> Cell:
        """The cell that ``deciding`` describes, with the label ``varied``."""
        plain = {"network": Network.from_json(content["network"]), "subgradients": tuple(content["subgradients"])}
        return cls(**{**content, **plain}, varied=varied)


class Draw(NamedTuple):
    """The decision for one random network.

    Attributes:
        seed: seed of the network.
        outcome: "agree", "bifurcate" or "non-finite".
        batch: the first mini-batch (counted from 0) with that outcome; None for "agree".
    """

    seed: int
    outcome: Outcome
    batch: int | None


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A finished cell.

    Attributes:
        cell: what was estimated.
        decisions: one per draw, in the order of the seeds.
        hits: number of hits in the mini-batches that were run, which are those of each draw up to the deciding one.
        activations: number of activations in these mini-batches.
        wall_s: computing time in seconds, over all runs that contributed.
        checksum: SHA-256 of the data set, in hex.
        device: the device and what else decides bits there, for example "cpu AVX512, 1 thread".
        versions: versions of torch, relucheck and Python, and the name of the processor.
        plan: which fusions the engine proved bitwise equal.
    """

    cell: Cell
    decisions: tuple[Draw, ...]
    hits: int
    activations: int
    wall_s: float
    checksum: str
    device: str
    versions: Mapping[str, str]
    plan: str

    @classmethod
    def joined(cls, cell: Cell, blocks: Sequence[Estimate]) -> Estimate:
        """The estimate of a cell, from those of its ``blocks()`` in their order.

        Raises:
            VolumeError: the blocks do not have the draws of the cell.
        """
        draws = tuple(draw for block in blocks for draw in block.decisions)
        if [draw.seed for draw in draws] != list(range(cell.first_seed, cell.first_seed + cell.draws)):
            raise VolumeError(
                f"{cell.name}: these {len(blocks)} blocks are not the cell's; pass one estimate for each of cell.blocks()"
            )
        hits, activations = sum(block.hits for block in blocks), sum(block.activations for block in blocks)
        first = blocks[0]
        versions = {
            name: "; ".join(dict.fromkeys(block.versions.get(name, "unknown") for block in blocks))
            for name in first.versions
        }
        return cls(
            *(cell, draws, hits, activations, sum(block.wall_s for block in blocks), first.checksum),
            "; ".join(dict.fromkeys(block.device for block in blocks)),
            versions,
            "; ".join(dict.fromkeys(block.plan for block in blocks)),
        )

    def _count(self, outcome: Outcome) -> int:
        return sum(draw.outcome == outcome for draw in self.decisions)

    @property
    def draws(self) -> int:
        """Number of draws."""
        return len(self.decisions)

    @property
    def bifurcated(self) -> int:
        """Number of draws whose two gradients differ."""
        return self._count("bifurcate")

    @property
    def agree(self) -> int:
        """Number of draws whose two gradients agree on every mini-batch."""
        return self._count("agree")

    @property
    def non_finite(self) -> int:
        """Number of draws with a NaN or an infinity, which is neither agreement nor bifurcation."""
        return self._count("non-finite")

    @property
    def share(self) -> float:
        """The estimated volume: bifurcated draws as a share of all draws."""
        return self.bifurcated / self.draws

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        """The Clopper-Pearson confidence interval of the share."""
        return interval(self.bifurcated, self.draws, confidence)

    @property
    def hits_per_million(self) -> float:
        """Hits per million activations of the mini-batches that were run."""
        return 1e6 * self.hits / self.activations if self.activations else 0.0

    def to_json(self) -> Json:
        """The estimate as plain JSON; each decision is one letter (a, b or n) and its mini-batch."""
        return {
            "cell": self.cell.deciding,
            "counts": {"bifurcated": self.bifurcated, "agree": self.agree, "non_finite": self.non_finite},
            **columns(self.decisions),
            "hits": self.hits,
            "activations": self.activations,
            "wall_s": round(self.wall_s, 3),
            "checksum": self.checksum,
            "device": self.device,
            "versions": dict(self.versions),
            "plan": self.plan,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], varied: str = "") -> Estimate:
        """Read what ``to_json`` wrote.

        Raises:
            VolumeError: something is missing, or the counts contradict the decisions.
        """
        try:
            cell = Cell.from_json(content["cell"], varied)
            draws = tuple(draws_of(content, cell.first_seed))
            names = ("hits", "activations", "wall_s", "checksum", "device", "versions", "plan")
            estimate = cls(cell, draws, **{name: content[name] for name in names})
            counts = {"bifurcated": estimate.bifurcated, "agree": estimate.agree, "non_finite": estimate.non_finite}
            if counts != content["counts"] or estimate.draws != cell.draws:
                raise ValueError(f"its counts {content['counts']} are not those of its {estimate.draws} decisions")
        except (KeyError, TypeError, ValueError) as error:
            raise VolumeError(f"this is not a valid estimate: {type(error).__name__}: {error}") from error
        return estimate


def columns(draws: Iterable[Draw]) -> Json:
    """Decisions as plain JSON: one letter each (a, b or n), and their mini-batches."""
    draws = tuple(draws)
    return {"outcomes": "".join(_LETTERS[draw.outcome] for draw in draws), "batches": [draw.batch for draw in draws]}


def draws_of(content: Mapping[str, Any], first_seed: int) -> Iterator[Draw]:
    """Read what ``columns`` wrote; the seeds count up from ``first_seed``."""
    pairs = zip(content["outcomes"], content["batches"], strict=True)
    return (Draw(first_seed + index, _OUTCOMES[letter], batch) for index, (letter, batch) in enumerate(pairs))


def _arithmetic(value: Arithmetic | str) -> Arithmetic:
    """The arithmetic of a cell, given as such or by its name.

    Raises:
        VolumeError: it is unknown, or mixed precision, in which weights and products have different dtypes.
    """
    try:
        arithmetic = value if isinstance(value, Arithmetic) else Arithmetic.parse(value)
    except UnsupportedArithmeticError as error:
        raise VolumeError(f"cell: {error}") from error
    if arithmetic.mixed:
        raise VolumeError(
            f"cell: arithmetic {arithmetic.name!r}: the networks of a volume have one dtype; choose one that is not mixed"
        )
    return arithmetic
