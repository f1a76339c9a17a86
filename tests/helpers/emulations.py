"""Every kind of emulated arithmetic, by its name."""

from __future__ import annotations

import torch

from relucheck.numerics.emulation import Emulation

KINDS: dict[str, Emulation] = {
    "rounded": Emulation(torch.bfloat16, "rounded"),
    "product": Emulation(torch.bfloat16, "product"),
    "product float16": Emulation(torch.float16, "product"),
    "split-k 4": Emulation(torch.bfloat16, "split-k", 4),
    "split-k 3": Emulation(torch.float16, "split-k", 3),
    "tf32": Emulation(torch.float32, "tf32"),
}
