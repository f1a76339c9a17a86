"""Makes Control-C end a run even if the interrupted code swallows KeyboardInterrupt."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def kept() -> Iterator[Callable[[], bool]]:
    """Raise KeyboardInterrupt after the block if Control-C was pressed inside.

    Other code may have swallowed the interrupt. A bare ``except`` does so, and Python 3.11 turns a KeyboardInterrupt inside
    ``__set_name__`` into RuntimeError, which can happen while torch imports modules lazily. Works in the main thread only.

    Yields:
        A function that says whether Control-C was pressed in the block. It tells an interrupt from a KeyboardInterrupt that
        the block's code has raised by itself.

    Raises:
        KeyboardInterrupt: after Control-C.
    """
    pressed = False

    def was_pressed() -> bool:
        return pressed

    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield was_pressed  # the process ignores the signal, or the main thread handles it
        return

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        before(signum, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield was_pressed
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
