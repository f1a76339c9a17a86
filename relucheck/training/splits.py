"""The images that a comparison trains and tests on, on the training device."""

from __future__ import annotations

import torch

from relucheck import data
from relucheck.errors import SettingsError
from relucheck.numerics.determinism import generator
from relucheck.training.batches import DataSplit
from relucheck.training.model import stream
from relucheck.training.settings import Settings


def split_of(settings: Settings, split: str, root: data.Root, device: torch.device) -> DataSplit:
    """Load the images of a comparison, in the shape and dtype in which its network takes them.

    Args:
        settings: of the comparison. If images are held out, they have one seed.
        split: "train" for the images to train on, or "test" for those to test on. With ``Settings.validation`` the latter
            are the training images held out.
        root: data root, see ``relucheck.data.data_root``.
        device: where they are stored.

    Raises:
        SettingsError: the data set has fewer images than the settings say, or does not fit the network; or images are held
            out and there are several seeds, because each seed draws its own.
        relucheck.data.DataError: the data root does not hold the data.
    """
    source = split if settings.validation is None else "train"
    dataset = data.load_once(settings.data, source, root)
    available, wanted = len(dataset), getattr(settings, f"{source}_samples")
    if wanted is not None and wanted > available:
        raise SettingsError(
            f"{source}_samples={wanted}: {settings.data} {source} has {available} images; use at most {available}"
        )
    count: int = available if wanted is None else wanted
    network, labels = settings.network, dataset.labels[:count]
    if dataset.images[0].numel() != network.features or int(labels.max()) >= network.classes:
        raise SettingsError(
            f"network={network}: takes {network.features} numbers and has {network.classes} classes, {settings.data} has "
            f"images of {dataset.images[0].numel()} pixels and classes 0 to {int(labels.max())}; change its input_shape or "
            "classes"
        )
    images = dataset.images[:count]
    if settings.validation is not None:
        chosen = _drawn(settings, split, count)
        images, labels = images[chosen], labels[chosen]
    scaled = data.scale(images, settings.arithmetic.dtype, "flat", device)
    return DataSplit(scaled.reshape(len(labels), *network.input_shape), labels.to(device))


def _drawn(settings: Settings, split: str, count: int) -> torch.Tensor:
    """The places of the images that a seed trains on, or of those that it holds out, in file order."""
    if len(settings.seeds) > 1:
        raise SettingsError(
            f"validation={settings.validation!r} with the seeds {', '.join(map(str, settings.seeds))}: each seed holds out "
            "other images; load them seed by seed"
        )
    order = torch.randperm(count, generator=generator(stream(settings.seeds[0], "validation")))
    trained = settings.trained(count)
    return (order[:trained] if split == "train" else order[trained:]).sort().values
