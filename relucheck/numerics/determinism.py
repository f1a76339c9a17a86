"""Deterministic algorithms, and random generators that depend on one seed only."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Use deterministic algorithms in a block, and restore the process's settings afterwards.

    On CUDA, cuBLAS is deterministic only with a fixed workspace. It reads the variable CUBLAS_WORKSPACE_CONFIG when it is
    used for the first time, so the variable is set here unless the user has set it, and it stays set.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.use_deterministic_algorithms.html
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
    """A new random generator with a seed, whose draws do not depend on any draw made before."""
    return torch.Generator(device=device).manual_seed(seed)
