"""Conversion to floating point, mini-batches, and refused names of data sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from relucheck import data
from relucheck.numerics import bits, dtypes

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
    with pytest.raises(data.DataValueError, match=f"batch size={size!r}: must be a whole number of at least 1"):
        data.batches(data.load_digits("test"), size)  # type: ignore[arg-type]


def test_a_size_that_leaves_no_batch_is_refused() -> None:
    with pytest.raises(data.DataValueError, match=r"batch size 501 with drop_last=True leaves no batch.*at most 500"):
        data.batches(data.load_digits("test"), 501, drop_last=True)


def test_bad_shape_and_dtype_are_refused_at_the_call() -> None:
    digits = data.load_digits("test")
    for call in (lambda **bad: data.batches(digits, 10, **bad), digits.scaled):
        with pytest.raises(data.DataValueError, match=r"shape='imgae': did you mean 'image'\? must be one of flat, image"):
            call(shape="imgae")
        with pytest.raises(dtypes.UnsupportedDtypeError, match="float16, bfloat16, float32 and float64"):
            call(dtype=torch.int8)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mnits", r"data set='mnits': did you mean 'mnist'\? must be one of digits, mnist, fashionmnist"),
        ("Digit", r"data set='Digit': did you mean 'digits'\?"),
        ("fashon-mnist", r"data set='fashon-mnist': did you mean 'fashionmnist'\?"),
        ("cifar10", r"data set='cifar10': must be one of digits, mnist, fashionmnist"),
        (None, r"data set=None: must be one of"),
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
    with pytest.raises(data.DataValueError, match=f"split={split!r}: {says}must be one of train, test"):
        data.load(name, split)


def test_every_error_is_a_data_error_and_a_builtin_one() -> None:
    assert data.DataValueError.__bases__ == (data.DataError, ValueError)
    assert data.DataFileError.__bases__ == (data.DataError, OSError)
    assert data.DownloadError.__bases__ == (data.DataFileError,)
