"""The names of the kernels that computed something, from the events of ``torch.profiler``."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

import torch

#: Kernels that prepare operands and results. They are named only where nothing else ran.
_BESIDE: Final = re.compile(r"memcpy|memset|elementwise|fill|cudnn::ops::nchwToNhwc|nhwcToNchw", re.IGNORECASE)
#: Operators of a CPU that compute products or batch norm.
_OPERATORS: Final = re.compile(r"aten::\w*(mm|mv|dot|linear|conv\w*|batch_norm\w*)$")
_KERNEL: Final = re.compile(r"(?:void )?(?:[\w]+::)*Kernel\d?<(?P<name>\w+)>.*")
_LABEL: Final = "relucheck "


@contextlib.contextmanager
def labelled(name: str, device: torch.device) -> Iterator[None]:
    """Mark what a block computes for ``names``.

    On CUDA the block ends when the device has finished.
    """
    with torch.profiler.record_function(_LABEL + name):
        yield
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def profiler(device: torch.device) -> Any:
    """A profiler of what a device computes.

    Its library prints what it does to standard error, unless the user or this function sets KINETO_LOG_LEVEL.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] * (device.type == "cuda")
    return torch.profiler.profile(activities=activities)


def names(events: Iterable[Any], label: str) -> tuple[str, ...]:
    """The kernels that ran in a labelled block, in order, each once.

    On a CPU these are ATen's operators, the innermost ones, because the profiler does not see the kernels below them.

    Args:
        events: of a ``torch.profiler.profile``, as ``events()`` returns them.
        label: the name that ``labelled`` was given.

    Returns:
        Full names. They are () if the profiler saw nothing.
    """
    label = _LABEL + label
    every = sorted(events, key=lambda event: event.time_range.start)
    on_cpu = [event for event in every if event.device_type.name == "CPU"]
    block = next((event.time_range for event in on_cpu if event.name == label), None)
    if block is None:
        return ()
    inside = [event for event in on_cpu if block.start <= event.time_range.start <= block.end and event.name != label]
    kernels = [kernel.name for event in inside for kernel in event.kernels]
    if not kernels:  # kernels that the profiler could not link to an operator
        rest = [event for event in every if event.device_type.name != "CPU"]
        kernels = [event.name for event in rest if block.start <= event.time_range.start <= block.end]
    kernels = list(dict.fromkeys(name for name in kernels if not name.startswith(_LABEL)))
    if kernels:
        return tuple([name for name in kernels if not _BESIDE.search(name)] or kernels)
    operators = [event for event in inside if _OPERATORS.fullmatch(event.name)]
    innermost = [
        one.name
        for one in operators
        if not any(one.time_range.start < other.time_range.start <= one.time_range.end for other in operators)
    ]
    return tuple(dict.fromkeys(innermost))


def short(name: str) -> str:
    """A kernel's name without return type and arguments, and without CUTLASS's wrapper."""
    found = _KERNEL.fullmatch(name)
    if found:
        return found["name"]
    return re.sub(r"\(.*", "", name.removeprefix("void ")).strip() or name
