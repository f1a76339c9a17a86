"""Record the device's work of a step once, and replay it in every further step.

Launching the many small kernels of a step takes longer than running them.

On CUDA a recording is a CUDA graph. It reads and writes tensors at fixed addresses. What it computes in between lies in a
pool of memory that belongs to its ``Lane``, so that graphs of several lanes can run at the same time: the kernels of one
small network leave most of a GPU idle. Elsewhere a recording is the function itself, with which tests run the same logic
without a GPU.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from relucheck.training.optimisation.flat import bytes_of


class Inputs:
    """Mini-batches at fixed addresses.

    Each size has one place, to which every mini-batch of the size is copied.
    """

    def __init__(self) -> None:
        self._places: dict[int, tuple[Tensor, Tensor]] = {}

    def place(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Copy a mini-batch to its place, and return that.

        Args:
            x: images [n, ...].
            y: labels [n].
        """
        if len(y) not in self._places:
            self._places[len(y)] = torch.empty_like(x), torch.empty_like(y)
        images, labels = self._places[len(y)]
        return images.copy_(x), labels.copy_(y)


class Copies:
    """Copies of some tensors, to which they can be set back.

    Args:
        tensors: are copied now.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        groups: dict[torch.dtype, list[Tensor]] = {}  # one call copies tensors of one dtype
        for tensor in tensors:
            groups.setdefault(tensor.dtype, []).append(tensor.detach())
        self._groups = [(group, [tensor.clone() for tensor in group]) for group in groups.values()]

    def take(self) -> None:
        """Copy the tensors again, over the old copies."""
        for tensors, copies in self._groups:
            torch._foreach_copy_(copies, tensors)

    def restore(self) -> None:
        """Set the tensors back."""
        for tensors, copies in self._groups:
            torch._foreach_copy_(tensors, copies)

    def same_bits(self) -> bool:
        """Whether the tensors hold the bits of their copies. Waits for the device."""
        pairs = [pair for tensors, copies in self._groups for pair in zip(tensors, copies, strict=True)]
        return all(torch.equal(bytes_of(tensor), bytes_of(copy)) for tensor, copy in pairs)


class Lane:
    """A stream of its own for the recordings of one branch, with their memory.

    On other devices than CUDA there is nothing to overlap, and all of this does nothing.

    Args:
        device: where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.pool: Any = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Launch the work of a block in this lane, after all work of the current stream so far."""
        if self.stream is None:
            yield
            return
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            yield

    def join(self) -> None:
        """Let the current stream wait for this lane; the host does not."""
        if self.stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.stream)


def recorded(work: Callable[[], None], changed: Sequence[Tensor], lane: Lane) -> Callable[[], None] | None:
    """Record some work on a device, if replaying it gives the bits of doing it.

    The work is done once, which lets libraries and compilers prepare what they need. Then it is recorded and replayed, and
    the bits of the two are compared. All tensors are set back afterwards, so that this leaves no trace.

    Args:
        work: reads and changes tensors at fixed addresses, and keeps no other tensor. It must not depend on anything else
            that changes, and must not wait for the device.
        changed: the tensors that it changes.
        lane: where it is replayed.

    Returns:
        A function that replays the work; None if the bits differ, and with a warning if the device cannot record it.

    Raises:
        torch.OutOfMemoryError: the device has too little memory.
    """
    before = Copies(changed)
    work()
    done = Copies(changed)
    before.restore()
    try:
        replay = _record(work, lane)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # such as a model whose forward waits for the device
        why = str(error).splitlines()[0]
        warnings.warn(
            f"steps are not recorded on {lane.device}, which makes them slower: {why}", RuntimeWarning, stacklevel=2
        )
        return None
    with lane.entered():
        replay()
    lane.join()
    same = done.same_bits()
    before.restore()
    return replay if same else None


def _record(work: Callable[[], None], lane: Lane) -> Callable[[], None]:
    if lane.stream is None:
        return work
    with torch.cuda.device(lane.device):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=lane.pool, stream=lane.stream):
            work()
    return graph.replay
