"""data: the shipped sample, data roots, checksums, downloads without a network, mini-batches."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from relucheck import data
from relucheck.numerics import bits, dtypes

SHIPPED = Path(data.__file__).parent / "_data"
PER_CLASS = {"train": 200, "test": 50}
needs_mnist = pytest.mark.skipif(
    not os.environ.get(data.ROOT_VARIABLE), reason=f"{data.ROOT_VARIABLE} names no data root with MNIST and FashionMNIST"
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may open a URL, but for what a test serves itself. (An AssertionError is caught by no loader.)"""

    def refuse(*arguments: object, **_: object) -> None:
        raise AssertionError(f"a test opened the network: {arguments}")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.fixture
def fresh() -> Iterator[None]:
    """The sample is read anew in this test, and again after it."""
    data._digits.cache_clear()
    yield
    data._digits.cache_clear()


# ---------------------------------------------------------------- the shipped sample


@pytest.mark.parametrize(("split", "each"), PER_CLASS.items())
def test_digits_are_balanced_and_verified(split: str, each: int) -> None:
    digits = data.load_digits(split)
    assert (digits.name, digits.split, digits.classes) == ("digits", split, tuple("0123456789"))
    assert digits.images.shape == (10 * each, 28, 28)
    assert digits.images.dtype == torch.uint8
    assert digits.labels.dtype == torch.int64
    assert torch.bincount(digits.labels).tolist() == [each] * 10
    assert len(digits) == 10 * each
    # independent of data.checksum: images in C order, then labels as bytes
    content = digits.images.numpy().tobytes() + bytes(digits.labels.tolist())
    assert digits.checksum == data.checksum(digits.images, digits.labels) == hashlib.sha256(content).hexdigest()


def test_digits_are_images_of_digits() -> None:
    """A nearest-mean classifier from the training images names over 70 % of the test images: labels fit images."""
    train, test = data.load_digits("train"), data.load_digits("test")
    means = torch.stack([train.scaled()[train.labels == label].mean(0) for label in range(10)])
    right = (torch.cdist(test.scaled(), means).argmin(1) == test.labels).double().mean()
    assert right > 0.7


def test_shipped_file_is_small_and_licensed() -> None:
    assert (SHIPPED / "digits.npz").stat().st_size < 1_000_000
    licence = (SHIPPED / "LICENSE-MNIST").read_text()
    for needed in ("LeCun", "Cortes", "Burges", "CC BY-SA 3.0", "first 200 images of each"):
        assert needed in licence


@pytest.mark.usefixtures("fresh")
def test_digits_are_read_once_and_each_caller_gets_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    file = data._digits_file()
    monkeypatch.setattr(data, "_digits_file", lambda: reads.append(file) or file)
    first = data.load_digits()
    first.images.zero_()
    first.labels.zero_()
    again = data.load_digits()
    assert len(reads) == 1
    assert data.checksum(again.images, again.labels) == again.checksum


def _flip(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    "alter",
    [
        pytest.param(lambda content: _flip(content, len(content) // 2), id="flipped-bit-in-the-middle"),
        pytest.param(lambda content: _flip(content, len(content) - 1), id="flipped-bit-at-the-end"),
        pytest.param(lambda content: content[:-1], id="one-byte-short"),
        pytest.param(lambda content: content[:1000], id="truncated"),
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: content + b"\0", id="one-byte-long"),
    ],
)
def test_an_altered_sample_is_refused(
    alter: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "digits.npz"
    monkeypatch.setattr(data, "_digits_file", lambda: copy)
    copy.write_bytes((SHIPPED / "digits.npz").read_bytes())
    data.load_digits()  # the copy is fine
    data._digits.cache_clear()
    copy.write_bytes(alter(copy.read_bytes()))
    with pytest.raises(data.DataFileError, match=r"digits\.npz is missing, truncated or altered.*reinstall") as caught:
        data.load_digits()
    assert str(copy) in str(caught.value)


@pytest.mark.usefixtures("fresh")
def test_a_missing_sample_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_digits_file", lambda: tmp_path / "digits.npz")
    with pytest.raises(data.DataFileError, match=r"digits\.npz is missing.*No such file.*reinstall"):
        data.load_digits()


def _repacked(change: Callable[[dict[str, np.ndarray]], object]) -> bytes:
    with np.load(SHIPPED / "digits.npz", allow_pickle=False) as shipped:
        arrays = dict(shipped)
    change(arrays)
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(lambda a: a["test_images"].__setitem__((3, 14, 14), 77), "test images and labels", id="one-pixel"),
        pytest.param(lambda a: a["train_labels"].__setitem__(0, 9), "train images and labels", id="one-label"),
        pytest.param(lambda a: a.pop("test_labels"), "test_labels", id="no-labels"),
        pytest.param(lambda a: a.update(train_labels=np.array([{}] * 2000)), "[Oo]bject arrays", id="pickle"),
    ],
)
def test_the_values_are_checked_as_well_as_the_file(
    change: Callable[[dict[str, np.ndarray]], object], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that carries the right name and even the right file checksum, but other values (or a pickle)."""
    content = _repacked(change)
    (tmp_path / "digits.npz").write_bytes(content)
    monkeypatch.setattr(data, "_digits_file", lambda: tmp_path / "digits.npz")
    monkeypatch.setattr(data, "_DIGITS_FILE_SHA256", hashlib.sha256(content).hexdigest())
    with pytest.raises(data.DataFileError, match=says):
        data.load_digits()


# ---------------------------------------------------------------- conversion and mini-batches


@pytest.mark.parametrize("dtype", dtypes.DTYPES, ids=dtypes.dtype_name)
def test_scale_divides_in_float32_and_then_casts(dtype: torch.dtype) -> None:
    images = torch.arange(28 * 28).remainder(256).to(torch.uint8).view(1, 28, 28)
    expected = np.arange(28 * 28, dtype=np.int64) % 256
    quotients = torch.from_numpy(expected.astype(np.float32) / np.float32(255)).to(dtype)
    scaled = data.scale(images, dtype)
    assert scaled.dtype == dtype
    assert bits.same_bits(scaled, quotients.view(1, 784), signed_zero=True)
    assert (float(scaled.min()), float(scaled.max())) == (0.0, 1.0)


@pytest.mark.parametrize("dtype", dtypes.DTYPES, ids=dtypes.dtype_name)
def test_scale_is_torchvisions_to_tensor_and_a_cast(dtype: torch.dtype) -> None:
    from torchvision.transforms import functional

    digits = data.load_digits("test")
    expected = torch.stack([functional.to_tensor(image.numpy()[..., None]).to(dtype) for image in digits.images[:20]])
    assert bits.same_bits(data.scale(digits.images[:20], dtype, "image"), expected)


def test_shapes() -> None:
    digits = data.load_digits("test")
    flat, image = digits.scaled("bf16"), digits.scaled(torch.bfloat16, "image")
    assert (flat.shape, image.shape) == ((500, 784), (500, 1, 28, 28))
    assert torch.equal(flat.view(500, 1, 28, 28), image)
    assert torch.equal(image[7, 0].float().mul(255).round().to(torch.uint8), digits.images[7])  # nothing transposed
    assert data.scale(digits.images[:0]).shape == (0, 784)


@pytest.mark.parametrize(
    ("size", "drop_last", "sizes"),
    [
        (500, False, [500]),
        (500, True, [500]),
        (200, False, [200, 200, 100]),
        (200, True, [200, 200]),
        (501, False, [500]),
        (499, False, [499, 1]),
    ],
)
def test_batches_in_file_order(size: int, drop_last: bool, sizes: list[int]) -> None:
    digits = data.load_digits("test")
    made = list(data.batches(digits, size, dtype="float64", shape="image", drop_last=drop_last))
    assert [len(labels) for _, labels in made] == sizes
    images, labels = (torch.cat(parts) for parts in zip(*made, strict=True))
    assert torch.equal(images, digits.scaled("float64", "image")[: sum(sizes)])
    assert torch.equal(labels, digits.labels[: sum(sizes)])
    assert images.dtype == torch.float64


def test_batches_go_to_the_device() -> None:
    images, labels = next(data.batches(data.load_digits("test"), 4, device="meta"))
    assert (images.device.type, labels.device.type) == ("meta", "meta")


@pytest.mark.parametrize("size", [0, -1, 2.0, "16", True, None])
def test_a_bad_batch_size_is_refused_at_the_call(size: object) -> None:
    with pytest.raises(data.DataValueError, match=f"batch size {size!r}: must be an integer of at least 1"):
        data.batches(data.load_digits("test"), size)  # type: ignore[arg-type]


def test_a_size_that_leaves_no_batch_is_refused() -> None:
    with pytest.raises(data.DataValueError, match=r"batch size 501 with drop_last=True leaves no batch.*at most 500"):
        data.batches(data.load_digits("test"), 501, drop_last=True)


def test_bad_shape_and_dtype_are_refused_at_the_call() -> None:
    digits = data.load_digits("test")
    for call in (lambda **bad: data.batches(digits, 10, **bad), digits.scaled):
        with pytest.raises(data.DataValueError, match=r"unknown shape 'imgae'; did you mean 'image'\? known: flat, image"):
            call(shape="imgae")
        with pytest.raises(dtypes.UnsupportedDtypeError, match="float16, bfloat16, float32 and float64"):
            call(dtype=torch.int8)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mnits", r"unknown data set 'mnits'; did you mean 'mnist'\? known: digits, mnist, fashionmnist"),
        ("Digit", r"unknown data set 'Digit'; did you mean 'digits'\?"),
        ("fashon-mnist", r"unknown data set 'fashon-mnist'; did you mean 'fashionmnist'\?"),
        ("cifar10", r"unknown data set 'cifar10'; known: digits, mnist, fashionmnist"),
        (None, r"unknown data set"),
    ],
)
def test_an_unknown_data_set_is_refused(name: str, says: str) -> None:
    with pytest.raises(data.DataValueError, match=says):
        data.load(name)


@pytest.mark.parametrize("name", data.NAMES)
@pytest.mark.parametrize(
    ("split", "says"), [("tset", r"did you mean 'test'\? "), ("Train", r"did you mean 'train'\? "), ("", "")]
)
def test_an_unknown_split_is_refused(name: str, split: str, says: str) -> None:
    with pytest.raises(data.DataValueError, match=f"unknown split {split!r}; {says}known: train, test"):
        data.load(name, split)


def test_every_error_is_a_data_error_and_a_builtin_one() -> None:
    assert data.DataValueError.__bases__ == (data.DataError, ValueError)
    assert data.DataFileError.__bases__ == (data.DataError, OSError)
    assert data.DownloadError.__bases__ == (data.DataFileError,)


# ---------------------------------------------------------------- idx files under a data root


def _idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return header + values.astype(np.uint8).tobytes()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """MNIST becomes a set of 30 and 20 drawn images: the files' contents by name, with their checksums in force."""
    draw = np.random.default_rng(0)
    files = {}
    for prefix, count in (("train", 30), ("t10k", 20)):
        files[f"{prefix}-images-idx3-ubyte"] = _idx(draw.integers(0, 256, (count, 28, 28)))
        files[f"{prefix}-labels-idx1-ubyte"] = _idx(draw.integers(0, 10, count))
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


def _files(root: Path) -> list[str]:
    """Everything under a root but directories, and temporary directories by name."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() or "download" in path.name)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_reads_what_torchvision_reads(packed: bool, root: Path, tiny: dict[str, bytes]) -> None:
    from torchvision import datasets

    expected = {split: datasets.MNIST(str(root), train=split == "train") for split in data.SPLITS}
    if packed:
        for name, content in tiny.items():
            (root / "MNIST/raw" / name).unlink()
            (root / "MNIST/raw" / f"{name}.gz").write_bytes(gzip.compress(content))
    before = _files(root)
    for split in data.SPLITS:
        read = data.load("MNIST", split, root)
        assert (read.name, read.split, len(read)) == ("mnist", split, {"train": 30, "test": 20}[split])
        assert (read.images.dtype, read.labels.dtype) == (torch.uint8, torch.int64)
        assert torch.equal(read.images, expected[split].data)
        assert torch.equal(read.labels, expected[split].targets)
        assert read.checksum == data.checksum(expected[split].data, expected[split].targets)
    assert _files(root) == before


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


IMAGES = "MNIST/raw/t10k-images-idx3-ubyte"


@pytest.mark.parametrize(
    ("alter", "says"),
    [
        pytest.param(lambda content: content[:-1], "is truncated: 15695 bytes of 15696; delete it", id="one-byte-short"),
        pytest.param(lambda content: b"", "is truncated: 0 bytes of 15696; delete it", id="empty"),
        pytest.param(lambda content: content + b"\0", "is altered: .* MD5 .*, expected .*; delete it", id="one-byte-long"),
        pytest.param(lambda content: _flip(content, 5000), "is altered: .* MD5 .*, expected .*; delete it", id="flipped"),
        pytest.param(lambda content: _flip(content, 3), "is altered", id="flipped-in-the-header"),
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
        pytest.param(_flip(gzip.compress(bytes(99), mtime=0), 12), id="flipped"),
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


# ---------------------------------------------------------------- downloads, served by the test


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
    assert _files(root) == sorted(f"MNIST/raw/{name}" for name in tiny)
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
    assert _files(tmp_path) == []

    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):  # what it says to do works
        (tmp_path / "MNIST/raw" / f"{name}.gz").write_bytes(gzip.compress(tiny[name]))
    assert len(data.load_mnist(tmp_path, "test")) == 20


@pytest.mark.parametrize("trusted", [False, True], ids=["torchvision-refuses", "relucheck-refuses"])
@pytest.mark.parametrize(
    "alter",
    [
        pytest.param(lambda content: content[: len(content) // 2], id="half"),
        pytest.param(lambda content: gzip.compress(gzip.decompress(content)[:-1]), id="one-value-short"),
        pytest.param(lambda content: gzip.compress(_flip(gzip.decompress(content), 20)), id="one-bit-other"),
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
    assert _files(tmp_path) == []


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
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------- against the real sets, where a root has them


@needs_mnist
@pytest.mark.parametrize(("split", "each"), PER_CLASS.items())
def test_digits_are_the_first_of_each_class_of_mnist(split: str, each: int) -> None:
    from torchvision import datasets

    source = datasets.MNIST(os.environ[data.ROOT_VARIABLE], train=split == "train", download=False)
    seen, chosen = [0] * 10, []
    for position, label in enumerate(source.targets.tolist()):
        seen[label] += 1
        if seen[label] <= each:
            chosen.append(position)
    digits = data.load_digits(split)
    assert torch.equal(digits.images, source.data[chosen])
    assert torch.equal(digits.labels, source.targets[chosen])


@needs_mnist
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
