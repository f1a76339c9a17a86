"""The environment of a result: software versions, the processor, and the device.

This module does not import torch, so that a report of versions is fast. ``relucheck.numerics.devices`` describes devices.
"""

from __future__ import annotations

import contextlib
import dataclasses
import platform
from importlib import metadata
from typing import Any

__all__ = ["Environment", "software"]


@dataclasses.dataclass(frozen=True)
class Environment:
    """Where a result was computed.

    Attributes:
        relucheck: the version of relucheck.
        torch: the version of torch.
        python: the version of Python.
        platform: the operating system and the instruction set, for example "Linux x86_64".
        processor: the name of the processor. Libraries choose kernels by it, so it can change the bits of a result.
        kind: the type of the device ("cpu", "cuda"); empty if no device is described.
        model: what decides the device's kernels: a CPU's vector instructions ("AVX512") or a GPU's name.
        threads: how many threads torch may use on a CPU; None if no CPU is described.
    """

    relucheck: str
    torch: str
    python: str
    platform: str
    processor: str
    kind: str = ""
    model: str = ""
    threads: int | None = None

    @property
    def device(self) -> str:
        """The device in words, for example "cpu (AVX512), 1 thread"."""
        text = f"{self.kind} ({self.model})" if self.model else self.kind
        return text if self.threads is None else f"{text}, {self.in_threads}"

    @property
    def in_threads(self) -> str:
        """The number of threads in words, for example "2 threads"."""
        return f"{self.threads} thread{'' if self.threads == 1 else 's'}"

    def to_json(self) -> dict[str, Any]:
        """Convert to a JSON object; fields of the device are left out if none is described."""
        empty = ("", None)
        return {name: value for name, value in dataclasses.asdict(self).items() if value not in empty}

    def versions(self, *names: str) -> dict[str, str]:
        """Select text fields by their names, as stored results keep them."""
        return {name: str(getattr(self, name)) for name in names}

    def __str__(self) -> str:
        """One line, for example "relucheck 0.1.0, torch 2.14.1, ..., cpu (AVX512), 1 thread"."""
        named = [f"{name} {value}" for name, value in self.versions("relucheck", "torch", "python").items()]
        return ", ".join(filter(None, [*named, self.platform, self.processor, self.device]))


def software() -> Environment:
    """Describe the software of this process, without a device."""
    return Environment(
        relucheck=_installed("relucheck"),
        torch=_installed("torch"),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
    )


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"  # a source tree


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
        for line in stream:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
