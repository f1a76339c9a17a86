"""Results on disk: one file per finished unit of work, and what an unfinished one has so far.

A unit has a *name*, which names its file, an *identity*, everything that decides its numbers, and an *origin*: device,
processor and versions, which are recorded and may differ between the units of a report. An unfinished unit may only be
continued where it began, because another processor may round differently. A finished one counts wherever it was computed. A
file of another identity or layout is neither used nor overwritten.

A finished file is JSON, compressed by gzip without a time stamp, so that equal results give equal bytes. It is written
under a temporary name and renamed into place. An unfinished unit keeps either *chunks* or a *state*. Chunks are lines
behind a header in ``NAME.partial.jsonl``; a line that was cut short by a kill is dropped on resuming. A state is bytes
behind a header in ``NAME.state``. This module knows nothing of what the results mean.
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

#: Version of the files' layout and of the identities in it.
SCHEMA: Final = 3
#: How the name of a finished unit's file ends.
FINISHED: Final = ".json.gz"

Json = dict[str, Any]


class StoreError(RelucheckError, RuntimeError):
    """A folder that cannot be written, or a file in it that belongs to something else or is damaged."""

    exit_code = UNWRITABLE


class OriginError(StoreError):
    """What an unfinished unit has so far was computed elsewhere, where it may have been rounded otherwise."""


class Finished(NamedTuple):
    """A finished unit: its result, and where it was computed."""

    result: Json
    origin: Json


class State(NamedTuple):
    """What an unfinished unit keeps: bytes, and how many steps it had taken."""

    content: bytes
    steps: int


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
        return self.folder / f"{name}{FINISHED}"

    def partial_path(self, name: str) -> Path:
        return self.folder / f"{name}.partial.jsonl"

    def state_path(self, name: str) -> Path:
        return self.folder / f"{name}.state"

    def finished(self, name: str, identity: Mapping[str, Any]) -> Finished | None:
        """The result of a finished unit, or None where it is not finished.

        Raises:
            StoreError: the file is damaged, or of another identity; it is left as it is.
        """
        return read_finished(self.finished_path(name), identity)

    def finish(self, name: str, identity: Mapping[str, Any], origin: Mapping[str, Any], result: Json) -> Path:
        """Writes a finished unit, whole or not at all, and removes what it had while it was not.

        Raises:
            StoreError: it cannot be written; what was there before stays.
        """
        path = self.finished_path(name)
        write_atomically(path, packed({**_header(identity, origin), "result": result}))
        self.forget(name)  # a left-over is ignored where the unit is finished
        return path

    def forget(self, name: str) -> None:
        """Removes what an unfinished unit has so far."""
        for left in (self.partial_path(name), self.state_path(name)):
            with contextlib.suppress(OSError):
                left.unlink(missing_ok=True)
        self._lengths.pop(name, None)

    def chunks(self, name: str, identity: Mapping[str, Any], origin: Mapping[str, Any]) -> tuple[Json, ...]:
        """The chunks of an unfinished unit, in order; a last line that was cut short is left out.

        Raises:
            StoreError: the file is damaged before its last line, or of another identity or origin; it is left as it is.
        """
        path = self.partial_path(name)
        text = _read(path)
        whole = "" if text is None else text[: text.rfind("\n") + 1]
        self._lengths[name] = len(whole.encode())
        if not whole:
            return ()
        header, *lines = whole.splitlines()
        _check(path, _parse(path, header), identity, origin)
        return tuple(_parse(path, line) for line in lines)

    def peek(self, name: str, key: str) -> Iterator[Any]:
        """What the whole chunks of an unfinished unit hold under a key, unchecked; nothing of an unreadable one."""
        with contextlib.suppress(OSError, ValueError):
            text = self.partial_path(name).read_text(encoding="utf-8")
            for line in text[: text.rfind("\n") + 1].splitlines()[1:]:
                content = json.loads(line)
                if isinstance(content, dict) and key in content:
                    yield content[key]

    def append(self, name: str, identity: Mapping[str, Any], origin: Mapping[str, Any], chunk: Json) -> None:
        """Adds one chunk to an unfinished unit, behind what :meth:`chunks` returned or the last append wrote.

        Raises:
            StoreError: it cannot be written; the chunks before it are kept.
        """
        if name not in self._lengths:
            self.chunks(name, identity, origin)
        path, length = self.partial_path(name), self._lengths[name]
        header = "" if length else _line(_header(identity, origin))
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

    def keep(self, name: str, identity: Mapping[str, Any], origin: Mapping[str, Any], state: State) -> None:
        """Writes the state of an unfinished unit in place of the one before.

        Raises:
            StoreError: it cannot be written; the state before stays.
        """
        header = _line({**_header(identity, origin), "steps": state.steps})
        write_atomically(self.state_path(name), header.encode() + state.content)

    def state(self, name: str, identity: Mapping[str, Any], origin: Mapping[str, Any]) -> State | None:
        """What :meth:`keep` wrote last, or None.

        Raises:
            StoreError: the file is damaged, or of another identity or origin; it is left as it is.
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
        """Steps that an unfinished unit's state has taken, unchecked, for a progress bar; 0 where there is none."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError), open(self.state_path(name), "rb") as stream:
            return int(json.loads(stream.readline())["steps"])
        return 0


_MOVE: Final = "move it away, or name another folder (it is left as it is)"


def read_finished(path: Path, identity: Mapping[str, Any]) -> Finished | None:
    """What :meth:`Store.finished` says of a file, in a folder that need not be writable."""
    content = _unpacked(path)
    if content is None:
        return None
    _check(path, content, identity)
    result, origin = content.get("result"), content.get("origin")
    if not isinstance(result, dict) or not isinstance(origin, dict):
        raise StoreError(f"{path} holds no result; {_MOVE}")
    return Finished(result, origin)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file under a temporary name beside it and renames it into place.

    Raises:
        StoreError: it cannot be written; what was there before stays.
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
    """The bytes of a finished file: JSON without NaN and infinity, compressed; equal content gives equal bytes."""
    return gzip.compress(json.dumps(content, allow_nan=False, separators=(",", ":")).encode(), mtime=0)


def _unpacked(path: Path) -> Json | None:
    """The reverse of :func:`packed`, or None where there is no such file."""
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


def _parse(path: Path, text: str) -> Json:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({error}); {_MOVE}") from error
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
        found = content.get(name)
        different = _first_difference(found if isinstance(found, dict) else {}, dict(expected))
        if different is not None:
            what, theirs, ours = different
            kind = OriginError if name == "origin" else StoreError
            raise kind(
                f"{path} belongs to another run: its {what} is {_short(theirs)}, this run's is {_short(ours)}; {_MOVE}"
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


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
