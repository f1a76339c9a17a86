"""relucheck: what autodiff does at the kinks of activations, as property tests, a pytest gate and reproductions.

Names are imported on first use, so that pytest, which loads the plugin of this package in every run, does not pay for
torch where relucheck is not used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from relucheck.activations.kinks import Activation, Kink
    from relucheck.activations.modules import LeakyReLU, ReLU, ReLU6
    from relucheck.gate.api import check_activation, parametrize_with_laws
    from relucheck.gate.discovery import register_constructor

__version__ = "0.1.0"

_HOME: Final = {
    "Activation": "activations.kinks",
    "Kink": "activations.kinks",
    "LeakyReLU": "activations.modules",
    "ReLU": "activations.modules",
    "ReLU6": "activations.modules",
    "check_activation": "gate.api",
    "parametrize_with_laws": "gate.api",
    "register_constructor": "gate.discovery",
}

__all__ = [
    "Activation",
    "Kink",
    "LeakyReLU",
    "ReLU",
    "ReLU6",
    "check_activation",
    "parametrize_with_laws",
    "register_constructor",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"relucheck.{_HOME[name]}"), name)
    raise AttributeError(f"module 'relucheck' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
