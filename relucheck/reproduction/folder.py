"""The folder of a run, which belongs to one scenario, scale, kind of device and executor."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

from relucheck.errors import RelucheckError
from relucheck.reproduction.scenario import Place, Scenario
from relucheck.results.store import SCHEMA, write_atomically
from relucheck.training.engine import usual_executor

#: The file that describes the folder, and the name and version of the folder's layout.
MARK: Final = "scenario.json"
LAYOUT: Final = "relucheck-reproduction"
LAYOUT_VERSION: Final = 2
#: A temporary file of the description, which a command that was killed may leave.
_TEMPORARY: Final = re.compile(rf"\.{re.escape(MARK)}\..*\.tmp")
#: Where results go unless another folder is named; git ignores it.
RESULTS: Final = Path("relucheck-results")


class ReproductionError(RelucheckError, ValueError):
    """A folder that holds something else, or that cannot be read."""


def default_folder(scenario: str, scale: str, device: str, executor: str) -> Path:
    """Name the folder for results: ``relucheck-results/NAME-SCALE``, in the working directory.

    ``-EXECUTOR`` is appended where the executor is not the device's usual one.
    """
    return RESULTS / (f"{scenario}-{scale}" + f"-{executor}" * (executor != usual_executor(device)))


def reserve(place: Place, scenario: Scenario) -> None:
    """Mark a folder as this scenario's, or check that it is.

    Raises:
        ReproductionError: if it belongs to another scenario, scale, kind of device, executor or version, or holds anything
            else.
        relucheck.results.store.StoreError: if it cannot be written.
    """
    wanted = _description(place, scenario)
    mark = place.folder / MARK
    fix = "choose another --out folder, or delete this one"
    try:
        found = json.loads(mark.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if _holds_something(place.folder) and not mark.exists():  # another command may have claimed it just now
            raise ReproductionError(
                f"{place.folder} holds other files and no {MARK}; {fix} if nothing in it is needed"
            ) from None
        if mark.exists():
            return reserve(place, scenario)
        write_atomically(mark, json.dumps(wanted, indent=1) + "\n")
        return None
    except NotADirectoryError:
        raise ReproductionError(f"{place.folder} is a file, or lies in one; choose another --out folder") from None
    except (OSError, ValueError) as error:
        raise ReproductionError(f"{mark} cannot be read ({error}); {fix}") from error
    different = [f"{key} {_of(found, key)!r}, not {value!r}" for key, value in wanted.items() if _of(found, key) != value]
    if different:
        raise ReproductionError(f"{place.folder} was made for {', '.join(different)}; {fix}")
    return None


def described(folder: Path) -> dict[str, Any]:
    """The description of a folder of results: scenario, scale, device, executor.

    Raises:
        ReproductionError: for a folder that holds no results of a scenario.
    """
    mark = folder / MARK
    try:
        found = json.loads(mark.read_text(encoding="utf-8"))
        return {"executor": "forking", **{name: found[name] for name in ("scenario", "scale", "device")}, **found}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReproductionError(
            f"{folder} holds no results of a scenario ({MARK}: {error}); name a folder that relucheck reproduce wrote"
        ) from error


def differences(place: Place, neighbour: Scenario, other: Path) -> list[str] | None:
    """Name the keys in which another scenario's folder does not fit this run; None without one."""
    try:
        found = json.loads((other / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return [key for key, value in _description(place, neighbour).items() if _of(found, key) != value]


def _description(place: Place, scenario: Scenario) -> dict[str, object]:
    wanted: dict[str, object] = {
        "layout": LAYOUT,
        "layout_version": LAYOUT_VERSION,
        "results_schema": SCHEMA,
        "scenario": scenario.name,
        "scenario_version": scenario.version,
        "scale": place.scale,
        "device": place.device.partition(":")[0],
    }
    return {**wanted, "executor": place.executor} if scenario.trains else wanted


def _holds_something(folder: Path) -> bool:
    try:
        return folder.is_dir() and any(not _TEMPORARY.fullmatch(path.name) for path in folder.iterdir())
    except OSError as error:
        raise ReproductionError(f"{folder} cannot be read ({error}); choose another --out folder") from error


def _of(found: Any, key: str) -> Any:
    return found.get(key) if isinstance(found, dict) else None
