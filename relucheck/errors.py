"""The errors of relucheck, each with the exit code of a command that ends in it, and the checks that raise them.

An error names the input, the rule that it breaks and the fix. Every error is a :class:`RelucheckError`, and a subclass of
the built-in exception that says what kind it is, so that callers may catch either.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Final

#: Exit codes of the ``relucheck`` command.
OK: Final = 0
FAILED: Final = 1  # a law failed, kinks drifted, or a control differed
USAGE: Final = 2  # the command line, a setting or a folder cannot be used
MISSING: Final = 3  # a target, data or a device is not there, or memory is too small
UNWRITABLE: Final = 4  # a file cannot be written or read, or belongs to something else
BROKEN: Final = 70  # an error of relucheck's own
INTERRUPTED: Final = 130


class RelucheckError(Exception):
    """Anything that relucheck refuses or cannot do.

    Attributes:
        exit_code: of a command that ends in this error.
    """

    exit_code: ClassVar[int] = USAGE


class ModelError(RelucheckError, ValueError):
    """A model that cannot be examined as asked."""


class SettingsError(RelucheckError, ValueError):
    """A setting that cannot be used."""


class ActivationError(RelucheckError, ValueError):
    """An activation, or a kink of one, that is declared as none can be."""


class NotCallableError(RelucheckError, TypeError):
    """Something that was given where an activation, or what makes one, must be callable."""


class ControlError(RelucheckError, RuntimeError):
    """Two runs that must be bitwise equal differ, so nothing may be concluded from the comparison."""

    exit_code = FAILED


class DeviceError(RelucheckError, RuntimeError):
    """A device that is not there, or has too little memory."""

    exit_code = MISSING


def number(
    name: str,
    value: Any,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    above: float | None = None,
    error: type[RelucheckError] = SettingsError,
) -> None:
    """Refuses what is no finite number, or out of bounds."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not least <= value <= most or (above is not None and value <= above):
        bounds = [f"above {above:g}"] if above is not None else [f"at least {least:g}"] * math.isfinite(least)
        bounds += [f"at most {most:g}"] * math.isfinite(most)
        raise error(f"{name}={value!r}: must be a finite number{' ' * bool(bounds)}{' and '.join(bounds)}")


def whole(name: str, value: Any, least: int = 1, *, error: type[RelucheckError] = SettingsError) -> None:
    """Refuses what is no whole number, or too small."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise error(f"{name}={value!r}: must be a whole number of at least {least}")


def one_of(name: str, value: Any, choices: Sequence[str], *, error: type[RelucheckError] = SettingsError) -> None:
    """Refuses what is none of some names, and suggests the nearest."""
    if not isinstance(value, str) or value not in choices:
        raise error(f"{name}={value!r}: {did_you_mean(value, choices)}must be one of {', '.join(choices)}")


def truth(name: str, value: Any, *, spelling: str = "True or False", error: type[RelucheckError] = SettingsError) -> None:
    """Refuses what is neither True nor False: "no" would count as true.

    Args:
        name: of the setting.
        value: of the setting.
        spelling: of the two values where they are written.
        error: what is raised.
    """
    if not isinstance(value, bool):
        raise error(f"{name}={value!r}: must be {spelling}")


def instance(name: str, value: Any, kind: type, example: str, *, error: type[RelucheckError] = SettingsError) -> None:
    """Refuses what is not of a class."""
    if not isinstance(value, kind):
        raise error(f"{name}={value!r}: must be of class {kind.__name__}, for example {example}")


def listed(name: str, value: Any, example: str, *, error: type[RelucheckError] = SettingsError) -> tuple[Any, ...]:
    """The tuple of a list or tuple; refuses everything else."""
    if not isinstance(value, list | tuple):
        raise error(f"{name}={value!r}: must be a list or tuple, for example {example}")
    return tuple(value)


def error_text(error: BaseException, most: int = 200) -> str:
    """An error on one line: its type, and at most so many characters of what it says."""
    try:
        text = " ".join(str(error).split())
    except KeyboardInterrupt:
        raise
    except BaseException:  # an error of other people's code, which may raise when it is printed, too
        text = ""
    return f"{type(error).__name__}: {text[:most]}" if text else type(error).__name__


def did_you_mean(value: Any, known: Iterable[str], *, most: int = 1) -> str:
    """``"did you mean 'relu'? "`` for a name that is near a known one, in any case, else nothing.

    Args:
        value: what was given; anything that is no string is near nothing.
        known: the names there are.
        most: how many of them to suggest.
    """
    if not isinstance(value, str):
        return ""
    lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(value.lower(), lower, n=most, cutoff=0.5)
    return f"did you mean {' or '.join(repr(lower[name]) for name in near)}? " if near else ""
