"""Writing whole files or nothing; what a training run does with them is in test_training.py."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from relucheck.networks import Network
from relucheck.training.checkpoints import CHECKPOINT, CheckpointError, load, load_result, write
from relucheck.training.settings import Settings, members_of

SETTINGS = Settings("digits", Network("mlp", (4,)), members_of([0], [1.0]))


def test_write_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    write(path, b"one")
    write(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["b"]


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_failed_write_keeps_what_was_there_and_leaves_nothing(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write(path, b"one")

    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, where, fails)
    with pytest.raises(CheckpointError, match=r"could not write .*file \(3 bytes\).*No space left.*make room"):
        write(path, b"two")
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["file"]


def test_folder_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"could not write .*choose another folder"):
        write(tmp_path / "file" / "checkpoint", b"")


def test_nothing_there_is_none_and_nonsense_is_an_error(tmp_path: Path) -> None:
    assert load(tmp_path, SETTINGS, {}) is None
    assert load_result(tmp_path, SETTINGS) is None
    for content in (b"", b"nonsense", b"\x80\x02."):
        (tmp_path / CHECKPOINT).write_bytes(content)
        with pytest.raises(CheckpointError, match="unreadable or damaged"):
            load(tmp_path, SETTINGS, {})
