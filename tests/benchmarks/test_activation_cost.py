"""What the chosen subgradient costs: forward and backward of relucheck's ReLU against torch's, both timed in one run.

Ratios, not times: machines differ, and so does what else they do. Run with ``pytest -m benchmark -s``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from relucheck.activations import ReLU

pytestmark = pytest.mark.benchmark

#: Our ReLU may cost this many times torch's (measured on two busy cores; the bounds only catch a lost fast path).
BOUNDS = {((256, 2048), 0): 5.0, ((256, 2048), 1): 8.0, ((4096, 4096), 0): 2.5, ((4096, 4096), 1): 3.0}
SUBGRADIENT = 0.5


def _where(x: Tensor) -> Tensor:
    """The peer: a dense selection by ``torch.where`` in forward and backward."""
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


@pytest.fixture(autouse=True)
def _single_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _seconds(candidates: dict[str, Callable[[Tensor], Tensor]], x: Tensor, g: Tensor) -> dict[str, float]:
    """The fastest of several short rounds, interleaved, so that a disturbance hits every candidate alike."""
    number = max(1, 4_000_000 // x.numel())
    best = dict.fromkeys(candidates, float("inf"))
    for _ in range(5):
        for name, f in candidates.items():
            timer = Timer("step(f, x, g)", globals={"step": _step, "f": f, "x": x, "g": g})
            best[name] = min(best[name], timer.timeit(number).mean)
    return best


@pytest.mark.parametrize("shape", [(256, 2048), (4096, 4096)], ids=str)
@pytest.mark.parametrize("hits", [0, 1])
def test_cost_of_relu(shape: tuple[int, int], hits: int, capsys: pytest.CaptureFixture[str]) -> None:
    random = torch.Generator().manual_seed(0)
    x, g = torch.randn(shape, generator=random), torch.randn(shape, generator=random)
    x[x == 0] = 1.0
    x.view(-1)[: hits * 7 : 7] = 0.0
    x.requires_grad_()
    candidates = {"torch": nn.ReLU(), "relucheck": ReLU(SUBGRADIENT), "torch.where": _where}
    assert torch.equal(_step(candidates["relucheck"], x, g), _step(_where, x, g))
    seconds = _seconds(candidates, x, g)
    ratios = {name: value / seconds["torch"] for name, value in seconds.items()}
    with capsys.disabled():
        print(
            f"\n{shape[0]} x {shape[1]}, {hits} hits  "
            + "  ".join(f"{k} {1e3 * seconds[k]:8.3f} ms ({v:4.2f})" for k, v in ratios.items())
        )
    assert ratios["relucheck"] < BOUNDS[shape, hits]
