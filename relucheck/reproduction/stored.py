"""Read folders of results, and decide the published claims from them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from relucheck.reproduction.claims import Decision
from relucheck.reproduction.experiments import find_scenario
from relucheck.reproduction.folder import MARK, RESULTS, ReproductionError, described
from relucheck.reproduction.report.deciding.cases import Share, Trained, Volumes
from relucheck.reproduction.report.deciding.catalogue import decided
from relucheck.reproduction.report.volume.summary import NAME
from relucheck.reproduction.scenario import SCALES, Place
from relucheck.reproduction.trained import TrainingScenario, for_claims, read, read_nudges
from relucheck.results.store import SCHEMA, StoreError

#: Data this small confirm and refute nothing.
_SMOKE: Final = "smoke"


@dataclasses.dataclass(frozen=True)
class Stored:
    """The finished results of a folder.

    Attributes:
        folder: where they are.
        scenario, scale: of the folder.
        trained: the finished comparisons of a training scenario.
        volumes: the volumes of E4; None for a training scenario.
    """

    folder: Path
    scenario: str
    scale: str
    trained: tuple[Trained, ...] = ()
    volumes: Volumes | None = None

    @property
    def draws(self) -> int:
        """The number of networks in all cells of E4."""
        return sum(share.draws for share in self.volumes.shares) if self.volumes is not None else 0


def read_folders(folders: Iterable[Path]) -> tuple[Stored, ...]:
    """Read the results in named folders; a folder that is named twice counts once.

    Raises:
        ReproductionError: for a folder that holds no results of a scenario or those of a smoke test, and for a second
            folder of E4.
        relucheck.results.store.StoreError: for a result that cannot be read.
    """
    different = {folder.resolve(): folder for folder in reversed(tuple(folders))}
    found = tuple(map(_stored, reversed(different.values())))
    one, other, *_ = *(each for each in found if each.volumes is not None), None, None
    if one is not None and other is not None:
        raise ReproductionError(f"{other.folder} and {one.folder} both hold results of {one.scenario}; name one of them")
    return found


def default_results(say: Callable[[str], None]) -> tuple[Stored, ...]:
    """Read the results in the working directory's ``relucheck-results``.

    Smoke tests are not read. A folder that cannot be used is left out. Of several folders of E4, the one with most draws
    is used, or else the one at the larger scale.

    Args:
        say: takes a line for each folder that is left out, with the reason.
    """
    found: list[Stored] = []
    for mark in sorted(RESULTS.glob(f"*/{MARK}")):
        try:
            if described(mark.parent)["scale"] != _SMOKE:
                found.append(_stored(mark.parent))
        except (ReproductionError, StoreError) as error:
            say(f"{mark.parent} is left out: {error}")
    volumes = [one for one in found if one.volumes is not None]
    best = max(volumes, key=lambda one: (one.draws, -SCALES.index(one.scale)), default=None)
    for one in volumes:
        if best is not None and one is not best:
            why = f"{best.draws:,} draws instead of {one.draws:,}" if best.draws > one.draws else "as many draws"
            say(f"{one.folder} is left out: {best.folder} decides the claims of {one.scenario}, with {why}")
    return tuple(one for one in found if one.volumes is None or one is best)


def decide_folders(folders: Iterable[Path]) -> tuple[Decision, ...]:
    """Decide every published claim from the finished results in folders.

    Args:
        folders: of ``relucheck reproduce``; of E4, one is allowed.

    Raises:
        ReproductionError: for a folder that holds no results of a scenario or those of a smoke test, and for a second
            folder of E4.
        relucheck.results.store.StoreError: for a result that cannot be read.
    """
    return decide_stored(read_folders(folders))


def decide_stored(found: Iterable[Stored]) -> tuple[Decision, ...]:
    """Decide every published claim from finished results.

    A claim whose scenario has no results is decided by those of a scenario that shares its runs, else it is "not run".

    Args:
        found: the results. Of those that several folders of a scenario have for one comparison, one decides: first a
            result that is not void, then one whose nudges are finished and not void, then the one with most seeds, or
            else the one that comes first.
    """
    trained: dict[str, Sequence[Trained]] = {}
    volumes: dict[str, Volumes] = {}
    for one in found:
        if one.volumes is not None:
            volumes[one.scenario] = one.volumes
        else:
            trained[one.scenario] = _joined([*trained.get(one.scenario, ()), *one.trained])
    for name in _sharing(trained):
        trained[name[0]] = trained[name[1]]
    return decided(trained, volumes)


def _stored(folder: Path) -> Stored:
    found = described(folder)
    name, scale = found["scenario"], found["scale"]
    if scale == _SMOKE:
        raise ReproductionError(f"{folder} holds a smoke test, which confirms and refutes nothing; leave it out")
    scenario = find_scenario(name)
    if isinstance(scenario, TrainingScenario):
        place = Place(scale, folder, None, found["device"], found["executor"])
        return Stored(folder, name, scale, tuple(_trained(scenario, place)))
    return Stored(folder, name, scale, volumes=_volumes(folder / f"{NAME}.json", found["device"]))


def _joined(runs: Sequence[Trained]) -> list[Trained]:
    """One result for each comparison: the one that can decide most."""
    chosen: dict[str, Trained] = {}
    for run in runs:
        before = chosen.get(run.comparison.name)
        if before is None or _rank(run) > _rank(before):
            chosen[run.comparison.name] = run
    return list(chosen.values())


def _rank(run: Trained) -> tuple[bool, bool, int]:
    # void results decide nothing, and without nudges most claims cannot be decided, whatever the number of seeds
    return not run.result.void, run.nudges is not None and not run.nudges.void, len(run.result.settings.seeds)


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
            runs.append(Trained(comparison, result, for_claims(comparison, read_nudges(place, comparison))))
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
