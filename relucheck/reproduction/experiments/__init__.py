"""The experiments that ``relucheck reproduce`` runs, as data."""

from __future__ import annotations

from collections.abc import Mapping

from relucheck.errors import did_you_mean
from relucheck.reproduction import TITLES
from relucheck.reproduction.scenario import Scenario, ScenarioError


def scenarios() -> Mapping[str, Scenario]:
    """Every scenario by name."""
    from relucheck.reproduction.experiments import convolutional, counts, mlp, variations, volumes
    from relucheck.reproduction.experiments.searches import further, pairs

    convolved = tuple(convolutional.SCENARIOS.values())
    every: tuple[Scenario, ...] = (
        *mlp.SCENARIOS.values(),
        volumes.E4,
        *convolved,
        pairs.E7,
        further.E8,
        counts.E9,
        *variations.SCENARIOS.values(),
    )
    return {scenario.name: scenario for scenario in every}


def find_scenario(name: str) -> Scenario:
    """Find a scenario by its name, in upper or lower case.

    Raises:
        ScenarioError: for an unknown name; names the nearest.
    """
    upper = name.strip().upper()
    if upper not in TITLES:
        listed = ", ".join(f"{key} ({title})" for key, title in TITLES.items())
        raise ScenarioError(f"unknown scenario {name!r}; {did_you_mean(name, TITLES)}known: {listed}")
    return scenarios()[upper]
