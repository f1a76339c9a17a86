"""How many networks a stack and how many mini-batches a block may hold, given the memory."""

from __future__ import annotations

import dataclasses
from typing import Final

import torch

from relucheck.networks.mlp import shapes
from relucheck.networks.network import Network
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.dtypes import compute_dtype

# Rows of a block and values of a stack at which CPU products stop gaining (measured: bfloat16 alone gains from more rows).
_CPU_ROWS: Final = 256
_CPU_ROWS_BFLOAT16: Final = 1024
_CPU_UNITS: Final = 512
_CPU_WIDEST: Final = 64
_DEVICE_ROWS: Final = 8192
_DEVICE_NETWORKS: Final = 1024
_CPU_MEMORY: Final = 2**30


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The largest stacks and blocks that fit into memory and still gain speed.

    Attributes:
        network: the description of every network.
        arithmetic: in which they compute.
        batch_size: rows of a mini-batch.
        device: where they run.
        memory: bytes that a stack may use; None means 1 GiB on a CPU and half of the free memory on an accelerator.
    """

    network: Network
    arithmetic: Arithmetic
    batch_size: int
    device: torch.device
    memory: int | None = None

    def networks(self) -> int:
        """Number of networks in the largest stack."""
        width = max(self.network.widths)
        if self.device.type == "cpu":
            most = 1 if width > _CPU_WIDEST else max(1, _CPU_UNITS // width)
        else:
            most = _DEVICE_NETWORKS
        return max(1, min(most, self._budget() // (self._parameter_bytes + self._row_bytes * self.batch_size)))

    def batches(self, networks: int) -> int:
        """Number of mini-batches in the largest block of a stack of ``networks`` networks."""
        if self.device.type == "cpu":
            slow = self.arithmetic.dtype == torch.bfloat16 and not self.arithmetic.emulated
            most = (_CPU_ROWS_BFLOAT16 if slow else _CPU_ROWS) // self.batch_size
        else:
            most = _DEVICE_ROWS // self.batch_size
        left = self._budget() - networks * self._parameter_bytes
        return max(1, min(most, left // (networks * self._row_bytes * self.batch_size)))

    def _budget(self) -> int:
        if self.memory is not None:
            return self.memory
        if self.device.type == "cuda":
            unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            return (int(torch.cuda.mem_get_info(self.device)[0]) + unused) // 2
        return _CPU_MEMORY

    @property
    def _bytes(self) -> int:
        dtype = self.arithmetic.dtype
        return (compute_dtype(dtype) if self.arithmetic.emulated else dtype).itemsize

    @property
    def _parameter_bytes(self) -> int:
        """Bytes of one network's parameters: as drawn, as a wide copy, and in the stack."""
        return 3 * self._bytes * sum(rows * columns for rows, columns in shapes(self.network))

    @property
    def _row_bytes(self) -> int:
        """Bytes of one row in one network: the values of three layers."""
        return 3 * self._bytes * max(*self.network.widths, self.network.classes)
