"""The environment: its two forms, what decides rounding on a device, and that versions cost no import of torch."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from importlib import metadata

import pytest
import torch

import relucheck
from relucheck.numerics import devices
from relucheck.numerics.devices import best_device, environment
from relucheck.numerics.environment import Environment

BARE = Environment(relucheck="1", torch="2", python="3", platform="Linux x86_64", processor="AMD EPYC")
CPU = dataclasses.replace(BARE, kind="cpu", model="AVX512", threads=1)
CUDA = dataclasses.replace(BARE, kind="cuda", model="NVIDIA H200")


@pytest.mark.parametrize(
    ("here", "device"),
    [
        (CPU, "cpu (AVX512), 1 thread"),
        (dataclasses.replace(CPU, threads=2), "cpu (AVX512), 2 threads"),
        (CUDA, "cuda (NVIDIA H200)"),
        (dataclasses.replace(BARE, kind="mps"), "mps"),
        (BARE, ""),
    ],
)
def test_a_device_in_words(here: Environment, device: str) -> None:
    assert here.device == device


def test_text_and_json() -> None:
    assert str(CPU) == "relucheck 1, torch 2, python 3, Linux x86_64, AMD EPYC, cpu (AVX512), 1 thread"
    assert str(BARE) == "relucheck 1, torch 2, python 3, Linux x86_64, AMD EPYC"
    assert Environment(**json.loads(json.dumps(CPU.to_json()))) == CPU
    assert set(BARE.to_json()) == {"relucheck", "torch", "python", "platform", "processor"}


def test_this_process() -> None:
    before = torch.get_num_threads()
    try:
        for threads, text in ((1, "1 thread"), (2, "2 threads")):
            torch.set_num_threads(threads)
            here = environment("cpu")
            assert here.device == f"cpu ({torch.backends.cpu.get_cpu_capability()}), {text}"
    finally:
        torch.set_num_threads(before)
    assert here.torch == torch.__version__
    assert here.relucheck == relucheck.__version__ == metadata.version("relucheck")
    assert here.processor


def test_a_gpu_is_described_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda place: f"GPU {place.index}")
    assert environment("cuda:1").device == "cuda (GPU 1)"
    assert environment("cuda:1").threads is None


@pytest.mark.parametrize(("there", "device"), [(True, "cuda"), (False, "cpu")])
def test_default_device(monkeypatch: pytest.MonkeyPatch, there: bool, device: str) -> None:
    monkeypatch.setattr(devices.torch.cuda, "is_available", lambda: there)
    assert best_device() == device


def test_versions_cost_no_import_of_torch() -> None:
    """The controller of a distributed run writes reports without torch."""
    script = (
        "import sys\nfrom relucheck.gate.report.documents import as_json, as_markdown\n"
        "as_json([], []); as_markdown([], [])\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
