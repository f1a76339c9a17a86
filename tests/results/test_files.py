"""Files are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from relucheck.results.files import check_writable, write_atomically


def test_text_and_bytes_in_a_new_folder(tmp_path: Path) -> None:
    for content in ("α\nβ", b"\x00\xff"):
        path = tmp_path / "new" / "folder" / "file"
        write_atomically(path, content)
        assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
        assert [entry.name for entry in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_what_was_there_stays(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up, or a folder that loses its permission, at any step."""

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    write_atomically(path, "old")
    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(path, "new")
    assert caught.value.filename == str(path)  # and not the temporary one beside it
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_refusal_names_the_file_that_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object, **more: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "tmpa1b2c3"))

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    path = tmp_path / "new" / "report.json"
    with pytest.raises(PermissionError) as caught:
        check_writable(path)
    assert caught.value.filename == str(path)


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_atomically(tmp_path / "file", "")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode
