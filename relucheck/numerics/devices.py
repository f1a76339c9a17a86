"""Devices: what decides how one rounds, in words, and which one to use by default."""

from __future__ import annotations

import dataclasses

import torch

from relucheck.numerics.environment import Environment, software

__all__ = ["best_device", "environment"]


def environment(device: torch.device | str) -> Environment:
    """Describes this process on a device."""
    place = torch.device(device)
    # torch's word is exact ("2.14.1+cu130"), its package's may lack the build
    here = dataclasses.replace(software(), torch=str(torch.__version__))
    if place.type == "cuda":
        return dataclasses.replace(here, kind="cuda", model=torch.cuda.get_device_name(place))
    if place.type == "cpu":
        model, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
        return dataclasses.replace(here, kind="cpu", model=model, threads=threads)
    return dataclasses.replace(here, kind=str(place))


def best_device() -> str:
    """``"cuda"`` where there is one, else ``"cpu"``."""
    return "cuda" if torch.cuda.is_available() else "cpu"
