"""The frameworks whose activations the gate can check, by name. Imports none of them.

``port`` says what the gate needs of a framework, and CONTRIBUTING.md how to add one.
"""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Final

from relucheck.errors import RelucheckError, did_you_mean
from relucheck.gate.frameworks.port import Framework

__all__ = ["DEFAULT", "FRAMEWORKS", "FrameworkError", "framework_named", "loaded_frameworks"]

#: Each framework's class as ``module:class``, by the name of the framework's package, which is also the name in
#: ``Activation.framework``. The class is imported when needed.
FRAMEWORKS: Final[dict[str, str]] = {"torch": "relucheck.gate.frameworks.of_torch.port:TorchFramework"}

#: The framework of a function that does not say which arrays it takes.
DEFAULT: Final = "torch"


class FrameworkError(RelucheckError, ValueError):
    """A framework that the gate does not know, or that is not installed."""


def framework_named(name: str) -> Framework:
    """Return the framework of a name.

    Raises:
        FrameworkError: for a name that is not in ``FRAMEWORKS``, and a framework that cannot be imported.
    """
    if name not in FRAMEWORKS:
        raise FrameworkError(
            f"framework {name!r} does not exist{did_you_mean(name, FRAMEWORKS)}; the frameworks are {', '.join(FRAMEWORKS)}"
        )
    try:
        return _created(FRAMEWORKS[name])
    except ImportError as error:
        raise FrameworkError(f"framework {name!r} cannot be imported: {error}; install it") from error


def loaded_frameworks() -> list[Framework]:
    """Return the frameworks whose packages are imported; modules of no other can exist here."""
    return [framework_named(name) for name in FRAMEWORKS if sys.modules.get(name) is not None]


@functools.cache
def _created(place: str) -> Framework:
    module, _, name = place.partition(":")
    created: Framework = getattr(importlib.import_module(module), name)()
    return created
