"""Counts of a run of property tests, as plain data that pytest-xdist workers can send."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol


class Compared(Protocol):
    """The part of a ``Comparison`` that a tally reads, so that this module imports no torch."""

    @property
    def outcome(self) -> str: ...
    @property
    def hit_count(self) -> int: ...
    @property
    def activation_count(self) -> int: ...


@dataclasses.dataclass
class Row:
    """Counts of one dtype.

    Attributes:
        networks: the number of networks.
        agree: how many of them agree.
        bifurcate: how many of them bifurcate.
        nonfinite: how many of them have a gradient with a NaN or an infinity.
        hits: hits in all their forwards.
        activations: scalar activations in all their forwards.
    """

    networks: int = 0
    agree: int = 0
    bifurcate: int = 0
    nonfinite: int = 0
    hits: int = 0
    activations: int = 0

    @property
    def hits_per_million(self) -> float:
        """Hits per million scalar activations; 0 without activations."""
        return 1e6 * self.hits / self.activations if self.activations else 0.0


@dataclasses.dataclass
class Tally:
    """The counts of one test, one worker or a whole run.

    Attributes:
        rows: counts by population (the name of a kind of networks) and by name of dtype.
        smallest: the size and the code of the smallest example that bifurcates, or None.
        examples: the number of examples tried, by name of property.
        kills: for each seeded fault, the names of the properties that detected it.
    """

    rows: dict[str, dict[str, Row]] = dataclasses.field(default_factory=dict)
    smallest: tuple[int, str] | None = None
    examples: dict[str, int] = dataclasses.field(default_factory=dict)
    kills: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def observe(self, dtype: str, seen: Compared, *, size: int, text: str, population: str = "generated examples") -> None:
        """Count one network.

        Args:
            dtype: the name of the dtype.
            seen: the comparison of two gradients of the network.
            size: the size of the example, by which the smallest one is chosen.
            text: the code of the example, which is kept if it bifurcates and is the smallest.
            population: the name of the kind of networks.
        """
        row = self.rows.setdefault(population, {}).setdefault(dtype, Row())
        row.networks += 1
        row.hits += seen.hit_count
        row.activations += seen.activation_count
        if seen.outcome == "agree":
            row.agree += 1
        elif seen.outcome == "bifurcate":
            row.bifurcate += 1
            self._offer((size, text))
        else:
            row.nonfinite += 1

    def tried(self, name: str, count: int = 1) -> None:
        """Count examples that a property was tried on."""
        self.examples[name] = self.examples.get(name, 0) + count

    def killed(self, fault: str, name: str) -> None:
        """Record that a property detected a seeded fault."""
        killers = self.kills.setdefault(fault, [])
        if name not in killers:
            killers.append(name)

    def _offer(self, candidate: tuple[int, str]) -> None:
        if self.smallest is None or candidate < self.smallest:
            self.smallest = candidate

    def add(self, other: Tally) -> None:
        """Add another tally's counts to this one."""
        for population, rows in other.rows.items():
            for dtype, row in rows.items():
                mine = self.rows.setdefault(population, {}).setdefault(dtype, Row())
                for field in dataclasses.fields(Row):
                    setattr(mine, field.name, getattr(mine, field.name) + getattr(row, field.name))
        if other.smallest is not None:
            self._offer(other.smallest)
        for name, count in other.examples.items():
            self.tried(name, count)
        for fault, killers in other.kills.items():
            for name in killers:
                self.killed(fault, name)

    def to_json(self) -> dict[str, Any]:
        """Convert to plain data, which test reports carry from a worker to the controller."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Tally:
        """Read what ``to_json`` wrote."""
        smallest = plain["smallest"]
        return cls(
            {population: {dtype: Row(**row) for dtype, row in rows.items()} for population, rows in plain["rows"].items()},
            None if smallest is None else (smallest[0], smallest[1]),
            dict(plain["examples"]),
            {fault: list(killers) for fault, killers in plain["kills"].items()},
        )

    def __bool__(self) -> bool:
        return bool(self.rows or self.examples or self.kills)
