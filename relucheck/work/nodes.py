"""What the nodes of a cluster must have in common before units run on them.

Every node needs the driver's versions, the driver's results folder and whatever else the caller names. Another processor is
allowed, because each result says where it was computed, but the user should know of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from relucheck.errors import error_text
from relucheck.numerics.devices import environment

#: The versions that must be equal. Results of two versions may differ.
_VERSIONS: Final = ("relucheck", "torch", "python")
#: Seconds until a new file must be visible on another machine.
_VISIBLE_SECONDS: Final = 2.0


@dataclasses.dataclass(frozen=True)
class Expected:
    """What the driver has, and every node must have.

    Attributes:
        versions: by name.
        token: the path of a file that the driver has written, and its content; None if no folder is shared.
        same: values by name, each with the function that computes it on a node.
    """

    versions: Mapping[str, str]
    token: tuple[Path, str] | None
    same: Mapping[str, tuple[Callable[[], Any], Any]]


@contextlib.contextmanager
def expectations(folder: Path | None, same: Mapping[str, Callable[[], Any]]) -> Iterator[Expected]:
    """What this process has; a token lies in the folder during the block.

    Raises:
        OSError: the folder cannot be written.
    """
    token = None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        text = secrets.token_hex(8)
        token = folder.absolute() / f".shared-{text}", text
        token[0].write_text(text, encoding="utf-8")
    try:
        yield Expected(_versions(), token, {name: (compute, compute()) for name, compute in same.items()})
    finally:
        if token is not None:
            token[0].unlink(missing_ok=True)


def refusal(expected: Expected) -> str:
    """Say what this machine lacks; "" if nothing."""
    here = _versions()
    for name, version in expected.versions.items():
        if here[name] != version:
            return f"{name} {here[name]}, and the driver has {version}; install the same versions on all machines"
    if expected.token is not None:
        path, text = expected.token
        if not _visible(path, text):
            return f"another folder {path.parent} than the driver; results need a folder that all machines share"
    for name, (compute, value) in expected.same.items():
        try:
            found = compute()
        except Exception as error:
            return f"no {name}: {error_text(error, 500)}"
        if found != value:
            return f"other {name} than the driver; they must be the same on all machines"
    return ""


def processor() -> str:
    """What decides the rounding of this machine's CPU: its name and its vector instructions."""
    here = environment("cpu")
    return f"{here.processor}, {here.model}"


def _versions() -> dict[str, str]:
    return environment("cpu").versions(*_VERSIONS)


def _visible(path: Path, text: str) -> bool:
    last = time.monotonic() + _VISIBLE_SECONDS
    while True:
        with contextlib.suppress(OSError):
            os.listdir(path.parent)  # a network file system may look again
            if path.read_text(encoding="utf-8") == text:
                return True
        if time.monotonic() > last:
            return False
        time.sleep(0.1)
