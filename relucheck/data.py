"""The shipped digit sample, MNIST and FashionMNIST; data roots; checksums; mini-batches in file order.

Every set is checked against checksums written here before a value of it is handed out, and nothing is unpickled: the
sample is an ``.npz`` read with ``allow_pickle=False``, the others are idx files, whose bytes are checked and parsed
here, in one read. So the bytes that were verified are the bytes that are used, gzip-compressed files are read where
they lie (a read-only root will do), and the legacy ``processed/*.pt`` that ``torchvision.datasets`` would prefer is
never looked at. The layout of a data root and the downloads are torchvision's own.

Pooch has a registry of checksums and a cache folder, too, but knows one address a file, checks the archive rather than its
content, replaces an altered file without asking, and needs a root that can be written: it could take the place of the
download alone.

Every error is a :class:`DataError`, but for an unsupported dtype, which is numerics' ``UnsupportedDtypeError``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import http.client
import importlib.resources
import io
import os
import socket
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from relucheck.errors import MISSING, RelucheckError, did_you_mean
from relucheck.extras import require
from relucheck.numerics import dtypes as numerics_dtypes

#: Environment variable that names the data root where no argument does.
ROOT_VARIABLE: Final = "RELUCHECK_DATA"
#: A data root as an argument; None leaves it to the environment variable, see :func:`data_root`.
Root = str | os.PathLike[str] | None
#: Names that :func:`load` knows.
NAMES: Final[tuple[str, ...]] = ("digits", "mnist", "fashionmnist")
SPLITS: Final[tuple[str, ...]] = ("train", "test")
#: Shapes of a batch of n images: "flat" is [n, 784] (row after row), "image" is [n, 1, 28, 28].
SHAPES: Final[tuple[str, ...]] = ("flat", "image")

_SIDE: Final = 28
_HEADERS: Final = (16, 8)  # bytes before the values of an idx3 (images) and an idx1 (labels) file
_TIMEOUT: Final = 30.0  # seconds without an answer after which a download counts as failed


class DataError(RelucheckError):
    """Anything wrong with a data set, its files, or what was asked of it."""

    exit_code = MISSING


class DataValueError(DataError, ValueError):
    """An unknown data set, split or shape, or a batch size that makes no batches."""


class DataFileError(DataError, OSError):
    """A data root or data file that is missing, unreadable, truncated or altered, or a root that cannot be written."""


class DownloadError(DataFileError):
    """The data root lacks files, and they could not be downloaded."""


@dataclasses.dataclass(frozen=True, eq=False)
class DataSet:
    """Labelled grey images in file order.

    Attributes:
        name: one of :data:`NAMES`.
        split: "train" or "test".
        images: uint8 [n, 28, 28], 0 (background) to 255 (ink).
        labels: int64 [n], an index into ``classes``.
        classes: what each label means.
        checksum: SHA-256 in hex of the values, see :func:`checksum`.
    """

    name: str
    split: str
    images: Tensor = dataclasses.field(repr=False)
    labels: Tensor = dataclasses.field(repr=False)
    classes: tuple[str, ...]
    checksum: str

    def __len__(self) -> int:
        return self.images.shape[0]

    def scaled(
        self, dtype: torch.dtype | str = torch.float32, shape: str = "flat", device: torch.device | str = "cpu"
    ) -> Tensor:
        """All images as floats in [0, 1], as :func:`scale` makes them: [n, 784] or, for "image", [n, 1, 28, 28]."""
        return scale(self.images, dtype, shape, device)


def scale(
    images: Tensor, dtype: torch.dtype | str = torch.float32, shape: str = "flat", device: torch.device | str = "cpu"
) -> Tensor:
    """uint8 images [n, 28, 28] as floats in [0, 1]: x / 255 rounded to float32, then cast to ``dtype``.

    That is ``torchvision.transforms.ToTensor`` followed by a cast, bit for bit, float64 included. It is computed on the
    CPU whatever the device, because CUDA may divide by multiplying with a reciprocal, which rounds differently.

    Args:
        images: uint8 [n, 28, 28].
        dtype: one of the four supported dtypes, or its name.
        shape: "flat" for [n, 784], "image" for [n, 1, 28, 28].
        device: where the result goes.

    Raises:
        DataValueError: for an unknown shape.
        relucheck.numerics.dtypes.UnsupportedDtypeError: for an unsupported dtype.
    """
    _known("shape", shape, SHAPES)
    values = images.cpu().to(torch.float32).div(255).to(numerics_dtypes.as_dtype(dtype))
    sizes = (-1, _SIDE * _SIDE) if shape == "flat" else (-1, 1, _SIDE, _SIDE)
    return values.reshape(sizes).to(device)


def batches(
    data: DataSet,
    size: int,
    *,
    dtype: torch.dtype | str = torch.float32,
    shape: str = "flat",
    device: torch.device | str = "cpu",
    drop_last: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Mini-batches in file order: pairs of images as :func:`scale` makes them and labels, int64 [size].

    The last batch holds what is left, fewer than ``size`` where ``size`` does not divide the set, unless ``drop_last``.
    Images are converted batch by batch.

    Raises:
        DataValueError: at the call, for a size that is not an integer of at least 1, for one that with ``drop_last``
            leaves no batch, and for an unknown shape.
        relucheck.numerics.dtypes.UnsupportedDtypeError: at the call, for an unsupported dtype.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise DataValueError(f"batch size {size!r}: must be an integer of at least 1")
    if drop_last and size > len(data):
        raise DataValueError(
            f"batch size {size} with drop_last=True leaves no batch of {data.name} {data.split}, which has {len(data)} "
            f"images; pass a size of at most {len(data)} or drop_last=False"
        )
    _known("shape", shape, SHAPES)
    numerics_dtypes.as_dtype(dtype)
    stop = len(data) - len(data) % size if drop_last else len(data)
    slices = (slice(start, start + size) for start in range(0, stop, size))
    return ((scale(data.images[part], dtype, shape, device), data.labels[part].to(device)) for part in slices)


def load(name: str, split: str = "train", root: Root = None, *, download: bool = True) -> DataSet:
    """A data set by name: "digits" (shipped, needs no root and ignores one), "mnist" or "fashionmnist".

    Case, "-" and "_" in the name do not matter. See :func:`load_digits` and :func:`load_mnist` for the rest.
    """
    known = _known("data set", str(name).lower().replace("-", "").replace("_", ""), NAMES, shown=name)
    return load_digits(split) if known == "digits" else _load_idx(known, split, root, download)


def load_once(name: str, split: str, root: Root = None, *, download: bool = True) -> DataSet:
    """:func:`load`, which reads a split once in a process; do not write to what it returns."""
    place = None if root is None else os.fspath(root)
    return _read_once(name, split, place, os.environ.get(ROOT_VARIABLE), download)


@functools.lru_cache(maxsize=4)
def _read_once(name: str, split: str, root: str | None, variable: str | None, download: bool) -> DataSet:
    return load(name, split, root, download=download)


def load_digits(split: str = "train") -> DataSet:
    """The shipped sample of MNIST: 2,000 training or 500 test images, exactly 200 or 50 of each digit.

    It is the first 200 (50) images of each class of MNIST's training (test) file, in file order; ``tools/make_digits.py``
    makes it, ``relucheck/_data/LICENSE-MNIST`` is its licence. Read and verified once a process; each call
    returns tensors of its own.

    Source: Y. LeCun, C. Cortes, C. J. C. Burges, The MNIST database of handwritten digits (CC BY-SA 3.0).

    Raises:
        DataValueError: for an unknown split.
        DataFileError: if the file in the package is missing, truncated or altered.
    """
    _known("split", split, SPLITS)
    data = _digits()[split]
    return dataclasses.replace(data, images=data.images.clone(), labels=data.labels.clone())


def load_mnist(root: Root = None, split: str = "train", *, download: bool = True) -> DataSet:
    """MNIST from ``ROOT/MNIST/raw``: 60,000 training or 10,000 test images. Not cached.

    Args:
        root: the data root; None means the environment variable RELUCHECK_DATA, else ``$XDG_CACHE_HOME/relucheck``, else
            ``~/.cache/relucheck``.
        split: "train" or "test".
        download: whether to download files that the root lacks, by ``torchvision.datasets``: into a temporary directory
            inside the root, each file renamed into place when it is verified.

    Raises:
        DataValueError: for an unknown split.
        DataFileError: for a root that is a file or cannot be written, and for a file that is unreadable, truncated or
            altered, or missing with ``download=False``.
        DownloadError: if files are missing and the download fails; names them, the root and the offline way.
        relucheck.extras.MissingExtraError: if files are missing and torchvision is not installed.
    """
    return _load_idx("mnist", split, root, download)


def load_fashion_mnist(root: Root = None, split: str = "train", *, download: bool = True) -> DataSet:
    """FashionMNIST from ``ROOT/FashionMNIST/raw``: else as :func:`load_mnist`.

    Source: H. Xiao, K. Rasul, R. Vollgraf, arXiv:1708.07747 (MIT, Zalando SE).
    """
    return _load_idx("fashionmnist", split, root, download)


def checksum(images: Tensor, labels: Tensor) -> str:
    """SHA-256 in hex of the values: the images' bytes in C order, then each label as one byte."""
    digest = hashlib.sha256(images.to(torch.uint8).cpu().contiguous().numpy().tobytes())
    digest.update(labels.to(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()


def data_root(root: Root = None) -> Path:
    """The data root that an argument, else RELUCHECK_DATA, else the user's cache directory names. It need not exist.

    Raises:
        DataFileError: if it is a file; says where the name came from.
    """
    if root is not None:
        path, origin = Path(root), "given as the root"
    elif named := os.environ.get(ROOT_VARIABLE):
        path, origin = Path(named), f"from the environment variable {ROOT_VARIABLE}"
    else:
        path, origin = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "relucheck", "the default"
    path = path.expanduser()
    if os.path.lexists(path) and not path.is_dir():
        raise DataFileError(
            f"data root {path} ({origin}) is not a directory; pass the directory that contains MNIST/raw or "
            "FashionMNIST/raw, or one that a download may fill"
        )
    return path


# ---------------------------------------------------------------- the shipped sample

_DIGITS_FILE_SHA256: Final = "bc07c458f0babb0f5629fc94fc526264a09c2e53f425f52e0384155f81100552"
_DIGITS_SHA256: Final[dict[str, str]] = {
    "train": "0db52f1147fc89855e1b82f898fbfc1ad38a4bf397bc4e04560dc41e66b9f737",
    "test": "23bbb8e011d33bfe0fcdbc25377cb4f41a4cc08ed6c3e42fb3ccb24ab2a000aa",
}


def _digits_file() -> Traversable:
    return importlib.resources.files("relucheck").joinpath("_data", "digits.npz")


@functools.cache
def _digits() -> Mapping[str, DataSet]:
    """Both splits of the shipped sample by name, verified."""
    file, sets = _digits_file(), {}
    try:
        content = file.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != _DIGITS_FILE_SHA256:
            raise ValueError(f"its {len(content)} bytes have SHA-256 {found}, expected {_DIGITS_FILE_SHA256}")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            for split, expected in _DIGITS_SHA256.items():
                images = torch.from_numpy(arrays[f"{split}_images"])
                labels = torch.from_numpy(arrays[f"{split}_labels"]).to(torch.int64)
                found = checksum(images, labels)
                if found != expected:
                    raise ValueError(f"its {split} images and labels have SHA-256 {found}, expected {expected}")
                sets[split] = DataSet("digits", split, images, labels, _DIGIT_NAMES, found)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataFileError(
            f"the shipped digit sample {file} is missing, truncated or altered: {error}; reinstall relucheck "
            "(pip install --force-reinstall --no-deps relucheck)"
        ) from error
    return sets


# ---------------------------------------------------------------- MNIST and FashionMNIST

_FILES: Final = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_DIGIT_NAMES: Final = tuple("0123456789")
_CLOTHES: Final = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


@dataclasses.dataclass(frozen=True)
class _Source:
    """A published set: torchvision's class (and folder) name, classes, and bytes and MD5 of each uncompressed file."""

    folder: str
    classes: tuple[str, ...]
    md5: tuple[str, ...]
    sizes: tuple[int, ...] = (47_040_016, 60_008, 7_840_016, 10_008)


_MNIST_MD5: Final = (
    *("6bbc9ace898e44ae57da46a324031adb", "a25bea736e30d166cdddb491f175f624"),
    *("2646ac647ad5339dbf082846283269ea", "27ae3e4e09519cfbb04c329615203637"),
)
_FASHION_MD5: Final = (
    *("f4a8712d7a061bf5bd6d2ca38dc4d50a", "9018921c3c673c538a1fc5bad174d6f9"),
    *("8181f5470baa50b63fa0f6fddb340f0a", "15d484375f8d13e6eb1aabb0c3f46965"),
)
_SOURCES: Final[dict[str, _Source]] = {
    "mnist": _Source("MNIST", _DIGIT_NAMES, _MNIST_MD5),
    "fashionmnist": _Source("FashionMNIST", _CLOTHES, _FASHION_MD5),
}


def _load_idx(name: str, split: str, root: Root, download: bool) -> DataSet:
    _known("split", split, SPLITS)
    source, place = _SOURCES[name], data_root(root)
    raw = place / source.folder / "raw"
    contents = {file: _read_verified(raw, file, source) for file in (_FILES[:2] if split == "train" else _FILES[2:])}
    missing = [file for file, content in contents.items() if content is None]
    if missing:
        lacks = f"data root {place} lacks {', '.join(f'{source.folder}/raw/{file}' for file in missing)}"
        offline = f"put {' and '.join(missing)} (as they are, or gzip-compressed with .gz added) into {raw}"
        if not download:
            raise DataFileError(f"{lacks}; {offline}, or pass download=True")
        contents |= {file: content for file, content in _download(raw, source, lacks, offline).items() if file in missing}
    pixels, classes = (
        torch.from_numpy(np.frombuffer(content or b"", dtype=np.uint8, offset=header).copy())
        for content, header in zip(contents.values(), _HEADERS, strict=True)
    )
    images, labels = pixels.view(-1, _SIDE, _SIDE), classes.to(torch.int64)
    return DataSet(name, split, images, labels, source.classes, checksum(images, labels))


def _read_verified(raw: Path, file: str, source: _Source) -> bytes | None:
    """The uncompressed bytes of ``raw/file`` or ``raw/file.gz``, verified; None where neither exists."""
    size, expected = source.sizes[_FILES.index(file)], source.md5[_FILES.index(file)]
    for path in (raw / file, raw / f"{file}.gz"):
        try:
            with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as stream:
                content = stream.read(size + 1)  # one more than there should be, to see that a file is too long
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataFileError(f"{path} is truncated or altered ({error}); {_replace(path)}") from error
        except OSError as error:
            raise DataFileError(f"cannot read {path}: {error.strerror or error}; make it readable") from error
        if len(content) < size:
            raise DataFileError(f"{path} is truncated: {len(content)} bytes of {size}; {_replace(path)}")
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != expected:
            raise DataFileError(
                f"{path} is altered: its uncompressed content has MD5 {found}, expected {expected}; {_replace(path)}"
            )
        return content
    return None


def _download(raw: Path, source: _Source, lacks: str, offline: str) -> dict[str, bytes | None]:
    """Downloads a set with torchvision, moves what ``raw`` lacks there, verified and each in one rename; the contents."""
    require(f"{lacks}, and a download", "torchvision", otherwise=f"or {offline}")
    with contextlib.ExitStack() as stack:
        try:
            raw.mkdir(parents=True, exist_ok=True)
            temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".download-", dir=raw)))
        except OSError as error:
            raise DataFileError(
                f"{lacks}, and {raw} cannot be written ({error.strerror or error}); pass a root that can be, or {offline}"
            ) from error
        fetched = temporary / source.folder / "raw"
        try:
            _fetch(temporary, source.folder)
            contents = {file: _read_verified(fetched, file, source) for file in _FILES}
        # what urllib, gzip and torchvision raise: URLError is an OSError, a wrong checksum a RuntimeError
        except (OSError, RuntimeError, EOFError, zlib.error, http.client.HTTPException) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise DownloadError(f"{lacks}, and the download failed ({reason}); without a network, {offline}") from error
        for file in _FILES:
            if not (raw / file).exists():
                os.replace(fetched / file, raw / file)
    return contents


def _fetch(root: Path, folder: str) -> None:
    """Lets torchvision download a set (all four files) into a root that has none of it."""
    from torchvision import datasets

    before = socket.getdefaulttimeout()  # torchvision opens its mirrors without a time limit
    try:
        socket.setdefaulttimeout(_TIMEOUT)
        getattr(datasets, folder)(str(root), train=False, download=True)
    finally:
        socket.setdefaulttimeout(before)


def _replace(path: Path) -> str:
    return f"delete it (it is then downloaded again) or replace it with the original {path.name}"


def _known(what: str, value: str, known: Sequence[str], shown: object = None) -> str:
    """``value`` if it is one of the known ones, else a DataValueError that shows it and names the nearest."""
    if value in known:
        return value
    hint = did_you_mean(value, known)
    raise DataValueError(f"unknown {what} {shown or value!r}; {hint}known: {', '.join(known)}")
