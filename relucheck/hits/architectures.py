"""The networks for which hits are planned, and what is assumed about them."""

from __future__ import annotations

import collections
import contextlib
import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from relucheck.extras import require
from relucheck.hits.plans import SHIFT, Activations, PlannedNetwork


@contextlib.contextmanager
def resnet50_kinds(model: nn.Module, see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call ``see(kind, pre_activation)`` at every ReLU of a ResNet-50 while active.

    Args:
        model: torchvision's ResNet-50.
        see: takes the kind (``normalised``, ``residual`` or ``projection``, see ``Activations``) and the tensor that the
            ReLU receives.

    Raises:
        MissingExtraError: without torchvision.
    """
    require("a ResNet-50", "torchvision")
    from torchvision.models.resnet import Bottleneck

    hooks = []

    def watch(module: nn.Module, end: str | None) -> None:
        calls = itertools.count(1)

        def look(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            # a bottleneck has one ReLU module and calls it three times; the third call follows the residual addition
            see(end if end and next(calls) % 3 == 0 else "normalised", args[0])

        hooks.append(module.register_forward_pre_hook(look))

    watch(model.get_submodule("relu"), None)
    for block in model.modules():
        if isinstance(block, Bottleneck):
            watch(block.relu, "residual" if block.downsample is None else "projection")
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def resnet50(batch: int = 256, size: int = 224) -> PlannedNetwork:
    """Describe torchvision's ResNet-50 in training.

    Its ReLU activations are counted in a forward pass on the meta device.

    Args:
        batch: images per training step.
        size: height and width of the images, in pixels.

    Raises:
        MissingExtraError: without torchvision.
    """
    require("a ResNet-50", "torchvision")
    from torchvision.models import resnet50 as build

    with torch.device("meta"):
        model, images = build().eval(), torch.empty(1, 3, size, size)
    counts: collections.Counter[str] = collections.Counter()
    with torch.no_grad(), resnet50_kinds(model, lambda kind, z: counts.update({kind: z.numel()})):
        model(images)
    return PlannedNetwork(
        "ResNet-50 on ImageNet",
        f"{batch} images of {size} x {size}",
        "the output of batch norm is N(0, 1); its shift minus its scaled mean is N(0, 0.7^2) over channels (0.7 was "
        "measured at initialisation); a skip connection is N(0, 2) before its ReLU and N(0, 1) after a projection; batch "
        "norm rounds its scaled value before it adds the shift",
        (
            Activations("behind batch norm", batch * counts["normalised"], "normalised", offset=SHIFT),
            Activations("behind an addition to a ReLU's output", batch * counts["residual"], "residual", offset=2**0.5),
            Activations("behind an addition to a projection", batch * counts["projection"], "projection", offset=1.0),
        ),
    )


def relu_transformer(bias: float, *, layers: int = 32, model: int = 4096, hidden: int = 16_384, tokens: int = 2048,
                     sequences: int = 1024) -> PlannedNetwork:  # fmt: skip
    """Describe a transformer with ReLU in its feed-forward layers.

    The default shape is that of OPT-6.7B. Weights have the standard deviation 0.006 (Zhang et al. 2022, "OPT: Open
    Pre-trained Transformer Language Models", section 2.2). Inputs of the feed-forward layers come from a layer norm and
    are N(0, 1).

    Args:
        bias: standard deviation of the biases of the first feed-forward layers; 0 at initialisation.
        layers: number of transformer layers.
        model: width of the residual stream.
        hidden: width of the feed-forward layers.
        tokens: tokens per sequence.
        sequences: sequences per training step.
    """
    state = "at initialisation: biases 0" if bias == 0 else f"biases N(0, {bias:g}^2)"
    return PlannedNetwork(
        f"ReLU transformer, 7 billion parameters ({state})",
        f"{sequences:,} sequences of {tokens:,} tokens",
        f"{layers} layers, width {model:,}, feed-forward width {hidden:,} (OPT-6.7B); ReLU in the feed-forward layers "
        f"only; inputs N(0, 1), weights N(0, 0.006^2), {state}",
        (
            Activations(
                "feed-forward", layers * hidden * tokens * sequences, "linear", model, 0.006 * math.sqrt(model), bias
            ),
        ),
    )
