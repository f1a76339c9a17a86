"""Errors with exit codes, and validators that raise them with clear messages.

A message names the input, the rule that it breaks and the fix. Every error is a ``RelucheckError`` and, where a built-in
exception describes it (``ValueError``, ``TypeError``, ``RuntimeError``), a subclass of that exception too. Callers may
catch either.
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
MISSING: Final = 3  # a target, data or a device is missing, or memory is too small
UNWRITABLE: Final = 4  # a file cannot be written or read, or belongs to something else
BROKEN: Final = 70  # a bug in relucheck
INTERRUPTED: Final = 130


class RelucheckError(Exception):
    """Base class of every error that relucheck raises on purpose.

    Attributes:
        exit_code: the exit code of the ``relucheck`` command when this error ends it.
    """

    exit_code: ClassVar[int] = USAGE


class ModelError(RelucheckError, ValueError):
    """A model that does not allow what was asked of it."""


class SettingsError(RelucheckError, ValueError):
    """A setting whose value is not allowed."""


class ActivationError(RelucheckError, ValueError):
    """A declaration of an activation or a kink that is contradictory or not finite."""


class NotCallableError(RelucheckError, TypeError):
    """An object that must be callable, such as an activation or its constructor, and is not."""


class ControlError(RelucheckError, RuntimeError):
    """Two runs that must be bitwise equal differ, so the comparison that rests on them is void."""

    exit_code = FAILED


class DeviceError(RelucheckError, RuntimeError):
    """A device that does not exist or has too little memory."""

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
    """Refuse a value that is not a finite number within bounds.

    Args:
        name: name of the setting, for the message.
        value: the value to check; a bool is not a number.
        least: smallest value allowed.
        most: largest value allowed.
        above: bound that the value must exceed; it replaces ``least`` in the message.
        error: class of the error to raise.

    Raises:
        RelucheckError: the class ``error``, for any other value.
    """
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not least <= value <= most or (above is not None and value <= above):
        bounds = [f"above {above:g}"] if above is not None else [f"at least {least:g}"] * math.isfinite(least)
        bounds += [f"at most {most:g}"] * math.isfinite(most)
        raise error(f"{name}={value!r}: must be a finite number{' ' * bool(bounds)}{' and '.join(bounds)}")


def whole(name: str, value: Any, least: int = 1, *, error: type[RelucheckError] = SettingsError) -> None:
    """Refuse a value that is not an ``int`` of at least ``least``.

    Raises:
        RelucheckError: the class ``error``, for any other value; a bool is not a number.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise error(f"{name}={value!r}: must be a whole number of at least {least}")


def one_of(name: str, value: Any, choices: Sequence[str], *, error: type[RelucheckError] = SettingsError) -> None:
    """Refuse a value that is not one of ``choices``, and suggest the nearest of them.

    Raises:
        RelucheckError: the class ``error``, for any other value.
    """
    if not isinstance(value, str) or value not in choices:
        raise error(f"{name}={value!r}: {did_you_mean(value, choices)}must be one of {', '.join(choices)}")


def truth(name: str, value: Any, *, spelling: str = "True or False", error: type[RelucheckError] = SettingsError) -> None:
    """Refuse a value that is not a bool: the text "no" would count as true.

    Args:
        name: name of the setting, for the message.
        value: the value to check.
        spelling: the two allowed values as the user writes them, for the message.
        error: class of the error to raise.

    Raises:
        RelucheckError: the class ``error``, for any other value.
    """
    if not isinstance(value, bool):
        raise error(f"{name}={value!r}: must be {spelling}")


def instance(name: str, value: Any, kind: type, example: str, *, error: type[RelucheckError] = SettingsError) -> None:
    """Refuse a value that is not an instance of ``kind``; the message shows ``example``.

    Raises:
        RelucheckError: the class ``error``, for any other value.
    """
    if not isinstance(value, kind):
        raise error(f"{name}={value!r}: must be of class {kind.__name__}, for example {example}")


def listed(name: str, value: Any, example: str, *, error: type[RelucheckError] = SettingsError) -> tuple[Any, ...]:
    """Return a list or tuple as a tuple; refuse every other value.

    Raises:
        RelucheckError: the class ``error``, for any other value.
    """
    if not isinstance(value, list | tuple):
        raise error(f"{name}={value!r}: must be a list or tuple, for example {example}")
    return tuple(value)


def printable(text: str, *, lines: bool = False) -> str:
    """Escape the characters of a text that a terminal or a table would act on, as ``repr`` does.

    These are control characters such as Escape and NUL, lone surrogates, which no file can hold, and marks that change the
    direction of writing.

    Args:
        text: text that comes from somebody else's code.
        lines: whether line ends stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() or (lines and sign == "\n") else sign.encode("unicode_escape").decode() for sign in text
    )


def error_text(error: BaseException, most: int = 200) -> str:
    """Format an error on one printable line: its type, then the start of its message.

    Args:
        error: the error.
        most: how many characters of the message at most.
    """
    try:
        text = " ".join(str(error).split())
    except KeyboardInterrupt:
        raise
    except BaseException:  # the error comes from a target, and its __str__ may raise as well
        text = ""
    return printable(f"{type(error).__name__}: {text[:most]}" if text else type(error).__name__)


def missing_field(error: KeyError | TypeError) -> str:
    """Say what is wrong with the fields of a stored object, from the error of reading them."""
    return f"the field {error} is missing" if isinstance(error, KeyError) else str(error)


def did_you_mean(value: Any, known: Iterable[str], *, most: int = 1) -> str:
    """Return ``"did you mean 'relu'? "`` for a misspelt name; empty if no name is near.

    Upper and lower case count as equal.

    Args:
        value: the name as it was written; a value that is not a string has no near name.
        known: all names that exist.
        most: how many names to suggest at most.
    """
    if not isinstance(value, str):
        return ""
    lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(value.lower(), lower, n=most, cutoff=0.5)
    return f"did you mean {' or '.join(repr(lower[name]) for name in near)}? " if near else ""
