"""Contents of MNIST's files for tests, and what lies under a data root."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def idx_file(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return header + values.astype(np.uint8).tobytes()


def files_under(root: Path) -> list[str]:
    """Everything under a root but directories, and temporary directories by name."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() or "download" in path.name)


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


IMAGES = "MNIST/raw/t10k-images-idx3-ubyte"
