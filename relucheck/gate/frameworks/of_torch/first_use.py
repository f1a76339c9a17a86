"""Imports what torch imports when it first differentiates.

That takes every new process some seconds. A process that imports this module first hands it on to those that it forks.
"""

from __future__ import annotations

import contextlib
import importlib
import warnings

_MODULES = ("torch._decomp.decompositions_for_jvp", "torch._dynamo", "torch.fx.experimental.symbolic_shapes")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch warns of what it deprecates and uses itself
    for _name in _MODULES:
        with contextlib.suppress(ImportError):  # they are torch's own, and another version may lack one
            importlib.import_module(_name)
