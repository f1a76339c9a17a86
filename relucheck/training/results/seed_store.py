"""The results of a comparison in a folder: a file for each seed.

A seed is identified by the settings that its members share, its number and the executor. So seeds and members can be added
to a comparison without training a finished seed again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relucheck.errors import SettingsError
from relucheck.results.store import FINISHED, Store, StoreError, check_settings, read_finished
from relucheck.training.results.result import Result, SeedResult
from relucheck.training.settings import Plan, Settings


def finished(settings: Plan, folder: Path, executor: str) -> dict[int, SeedResult]:
    """The seeds of a comparison for which a folder has every member, by seed.

    The folder need not be writable. A void seed counts as finished.

    Raises:
        relucheck.results.store.StoreError: a file is damaged, or belongs to other settings or another executor.
    """
    results = {}
    for seed in settings.seeds:
        part = read(settings, seed, folder, executor)
        if part is None:
            continue
        known = {result.member for result in part.members}
        if part.void or all(member in known for member in settings.members if member.seed == seed):
            results[seed] = part
    return results


def collect(settings: Settings, folder: Path, executor: str) -> Result | None:
    """The result of a comparison if all its seeds are finished or one is void; else None.

    Raises:
        relucheck.results.store.StoreError: as for ``finished``.
    """
    results = finished(settings, folder, executor)
    if len(results) < len(settings.seeds) and not any(part.void for part in results.values()):
        return None
    return Result.of(settings, results)


def keep(settings: Plan, folder: Path, executor: str, seeds: Mapping[int, SeedResult]) -> None:
    """Store results of seeds; each replaces what the folder holds for its seed.

    Raises:
        relucheck.results.store.StoreError: the file cannot be written.
    """
    store = Store(folder)
    for seed, part in seeds.items():
        store.finish(f"seed-{seed}", _identity(settings, seed, executor), part.origin, part.to_json())


def _identity(settings: Plan, seed: int, executor: str) -> dict[str, Any]:
    return {"executor": executor, "seed": seed, "settings": settings.shared}


def read(settings: Plan, seed: int, folder: Path, executor: str) -> SeedResult | None:
    """What a folder holds of a seed, with or without every member, or None.

    Raises:
        relucheck.results.store.StoreError: as for ``finished``.
    """
    path = folder / f"seed-{seed}{FINISHED}"
    stored = read_finished(path, _identity(settings, seed, executor))
    if stored is None:
        return None
    try:
        part = SeedResult.from_json(stored.result, stored.origin)
        for one in part.members:
            check_settings(path, {"seed": one.member.seed}, {"seed": seed})
        return part
    except SettingsError as error:
        raise StoreError(f"{path} is damaged: {error}; move it away to run the seed again") from error


def same_reference(one: SeedResult, other: SeedResult) -> bool:
    """Whether two results of a seed have the same reference, in every digit.

    ``MemberResult.same_run`` compares them. The distances of a reference to itself are all 0.
    """
    first, second = (next(result for result in part.members if result.member.is_reference) for part in (one, other))
    return first.same_run(second)
