"""Registered constructors of activation classes that need arguments. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from relucheck.errors import NotCallableError

#: Registered constructors of classes that need arguments, by ``module:Name`` or ``Name``.
REGISTERED: Final[dict[str, Callable[..., Any]]] = {}


def register_constructor(name: str | type, make: Callable[..., Any]) -> None:
    """Register how to construct an activation class that needs arguments.

    For a function with further arguments, ``make`` returns a function of one tensor.

    Args:
        name: the class or function, its name, or ``"module:Name"``.
        make: called with the class or function; returns a callable of one tensor.

    Raises:
        NotCallableError: for a ``make`` that is not callable.

    Examples:
        ``relucheck.register_constructor("ScaledReLU", lambda cls: cls(slope=0.1))``
    """
    if not callable(make):
        raise NotCallableError(
            f"register_constructor({name!r}, make={make!r}): make must be callable with the class; pass a function"
        )
    key = name if isinstance(name, str) else f"{name.__module__}:{name.__qualname__}"
    REGISTERED[key] = make
