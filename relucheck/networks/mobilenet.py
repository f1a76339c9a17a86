"""MobileNetV3-small of torchvision, and small networks of its inverted residual blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from torch import Tensor, nn

from relucheck.errors import ModelError
from relucheck.extras import require
from relucheck.networks.network import KINDS, ActivationFactory, Kind, Network, not_as_built

#: Widths of the blocks of MobileNetV3-small.
MOBILENET_V3_SMALL: Final[tuple[int, ...]] = (16, 24, 24, 40, 40, 40, 48, 48, 96, 96, 96)
_LAST: Final = 1024
#: The other columns of table 2 of the source: kernel, expanded width, squeeze and excitation, ReLU or Hardswish, stride.
_ROWS: Final[tuple[tuple[int, int, bool, str, int], ...]] = (
    (3, 16, True, "RE", 2),
    (3, 72, False, "RE", 2),
    (3, 88, False, "RE", 1),
    (5, 96, True, "HS", 2),
    (5, 240, True, "HS", 1),
    (5, 240, True, "HS", 1),
    (5, 120, True, "HS", 1),
    (5, 144, True, "HS", 1),
    (5, 288, True, "HS", 2),
    (5, 576, True, "HS", 1),
    (5, 576, True, "HS", 1),
)


class _Repeated(nn.Module):
    """A model for images of 3 channels that takes grey images and repeats their channel.

    It takes [batch, 1, rows, columns] and returns what the model returns.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.expand(-1, 3, -1, -1))


def _config(before: int, after: int, row: Sequence[Any]) -> Any:
    from torchvision.models.mobilenetv3 import InvertedResidualConfig

    class Config(InvertedResidualConfig):
        @staticmethod
        def adjust_channels(channels: int, width_mult: float) -> int:
            return channels  # torchvision's would round small widths up to a multiple of 8

    kernel, expanded, squeezed, name, stride = row
    return Config(before, kernel, expanded, after, squeezed, name, stride, 1, 1.0)


def _build(network: Network, activation: ActivationFactory) -> nn.Module:
    """Build torchvision's MobileNetV3, and replace each ReLU by an activation."""
    require(f"the kind {network.kind}", "torchvision")
    from torchvision.models.mobilenetv3 import MobileNetV3

    widths = network.widths
    small = network.kind == "mobilenet-v3-small"
    rows = (
        _ROWS if small else [(3, 2 * width, True, "HS" if number % 2 else "RE", 1) for number, width in enumerate(widths)]
    )
    before = (16 if small else widths[0], *widths[:-1])
    configs = [_config(*row) for row in zip(before, widths, rows, strict=True)]
    last = _LAST if small else 2 * widths[-1]
    model = MobileNetV3(configs, last, num_classes=network.classes, dropout=network.dropout)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.ReLU:
                setattr(parent, name, activation())
    return _Repeated(model) if network.input_shape[0] == 1 else model


def _check(network: Network) -> None:
    not_as_built(network, "batch_norm", True, "batch norm follows its convolutions")
    not_as_built(network, "bias", True, "its convolutions have none and its linear layers have one")
    if network.input_shape[0] not in (1, 3):
        raise ModelError(
            f"input_shape={network.input_shape!r}: {network.kind} takes 3 channels, or 1 that it repeats; give 1 or 3"
        )
    if network.kind == "mobilenet-v3-small" and network.widths != MOBILENET_V3_SMALL:
        raise ModelError(f"widths={network.widths!r}: a mobilenet-v3-small has {MOBILENET_V3_SMALL!r}; give these")


KINDS["mobilenet-v3-small"] = Kind(_build, _check, sizes=lambda network: (), own_dropout=True)
KINDS["inverted-residual"] = Kind(_build, _check, own_dropout=True)
