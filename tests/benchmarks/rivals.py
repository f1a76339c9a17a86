"""What the training engine is compared with: sequential training loops for one member."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import to_tensor

from relucheck import data
from relucheck.activations import modules
from relucheck.networks import Network
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.training.members import members_of
from relucheck.training.settings import Optimiser, Settings
from tests.benchmarks import sweeps

WIDTHS: Final = (200, 200, 200)
BATCH: Final = 128
STEPS: Final = 15  # steps in a sweep, the unit that is timed
SUBGRADIENTS: Final = (-0.5, 0.5, 0.8, 1.0)
MEMBERS: Final = 2 + len(SUBGRADIENTS)  # members of a seed, including s = 0 and its control


def settings_of(arithmetic: Arithmetic, seeds: Sequence[int], *, fused: bool, every: int) -> Settings:
    """Settings for the engine, with the members of some seeds.

    Args:
        arithmetic: in which members compute.
        seeds: their seeds.
        fused: whether Adam is torch's fused one.
        every: number of steps between recorded distances.
    """
    return Settings(
        "digits",
        Network("mlp", WIDTHS),
        members_of(seeds, SUBGRADIENTS, ["chain"]),
        optimiser=Optimiser(fused=fused),
        arithmetic=arithmetic,
        batch_size=BATCH,
        every=every,
    )


class _Where(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, s: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.s = s
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        g = grads[0].clone()
        g[x < 0] = 0
        return torch.where(x == 0, torch.full_like(g, ctx.s), g), None


class _WhereReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _Where.apply(x, 0.5)


class _Samples(Dataset[tuple[Tensor, int]]):
    def __init__(self, dataset: data.DataSet) -> None:
        self.images, self.labels = dataset.images.numpy(), dataset.labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return to_tensor(self.images[index]), self.labels[index]


def _model(arithmetic: Arithmetic, activation: Callable[[], nn.Module]) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in zip((784, *WIDTHS), WIDTHS, strict=False):
        layers += [nn.Linear(inputs, outputs), activation()]
    return arithmetic.apply(nn.Sequential(*layers, nn.Linear(WIDTHS[-1], 10)))


def with_dead(model: Any, dead: int) -> Any:
    """Make ``dead`` units of the first layer 0 on every image, and return the model."""
    first = next(module for module in model.modules() if isinstance(module, nn.Linear))
    with torch.no_grad():
        first.weight[:dead] = 0
        first.bias[:dead] = 0
    return model


def tuned(
    arithmetic: Arithmetic, dead: int, fused: bool, dataset: data.DataSet, device: str = "cpu"
) -> Callable[[], object]:
    """A tuned eager loop: data on the device, mini-batches as slices, public activations.

    Returns:
        A function that runs one sweep.
    """
    images, labels = dataset.scaled(arithmetic.dtype, device=device), dataset.labels.to(device)
    model = with_dead(_model(arithmetic, lambda: modules.ReLU(0.5)), dead).to(device)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused or None)
    return sweeps.of_model(model, optimiser, sweeps.sliced(images, labels, STEPS, BATCH))


def published(arithmetic: Arithmetic, dataset: data.DataSet, device: str = "cpu") -> Callable[[], object]:
    """A loop like that of the published code.

    It uses a DataLoader, a ReLU by ``where`` and torch's default Adam.

    Returns:
        A function that runs one sweep.
    """
    loader = DataLoader(_Samples(dataset), batch_size=BATCH)
    model = _model(arithmetic, _WhereReLU).to(device)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)

    def batches() -> Iterable[tuple[Tensor, Tensor]]:
        return ((x.to(device, arithmetic.dtype), y.to(device)) for x, y in itertools.islice(loader, STEPS))

    return sweeps.of_model(model, optimiser, batches)
