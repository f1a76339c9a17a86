"""The mini-batches of a training comparison.

They come in file order, or in an order that each seed draws for each epoch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from relucheck.numerics.determinism import generator
from relucheck.training.model import stream
from relucheck.training.settings import Settings


@dataclasses.dataclass(frozen=True)
class DataSplit:
    """Images and labels of a data set's split, on the training device.

    Attributes:
        images: [n, ...], floating point, in the input shape of the network.
        labels: class indices, int64 [n].
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


class Batches:
    """The mini-batches of some seeds.

    Args:
        settings: of the comparison.
        seeds: whose orders are drawn.
        train: training data.

    Attributes:
        order: of the training samples in this epoch, int64 [seeds, samples]; None for file order.
    """

    def __init__(self, settings: Settings, seeds: Sequence[int], train: DataSplit) -> None:
        self._settings, self._seeds, self._train = settings, tuple(seeds), train
        self.begin(0)

    def begin(self, epoch: int) -> None:
        """Begin an epoch: draw its orders."""
        self._epoch, self.order = epoch, self._order_of(epoch)

    def _order_of(self, epoch: int) -> Tensor | None:
        if not self._settings.shuffle:
            return None
        count, device = len(self._train), self._train.labels.device
        orders = [torch.randperm(count, generator=generator(stream(s, "order", epoch))) for s in self._seeds]
        return torch.stack(orders).to(device)

    def of(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """A mini-batch of each seed in this epoch.

        Args:
            start: first sample, in the order of the epoch.
            stop: one past the last sample.

        Returns:
            Images [n, ...] and labels [n] in file order, which all seeds share; [seeds, n, ...] and [seeds, n] otherwise.
        """
        return self._cut(self.order, start, stop)

    def _cut(self, order: Tensor | None, start: int, stop: int) -> tuple[Tensor, Tensor]:
        where = slice(start, stop) if order is None else order[..., start:stop]
        return self._train.images[where], self._train.labels[where]

    def after(self, stop: int) -> tuple[Tensor, Tensor] | None:
        """The mini-batch after the one that ends before ``stop``, also across epochs.

        None at the end of the run.
        """
        order = self.order
        if stop >= len(self._train):
            if self._epoch + 1 >= self._settings.epochs:
                return None
            stop, order = 0, self._order_of(self._epoch + 1)
        return self._cut(order, stop, min(stop + self._settings.batch_size, len(self._train)))


class OfOneSeed(Batches):
    """The mini-batches of one seed: images [n, ...] and labels [n]."""

    def _cut(self, order: Tensor | None, start: int, stop: int) -> tuple[Tensor, Tensor]:
        return super()._cut(order if order is None else order[0], start, stop)
