"""Optional packages, and the error that is raised where one of them is missing.

They are installed by an extra, for example ``pip install "relucheck[reproduce]"``. They are imported where they are used,
so that checking activations and comparing models needs none of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import ClassVar, Final

from relucheck.errors import MISSING, RelucheckError

#: Every optional package, with the extra that installs it.
EXTRAS: Final[Mapping[str, str]] = {
    "hypothesis": "networks",
    "matplotlib": "reproduce",
    "ray": "ray",
    "scipy": "reproduce",
    "torchvision": "reproduce",
}


class MissingExtraError(RelucheckError, ImportError):
    """An optional package is needed, and it is not installed or cannot be imported."""

    exit_code: ClassVar[int] = MISSING


def require(purpose: str, *packages: str, otherwise: str = "") -> None:
    """Refuse to go on without optional packages of one extra.

    The packages are imported. So one that is installed and broken is noticed before hours of work, not after them.

    Args:
        purpose: what needs them, for example "reproducing experiments".
        packages: names of :data:`EXTRAS`, all of one extra.
        otherwise: what else can be done, for example "or put the files into /data".

    Raises:
        MissingExtraError: if one of them is not installed, or cannot be imported; one line with what to do.
    """
    alternative = f", {otherwise}" if otherwise else ""
    for package in packages:
        try:
            importlib.import_module(package)
        except Exception as error:  # a build for another torch or numpy raises errors of many types
            if isinstance(error, ModuleNotFoundError) and error.name == package:
                *others, last = packages
                needed = f"{', '.join(others)} and {last}" if others else last
                (extra,) = {EXTRAS[package] for package in packages}
                raise MissingExtraError(
                    f'{purpose} needs {needed}; run: pip install "relucheck[{extra}]"{alternative}'
                ) from None
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise MissingExtraError(
                f"{purpose} needs {package}, which is installed and cannot be imported ({reason}); install a version that "
                f"fits the other packages{alternative}"
            ) from error
