"""Downloads, served by the test itself: a root is filled once, and a failure leaves nothing behind."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import socket
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from relucheck import data
from tests.helpers import forked
from tests.helpers.data_roots import IMAGES, files_under, flipped


class _Answer(io.BytesIO):
    def __init__(self, url: str, content: bytes) -> None:
        super().__init__(content)
        self.url, self.length = url, len(content)


@pytest.fixture
def serve(tiny: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Makes torchvision's mirror answer with the tiny set, altered on request; returns the list of URLs asked for."""
    from torchvision import datasets

    packed = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in tiny.items()}
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in packed.items()}

    def start(alter: Callable[[str, bytes], bytes] = lambda _, content: content, *, trusted: bool = False) -> list[str]:
        answers = {name: alter(name, content) for name, content in packed.items()}
        sums = {name: hashlib.md5(content).hexdigest() for name, content in answers.items()} if trusted else md5
        asked: list[str] = []

        def urlopen(request: urllib.request.Request, *_: object, **__: object) -> _Answer:
            asked.append(request.full_url)
            return _Answer(request.full_url, answers[request.full_url.rpartition("/")[2]])

        monkeypatch.setattr(urllib.request, "urlopen", urlopen)
        monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://mirror.invalid/"])
        monkeypatch.setattr(datasets.MNIST, "resources", list(sums.items()))
        return asked

    return start


def test_a_download_fills_the_root_once(serve: Callable[..., list[str]], tiny: dict[str, bytes], tmp_path: Path) -> None:
    asked = serve()
    root = tmp_path / "new" / "root"
    assert len(data.load_mnist(root, "test")) == 20
    assert asked
    assert files_under(root) == sorted(f"MNIST/raw/{name}" for name in tiny)
    for name, content in tiny.items():
        assert (root / "MNIST/raw" / name).read_bytes() == content
    asked.clear()
    assert len(data.load_mnist(root, "train")) == 30
    assert asked == []


def test_a_download_adds_what_is_missing_and_replaces_nothing(
    serve: Callable[..., list[str]], root: Path, tiny: dict[str, bytes]
) -> None:
    serve()
    (root / IMAGES).unlink()
    kept = root / "MNIST/raw/train-labels-idx1-ubyte"
    kept.write_bytes(b"somebody's own")
    read = data.load_mnist(root, "test")
    assert read.images.numpy().tobytes() == tiny["t10k-images-idx3-ubyte"][16:]
    assert read.labels.tolist() == list(tiny["t10k-labels-idx1-ubyte"][8:])
    assert (root / IMAGES).read_bytes() == tiny["t10k-images-idx3-ubyte"]
    assert kept.read_bytes() == b"somebody's own"


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("Name or service not known"),
        TimeoutError("timed out"),
        ConnectionResetError(104, "Connection reset by peer"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_without_a_network_one_error_says_what_to_put_where(
    error: Exception, tiny: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    with pytest.raises(data.DownloadError, match="the download failed") as caught:
        data.load_mnist(tmp_path, "test")
    says = str(caught.value)
    assert f"data root {tmp_path} lacks {IMAGES}, MNIST/raw/t10k-labels-idx1-ubyte, and the download failed" in says
    assert str(error.args[-1]) in says
    assert "put t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte (as they are, or gzip-compressed with .gz" in says
    assert says.endswith(f"into {tmp_path}/MNIST/raw")
    assert "\n" not in says
    assert files_under(tmp_path) == []

    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):  # what it says to do works
        (tmp_path / "MNIST/raw" / f"{name}.gz").write_bytes(gzip.compress(tiny[name]))
    assert len(data.load_mnist(tmp_path, "test")) == 20


@pytest.mark.parametrize("trusted", [False, True], ids=["torchvision-refuses", "relucheck-refuses"])
@pytest.mark.parametrize(
    "alter",
    [
        pytest.param(lambda content: content[: len(content) // 2], id="half"),
        pytest.param(lambda content: gzip.compress(gzip.decompress(content)[:-1]), id="one-value-short"),
        pytest.param(lambda content: gzip.compress(flipped(gzip.decompress(content), 20)), id="one-bit-other"),
        pytest.param(lambda content: b"<html>log in to the network</html>", id="captive-portal"),
    ],
)
def test_a_bad_download_leaves_nothing_behind(
    alter: Callable[[bytes], bytes], trusted: bool, serve: Callable[..., list[str]], tmp_path: Path
) -> None:
    """The last file of four arrives damaged: also where torchvision's own checksum does not see it (``trusted``)."""
    asked = serve(lambda name, content: alter(content) if "t10k-labels" in name else content, trusted=trusted)
    with pytest.raises(data.DownloadError, match=r"the download failed.*without a network, put train-images"):
        data.load_mnist(tmp_path, "train")
    assert any("train-images" in url for url in asked)
    assert files_under(tmp_path) == []


def test_a_root_that_cannot_be_written_is_one_clear_error(
    serve: Callable[..., list[str]], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = serve()
    (root / IMAGES).unlink()
    raw = root / "MNIST/raw"
    raw.chmod(0o555)
    try:
        if os.access(raw, os.W_OK):  # permissions do not bind the superuser

            def deny(*_: object, **__: object) -> None:
                raise PermissionError(13, "Permission denied", str(raw))

            monkeypatch.setattr(tempfile, "mkdtemp", deny)
        assert len(data.load_mnist(root, "train")) == 30  # reading needs no permission to write
        with pytest.raises(
            data.DataFileError, match=r"cannot be written \(Permission denied\); pass a root that can be"
        ) as caught:
            data.load_mnist(root, "test")
        assert not isinstance(caught.value, data.DownloadError)
        assert f"data root {root} lacks {IMAGES}, and {raw} cannot be written" in str(caught.value)
        assert asked == []  # found out before anything was downloaded
    finally:
        raw.chmod(0o755)


def test_a_file_where_the_root_needs_a_directory(serve: Callable[..., list[str]], tmp_path: Path) -> None:
    serve()
    (tmp_path / "MNIST").write_text("in the way")
    with pytest.raises(data.DataFileError, match=r"MNIST/raw cannot be written \(Not a directory\)"):
        data.load_mnist(tmp_path)


def test_a_download_has_a_time_limit_which_is_put_back(
    serve: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    serve()
    inner = urllib.request.urlopen

    def watch(request: urllib.request.Request) -> object:
        seen.append(socket.getdefaulttimeout())
        return inner(request)

    monkeypatch.setattr(urllib.request, "urlopen", watch)
    before = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(1234.0)
        data.load_mnist(tmp_path)
        assert set(seen) == {30.0}
        assert socket.getdefaulttimeout() == 1234.0
    finally:
        socket.setdefaulttimeout(before)


def test_torchvision_is_imported_late() -> None:
    code = "import sys, relucheck.data as d; d.load_digits().scaled(); sys.exit('torchvision' in sys.modules)"
    assert forked.python("-c", code).returncode == 0
