"""Changes switches behind ``Arithmetic.active()`` and without it, in processes of fresh switches; prints what differs.

Arguments: statements.
"""

import os
import sys

import torch
from torch import backends

from relucheck.numerics.arithmetic import Arithmetic

#: Names of arithmetics.
NAMES = ("float32", "float32 TF32")
#: What the user sets before.
BEFORE = (
    "pass",
    "backends.fp32_precision = 'tf32'",
    "backends.fp32_precision = 'ieee'",
    "backends.fp32_precision = 'bf16'",
    "backends.cudnn.fp32_precision = 'tf32'",
    "backends.cudnn.conv.fp32_precision = 'ieee'",
    "backends.cudnn.conv.fp32_precision = 'none'",
    "backends.fp32_precision = backends.cuda.matmul.fp32_precision = backends.cudnn.rnn.fp32_precision = 'tf32'",
    "backends.fp32_precision = backends.mkldnn.matmul.fp32_precision = 'ieee'",
    "backends.mkldnn.set_flags(_fp32_precision='bf16')",
    "backends.cudnn.allow_tf32 = False",
    "torch.set_float32_matmul_precision('high')",
    "torch.set_float32_matmul_precision('medium')",
)


def read() -> list[str]:
    owners = [
        *(backends, backends.cudnn, backends.mkldnn, backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn),
        *(backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn),
    ]
    found = [owner.fp32_precision for owner in owners]
    for older in (torch.get_float32_matmul_precision, lambda: backends.cudnn.allow_tf32):
        try:
            found.append(str(older()))
        except RuntimeError:
            found.append("refused")
    return found


def after(statement: str, name: str | None, later: str) -> str:
    """What a forked process reads at each step, behind a block of an arithmetic or, without a name, without one."""
    receive, send = os.pipe()
    if not os.fork():
        exec(statement)
        if name is not None:
            with Arithmetic.parse(name).active():
                pass
        found = [read()]
        exec(later)
        found.append(read())
        os.write(send, repr(found).encode())
        os._exit(0)
    os.close(send)
    os.wait()
    with os.fdopen(receive) as stream:
        return stream.read()


if __name__ == "__main__":
    for later in sys.argv[1:]:
        for before in BEFORE:
            same, *found = (after(before, name, later) for name in (None, *NAMES))
            for name, changed in zip(NAMES, found, strict=True):
                if changed != same or not same:
                    print(f"{name}: {before}; {later}:\n  {changed}\n  {same}")
