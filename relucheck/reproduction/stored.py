"""Read folders of results, and decide the published claims from them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from relucheck.reproduction.claims import Decision
from relucheck.reproduction.experiments import find_scenario
from relucheck.reproduction.folder import MARK, RESULTS, ReproductionError
from relucheck.reproduction.report.deciding.cases import Share, Trained, Volumes
from relucheck.reproduction.report.deciding.catalogue import decided
from relucheck.reproduction.report.volumes import NAME
from relucheck.reproduction.scenario import Place
from relucheck.reproduction.trained import TrainingScenario, read, read_nudges
from relucheck.results.store import SCHEMA, StoreError

#: Data this small confirm and refute nothing.
_SMOKE: Final = "smoke"


def default_folders() -> tuple[Path, ...]:
    """The folders of the working directory's results, except those of smoke tests."""
    marks = sorted(RESULTS.glob(f"*/{MARK}"))
    return tuple(mark.parent for mark in marks if _description(mark.parent)["scale"] != _SMOKE)


def decide_folders(folders: Iterable[Path]) -> tuple[Decision, ...]:
    """Decide every published claim from the finished results in folders.

    A claim whose scenario has no folder is decided by the results of a scenario that shares its runs, else it is "not run".

    Args:
        folders: of ``relucheck reproduce``, at most one for each scenario.

    Raises:
        ReproductionError: for a folder that holds no results of a scenario, those of a smoke test, or those of a scenario
            that another folder has already.
        relucheck.results.store.StoreError: for a result that cannot be read.
    """
    trained: dict[str, Sequence[Trained]] = {}
    volumes: dict[str, Volumes] = {}
    known: dict[str, Path] = {}
    for folder in folders:
        found = _description(folder)
        name, scale = found["scenario"], found["scale"]
        if scale == _SMOKE:
            raise ReproductionError(f"{folder} holds a smoke test, which confirms and refutes nothing; leave it out")
        if name in known:
            raise ReproductionError(f"{folder} and {known[name]} both hold results of {name}; name one of them")
        known[name] = folder
        scenario = find_scenario(name)
        if isinstance(scenario, TrainingScenario):
            place = Place(scale, folder, None, found["device"], found["executor"])
            trained[name] = _trained(scenario, place)
        else:
            volumes[name] = _volumes(folder / f"{NAME}.json")
    for name in _sharing(trained):
        trained[name[0]] = trained[name[1]]
    return decided(trained, volumes)


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


def _description(folder: Path) -> dict[str, Any]:
    mark = folder / MARK
    try:
        found = json.loads(mark.read_text(encoding="utf-8"))
        return {"executor": "forking", **{name: found[name] for name in ("scenario", "scale", "device")}, **found}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReproductionError(
            f"{folder} holds no results of a scenario ({MARK}: {error}); name a folder that relucheck reproduce wrote"
        ) from error


def _volumes(path: Path) -> Volumes:
    """The shares and zones of ``E4.json``.

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
    return Volumes(shares, zones)
