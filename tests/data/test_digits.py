"""The shipped sample: balanced, verified against checksums, and the first images of each class of MNIST."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from relucheck import data
from tests.helpers.data_roots import flipped

SHIPPED = Path(data.__file__).parent / "_data"
PER_CLASS = {"train": 200, "test": 50}


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
def test_digits_are_read_once_and_each_caller_gets_its_own() -> None:
    first = data.load_digits()
    first.images.zero_()
    first.labels.zero_()
    again = data.load_digits()
    assert data._digits.cache_info().misses == 1
    assert data.checksum(again.images, again.labels) == again.checksum


@pytest.mark.parametrize(
    "alter",
    [
        pytest.param(lambda content: flipped(content, len(content) // 2), id="flipped-bit-in-the-middle"),
        pytest.param(lambda content: flipped(content, len(content) - 1), id="flipped-bit-at-the-end"),
        pytest.param(lambda content: content[:-1], id="one-byte-short"),
        pytest.param(lambda content: content[:1000], id="truncated"),
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: content + b"\0", id="one-byte-long"),
    ],
)
def test_an_altered_sample_is_refused(alter: Callable[[bytes], bytes], tmp_path: Path) -> None:
    copy = tmp_path / "digits.npz"
    copy.write_bytes((SHIPPED / "digits.npz").read_bytes())
    data._read_digits(copy)  # the copy is fine
    copy.write_bytes(alter(copy.read_bytes()))
    with pytest.raises(data.DataFileError, match=r"digits\.npz is missing, truncated or altered.*reinstall") as caught:
        data._read_digits(copy)
    assert str(copy) in str(caught.value)


def test_a_missing_sample_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(data.DataFileError, match=r"digits\.npz is missing.*No such file.*reinstall"):
        data._read_digits(tmp_path / "digits.npz")


def _repacked(change: Callable[[dict[str, np.ndarray]], object]) -> bytes:
    with np.load(SHIPPED / "digits.npz", allow_pickle=False) as shipped:
        arrays = dict(shipped)
    change(arrays)
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


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
    change: Callable[[dict[str, np.ndarray]], object], says: str, tmp_path: Path
) -> None:
    """A file that carries the right name and even the right file checksum, but other values (or a pickle)."""
    content = _repacked(change)
    (tmp_path / "digits.npz").write_bytes(content)
    with pytest.raises(data.DataFileError, match=says):
        data._read_digits(tmp_path / "digits.npz", hashlib.sha256(content).hexdigest())


# ---------------------------------------------------------------- against the real sets, where a root has them


@pytest.mark.needs_mnist
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
