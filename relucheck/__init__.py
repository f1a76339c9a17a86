"""Test what autodiff does at the kinks of activation functions, such as ReLU at 0.

The names below are imported on first use. pytest loads this package's plugin in every run, and ``import relucheck`` must
not import torch in runs that do not use relucheck.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from relucheck.activations.kinks import Activation, Kink
    from relucheck.activations.modules import LeakyReLU, ReLU, ReLU6
    from relucheck.auditing.api import audit
    from relucheck.bifurcation.compare import Comparison, backprop, compare
    from relucheck.bifurcation.explain import explain
    from relucheck.bifurcation.subgradient import set_subgradient
    from relucheck.bifurcation.wiring import check_wiring
    from relucheck.gate.api import check_activation, parametrize_with_laws
    from relucheck.gate.constructors import register_constructor

__version__ = "0.1.0"

_HOME: Final = {
    "Activation": "activations.kinks",
    "Comparison": "bifurcation.compare",
    "Kink": "activations.kinks",
    "LeakyReLU": "activations.modules",
    "ReLU": "activations.modules",
    "ReLU6": "activations.modules",
    "audit": "auditing.api",
    "backprop": "bifurcation.compare",
    "check_activation": "gate.api",
    "check_wiring": "bifurcation.wiring",
    "compare": "bifurcation.compare",
    "explain": "bifurcation.explain",
    "parametrize_with_laws": "gate.api",
    "register_constructor": "gate.constructors",
    "set_subgradient": "bifurcation.subgradient",
}

__all__ = [
    "Activation",
    "Comparison",
    "Kink",
    "LeakyReLU",
    "ReLU",
    "ReLU6",
    "audit",
    "backprop",
    "check_activation",
    "check_wiring",
    "compare",
    "explain",
    "parametrize_with_laws",
    "register_constructor",
    "set_subgradient",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"relucheck.{_HOME[name]}"), name)
    raise AttributeError(f"module 'relucheck' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
