"""One smoke run of each scenario for all tests that look at it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from relucheck.reproduce import reproduce
from relucheck.training_summary import Reproduction


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reproduction]:
    """``smoke("E2")``: the scenario at smoke scale, run once; E2 and E3 lie in one parent folder."""
    parent = tmp_path_factory.mktemp("smoke")
    made: dict[str, Reproduction] = {}

    def run(name: str) -> Reproduction:
        if name not in made:
            folder: Path = parent / f"{name}-smoke"
            made[name] = reproduce(name, "smoke", folder, device="cpu", progress=False, say=lambda line: None)
        return made[name]

    return run
