"""Measurements run on one thread, as two cores of a shared machine are not two cores, and on memory that is kept."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    """One thread for products, and the process's own number again afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h


@pytest.fixture(autouse=True, scope="session")
def memory_is_kept() -> None:
    """glibc hands large blocks back when they are freed, so that a tensor's first use is mostly page faults.

    How often depends on the state of the allocator: torch's ReLU of [4096, 4096] took 42 to 84 ms. It cannot be undone,
    so it holds for the rest of the process. Elsewhere than on glibc nothing is changed.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_MMAP_MAX, 0)
