"""Write files atomically: either completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name, then rename it; create the folder if necessary.

    Readers see the old file or the new one, never a part of it. That holds after a loss of power, too, because the bytes
    are on disk before the file is renamed.

    Args:
        path: the file.
        content: bytes, or text, which is written as UTF-8.

    Raises:
        OSError: if the file cannot be written. A file that was there before stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    with _naming(path):
        try:
            with open(temporary, "xb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Refuse a file that surely cannot be written, before the work whose result it is to hold.

    Nothing is written; a folder that does not exist yet is not created.

    Raises:
        OSError: says why not.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    with _naming(path):
        tempfile.TemporaryFile(dir=folder).close()


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let an error name the file that the caller asked for, and not the temporary one beside it."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
