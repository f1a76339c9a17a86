"""Write files atomically: either completely or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
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
    try:
        with open(temporary, "xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
