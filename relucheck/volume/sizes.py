"""How many networks a stack holds and how many mini-batches a block, on a device with so much memory."""

from __future__ import annotations

import dataclasses
import sys
from typing import Final

import torch

from relucheck.networks.mlp import shapes
from relucheck.networks.network import Network
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.dtypes import compute_dtype

_CPU_MEMORY: Final = 2**30


@dataclasses.dataclass(frozen=True)
class Limits:
    """The sizes of stacks and blocks at which a device's products stop gaining.

    Attributes:
        rows: of a block.
        rows_bfloat16: of a block in native bfloat16.
        networks: of a stack.
        units: of one layer, added up over the networks of a stack.
        widest: networks with a wider layer are not stacked.
    """

    rows: int
    rows_bfloat16: int
    networks: int
    units: int = sys.maxsize
    widest: int = sys.maxsize


#: Measured: bfloat16 alone gains from more rows on a CPU.
CPU: Final = Limits(rows=256, rows_bfloat16=1024, networks=512, units=512, widest=64)
ACCELERATOR: Final = Limits(rows=8192, rows_bfloat16=8192, networks=1024)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The largest stacks and blocks that pay and fit.

    Attributes:
        network, arithmetic, batch_size: what runs.
        device: where.
        memory: bytes that a stack may take; None is 1 GiB on a CPU and half of what is free on an accelerator.
        limits: None are those of the device.
    """

    network: Network
    arithmetic: Arithmetic
    batch_size: int
    device: torch.device
    memory: int | None = None
    limits: Limits | None = None

    def networks(self) -> int:
        """Of the largest stack."""
        width, limits = max(self.network.widths), self._limits
        most = 1 if width > limits.widest else min(limits.networks, max(1, limits.units // width))
        return max(1, min(most, self._budget() // (self._parameter_bytes + self._row_bytes * self.batch_size)))

    def batches(self, networks: int) -> int:
        """Mini-batches of the largest block of a stack of so many networks."""
        native_bfloat16 = self.arithmetic.dtype == torch.bfloat16 and not self.arithmetic.emulated
        most = (self._limits.rows_bfloat16 if native_bfloat16 else self._limits.rows) // self.batch_size
        left = self._budget() - networks * self._parameter_bytes
        return max(1, min(most, left // (networks * self._row_bytes * self.batch_size)))

    @property
    def _limits(self) -> Limits:
        return self.limits or (CPU if self.device.type == "cpu" else ACCELERATOR)

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
