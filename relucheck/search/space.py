"""The space of a random search, and the draws from it.

A draw depends on the seed of the search and on its number only, not on how many draws there are. Each of its values has a
random stream of its own. So a space and its control, in which the subgradients are fixed at 0, give the same batch sizes,
learning rates and training seeds, and the two can be compared pair by pair.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Final

from relucheck.errors import SettingsError, listed, number, whole
from relucheck.training.model import stream

#: Decimal places of the subgradients that are drawn, and significant digits of the learning rates. A table can print a
#: draw in full then, and the last bits of a machine's logarithm do not decide it.
_PLACES: Final = 6
_RANGES: Final = ("lr", "alpha", "beta")


@dataclasses.dataclass(frozen=True)
class Draw:
    """What one trial of a search trains with.

    Attributes:
        number: its number in the search, from 0 on.
        seed: seed of initialisation, of the images held out and of the order of the mini-batches.
        batch_size: samples of a mini-batch.
        lr: learning rate.
        alpha: subgradient at 0.
        beta: subgradient at 6.
    """

    number: int
    seed: int
    batch_size: int
    lr: float
    alpha: float
    beta: float

    @property
    def name(self) -> str:
        """The name of its trial, for files and messages, for example "trial-003"."""
        return f"trial-{self.number:03}"

    def to_json(self) -> dict[str, Any]:
        """The draw as a JSON object of its attributes."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Space:
    """What a random search draws from; the default is the published space.

    Source: "Reproducibility Challenge of: Numerical influence of ReLU'(0) on backpropagation" (EPFL 2022), section on the
    hyperparameter search.

    Attributes:
        batch_sizes: each is drawn with the same probability.
        lr: least and greatest learning rate; the logarithm is uniform between them.
        alpha: least and greatest subgradient at 0; uniform between them. Equal ends fix a value, for ``lr`` and ``beta``
            as well.
        beta: least and greatest subgradient at 6; uniform between them.

    Raises:
        SettingsError: there is no batch size, a batch size is listed twice, a range does not have two finite ends in
            ascending order, or a learning rate is not above 0.
    """

    batch_sizes: tuple[int, ...] = (32, 64, 128)
    lr: tuple[float, float] = (1e-4, 1e-2)
    alpha: tuple[float, float] = (0.0, 1.0)
    beta: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        sizes = listed("batch_sizes", self.batch_sizes, "(32, 64, 128)")
        if not sizes:
            raise SettingsError("batch_sizes=(): the space is empty; list at least one batch size")
        for size in sizes:
            whole("batch_sizes", size)
        if len(set(sizes)) < len(sizes):
            raise SettingsError(f"batch_sizes={sizes!r}: one is listed twice; list each of them once")
        object.__setattr__(self, "batch_sizes", sizes)
        for name in _RANGES:
            ends = listed(name, getattr(self, name), "(0.0, 1.0)")
            if len(ends) != 2:
                raise SettingsError(f"{name}={ends!r}: must be a least and a greatest value; equal ends fix a value")
            for end in ends:
                number(name, end, above=0 if name == "lr" else None)
            if ends[0] > ends[1]:
                raise SettingsError(f"{name}={ends!r}: the range is empty; give the least value first: {ends[::-1]!r}")
            # + 0.0, so that 0, 0.0 and -0.0 give equal spaces
            object.__setattr__(self, name, tuple(float(end) + 0.0 for end in ends))

    @property
    def default(self) -> Space:
        """The space of the control search: the same, with both subgradients fixed at 0."""
        return dataclasses.replace(self, alpha=(0.0, 0.0), beta=(0.0, 0.0))

    def draws(self, count: int, seed: int) -> tuple[Draw, ...]:
        """The first draws of a search.

        Args:
            count: how many.
            seed: seed of the search.

        Raises:
            SettingsError: ``count`` is not a whole number of at least 1, or ``seed`` not one of at least 0.
        """
        whole("count", count)
        whole("seed", seed, 0)
        return tuple(self._draw(each, seed) for each in range(count))

    def _draw(self, each: int, seed: int) -> Draw:
        def drawn(name: str) -> int:
            return stream(seed, "search", name, each)

        least, greatest = self.lr
        lr = least if least == greatest else math.exp(_between(math.log(least), math.log(greatest), drawn("lr")))
        alpha, beta = _between(*self.alpha, drawn("alpha")), _between(*self.beta, drawn("beta"))
        return Draw(
            number=each,
            seed=drawn("seed") % 2**31,  # a member's seed is below it
            batch_size=self.batch_sizes[drawn("batch size") * len(self.batch_sizes) >> 63],
            lr=_within(self.lr, float(f"{lr:.{_PLACES}g}")),
            alpha=_within(self.alpha, round(alpha, _PLACES)),
            beta=_within(self.beta, round(beta, _PLACES)),
        )

    def to_json(self) -> dict[str, Any]:
        """The space as a JSON object, which ``from_json`` reads."""
        return {name: list(value) for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Space:
        """Read what ``to_json`` wrote.

        Raises:
            SettingsError: a field is unknown, missing or invalid.
        """
        wanted = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(content, Mapping) or sorted(content) != sorted(wanted):
            given = sorted(map(str, content)) if isinstance(content, Mapping) else repr(content)
            raise SettingsError(f"space: {given} are not the fields {sorted(wanted)}; pass what Space.to_json wrote")
        return cls(**content)


def _between(least: float, greatest: float, drawn: int) -> float:
    """The value at a random place between two ends; ``drawn`` is uniform below 2**63."""
    return least + (greatest - least) * ((drawn >> 10) / 2**53)


def _within(ends: tuple[float, float], value: float) -> float:
    """The value, which rounding may have moved past an end of its range."""
    return min(max(value, ends[0]), ends[1])
