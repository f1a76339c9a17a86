"""Checkpoints of a training comparison: written whole or not at all, and refused where they do not belong."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any, Final

import torch

from relucheck.errors import UNWRITABLE, RelucheckError
from relucheck.results.files import MIGRATE, write_atomically
from relucheck.training.result import Result
from relucheck.training.settings import SCHEMA, Settings

CHECKPOINT: Final = "checkpoint.pt"
RESULT: Final = "result.json"
#: Version of what a checkpoint holds. Raise it when an executor's state changes; 2: the optimiser's may be of one tensor;
#: 3: the stacked executor has the controls last, statistics by member, and Adam's betas as powers; 4: parameters have the
#: names of networks.MLP.
STATE: Final = 4


class CheckpointError(RelucheckError, OSError):
    """A checkpoint or result that cannot be written, or belongs to something else."""

    exit_code = UNWRITABLE


def write(path: Path, content: bytes) -> None:
    """Writes a file by way of a temporary one beside it; what was there before stays unless all is written.

    Raises:
        CheckpointError: where the file system refuses (a full disk, no permission); names the path and the fix.
    """
    try:
        write_atomically(path, content)
    except OSError as error:
        raise CheckpointError(
            f"could not write {path} ({len(content):,} bytes): {error}; what was there before is kept: make room or choose "
            "another folder, and run the same again to resume"
        ) from error


def save(folder: Path, settings: Settings, origin: dict[str, str], state: dict[str, Any]) -> None:
    """Writes the checkpoint of a run; ``origin`` says where its numbers come from (device, executor, versions)."""
    buffer = io.BytesIO()
    head = {"schema": STATE, "digest": settings.digest, "settings": json.dumps(settings.to_json()), "origin": origin}
    torch.save({**head, "state": state}, buffer)
    write(folder / CHECKPOINT, buffer.getvalue())


def load(folder: Path, settings: Settings, origin: dict[str, str]) -> dict[str, Any] | None:
    """The state in a folder's checkpoint, tensors on the CPU; None where there is no checkpoint.

    Raises:
        CheckpointError: if it is damaged, or of another schema, other settings, device, executor or versions; names both.
    """
    path = folder / CHECKPOINT
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        found = {"schema": content["schema"], "digest": content["digest"]}
    except FileNotFoundError:
        return None
    except Exception as error:  # unpickling nonsense raises what it likes
        raise CheckpointError(f"checkpoint {path} is unreadable or damaged: {error}; delete it to start anew") from error
    _refuse(path, "schema", found["schema"], STATE)
    if found["digest"] != settings.digest:
        _refuse_settings(path, json.loads(content["settings"]), settings)
    for name, value in origin.items():
        _refuse(path, name, content["origin"].get(name), value)
    state: dict[str, Any] = content["state"]
    return state


def save_result(folder: Path, result: Result) -> None:
    """Writes the result of a finished run and removes its checkpoint, which is no longer needed."""
    # without the spaces, which are a tenth of what full-length runs keep
    write(folder / RESULT, json.dumps(result.to_json(), allow_nan=False, separators=(",", ":")).encode())
    with contextlib.suppress(FileNotFoundError):
        (folder / CHECKPOINT).unlink()


def load_result(folder: Path, settings: Settings, origin: dict[str, str] | None = None) -> Result | None:
    """The result in a folder; None where there is none.

    Args:
        folder: where it is.
        settings: that it must be of.
        origin: as :func:`save` has it, if the result must also come from there: to take it for a run's own. None: from
            anywhere, to report it.

    Raises:
        CheckpointError: if it is damaged, or of another schema, other settings, device, executor or versions; names both.
    """
    path = folder / RESULT
    try:
        content = json.loads(path.read_bytes())
        if content.get("schema") == SCHEMA - 1:
            raise CheckpointError(f"{path} is of schema {SCHEMA - 1}, this run has {SCHEMA}: {MIGRATE}")
        _refuse(path, "schema", content.get("schema"), SCHEMA)
        if content.get("digest") != settings.digest:
            _refuse_settings(path, content["settings"], settings)
        found = {"device": content["device"], "executor": content["executor"], **content["versions"]}
        for name, value in (origin or {}).items():
            _refuse(path, name, found.get(name), value)
        return Result.from_json(content)
    except FileNotFoundError:
        return None
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"result {path} is unreadable or damaged: {error}; delete it to start anew") from error


def _refuse(path: Path, what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise CheckpointError(
            f"{path} is of {what} {found!r}, this run has {wanted!r}, so the two are not one run bit for bit: use another "
            "folder, or delete the file to start anew"
        )


def _refuse_settings(path: Path, found: dict[str, Any], settings: Settings) -> None:
    wanted = settings.to_json()
    names = [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]
    told = "; ".join(f"{name} {_short(found.get(name))} there, {_short(wanted.get(name))} here" for name in names)
    raise CheckpointError(
        f"{path} is of other settings ({told or 'another digest'}): use another folder, or delete the file to start anew"
    )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
