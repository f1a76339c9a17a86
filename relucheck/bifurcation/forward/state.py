"""Use deterministic algorithms, and restore buffers, random numbers and ``.grad``."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from relucheck.errors import ModelError
from relucheck.numerics.determinism import deterministic


@contextlib.contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Use deterministic algorithms in a block, as far as torch has them.

    On a CPU, a function without one runs all the same, unless the user has demanded determinism: the control of a
    comparison proves that a backward repeats itself. On other devices atomics may add in another order in each run, so such
    a function is refused.

    Raises:
        ModelError: for a function without a deterministic algorithm on another device than a CPU.
    """
    demanded = torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    with deterministic(), warnings.catch_warnings():
        if device.type == "cpu" and not demanded:
            torch.use_deterministic_algorithms(True, warn_only=True)
            warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation")
        try:
            yield
        except RuntimeError as error:
            if demanded or "does not have a deterministic implementation" not in str(error):
                raise
            name = str(error).split(" does not have", 1)[0]
            raise ModelError(
                f"{name} has no deterministic algorithm on {device.type}, so two backwards cannot be compared bit for bit; "
                "compare the model on a CPU (model.cpu()), or replace the function"
            ) from error


@contextlib.contextmanager
def untouched(model: nn.Module, device: torch.device) -> Iterator[Callable[[], None]]:
    """Restore buffers (such as running statistics), random states and ``.grad`` after a block.

    ``.grad`` of the parameters is None at the start of the block, so that an accumulation in a forward is visible.

    Yields:
        A function that restores buffers and random states inside of the block.
    """
    kept = [
        (module._buffers, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    cuda = [device] if device.type == "cuda" else []
    states = torch.get_rng_state(), [torch.cuda.get_rng_state(one) for one in cuda]

    def restore() -> None:
        torch.set_rng_state(states[0])
        for one, state in zip(cuda, states[1], strict=True):
            torch.cuda.set_rng_state(state, one)
        with torch.no_grad():
            for buffers, name, buffer, values in kept:
                now = buffers.get(name)
                # a buffer with another shape is a cache that has grown: the old values would contradict the model
                if now is not None and (now.shape, now.dtype, now.device) == (buffer.shape, buffer.dtype, buffer.device):
                    buffers[name] = buffer.copy_(values)

    try:
        with set_aside(model.parameters()):
            yield restore
    finally:
        restore()


@contextlib.contextmanager
def set_aside(leaves: Iterable[Tensor]) -> Iterator[None]:
    """Set ``.grad`` to None in a block, so that accumulation is visible; restore it afterwards."""
    kept = [(leaf, leaf.grad) for leaf in leaves]
    try:
        for leaf, gradient in kept:
            if gradient is not None:
                leaf.grad = None
        yield
    finally:
        for leaf, gradient in kept:
            if leaf.grad is not gradient:
                leaf.grad = gradient
