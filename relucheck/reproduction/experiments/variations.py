"""E10 and E11: E2 with one thing changed at a time, and with many values of s, as data.

E10 asks which change of the setting changes what E2 says. [R22] names FashionMNIST, SGD, batch norm, ReLU6 and LeakyReLU;
the others are learning rates, batch sizes, widths and depths about the published ones. E11 asks how much of s it takes.

Scale *full* is for a CUDA device, *cpu* for a machine without one, *smoke* for CI.

[R22] Martorella, Ramirez Contreras, Cerezo Garcia, Reproducibility Challenge, EPFL CS-433, 2022.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

from relucheck.reproduction import TITLES
from relucheck.reproduction.experiments.mlp import E2_SETTINGS, SEEDS, for_smoke
from relucheck.reproduction.experiments.rows import FITTED, ROUNDED, Row, made, rows
from relucheck.reproduction.published import ARITHMETICS
from relucheck.reproduction.report import doses, variations
from relucheck.reproduction.scenario import Comparison
from relucheck.reproduction.trained import TrainingScenario
from relucheck.training.members import members_of
from relucheck.training.settings import Optimiser, Settings

_change: Final = dataclasses.replace
#: The subgradients of E10, and those of E11 besides 0.
_HALF_AND_ONE: Final[tuple[float, ...]] = (0.5, 1.0)
_DOSES: Final[tuple[float, ...]] = tuple(n / 10 for n in range(1, 11))
#: Those of a smoke test, which has no time for ten.
_FEW_DOSES: Final[tuple[float, ...]] = (0.3, 0.6, 1.0)


# ---------------------------------------------------------------- E10


def _variations(base: Settings) -> tuple[tuple[str, str, Settings], ...]:
    """The base and its variations, as (name, what differs, settings); each variation changes one thing."""

    def network(**changes: Any) -> Settings:
        return _change(base, network=_change(base.network, **changes))

    def adam(lr: float) -> Settings:
        return _change(base, optimiser=_change(base.optimiser, lr=lr))

    # ReLU6 as [R22] has it: the subgradient at 0 varies, the one at 6 stays 0
    at_0 = members_of(base.seeds, _HALF_AND_ONE, second=0.0)
    width, depth = base.network.widths[0], len(base.network.widths)
    return (
        (variations.UNCHANGED, "as published", base),
        ("fashionmnist", "FashionMNIST", _change(base, data="fashionmnist")),
        ("sgd", "SGD", _change(base, optimiser=Optimiser("sgd", 0.1, fused=False))),
        ("batchnorm", "batch norm", network(batch_norm=True)),
        ("dropout", "dropout 0.2", network(dropout=0.2)),
        ("relu6", "ReLU6", _change(network(activation="relu6"), members=at_0)),
        ("leaky", "LeakyReLU", network(activation="leaky_relu")),
        ("lr-3e-4", "learning rate 3e-4", adam(3e-4)),
        ("lr-3e-3", "learning rate 3e-3", adam(3e-3)),
        ("batch-half", f"batch size {base.batch_size // 2}", _change(base, batch_size=base.batch_size // 2)),
        ("batch-fourfold", f"batch size {4 * base.batch_size}", _change(base, batch_size=4 * base.batch_size)),
        ("narrow", f"{width // 2} units a layer", network(widths=(width // 2,) * depth)),
        ("wide", f"{4 * width} units a layer", network(widths=(4 * width,) * depth)),
        ("layers-2", "2 hidden layers", network(widths=(width,) * 2)),
        ("layers-5", "5 hidden layers", network(widths=(width,) * 5)),
    )


def _varied(rows: Sequence[Row], base: Settings, chosen: Sequence[str] = ()) -> tuple[Comparison, ...]:
    """The comparisons of E10 in some arithmetics; those of the names in ``chosen``, or all."""
    return tuple(
        comparison
        for name, what, settings in _variations(base)
        if not chosen or name in chosen
        for comparison in made(what, rows, settings, f"{name}-")
    )


_E10_MEMBERS: Final = members_of(SEEDS[:3], _HALF_AND_ONE)
_E10_FULL: Final = _change(E2_SETTINGS, epochs=10, members=_E10_MEMBERS)
_E10_SMOKE: Final = _change(for_smoke(_E10_FULL, (64, 64, 64)), epochs=1, members=members_of((0,), _HALF_AND_ONE))
_IN_CI: Final = (variations.UNCHANGED, "sgd", "batchnorm", "dropout", "relu6", "leaky", "layers-2")
E10: Final = TrainingScenario(
    "E10",
    TITLES["E10"],
    "[R22], text on variations",
    {
        "full": _varied((*FITTED, *rows("float32", "bfloat16")), _E10_FULL),
        "cpu": _varied((*FITTED, *rows("float32")), _change(_E10_FULL, epochs=5)),
        "smoke": _varied(rows("bfloat16-product"), _E10_SMOKE, _IN_CI),
    },
    (),
    tables=False,
    overview=False,
    version=1,
    within_seeds=True,
    fitted={"": ARITHMETICS["E2"]},
    sections=variations.sections,
    draws=variations.draw,
)


# ---------------------------------------------------------------- E11

_E11: Final = _change(E2_SETTINGS, epochs=10, every=35, members=members_of(SEEDS[:5], _DOSES))
_E11_PART: Final = "MNIST, Adam, ReLU, s from 0 to 1"
E11: Final = TrainingScenario(
    "E11",
    TITLES["E11"],
    "[B21] and [R22], on the choice of s",
    {
        "full": made(_E11_PART, (*FITTED, *ROUNDED, *rows("float32")), _E11),
        "cpu": made(_E11_PART, FITTED, _E11),
        "smoke": made(
            "digits, s from 0 to 1",
            rows("bfloat16-product"),
            _change(for_smoke(_E11, (64, 64, 64)), members=members_of((0, 1), _FEW_DOSES)),
        ),
    },
    ("distance", "loss", "error"),
    tables=False,
    overview=False,
    version=1,
    within_seeds=True,
    fitted={"": ARITHMETICS["E2"]},
    sections=doses.sections,
    draws=doses.draw,
)

#: The scenarios of this module, by name.
SCENARIOS: Final[Mapping[str, TrainingScenario]] = {"E10": E10, "E11": E11}
