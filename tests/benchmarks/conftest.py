"""Run benchmarks on one thread, with an allocator that keeps freed memory."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    """Use one thread for products, as two cores of a shared machine give unstable timings.

    The former number of threads is restored afterwards.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h


@pytest.fixture(autouse=True, scope="session")
def memory_is_kept() -> None:
    """Keep glibc from returning freed memory to the system for the rest of the process.

    By default glibc returns large blocks when they are freed, so the first use of a tensor is mostly page faults. How
    often depends on the state of the allocator: torch's ReLU of [4096, 4096] took between 42 and 84 ms. The setting
    cannot be undone. With another C library nothing is changed.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_MMAP_MAX, 0)
