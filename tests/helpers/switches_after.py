"""Changes switches behind ``Arithmetic.active()`` and without it, in processes of fresh switches; prints what differs.

Arguments: the arithmetic's name, then statements.
"""

import os
import sys

import torch
from torch import backends

from relucheck.numerics.arithmetic import Arithmetic

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


def after(statement: str, name: str, later: str, *, block: bool) -> str:
    """What a forked process reads at each step."""
    receive, send = os.pipe()
    if not os.fork():
        exec(statement)
        if block:
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
    for later in sys.argv[2:]:
        for before in BEFORE:
            changed, same = (after(before, sys.argv[1], later, block=block) for block in (True, False))
            if changed != same or not same:
                print(f"{before}; {later}:\n  {changed}\n  {same}")
