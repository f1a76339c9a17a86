"""torch's global state and threads; ``guard`` leaves them out where torch is missing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch

#: The folder of installed packages in which torch lies.
FOLDER: Final = os.path.dirname(os.path.dirname(torch.__file__))


#: The modules whose functions differentiate.
_PLACES: Final = (torch.autograd, torch.autograd.forward_ad, torch.func)


def _flushes_denormals() -> bool:
    return bool((_SUBNORMAL * 1.0).item() == 0)


def _default_device() -> torch.device:
    """The default device; torch 2.4's own function raises once ``torch.set_default_device(None)`` was called."""
    try:
        return torch.get_default_device()
    except AttributeError:
        return torch.device("cpu")


_SUBNORMAL: Final = torch.full((1,), 1e-310, dtype=torch.float64)


#: Global switches that a target must not change, each with the functions that read and set it.
SWITCHES: Final[dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]] = {
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "default device": (
        _default_device,
        lambda device: torch.set_default_device(None if device.type == "cpu" else device),
    ),
    "grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "flush-denormal mode": (_flushes_denormals, torch.set_flush_denormal),
    "anomaly mode": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "deterministic algorithms": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    "float32 matmul precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "number of threads": (torch.get_num_threads, torch.set_num_threads),
}


class Functions:
    """The functions by which torch differentiates, as they were before a block."""

    def __init__(self) -> None:
        self._before = [dict(vars(place)) for place in _PLACES]
        self._backward = torch.Tensor.backward

    def restore(self) -> list[str]:
        """Restore the functions that the block replaced or removed, and describe each."""
        lines = []
        for place, before in zip(_PLACES, self._before, strict=True):
            for name, value in before.items():
                if vars(place).get(name) is not value:
                    setattr(place, name, value)
                    lines.append(f"{place.__name__}.{name}: was replaced")
        if torch.Tensor.backward is not self._backward:
            torch.Tensor.backward = self._backward  # type: ignore[method-assign]
            lines.append("torch.Tensor.backward: was replaced")
        return lines


def generator() -> torch.Tensor:
    """Return the state of the default random generator."""
    return torch.get_rng_state()


def set_generator(state: torch.Tensor) -> None:
    """Restore the state of the default random generator."""
    torch.set_rng_state(state)


def same_generator(state: torch.Tensor) -> bool:
    """Whether the default random generator has a state."""
    return torch.equal(state, torch.get_rng_state())


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """Limit torch to one thread.

    For vectors of a few hundred elements, more threads only wait for each other.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
