"""Compare the cost of relucheck's ReLU, forward and backward, with that of torch's.

Both are timed in one run, and the ratio is checked, as times differ between machines and with other work on them. Run
with ``pytest -m benchmark -s``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relucheck.activations.modules import ReLU
from relucheck.numerics.bits import same_bits

pytestmark = pytest.mark.benchmark

#: relucheck's ReLU may take this many times as long as torch's. The bounds only catch the loss of a fast path, as they were
#: measured on two busy cores.
BOUNDS = {((256, 2048), 0): 3.5, ((256, 2048), 1): 5.0, ((4096, 4096), 0): 2.2, ((4096, 4096), 1): 2.2}
SUBGRADIENT = 0.5
ON_CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none")
)


def _where(x: Tensor) -> Tensor:
    """The alternative: a dense selection by ``torch.where`` in forward and backward."""
    return _Where.apply(x)


class _Where(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.relu(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        (g,) = grads
        return torch.where(x > 0, g, torch.where(x == 0, SUBGRADIENT * g, torch.zeros_like(g)))


def _step(f: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Tensor:
    return torch.autograd.grad(f(x), x, g)[0]


def _seconds(candidates: dict[str, Callable[[Tensor], Tensor]], x: Tensor, g: Tensor) -> dict[str, float]:
    """Seconds per step of each candidate: the fastest of several short rounds.

    Rounds are interleaved, so that a disturbance affects every candidate alike. Time is processor time on a CPU, and wall
    time from the start to the end of a round on CUDA.
    """
    number = max(1, 4_000_000 // x.numel()) * (20 if x.is_cuda else 1)
    best = dict.fromkeys(candidates, float("inf"))
    for _ in range(9):
        for name, f in candidates.items():
            _step(f, x, g)
            start = _now(x)
            for _ in range(number):
                _step(f, x, g)
            best[name] = min(best[name], (_now(x) - start) / number)
    return best


def _now(x: Tensor) -> float:
    if not x.is_cuda:
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def _drawn(shape: tuple[int, int], dtype: torch.dtype, hits: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    x, g = torch.randn(shape, generator=random).to(dtype), torch.randn(shape, generator=random).to(dtype)
    x[x == 0] = 1.0
    x.view(-1)[: hits * 7 : 7] = 0.0
    return x.to(device).requires_grad_(), g.to(device)


def _report(title: str, seconds: dict[str, float], capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    ratios = {name: value / seconds["torch"] for name, value in seconds.items()}
    with capsys.disabled():
        print(f"\n{title}  " + "  ".join(f"{k} {1e3 * seconds[k]:8.3f} ms ({v:4.2f})" for k, v in ratios.items()))
    return ratios


@pytest.mark.parametrize("shape", [(256, 2048), (4096, 4096)], ids=str)
@pytest.mark.parametrize("hits", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_cost_of_relu(shape: tuple[int, int], hits: int, dtype: torch.dtype, capsys: pytest.CaptureFixture[str]) -> None:
    x, g = _drawn(shape, dtype, hits)
    candidates = {"torch": nn.ReLU(), "relucheck": ReLU(SUBGRADIENT), "torch.where": _where}
    assert same_bits(_step(candidates["relucheck"], x, g), _step(_where, x, g))
    ratios = _report(f"{dtype}, {shape[0]} x {shape[1]}, {hits} hits", _seconds(candidates, x, g), capsys)
    assert ratios["relucheck"] < BOUNDS[shape, hits]


@pytest.mark.parametrize("shape", [(256, 2048), (4096, 4096)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("device", [ON_CUDA])
def test_cost_of_relu_on_cuda(
    device: str, shape: tuple[int, int], dtype: torch.dtype, capsys: pytest.CaptureFixture[str]
) -> None:
    x, g = _drawn(shape, dtype, 1, device)
    candidates = {"torch": nn.ReLU(), "relucheck": ReLU(SUBGRADIENT), "torch.where": _where}
    assert same_bits(_step(candidates["relucheck"], x, g), _step(_where, x, g))
    ratios = _report(f"cuda, {dtype}, {shape[0]} x {shape[1]}", _seconds(candidates, x, g), capsys)
    assert ratios["relucheck"] < ratios["torch.where"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("device", ["cpu", ON_CUDA])
def test_cost_of_compiled_relu(device: str, dtype: torch.dtype, capsys: pytest.CaptureFixture[str]) -> None:
    x, g = _drawn((4096, 4096), dtype, 1, device)
    candidates = {"torch": torch.compile(nn.ReLU()), "relucheck": torch.compile(ReLU(SUBGRADIENT))}
    assert same_bits(_step(candidates["relucheck"], x, g), _step(_where, x, g))
    ratios = _report(f"compiled, {device}, {dtype}, 4096 x 4096", _seconds(candidates, x, g), capsys)
    assert ratios["relucheck"] < 1.5
