"""Why a callable is no activation, or cannot be run.

Recognition and reports tell these errors apart.
"""

from __future__ import annotations

import dis
import inspect
from typing import Any

from relucheck.errors import RelucheckError


class NotAnActivation(RelucheckError):
    """A callable to which the laws do not apply.

    It changes shapes, mixes elements or draws random numbers.
    """


class NeedsArguments(NotAnActivation):
    """A callable that needs arguments after its input."""


class Mixes(NotAnActivation):
    """A callable of whose outputs one depends on several elements of the input."""


class OtherLayout(NotAnActivation):
    """A callable that is no elementwise function in a layout, but may be one in another.

    It changes the shape of its input, or its values depend on positions.
    """


class Abstract(NotAnActivation):
    """A callable whose code says that it is not written, in the layouts that were tried."""


class TargetError(RelucheckError):
    """An activation that cannot be run: it raises, needs arguments, or does not return an array."""


class Unconstructed(TargetError):
    """An activation that cannot be constructed."""


def is_stated(error: NotImplementedError) -> bool:
    """Whether a ``raise`` statement raised an error.

    A framework that lacks an operation raises one without it.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def required(target: Any) -> list[inspect.Parameter]:
    """Return the first parameter of a callable, and each further one that has no default."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return []
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    keyword = [p for p in parameters if p.kind == p.KEYWORD_ONLY]
    return [*positional[:1], *(p for p in (*positional[1:], *keyword) if p.default is p.empty)]
