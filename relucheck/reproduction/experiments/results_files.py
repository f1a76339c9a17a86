"""Files of results from which a command writes its report again (``--cells``)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from relucheck.errors import RelucheckError


class ReportError(RelucheckError, ValueError):
    """A file that is not a results file of this version."""


@contextlib.contextmanager
def reading(path: Path, schema: int, what: str) -> Iterator[Any]:
    """Give the JSON content of a results file to a block that makes results of it.

    Args:
        path: the file.
        schema: the version that the block reads.
        what: what the file should hold, for messages.

    Raises:
        ReportError: the file cannot be read, is of another version, or lacks what the block looks for.
    """
    try:
        content = json.loads(path.read_text())
        if content["schema"] != schema:
            raise ReportError(f"{path} has schema {content['schema']!r}, this version reads {schema}; run it again")
        yield content
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ReportError):
            raise
        raise ReportError(f"{path} holds no {what}: {error}; run without --cells") from error
