"""Control-C that stays control-C, whatever the code that it stops makes of it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Ends the block with KeyboardInterrupt where control-C was pressed in it, also where other code lost it.

    A bare ``except`` swallows KeyboardInterrupt, and Python 3.11 turns one that is raised in a ``__set_name__`` (the
    modules that torch imports lazily have many) into RuntimeError. Works in the main thread.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield  # somebody ignores the signal, or it belongs to another thread
        return
    pressed = False

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        before(signum, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if pressed:
            raise KeyboardInterrupt from error
        raise
    else:
        if pressed:
            raise KeyboardInterrupt
    finally:
        signal.signal(signal.SIGINT, before)
