"""idx files under a data root: which root is read, and how damaged or missing files are refused."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from relucheck import data
from tests.helpers.data_roots import IMAGES, files_under, flipped


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_reads_what_torchvision_reads(packed: bool, root: Path, tiny: dict[str, bytes]) -> None:
    from torchvision import datasets

    expected = {split: datasets.MNIST(str(root), train=split == "train") for split in data.SPLITS}
    if packed:
        for name, content in tiny.items():
            (root / "MNIST/raw" / name).unlink()
            (root / "MNIST/raw" / f"{name}.gz").write_bytes(gzip.compress(content))
    before = files_under(root)
    for split in data.SPLITS:
        read = data.load("MNIST", split, root)
        assert (read.name, read.split, len(read)) == ("mnist", split, {"train": 30, "test": 20}[split])
        assert (read.images.dtype, read.labels.dtype) == (torch.uint8, torch.int64)
        assert torch.equal(read.images, expected[split].data)
        assert torch.equal(read.labels, expected[split].targets)
        assert read.checksum == data.checksum(expected[split].data, expected[split].targets)
    assert files_under(root) == before


def test_nothing_is_unpickled(root: Path) -> None:
    """torchvision would load MNIST/processed/*.pt first, where these exist."""
    (root / "MNIST/processed").mkdir()
    for name in ("training.pt", "test.pt"):
        (root / "MNIST/processed" / name).write_bytes(b"not even a pickle")
    assert len(data.load_mnist(root)) == 30


def test_the_root_is_the_argument_else_the_variable_else_the_cache(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert data.data_root() == tmp_path / "home/.cache/relucheck"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data.data_root() == tmp_path / "cache/relucheck"
    monkeypatch.setenv(data.ROOT_VARIABLE, "")
    assert data.data_root() == tmp_path / "cache/relucheck"
    monkeypatch.setenv(data.ROOT_VARIABLE, str(root))
    assert data.data_root() == root
    assert len(data.load_mnist()) == 30
    assert data.data_root("~/elsewhere") == tmp_path / "home/elsewhere"
    assert data.data_root(tmp_path) == tmp_path


def test_a_root_that_is_a_file_is_refused(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("no directory")
    with pytest.raises(data.DataFileError, match=r"file \(given as the root\) is not a directory; pass the directory that"):
        data.load_mnist(file)
    monkeypatch.setenv(data.ROOT_VARIABLE, str(file))
    with pytest.raises(
        data.DataFileError, match=r"file \(from the environment variable RELUCHECK_DATA\) is not a directory"
    ):
        data.load("fashionmnist")
    assert file.read_text() == "no directory"
    assert len(data.load_mnist(root)) == 30  # the argument goes first


@pytest.mark.parametrize(
    ("alter", "says"),
    [
        pytest.param(lambda content: content[:-1], "is truncated: 15695 bytes of 15696; delete it", id="one-byte-short"),
        pytest.param(lambda content: b"", "is truncated: 0 bytes of 15696; delete it", id="empty"),
        pytest.param(lambda content: content + b"\0", "is altered: .* MD5 .*, expected .*; delete it", id="one-byte-long"),
        pytest.param(lambda content: flipped(content, 5000), "is altered: .* MD5 .*, expected .*; delete it", id="flipped"),
        pytest.param(lambda content: flipped(content, 3), "is altered", id="flipped-in-the-header"),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_a_truncated_or_altered_file_is_refused(
    packed: bool, alter: Callable[[bytes], bytes], says: str, root: Path
) -> None:
    path = root / IMAGES
    content = alter(path.read_bytes())
    path.unlink()
    path = path.with_name(path.name + ".gz") if packed else path
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(data.DataFileError, match=says) as caught:
        data.load_mnist(root, "test")
    assert str(path) in str(caught.value)
    assert path.exists()
    assert len(data.load_mnist(root, "train")) == 30  # the other split is untouched


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<html>", id="html"),
        pytest.param(gzip.compress(bytes(9_000), mtime=0)[:-4], id="cut"),
        pytest.param(flipped(gzip.compress(bytes(99), mtime=0), 12), id="flipped"),
        pytest.param(gzip.compress(b"", mtime=0)[:10] + b"\x07" + bytes(20), id="no-such-block-type"),
    ],
)
def test_a_broken_gz_is_refused(content: bytes, root: Path) -> None:
    (root / IMAGES).unlink()
    (root / f"{IMAGES}.gz").write_bytes(content)
    with pytest.raises(data.DataFileError, match=r"t10k-images-idx3-ubyte\.gz is (truncated|altered)"):
        data.load_mnist(root, "test")


def test_something_that_is_no_file_is_one_clear_error(root: Path) -> None:
    (root / IMAGES).unlink()
    (root / IMAGES).mkdir()
    with pytest.raises(data.DataFileError, match=r"cannot read .*t10k-images-idx3-ubyte: Is a directory"):
        data.load_mnist(root, "test")


def test_missing_files_without_download(root: Path) -> None:
    (root / IMAGES).unlink()
    with pytest.raises(data.DataFileError, match="download=True") as caught:
        data.load("mnist", "test", root, download=False)
    assert f"data root {root} lacks {IMAGES}; put t10k-images-idx3-ubyte (as they are, or gzip" in str(caught.value)
    assert f"into {root}/MNIST/raw" in str(caught.value)


@pytest.mark.needs_mnist
@pytest.mark.parametrize("split", data.SPLITS)
@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_the_real_sets_are_torchvisions(name: str, split: str) -> None:
    from torchvision import datasets

    source = getattr(datasets, name)(os.environ[data.ROOT_VARIABLE], train=split == "train", download=False)
    read = data.load(name, split, download=False)
    assert len(read) == {"train": 60_000, "test": 10_000}[split]
    assert torch.equal(read.images, source.data)
    assert torch.equal(read.labels, source.targets)
    if name == "FashionMNIST":
        assert read.classes == tuple(source.classes)
