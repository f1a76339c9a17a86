"""Results on disk: finished units of work, and the progress of unfinished ones.

A unit has a *name*, an *identity* and an *origin*. The name is the name of its file. The identity is everything that
decides its numbers. The origin is the device, the processor and the versions: it is recorded and may differ between the
units of a report. An unfinished unit may only be continued with its origin, because another processor may round
differently. A finished unit is used wherever it was computed. A file with another identity or layout is neither used nor
overwritten.

A finished unit is one JSON file, compressed by gzip without a time stamp, so that equal results give equal bytes. It is
written under a temporary name and then renamed. The progress of an unfinished unit is either *chunks* or a *state*. Chunks
are lines of JSON after a header in ``NAME.partial.jsonl``; an incomplete last line, left by a killed process, is ignored on
resuming. A state is bytes after a header in ``NAME.state``. This module does not know what results mean.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from relucheck.errors import UNWRITABLE, RelucheckError
from relucheck.results import files

#: Version of the layout of files and identities. Since 2, an arithmetic is stored by its name and a network by its
#: description, and the device is part of the origin, not of the identity. Since 3, finished files are compressed.
SCHEMA: Final = 3
#: The ending of the name of a finished unit's file.
FINISHED: Final = ".json.gz"

Json = dict[str, Any]


class StoreError(RelucheckError, RuntimeError):
    """A folder or file that cannot be written or read, is damaged, or belongs to another run."""

    exit_code = UNWRITABLE


class OriginError(StoreError):
    """An unfinished unit was begun with another device, processor or version.

    Another environment may round differently, so the unit cannot be continued here.
    """


class Finished(NamedTuple):
    """A finished unit: its result, and the origin (where it was computed)."""

    result: Json
    origin: Json


class State(NamedTuple):
    """The state of an unfinished unit: bytes, and the number of steps done."""

    content: bytes
    steps: int


class Store:
    """The results in one folder, which is created if necessary.

    Methods take the name of a unit (a file name without suffix), its identity and its origin; the last two are JSON
    objects.

    Args:
        folder: the folder.

    Raises:
        StoreError: if the folder cannot be created or written. So a run fails before it computes anything.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._lengths: dict[str, int] = {}  # the length in bytes of the complete lines of each partial file
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise StoreError(
                f"results folder {self.folder} cannot be written ({error.strerror or error}); name a folder that can be"
            ) from error

    def finished_path(self, name: str) -> Path:
        """The file of a finished unit."""
        return self.folder / f"{name}{FINISHED}"

    def partial_path(self, name: str) -> Path:
        """The file of an unfinished unit's chunks."""
        return self.folder / f"{name}.partial.jsonl"

    def state_path(self, name: str) -> Path:
        """The file of an unfinished unit's state."""
        return self.folder / f"{name}.state"

    def finished(self, name: str, identity: Mapping[str, Any]) -> Finished | None:
        """Read the result of a finished unit; None if the unit is not finished.

        Raises:
            StoreError: if the file is damaged or has another identity. The file is not changed.
        """
        return read_finished(self.finished_path(name), identity)

    def finish(self, name: str, identity: Mapping[str, Any], origin: Mapping[str, Any], result: Json) -> Path:
        """Write the result of a unit atomically, then remove its chunks and state.

        Returns:
            The file written.

        Raises:
            StoreError: if the file cannot be written. A file that was there before stays as it was.
        """
        path = self.finished_path(name)
        write_atomically(path, packed({**_header(identity, origin), "result": result}))
        self.forget(name)  # after the result is written: if the process dies in between, the rest is ignored
        return path

    def forget(self, name: str) -> None:
        """Remove the chunks and the state of an unfinished unit."""
        for left in (self.partial_path(name), self.state_path(name)):
            with contextlib.suppress(OSError):
                left.unlink(missing_ok=True)
        self._lengths.pop(name, None)

    def chunks(self, name: str, identity: Mapping[str, Any], origin: Mapping[str, Any]) -> tuple[Json, ...]:
        """Read the chunks of an unfinished unit, in order, without an incomplete last line.

        Raises:
            StoreError: if the file is damaged before its last line, or has another identity. The file is not changed.
            OriginError: if the file has another origin.
        """
        path = self.partial_path(name)
        text = _read(path)
        whole = "" if text is None else text[: text.rfind("\n") + 1]
        self._lengths[name] = len(whole.encode())
        if not whole:
            return ()
        header, *lines = whole.splitlines()
        _check(path, _parse(path, header), identity, origin)
        return tuple(_parse(path, line, number) for number, line in enumerate(lines, start=2))

    def peek(self, name: str, key: str) -> Iterator[Any]:
        """Yield the values that the chunks of an unfinished unit have for a key, without any check.

        An unreadable file yields nothing.
        """
        with contextlib.suppress(OSError, ValueError):
            text = self.partial_path(name).read_text(encoding="utf-8")
            for line in text[: text.rfind("\n") + 1].splitlines()[1:]:
                content = json.loads(line)
                if isinstance(content, dict) and key in content:
                    yield content[key]

    def append(self, name: str, identity: Mapping[str, Any], origin: Mapping[str, Any], chunk: Json) -> None:
        """Append one chunk to an unfinished unit.

        Raises:
            StoreError: if the file cannot be written, or if it is damaged or belongs to another run. Earlier chunks are
                kept.
        """
        if name not in self._lengths:
            self.chunks(name, identity, origin)
        path, length = self.partial_path(name), self._lengths[name]
        header = "" if length else _line(_header(identity, origin))
        content = (header + _line(chunk)).encode()
        try:
            with open(path, "r+b" if path.exists() else "wb") as stream:
                stream.seek(length)
                stream.truncate()  # removes an incomplete line that an interrupted append has left
                stream.write(content)
        except OSError as error:
            raise StoreError(
                f"{path} cannot be written ({error.strerror or error}); what was written before is kept: "
                "make room and run again"
            ) from error
        self._lengths[name] = length + len(content)

    def keep(self, name: str, identity: Mapping[str, Any], origin: Mapping[str, Any], state: State) -> None:
        """Write the state of an unfinished unit; it replaces the previous state.

        Raises:
            StoreError: if the file cannot be written. The previous state stays.
        """
        header = _line({**_header(identity, origin), "steps": state.steps})
        write_atomically(self.state_path(name), header.encode() + state.content)

    def state(self, name: str, identity: Mapping[str, Any], origin: Mapping[str, Any]) -> State | None:
        """Read the state that ``keep`` wrote last; None if there is none.

        Raises:
            StoreError: if the file is damaged or has another identity. The file is not changed.
            OriginError: if the file has another origin.
        """
        path = self.state_path(name)
        try:
            with open(path, "rb") as stream:
                header = _parse(path, stream.readline().decode())
                content = stream.read()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"{path} cannot be read ({error}); {_MOVE}") from error
        _check(path, header, identity, origin)
        return State(content, int(header["steps"]))

    def steps(self, name: str) -> int:
        """The steps of an unfinished unit's state, unchecked, for a progress bar; 0 without one."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError), open(self.state_path(name), "rb") as stream:
            return int(json.loads(stream.readline())["steps"])
        return 0


_MOVE: Final = "move it away, or name another folder (it is left as it is)"


def read_finished(path: Path, identity: Mapping[str, Any]) -> Finished | None:
    """Do what ``Store.finished`` does, for a path in a folder that need not be writable."""
    content = _unpacked(path)
    if content is None:
        return None
    _check(path, content, identity)
    result, origin = content.get("result"), content.get("origin")
    if not isinstance(result, dict) or not isinstance(origin, dict):
        raise StoreError(f"{path} holds no result; {_MOVE}")
    return Finished(result, origin)


def check_settings(path: Path, stored: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse a result that repeats other settings than its identity: one of them was edited.

    Args:
        path: file of the unit, for the message.
        stored: the settings in the result.
        expected: those in the identity.

    Raises:
        StoreError: names the first setting that differs, with both values.
    """
    different = _first_difference(dict(stored), dict(expected))
    if different is not None:
        what, theirs, ours = different
        raise StoreError(
            f"{path} is damaged: {what} is {_short(theirs)} in its result and {_short(ours)} in its identity; {_MOVE}"
        )


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file atomically, with an error that says what to do.

    Raises:
        StoreError: if the file cannot be written. A file that was there before stays as it was.
    """
    try:
        files.write_atomically(path, content)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written ({error.strerror or error}); what was there before is kept: make room, see that "
            "nothing else is in its place, or name another folder, and run the same again"
        ) from error


def _header(identity: Mapping[str, Any], origin: Mapping[str, Any]) -> Json:
    return {"schema": SCHEMA, "identity": dict(identity), "origin": dict(origin)}


def packed(content: Json) -> bytes:
    """The bytes of a finished file; equal content gives equal bytes.

    Raises:
        ValueError: for NaN and infinity, which JSON does not have.
    """
    return gzip.compress(json.dumps(content, allow_nan=False, separators=(",", ":")).encode(), mtime=0)


def _unpacked(path: Path) -> Json | None:
    """The content of a finished file, or None if there is no such file."""
    try:
        text = gzip.decompress(path.read_bytes()).decode()
    except FileNotFoundError:
        return None
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise StoreError(f"{path} is damaged ({error}); {_MOVE}") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error}); {_MOVE}") from error
    return _parse(path, text)


def _line(content: Json) -> str:
    return json.dumps(content, separators=(",", ":")) + "\n"


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} cannot be read ({error}); {_MOVE}") from error


def _parse(path: Path, text: str, line: int | None = None) -> Json:
    """Read a JSON object; ``line`` is the number of its line in the file, where the file has several."""
    try:
        content = json.loads(text)
    except ValueError as error:
        where = f"line {line}: " if line else ""
        raise StoreError(f"{path} is damaged ({where}{error}); {_MOVE}") from error
    if not isinstance(content, dict):
        raise StoreError(f"{path} is no results file of relucheck; {_MOVE}")
    return content


def _check(path: Path, content: Json, identity: Mapping[str, Any], origin: Mapping[str, Any] | None = None) -> None:
    schema = content.get("schema")
    if schema != SCHEMA:
        raise StoreError(f"{path} has schema version {schema!r}, this relucheck reads {SCHEMA}; {_MOVE}")
    for name, expected in (("identity", identity), ("origin", origin)):
        if expected is None:
            continue
        stored = content.get(name)
        different = _first_difference(stored if isinstance(stored, dict) else {}, dict(expected))
        if different is not None:
            what, theirs, ours = different
            kind = OriginError if name == "origin" else StoreError
            raise kind(
                f"{path} belongs to another run: its {what} is {_short(theirs)}, this run's is {_short(ours)}; {_MOVE}"
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _first_difference(stored: Json, expected: Json, prefix: str = "") -> tuple[str, Any, Any] | None:
    """Name the first field that differs, with both values; None if there is none."""
    for key in [*expected, *(key for key in stored if key not in expected)]:
        theirs, ours = stored.get(key), expected.get(key)
        if isinstance(theirs, dict) and isinstance(ours, dict):
            inner = _first_difference(theirs, ours, f"{prefix}{key} ")
            if inner is not None:
                return inner
        elif theirs != ours or type(theirs) is not type(ours):
            return f"{prefix}{key}".replace("_", " "), theirs, ours
    return None
