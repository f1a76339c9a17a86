"""The folder of a run, which belongs to one scenario, scale, kind of device and executor."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from relucheck.errors import RelucheckError, one_of
from relucheck.reproduction.experiments import find_scenario
from relucheck.reproduction.scenario import SCALES, Place, Scenario
from relucheck.results.store import SCHEMA, write_atomically
from relucheck.training.engine import EXECUTORS, usual_executor

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
    _agree(place.folder, found, wanted, fix)
    return None


def _agree(folder: Path, found: Any, wanted: Mapping[str, object], fix: str) -> None:
    """Refuse a description that differs from the wanted one."""
    keys = [key for key, value in wanted.items() if _of(found, key) != value]
    if "scenario" in keys:  # versions of different scenarios have nothing to do with each other
        keys = [key for key in keys if key != "scenario_version"]
    different = [f"{key} {_of(found, key)!r}, not {wanted[key]!r}" for key in keys]
    if different:
        raise ReproductionError(f"{folder} was made for {', '.join(different)}; {fix}")


def described(folder: Path) -> dict[str, str]:
    """The description of a folder of results: scenario, scale, device, executor.

    Raises:
        ReproductionError: for a folder that holds no results of a scenario, or those of another version.
    """
    fix = "name a folder that relucheck reproduce wrote"
    try:
        found = json.loads((folder / MARK).read_text(encoding="utf-8"))
        texts = {name: found[name] for name in ("scenario", "scale", "device")}
        scenario = find_scenario(_text("scenario", texts["scenario"]))
        # volumes train nothing, so that their folders name no executor
        texts["executor"] = found["executor"] if scenario.trains else EXECUTORS[0]
        one_of("scale", texts["scale"], SCALES, error=ReproductionError)
        one_of("executor", texts["executor"], EXECUTORS, error=ReproductionError)
        place = Place(texts["scale"], folder, None, _text("device", texts["device"]), texts["executor"])
    except KeyError as error:
        raise ReproductionError(f"{folder} holds no results of a scenario ({MARK}: {error} is missing); {fix}") from error
    except (OSError, ValueError, TypeError) as error:
        raise ReproductionError(f"{folder} holds no results of a scenario ({MARK}: {error}); {fix}") from error
    _agree(folder, found, _description(place, scenario), fix)
    return texts


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ReproductionError(f"{name}={value!r}: must be a text")
    return value


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
