"""How many networks a stack and how many mini-batches a block may hold, given the memory."""

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
    """The sizes of stacks and blocks beyond which a device gains no speed.

    Attributes:
        rows: rows of a block.
        rows_bfloat16: rows of a block in native bfloat16.
        networks: networks of a stack.
        units: units of one layer, summed over the networks of a stack.
        widest: the width above which networks are not stacked.
    """

    rows: int
    rows_bfloat16: int
    networks: int
    units: int = sys.maxsize
    widest: int = sys.maxsize


#: On a CPU only native bfloat16 gains from more than 256 rows (measured).
CPU: Final = Limits(rows=256, rows_bfloat16=1024, networks=512, units=512, widest=64)
ACCELERATOR: Final = Limits(rows=8192, rows_bfloat16=8192, networks=1024)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The largest stacks and blocks that fit into memory and still gain speed.

    Attributes:
        network: the description of every network.
        arithmetic: in which they compute.
        batch_size: rows of a mini-batch.
        device: where they run.
        memory: bytes that a stack may use; None means 1 GiB on a CPU and half of the free memory on an accelerator.
        limits: sizes beyond which nothing is gained; None means those of the device.
    """

    network: Network
    arithmetic: Arithmetic
    batch_size: int
    device: torch.device
    memory: int | None = None
    limits: Limits | None = None

    def networks(self) -> int:
        """Number of networks in the largest stack."""
        width, limits = max(self.network.widths), self._limits
        most = 1 if width > limits.widest else min(limits.networks, max(1, limits.units // width))
        return max(1, min(most, self._budget() // (self._parameter_bytes + self._row_bytes * self.batch_size)))

    def batches(self, networks: int) -> int:
        """Number of mini-batches in the largest block of a stack of ``networks`` networks."""
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
        """Bytes of one network's parameters: as drawn, as a wide copy, and in the stack."""
        return 3 * self._bytes * sum(rows * columns for rows, columns in shapes(self.network))

    @property
    def _row_bytes(self) -> int:
        """Bytes of one row in one network: the values of three layers."""
        return 3 * self._bytes * max(*self.network.widths, self.network.classes)
