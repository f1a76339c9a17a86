"""Where an activation is defined, for editors and annotations."""

from __future__ import annotations

import functools
import inspect
import os
from typing import Any

from relucheck.activations.kinks import Activation


def definition(activation: Activation) -> str:
    """Return the absolute path and the line of an activation's definition, as ``path:line``.

    The text is empty for what Python's code does not define.
    """
    try:
        value = inspect.unwrap(_defining(activation.make))
        if not (inspect.isclass(value) or inspect.isroutine(value)):
            value = type(value)
        file, line = inspect.getsourcefile(value), inspect.getsourcelines(value)[1]
    except (TypeError, OSError, ValueError):
        return ""
    return "" if file is None else f"{os.path.abspath(file)}:{max(line, 1)}"


def _defining(make: Any) -> Any:
    """Return the class or function that a ``make`` constructs or returns."""
    while isinstance(make, functools.partial):
        make = make.args[0] if make.args else make.func
    return make
