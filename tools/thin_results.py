"""Thin the finished training results in a folder of a scenario to what its report needs, before they are committed.

    python tools/thin_results.py reports/training/E2

Distances are left out of steps that no figure draws, and accuracies of test mini-batches of runs that no box plot pools. A
scenario without such figures keeps only each member's last distance. Every file that is thinned says so and by what rule.
Tables and figures made from it are the same. Files that another rule thinned are thinned again,
unless the rule here keeps more than they have: that is an error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from relucheck.reproduction.experiments import find_scenario
from relucheck.reproduction.folder import MARK
from relucheck.reproduction.trained import TrainingScenario, store_of
from relucheck.training import engine
from relucheck.training.results import seed_store
from relucheck.training.results.thinning import thinned, thinning


def thin(folder: Path) -> int:
    """Thin every finished seed of a scenario's comparisons and nudges in place.

    Returns:
        The number of seeds that were whole before, or thinned by another rule.

    Raises:
        relucheck.errors.RelucheckError: for results of other settings, and for what cannot be written.
        OSError, KeyError, ValueError: the folder's scenario.json is not there, or is not of a training scenario.
    """
    mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
    scenario = find_scenario(mark["scenario"])
    if not isinstance(scenario, TrainingScenario):
        raise ValueError(f"{folder} is of {scenario.name}, which trains nothing; name a folder of a training scenario")
    rule, count = thinning(scenario.figures), 0
    comparisons = scenario.comparisons(mark["scale"])
    for comparison in (*comparisons, *(one.nudges for one in comparisons)):
        executor = engine.executor_of(comparison.settings, mark["executor"], mark["device"])
        runs = store_of(folder, comparison)
        seeds = seed_store.finished(comparison.settings, runs, executor)
        changed = sum(part.thinned != rule for part in seeds.values())
        if changed:
            count += changed
            seed_store.keep(comparison.settings, runs, executor, thinned(seeds, scenario.figures))
    return count


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/thin_results.py FOLDER")
    print(f"{thin(Path(sys.argv[1]))} seeds thinned")
