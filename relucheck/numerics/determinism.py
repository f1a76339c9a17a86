"""Deterministic algorithms, and one random generator a seed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Switches deterministic algorithms on, and puts the process back as it was.

    On CUDA cuBLAS also needs a fixed workspace, which it reads from the environment when its first handle is made
    (https://docs.pytorch.org/docs/stable/generated/torch.use_deterministic_algorithms.html), so the variable is set
    where the user has not set it.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    mode, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    benchmark = torch.backends.cudnn.benchmark
    try:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        yield
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for one seed, so that no draw depends on what drew before it."""
    return torch.Generator(device=device).manual_seed(seed)
