"""Load and verify MNIST, FashionMNIST and the shipped digits; make mini-batches.

A data root has the layout of ``torchvision.datasets``, which also does the downloads. The files are read here, though: each
is read once, checked against a checksum in this module, and then parsed from the same bytes. Nothing is unpickled, an
altered file is an error, and a root with gzip-compressed files need not be writable. That is why neither torchvision nor
the package pooch reads them.

Every error is a ``DataError``, except for an unsupported dtype, which is an ``UnsupportedDtypeError``.
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

from relucheck.errors import MISSING, RelucheckError, one_of, whole
from relucheck.extras import require
from relucheck.numerics import dtypes as numerics_dtypes

#: The environment variable that names the data root if no argument does.
ROOT_VARIABLE: Final = "RELUCHECK_DATA"
#: The type of a data root as an argument; for None see ``data_root``.
Root = str | os.PathLike[str] | None
#: The names that ``load`` knows.
NAMES: Final[tuple[str, ...]] = ("digits", "mnist", "fashionmnist")
SPLITS: Final[tuple[str, ...]] = ("train", "test")
#: The shapes of n scaled images: "flat" is [n, 784], row after row, and "image" is [n, 1, 28, 28].
SHAPES: Final[tuple[str, ...]] = ("flat", "image")

_SIDE: Final = 28
_HEADERS: Final = (16, 8)  # bytes before the values of an idx3 (images) and an idx1 (labels) file
_TIMEOUT: Final = 30.0  # seconds without an answer after which a download counts as failed


class DataError(RelucheckError):
    """A data set that cannot be loaded, or an invalid argument of this module."""

    exit_code = MISSING


class DataValueError(DataError, ValueError):
    """An unknown data set, split or shape, or an invalid batch size."""


class DataFileError(DataError, OSError):
    """A data root or file that is missing, unreadable, truncated, altered or not writable."""


class DownloadError(DataFileError):
    """The data root lacks files, and they could not be downloaded."""


@dataclasses.dataclass(frozen=True, eq=False)
class DataSet:
    """Labelled grey images in file order.

    Attributes:
        name: one of ``NAMES``.
        split: "train" or "test".
        images: uint8 [n, 28, 28], from 0 (background) to 255 (ink).
        labels: int64 [n], indices into ``classes``.
        classes: the name of each class.
        checksum: the SHA-256 of the values, see the function ``checksum``.
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
        """Convert all images with ``scale``: [n, 784] or, for "image", [n, 1, 28, 28]."""
        return scale(self.images, dtype, shape, device)


def scale(
    images: Tensor, dtype: torch.dtype | str = torch.float32, shape: str = "flat", device: torch.device | str = "cpu"
) -> Tensor:
    """Convert uint8 images to floats in [0, 1]: x / 255 in float32, then cast to ``dtype``.

    The result equals ``torchvision.transforms.ToTensor`` followed by a cast, bit for bit, for float64, too. It is computed
    on the CPU, because CUDA may divide by multiplying with a reciprocal, which rounds differently.

    Args:
        images: uint8 [n, 28, 28].
        dtype: one of the four supported dtypes, or its name.
        shape: "flat" for [n, 784], "image" for [n, 1, 28, 28].
        device: the device of the result.

    Raises:
        DataValueError: for an unknown shape.
        UnsupportedDtypeError: for an unsupported dtype.
    """
    one_of("shape", shape, SHAPES, error=DataValueError)
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
    """Iterate over mini-batches in file order: images from ``scale``; labels, int64 [size].

    If ``size`` does not divide the number of images, the last batch is smaller; ``drop_last`` leaves it out.

    Raises:
        DataValueError: at the call, for a size below 1 or not an integer, for a size with which ``drop_last`` leaves no
            batch, and for an unknown shape.
        UnsupportedDtypeError: at the call, for an unsupported dtype.
    """
    whole("batch size", size, error=DataValueError)
    if drop_last and size > len(data):
        raise DataValueError(
            f"batch size {size} with drop_last=True leaves no batch of {data.name} {data.split}, which has {len(data)} "
            f"images; pass a size of at most {len(data)} or drop_last=False"
        )
    one_of("shape", shape, SHAPES, error=DataValueError)
    numerics_dtypes.as_dtype(dtype)
    stop = len(data) - len(data) % size if drop_last else len(data)
    slices = (slice(start, start + size) for start in range(0, stop, size))
    return ((scale(data.images[part], dtype, shape, device), data.labels[part].to(device)) for part in slices)


def load(name: str, split: str = "train", root: Root = None, *, download: bool = True) -> DataSet:
    """Load a data set by name: "digits", "mnist" or "fashionmnist", in any case.

    "-" and "_" in the name do not matter. "digits" is in the package and ignores ``root``. ``load_digits`` and
    ``load_mnist`` describe the arguments and errors.
    """
    known = str(name).lower().replace("-", "").replace("_", "")
    one_of("data set", known if known in NAMES else name, NAMES, error=DataValueError)
    return load_digits(split) if known == "digits" else _load_idx(known, split, root, download)


def load_once(name: str, split: str, root: Root = None, *, download: bool = True) -> DataSet:
    """Do what ``load`` does, once per process; the tensors are shared, so do not change them."""
    place = None if root is None else os.fspath(root)
    return _read_once(name, split, place, os.environ.get(ROOT_VARIABLE), download)


@functools.lru_cache(maxsize=4)
def _read_once(name: str, split: str, root: str | None, variable: str | None, download: bool) -> DataSet:
    return load(name, split, root, download=download)


def checksums(data_sets: Sequence[tuple[str, str]], root: Root = None) -> dict[tuple[str, str], str]:
    """The checksum of each data set and split, without a download.

    Equal checksums are the same data on two machines.

    Raises:
        relucheck.errors.RelucheckError: as ``load`` does.
    """
    return {(name, split): load_once(name, split, root, download=False).checksum for name, split in data_sets}


def load_digits(split: str = "train") -> DataSet:
    """Load the shipped sample of MNIST: 2,000 training or 500 test images, balanced.

    It has the first 200 (50) images of each class of MNIST's training (test) file, in file order. ``tools/make_digits.py``
    made the sample, and ``relucheck/_data/LICENSE-MNIST`` is its licence. Each call returns new tensors.

    Source: Y. LeCun, C. Cortes, C. J. C. Burges, The MNIST database of handwritten digits (CC BY-SA 3.0).

    Raises:
        DataValueError: for an unknown split.
        DataFileError: if the file in the package is missing, truncated or altered.
    """
    one_of("split", split, SPLITS, error=DataValueError)
    data = _digits()[split]
    return dataclasses.replace(data, images=data.images.clone(), labels=data.labels.clone())


def load_mnist(root: Root = None, split: str = "train", *, download: bool = True) -> DataSet:
    """Load MNIST from ``ROOT/MNIST/raw``: 60,000 training or 10,000 test images.

    Args:
        root: the data root. None means the environment variable RELUCHECK_DATA, else ``$XDG_CACHE_HOME/relucheck``, else
            ``~/.cache/relucheck``.
        split: "train" or "test".
        download: whether ``torchvision.datasets`` downloads files that the root lacks. They go to a temporary directory
            inside the root first, and each file is renamed when it is verified.

    Raises:
        DataValueError: for an unknown split.
        DataFileError: for a root that is a file or cannot be written, and for a file that is unreadable, truncated or
            altered, or missing with ``download=False``.
        DownloadError: if files are missing and the download fails; names them, the root and the offline way.
        relucheck.extras.MissingExtraError: if files are missing and torchvision is not installed.
    """
    return _load_idx("mnist", split, root, download)


def load_fashion_mnist(root: Root = None, split: str = "train", *, download: bool = True) -> DataSet:
    """Load FashionMNIST from ``ROOT/FashionMNIST/raw``, with all else as in ``load_mnist``.

    Source: H. Xiao, K. Rasul, R. Vollgraf, arXiv:1708.07747 (MIT, Zalando SE).
    """
    return _load_idx("fashionmnist", split, root, download)


def checksum(images: Tensor, labels: Tensor) -> str:
    """The SHA-256, in hexadecimal, of the images' bytes in C order and one byte per label."""
    digest = hashlib.sha256(images.to(torch.uint8).cpu().contiguous().numpy().tobytes())
    digest.update(labels.to(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()


def data_root(root: Root = None) -> Path:
    """Find the data root: the argument, else RELUCHECK_DATA, else a folder in the user's cache.

    Raises:
        DataFileError: if it exists and is not a folder; the message says where the name comes from.
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


_DIGITS_FILE_SHA256: Final = "bc07c458f0babb0f5629fc94fc526264a09c2e53f425f52e0384155f81100552"
_DIGITS_SHA256: Final[dict[str, str]] = {
    "train": "0db52f1147fc89855e1b82f898fbfc1ad38a4bf397bc4e04560dc41e66b9f737",
    "test": "23bbb8e011d33bfe0fcdbc25377cb4f41a4cc08ed6c3e42fb3ccb24ab2a000aa",
}


@functools.cache
def _digits() -> Mapping[str, DataSet]:
    """Read and verify both splits of the sample in this package."""
    return _read_digits(importlib.resources.files("relucheck").joinpath("_data", "digits.npz"))


def _read_digits(file: Traversable, sha256: str = _DIGITS_FILE_SHA256) -> Mapping[str, DataSet]:
    """Read both splits of a file of the sample, which must have the checksum ``sha256``, and verify their values."""
    sets = {}
    try:
        content = file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if digest != sha256:
            raise ValueError(f"its {len(content)} bytes have SHA-256 {digest}, expected {sha256}")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            for split, expected in _DIGITS_SHA256.items():
                images = torch.from_numpy(arrays[f"{split}_images"])
                labels = torch.from_numpy(arrays[f"{split}_labels"]).to(torch.int64)
                digest = checksum(images, labels)
                if digest != expected:
                    raise ValueError(f"its {split} images and labels have SHA-256 {digest}, expected {expected}")
                sets[split] = DataSet("digits", split, images, labels, _DIGIT_NAMES, digest)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataFileError(
            f"the shipped digit sample {file} is missing, truncated or altered: {error}; reinstall relucheck "
            "(pip install --force-reinstall --no-deps relucheck)"
        ) from error
    return sets


_FILES: Final = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_DIGIT_NAMES: Final = tuple("0123456789")
_CLOTHES: Final = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


@dataclasses.dataclass(frozen=True)
class _Source:
    """A published data set: torchvision's folder, its classes, and MD5 and size of each file."""

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
    one_of("split", split, SPLITS, error=DataValueError)
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
    """Read and verify ``raw/file`` or ``raw/file.gz``, uncompressed; None if neither exists."""
    size, expected = source.sizes[_FILES.index(file)], source.md5[_FILES.index(file)]
    for path in (raw / file, raw / f"{file}.gz"):
        try:
            with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as stream:
                content = stream.read(size + 1)  # one byte more than expected, so that a longer file fails the checksum
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataFileError(f"{path} is truncated or altered ({error}); {_replace(path)}") from error
        except OSError as error:
            raise DataFileError(f"cannot read {path}: {error.strerror or error}; make it readable") from error
        if len(content) < size:
            raise DataFileError(f"{path} is truncated: {len(content)} bytes of {size}; {_replace(path)}")
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if digest != expected:
            raise DataFileError(
                f"{path} is altered: its uncompressed content has MD5 {digest}, expected {expected}; {_replace(path)}"
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
        # errors of urllib, gzip and torchvision: URLError is an OSError, and a wrong checksum is a RuntimeError
        except (OSError, RuntimeError, EOFError, zlib.error, http.client.HTTPException) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise DownloadError(f"{lacks}, and the download failed ({reason}); without a network, {offline}") from error
        for file in _FILES:
            if not (raw / file).exists():
                os.replace(fetched / file, raw / file)
    return contents


def _fetch(root: Path, folder: str) -> None:
    """Let torchvision download the four files of a data set into an empty root."""
    from torchvision import datasets

    before = socket.getdefaulttimeout()  # torchvision opens its mirrors without a time limit
    try:
        socket.setdefaulttimeout(_TIMEOUT)
        getattr(datasets, folder)(str(root), train=False, download=True)
    finally:
        socket.setdefaulttimeout(before)


def _replace(path: Path) -> str:
    return f"delete it (it is then downloaded again) or replace it with the original {path.name}"
