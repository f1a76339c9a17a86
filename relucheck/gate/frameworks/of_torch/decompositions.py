"""torch's operations, replaced by the simpler ones from which a compiler starts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch._decomp import core_aten_decompositions
from torch.utils._python_dispatch import TorchDispatchMode


@functools.cache
def _table() -> Mapping[Any, Callable[..., Any]]:
    table: Mapping[Any, Callable[..., Any]] = core_aten_decompositions()
    return table


class Decomposing(TorchDispatchMode):
    """Replace each operation in the block by its core_aten_decompositions, forward and backward.

    ``torch.compile`` does the same before it generates code. Here the simpler operations run at once, which takes
    milliseconds.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # otherwise the first call imports torch's compiler, which takes seconds
        return False

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        table = _table()
        if op in table:
            with self:
                result = table[op](*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        return op(*args, **(kwargs or {}))
