"""Devices: a description of what decides their rounding, and the default device."""

from __future__ import annotations

import dataclasses
import re

import torch

from relucheck.errors import DeviceError
from relucheck.numerics.environment import Environment, software

__all__ = ["available", "best_device", "environment"]


def available(device: torch.device | str) -> torch.device:
    """Start a device and return it.

    CUDA reserves hundreds of GiB of address space when it starts. So it has to start before a limit on that space is set.

    Raises:
        DeviceError: the device is not available.
    """
    try:
        place = torch.device(device)
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError, ImportError) as error:
        # torch explains some of its errors in a thousand characters and more
        reason = re.split(r"(?<=[.!?])\s", str(error), maxsplit=1)[0].splitlines()[0].removesuffix(".")
        raise DeviceError(f"device {str(device)!r} is not available here: {reason}; use device 'cpu'") from error
    return place


def environment(device: torch.device | str) -> Environment:
    """Describe the software of this process together with a device."""
    place = torch.device(device)
    # torch.__version__ names the build ("2.14.1+cu130"), which the version of the installed package may lack
    here = dataclasses.replace(software(), torch=str(torch.__version__))
    if place.type == "cuda":
        return dataclasses.replace(here, kind="cuda", model=torch.cuda.get_device_name(place))
    if place.type == "cpu":
        model, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
        return dataclasses.replace(here, kind="cpu", model=model, threads=threads)
    return dataclasses.replace(here, kind=str(place))


def best_device() -> str:
    """Return ``"cuda"`` if a CUDA device is available, else ``"cpu"``."""
    return "cuda" if torch.cuda.is_available() else "cpu"
