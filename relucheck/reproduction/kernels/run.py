"""Survey the kernels of a device, and write the report."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from relucheck.numerics.devices import best_device
from relucheck.numerics.dtypes import as_dtype
from relucheck.reproduction.kernels.calls import calls, networks
from relucheck.reproduction.kernels.report import markdown
from relucheck.reproduction.kernels.survey import DTYPES, Survey, survey
from relucheck.results.store import StoreError, write_atomically
from relucheck.training.engine import checked_device


def kernels(
    device: str | None = None, dtypes: Sequence[str] = (), folder: Path | None = None, *, progress: bool = True
) -> tuple[Survey, tuple[Path, ...]]:
    """Survey the kernels of a device, and write the report if a folder is given.

    The report is a Markdown file and a JSON file. They are named by the device: "cpu.md", or a GPU's name such as
    "nvidia-h200.md".

    Args:
        device: "cpu" or "cuda"; None: CUDA where there is one.
        dtypes: names of dtypes; none: all four.
        folder: for the files; None writes none.
        progress: whether to show the progress.

    Returns:
        The survey, and the files that were written.

    Raises:
        DeviceError: for a device that is not there.
        UnsupportedDtypeError: for a dtype that is not supported.
        relucheck.results.store.StoreError: for a folder that cannot be written, before anything is surveyed.
    """
    place = checked_device(best_device() if device is None else device)
    chosen = tuple(dict.fromkeys(map(as_dtype, dtypes))) or DTYPES
    if folder is not None:
        _check_writable(folder)  # before minutes of work whose report could not be written
    found = survey(calls(networks()), chosen, place, progress=progress)
    if folder is None:
        return found, ()
    name = file_name(found)
    files = folder / f"{name}.md", folder / f"{name}.json"
    write_atomically(files[1], json.dumps(found.to_json(), indent=1, ensure_ascii=False) + "\n")
    write_atomically(files[0], markdown(found))
    return found, files


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StoreError(
            f"--out {folder}: files cannot be written there ({error.strerror or error}); name another folder"
        ) from error


def file_name(found: Survey) -> str:
    """The name of a survey's files without their ending: "cpu", or the name of a GPU."""
    kind, model = found.environment["kind"], found.environment.get("model", "")
    return kind if kind == "cpu" else re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")
