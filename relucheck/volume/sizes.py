"""How many networks a stack holds and how many mini-batches a block, on a device with so much memory."""

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
    """The largest stacks and blocks that pay and fit.

    Attributes:
        network, arithmetic, batch_size: what runs.
        device: where.
        memory: bytes that a stack may take; None is 1 GiB on a CPU and half of what is free on an accelerator.
    """

    network: Network
    arithmetic: Arithmetic
    batch_size: int
    device: torch.device
    memory: int | None = None

    def networks(self) -> int:
        """Of the largest stack."""
        width = max(self.network.widths)
        if self.device.type == "cpu":
            most = 1 if width > _CPU_WIDEST else max(1, _CPU_UNITS // width)
        else:
            most = _DEVICE_NETWORKS
        return max(1, min(most, self._budget() // (self._parameter_bytes + self._row_bytes * self.batch_size)))

    def batches(self, networks: int) -> int:
        """Mini-batches of the largest block of a stack of so many networks."""
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
        """Of one network: the drawn one's, their wide copies and their places in the stack."""
        return 3 * self._bytes * sum(rows * columns for rows, columns in shapes(self.network))

    @property
    def _row_bytes(self) -> int:
        """Of one row through one network: three layers' values."""
        return 3 * self._bytes * max(*self.network.widths, self.network.classes)
