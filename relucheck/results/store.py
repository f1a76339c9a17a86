"""Results on disk: one file per finished cell, and what an unfinished cell has computed so far.

A cell's file is written whole, under a temporary name, and renamed into place. While a cell is computed its chunks are
appended to ``NAME.partial.jsonl``, one line each behind a header; a line cut short by a kill is dropped on resuming.
Every file says what it belongs to (its *identity*: schema, cell, data, device, processor, torch), and a file of another
identity is neither used nor overwritten. This room knows nothing of what the results mean.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from relucheck.errors import UNWRITABLE, RelucheckError
from relucheck.results import files

#: Version of the files' layout and of the identities in it. 2: an arithmetic is its name.
SCHEMA: Final = 2

Json = dict[str, Any]


class StoreError(RelucheckError, RuntimeError):
    """A folder that cannot be written, or a file in it that belongs to something else or is damaged."""

    exit_code = UNWRITABLE


class Store:
    """Results in one folder, which is made if need be.

    Raises:
        StoreError: at once, before anything is computed, if the folder cannot be made or written.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._lengths: dict[str, int] = {}  # bytes of each partial file that hold whole lines
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise StoreError(
                f"results folder {self.folder} cannot be written ({error.strerror or error}); name a folder that can be"
            ) from error

    def finished_path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def partial_path(self, name: str) -> Path:
        return self.folder / f"{name}.partial.jsonl"

    def finished(self, name: str, identity: Mapping[str, Any]) -> Json | None:
        """The result of a finished cell, or None where it is not finished.

        Raises:
            StoreError: the file is damaged, or of another identity; it is left as it is.
        """
        path = self.finished_path(name)
        text = _read(path)
        if text is None:
            return None
        content = _parse(path, text)
        _check_identity(path, content, identity)
        result = content.get("result")
        if not isinstance(result, dict):
            raise StoreError(f"{path} holds no result; {_MOVE}")
        return result

    def finish(self, name: str, identity: Mapping[str, Any], result: Json) -> Path:
        """Writes a finished cell, whole or not at all, and removes its chunks.

        Raises:
            StoreError: it cannot be written; what was there before stays.
        """
        path = self.finished_path(name)
        # a line per entry: lists of a thousand decisions are not read line by line
        entries = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in result.items())
        head = f'"schema": {SCHEMA},\n "identity": {json.dumps(dict(identity))}'
        write_atomically(path, f'{{{head},\n "result": {{\n{entries}\n }}\n}}\n')
        with contextlib.suppress(OSError):  # a left-over is ignored where the cell is finished
            self.partial_path(name).unlink(missing_ok=True)
        self._lengths.pop(name, None)
        return path

    def chunks(self, name: str, identity: Mapping[str, Any]) -> tuple[Json, ...]:
        """The chunks of an unfinished cell, in order; a last line that was cut short is left out.

        Raises:
            StoreError: the file is damaged before its last line, or of another identity; it is left as it is.
        """
        path = self.partial_path(name)
        text = _read(path)
        whole = "" if text is None else text[: text.rfind("\n") + 1]
        self._lengths[name] = len(whole.encode())
        if not whole:
            return ()
        header, *lines = whole.splitlines()
        _check_identity(path, _parse(path, header), identity)
        return tuple(_parse(path, line) for line in lines)

    def peek(self, name: str, key: str) -> Iterator[Any]:
        """What the whole chunks of an unfinished cell hold under a key, unchecked; nothing of an unreadable one."""
        with contextlib.suppress(OSError, ValueError):
            text = self.partial_path(name).read_text(encoding="utf-8")
            for line in text[: text.rfind("\n") + 1].splitlines()[1:]:
                content = json.loads(line)
                if isinstance(content, dict) and key in content:
                    yield content[key]

    def append(self, name: str, identity: Mapping[str, Any], chunk: Json) -> None:
        """Adds one chunk to an unfinished cell, behind what :meth:`chunks` returned or the last append wrote.

        Raises:
            StoreError: it cannot be written; the chunks before it are kept.
        """
        if name not in self._lengths:
            self.chunks(name, identity)
        path, length = self.partial_path(name), self._lengths[name]
        header = "" if length else _line({"schema": SCHEMA, "identity": dict(identity)})
        content = (header + _line(chunk)).encode()
        try:
            with open(path, "r+b" if path.exists() else "wb") as stream:
                stream.seek(length)
                stream.truncate()  # half a line, of an append that was interrupted
                stream.write(content)
        except OSError as error:
            raise StoreError(
                f"{path} cannot be written ({error.strerror or error}); the draws before are kept: make room and run again"
            ) from error
        self._lengths[name] = length + len(content)


_MOVE: Final = "move it away, or name another folder (it is left as it is)"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file under a temporary name beside it and renames it into place.

    Raises:
        StoreError: it cannot be written; what was there before stays.
    """
    try:
        files.write_atomically(path, content)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written ({error.strerror or error}); what was there before is kept: make room or name "
            "another folder, and run again"
        ) from error


def _line(content: Json) -> str:
    return json.dumps(content, separators=(",", ":")) + "\n"


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} cannot be read ({error}); {_MOVE}") from error


def _parse(path: Path, text: str) -> Json:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({error}); {_MOVE}") from error
    if not isinstance(content, dict):
        raise StoreError(f"{path} is no results file of relucheck; {_MOVE}")
    return content


def _check_identity(path: Path, content: Json, identity: Mapping[str, Any]) -> None:
    schema = content.get("schema")
    if schema != SCHEMA:
        fix = f"{files.MIGRATE}; or {_MOVE}" if schema == SCHEMA - 1 and path.suffix == ".json" else _MOVE
        raise StoreError(f"{path} has schema version {schema!r}, this relucheck reads {SCHEMA}; {fix}")
    found = content.get("identity")
    different = _first_difference(found if isinstance(found, dict) else {}, dict(identity))
    if different is not None:
        what, theirs, ours = different
        raise StoreError(f"{path} belongs to another run: its {what} is {theirs!r}, this run's is {ours!r}; {_MOVE}")


def _first_difference(found: Json, expected: Json, prefix: str = "") -> tuple[str, Any, Any] | None:
    """What differs first, by name, and both values."""
    for key in [*expected, *(key for key in found if key not in expected)]:
        theirs, ours = found.get(key), expected.get(key)
        if isinstance(theirs, dict) and isinstance(ours, dict):
            inner = _first_difference(theirs, ours, f"{prefix}{key} ")
            if inner is not None:
                return inner
        elif theirs != ours or type(theirs) is not type(ours):
            return f"{prefix}{key}".replace("_", " "), theirs, ours
    return None
