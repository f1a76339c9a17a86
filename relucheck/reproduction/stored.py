"""Read folders of results, and decide the published claims from them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from relucheck.reproduction.claims import Decision
from relucheck.reproduction.experiments import find_scenario
from relucheck.reproduction.folder import MARK, RESULTS, ReproductionError, described
from relucheck.reproduction.report.deciding.cases import Share, Trained, Volumes
from relucheck.reproduction.report.deciding.catalogue import decided
from relucheck.reproduction.report.volume.summary import NAME
from relucheck.reproduction.scenario import Place
from relucheck.reproduction.trained import TrainingScenario, read, read_nudges
from relucheck.results.store import SCHEMA, StoreError

#: Data this small confirm and refute nothing.
_SMOKE: Final = "smoke"


def default_folders() -> tuple[Path, ...]:
    """The folders of the working directory's results, except those of smoke tests."""
    marks = sorted(RESULTS.glob(f"*/{MARK}"))
    return tuple(mark.parent for mark in marks if described(mark.parent)["scale"] != _SMOKE)


def decide_folders(folders: Iterable[Path]) -> tuple[Decision, ...]:
    """Decide every published claim from the finished results in folders.

    A claim whose scenario has no folder is decided by the results of a scenario that shares its runs, else it is "not run".

    Args:
        folders: of ``relucheck reproduce``. Of the results that several folders of a scenario have for one comparison,
            those with the most seeds decide, or else those that come first. Of E4, one folder is allowed.

    Raises:
        ReproductionError: for a folder that holds no results of a scenario or those of a smoke test, and for a second
            folder of E4.
        relucheck.results.store.StoreError: for a result that cannot be read.
    """
    trained: dict[str, Sequence[Trained]] = {}
    volumes: dict[str, Volumes] = {}
    known: dict[str, Path] = {}
    for folder in folders:
        found = described(folder)
        name, scale = found["scenario"], found["scale"]
        if scale == _SMOKE:
            raise ReproductionError(f"{folder} holds a smoke test, which confirms and refutes nothing; leave it out")
        scenario = find_scenario(name)
        if name in known and not scenario.trains:
            raise ReproductionError(f"{folder} and {known[name]} both hold results of {name}; name one of them")
        known[name] = folder
        if isinstance(scenario, TrainingScenario):
            place = Place(scale, folder, None, found["device"], found["executor"])
            trained[name] = _joined([*trained.get(name, ()), *_trained(scenario, place)])
        else:
            volumes[name] = _volumes(folder / f"{NAME}.json", found["device"])
    for name in _sharing(trained):
        trained[name[0]] = trained[name[1]]
    return decided(trained, volumes)


def _joined(runs: Sequence[Trained]) -> list[Trained]:
    """One result for each comparison: that with the most seeds, or else the first."""
    chosen: dict[str, Trained] = {}
    for run in runs:
        before = chosen.get(run.comparison.name)
        if before is None or len(run.result.settings.seeds) > len(before.result.settings.seeds):
            chosen[run.comparison.name] = run
    return list(chosen.values())


def _sharing(trained: Iterable[str]) -> list[tuple[str, str]]:
    """Each training scenario without results beside one whose runs it shares."""
    from relucheck.reproduction.experiments import scenarios

    there = set(trained)
    return [
        (scenario.name, other)
        for scenario in scenarios().values()
        for other in scenario.shares
        if scenario.name not in there and other in there
    ]


def _trained(scenario: TrainingScenario, place: Place) -> list[Trained]:
    runs = []
    for comparison in scenario.comparisons(place.scale):
        result = read(place, comparison)
        if result is not None:
            runs.append(Trained(comparison, result, read_nudges(place, comparison)))
    return runs


def _volumes(path: Path, device: str) -> Volumes:
    """The shares and zones of ``E4.json``, which a device computed.

    Raises:
        StoreError: for a file that is missing, damaged or of another version.
    """
    fix = "run relucheck reproduce E4 with this folder to write it again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise StoreError(f"{path} has schema {content['schema']}, and this version reads {SCHEMA}; {fix}")
        names = ("source", "varied", "x", "arithmetic", "bifurcated", "draws")
        shares = tuple(Share(*(row[name] for name in names)) for row in content["rows"])
        zones = {
            name: {zone: counts[zone] for zone in ("bifurcation", "compensation", "undecided")}
            for name, counts in content.get("split", {}).items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} cannot be read ({type(error).__name__}: {error}); {fix}") from error
    return Volumes(shares, zones, device)
