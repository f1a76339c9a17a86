"""Counts what a property run saw, per dtype: plain data that travels between xdist workers. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol


class Compared(Protocol):
    """What a tally reads of a :class:`relucheck.bifurcation.compare.Comparison`."""

    @property
    def outcome(self) -> str: ...
    @property
    def hit_count(self) -> int: ...
    @property
    def activation_count(self) -> int: ...


@dataclasses.dataclass
class Row:
    """Counts of one dtype: networks by outcome, hits and scalar activations over all their forwards."""

    networks: int = 0
    agree: int = 0
    bifurcate: int = 0
    nonfinite: int = 0
    hits: int = 0
    activations: int = 0

    @property
    def hits_per_million(self) -> float:
        """Hits per million activations."""
        return 1e6 * self.hits / self.activations if self.activations else 0.0


@dataclasses.dataclass
class Tally:
    """What one test, one worker or a whole run saw.

    Attributes:
        rows: counts by population (what kind of networks) and dtype name.
        smallest: size and text of the smallest bifurcating example, if any.
        examples: examples tried by property.
        kills: for each seeded fault, the properties that found a counterexample to it.
    """

    rows: dict[str, dict[str, Row]] = dataclasses.field(default_factory=dict)
    smallest: tuple[int, str] | None = None
    examples: dict[str, int] = dataclasses.field(default_factory=dict)
    kills: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def observe(self, dtype: str, seen: Compared, *, size: int, text: str, population: str = "generated examples") -> None:
        """Counts one network of some size and population; ``text`` says which and where, should it bifurcate."""
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
        """Counts examples of one property."""
        self.examples[name] = self.examples.get(name, 0) + count

    def killed(self, fault: str, name: str) -> None:
        """Notes that a property found a counterexample to a seeded fault."""
        killers = self.kills.setdefault(fault, [])
        if name not in killers:
            killers.append(name)

    def _offer(self, candidate: tuple[int, str]) -> None:
        if self.smallest is None or candidate < self.smallest:
            self.smallest = candidate

    def add(self, other: Tally) -> None:
        """Adds another tally's counts to this one's."""
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
        """Plain data, as test reports carry it from worker to controller."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Tally:
        """The inverse of :meth:`to_json`."""
        smallest = plain["smallest"]
        return cls(
            {population: {dtype: Row(**row) for dtype, row in rows.items()} for population, rows in plain["rows"].items()},
            None if smallest is None else (smallest[0], smallest[1]),
            dict(plain["examples"]),
            {fault: list(killers) for fault, killers in plain["kills"].items()},
        )

    def __bool__(self) -> bool:
        return bool(self.rows or self.examples or self.kills)
