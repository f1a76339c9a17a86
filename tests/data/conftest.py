"""Data roots with a small MNIST of their own; no test of this folder opens a URL."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from relucheck import data
from tests.helpers.data_roots import idx_file


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may open a URL, but for what a test serves itself. (An AssertionError is caught by no loader.)"""

    def refuse(*arguments: object, **_: object) -> None:
        raise AssertionError(f"a test opened the network: {arguments}")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """MNIST becomes a set of 30 and 20 drawn images: the files' contents by name, with their checksums in force."""
    draw = np.random.default_rng(0)
    files = {}
    for prefix, count in (("train", 30), ("t10k", 20)):
        files[f"{prefix}-images-idx3-ubyte"] = idx_file(draw.integers(0, 256, (count, 28, 28)))
        files[f"{prefix}-labels-idx1-ubyte"] = idx_file(draw.integers(0, 10, count))
    md5 = tuple(hashlib.md5(content).hexdigest() for content in files.values())
    source = data._Source("MNIST", tuple("0123456789"), md5, tuple(len(content) for content in files.values()))
    monkeypatch.setitem(data._SOURCES, "mnist", source)
    monkeypatch.delenv(data.ROOT_VARIABLE, raising=False)
    return files


@pytest.fixture
def root(tiny: dict[str, bytes], tmp_path: Path) -> Path:
    """A data root that holds the tiny set."""
    raw = tmp_path / "root" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in tiny.items():
        (raw / name).write_bytes(content)
    return tmp_path / "root"
