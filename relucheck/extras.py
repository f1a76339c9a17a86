"""Packages that only a part of relucheck needs, and the one error that is raised where one of them is missing.

They are installed by an extra, for example ``pip install "relucheck[reproduce]"``. They are imported where they are used,
so that checking activations and comparing models needs none of them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import ClassVar, Final

from relucheck.errors import MISSING, RelucheckError

#: Every optional package, with the extra that installs it.
EXTRAS: Final[Mapping[str, str]] = {
    "hypothesis": "networks",
    "matplotlib": "reproduce",
    "scipy": "reproduce",
    "torchvision": "reproduce",
}


class MissingExtraError(RelucheckError, ImportError):
    """An optional package is needed and not installed."""

    exit_code: ClassVar[int] = MISSING


def require(purpose: str, *packages: str, otherwise: str = "") -> None:
    """Refuse to go on without optional packages of one extra.

    Args:
        purpose: what needs them, for example "reproducing experiments".
        packages: names of :data:`EXTRAS`, all of one extra.
        otherwise: what else can be done, for example "or put the files into /data".

    Raises:
        MissingExtraError: if one of them is not installed; one line with the pip command.
    """
    if all(map(_installed, packages)):
        return
    *others, last = packages
    needed = f"{', '.join(others)} and {last}" if others else last
    (extra,) = {EXTRAS[package] for package in packages}
    command = f'pip install "relucheck[{extra}]"'
    raise MissingExtraError(f"{purpose} needs {needed}; run: {command}{f', {otherwise}' if otherwise else ''}")


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # an import hook may raise; a module without a spec is a stand-in
        return False
