"""The frameworks whose activations the gate can check, by name. Imports none of them.

``port`` says what the gate needs of a framework, and CONTRIBUTING.md how to add one.
"""

from __future__ import annotations

import functools
import importlib
from typing import Final

from relucheck.errors import RelucheckError, did_you_mean
from relucheck.gate.frameworks.port import Framework

__all__ = ["FRAMEWORKS", "UnknownFrameworkError", "framework_named"]

#: Each framework's class as ``module:class``, by the name in ``Activation.framework``. The class is imported when needed.
FRAMEWORKS: Final[dict[str, str]] = {"torch": "relucheck.gate.frameworks.torch_port:TorchFramework"}


class UnknownFrameworkError(RelucheckError, ValueError):
    """An activation that names a framework which the gate does not know."""


def framework_named(name: str) -> Framework:
    """Return the framework of a name.

    Raises:
        UnknownFrameworkError: for a name that is not in ``FRAMEWORKS``.
    """
    if name not in FRAMEWORKS:
        raise UnknownFrameworkError(
            f"framework {name!r} does not exist{did_you_mean(name, FRAMEWORKS)}; the frameworks are {', '.join(FRAMEWORKS)}"
        )
    return _created(FRAMEWORKS[name])


@functools.cache
def _created(place: str) -> Framework:
    module, _, name = place.partition(":")
    created: Framework = getattr(importlib.import_module(module), name)()
    return created
