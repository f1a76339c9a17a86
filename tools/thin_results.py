"""Thin the finished training results in a folder of E1, E2 or E3 to what its report needs, before they are committed.

    python tools/thin_results.py reports/training/E2

Every file that is thinned says so and by what rule. Tables and figures made from it are the same.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from relucheck.reproduction.experiments.mlp import SCENARIOS
from relucheck.reproduction.folder import MARK
from relucheck.reproduction.trained import store_of
from relucheck.training import engine
from relucheck.training.result import thinned


def thin(folder: Path) -> int:
    """Thin every finished seed of a scenario's comparisons and nudges in place; the number of seeds that were whole before.

    Raises:
        relucheck.errors.RelucheckError: for results of other settings, and for what cannot be written.
        OSError, KeyError, ValueError: the folder's scenario.json is not there, or is not of a training scenario.
    """
    mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
    count = 0
    comparisons = SCENARIOS[mark["scenario"]].comparisons(mark["scale"])
    for comparison in (*comparisons, *(one.nudges for one in comparisons)):
        executor = engine.executor_of(comparison.settings, mark["executor"])
        runs = store_of(folder, comparison)
        seeds = engine.finished(comparison.settings, runs, executor)
        if any(part.thinned is None for part in seeds.values()):
            count += sum(part.thinned is None for part in seeds.values())
            engine.keep(comparison.settings, runs, executor, thinned(seeds))
    return count


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/thin_results.py FOLDER")
    print(f"{thin(Path(sys.argv[1]))} seeds thinned")
