"""The published training experiments as data, each at the scales full, cpu and smoke.

Scale *full* is for a CUDA device, *cpu* for a machine without one (E1 complete, E2 with fewer seeds and the emulated
arithmetics that bring a GPU's exact zeros to a CPU), *smoke* for CI: the shipped digits and networks of a few units, the
same members, rules and reports.

Settings and figures of the publications are quoted from their text and released result files:
[B21] Bertoin, Bolte, Gerchinovitz, Pauwels, Numerical influence of ReLU'(0) on backpropagation, NeurIPS 2021.
[R22] Martorella, Ramirez Contreras, Cerezo Garcia, Reproducibility Challenge, EPFL CS-433, 2022.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

from relucheck.networks.network import Network
from relucheck.reproduction import TITLES
from relucheck.reproduction.experiments.rows import (
    ABLATION,
    ADAM,
    EMULATED,
    EMULATED_FLOAT16,
    FITTED,
    NATIVE,
    NEAR,
    REDUCED,
    ROUNDED,
    SWITCHED,
    made,
    rows,
    with_seeds,
)
from relucheck.reproduction.published import ARITHMETICS, ERRORS, SUBGRADIENTS
from relucheck.reproduction.trained import TrainingScenario
from relucheck.training.members import members_of
from relucheck.training.settings import Optimiser, Settings

SEEDS: Final[tuple[int, ...]] = tuple(range(10))


def for_smoke(settings: Settings, widths: tuple[int, ...]) -> Settings:
    """Shrink a comparison to the shipped digits, so that it takes seconds."""
    return dataclasses.replace(
        settings,
        data="digits",
        network=dataclasses.replace(settings.network, widths=widths),
        train_samples=500,
        test_samples=200,
        batch_size=50,
        epochs=min(2, settings.epochs),
        members=with_seeds(settings, (0, 1)),
        every=1,
    )


# ---------------------------------------------------------------- E1

_E1_SEED: Final = 42069
_E1: Final = Settings("mnist", Network("mlp", (2000,)), members_of((_E1_SEED,), (1.0,)), optimiser=ADAM, epochs=2)
#: [B21]'s introduction: one pass, plain SGD; its notebook draws lr = 0.01 (1 + u / 5) with NumPy's generator seeded 12345,
#: whose first u is 0.92961609.
_E1_B21: Final = dataclasses.replace(
    _E1,
    network=Network("mlp", (2000, 128)),
    optimiser=Optimiser("sgd", 0.01 * (1 + 0.92961609 / 5), fused=False),
    epochs=1,
    members=members_of((123,), (1.0,)),
)


def _part(settings: Settings, source: str) -> str:
    """The title of a comparison's table in E1: network, optimiser, publication."""
    optimiser = {"adam": "Adam", "sgd": "SGD"}[settings.optimiser.name]
    return f"{settings.network.name}, {optimiser} [{source}]"


def _e1() -> TrainingScenario:
    cpu = (
        *made(_part(_E1, "R22"), (*NATIVE, *EMULATED), _E1),
        *made(_part(_E1_B21, "B21"), rows("float32", "float64"), _E1_B21, "b21-"),
    )
    many = dataclasses.replace(_E1, members=with_seeds(_E1, (_E1_SEED, *SEEDS[1:])))
    many_b21 = dataclasses.replace(_E1_B21, members=with_seeds(_E1_B21, (123, *SEEDS[1:])))
    full = (
        *made(_part(many, "R22"), (*NATIVE, *SWITCHED, *EMULATED, *REDUCED, *ROUNDED), many),
        *made(_part(many_b21, "B21"), rows("float32", "float64"), many_b21, "b21-"),
        *made(_part(many_b21, "B21"), rows("float32-tf32"), many_b21, "b21-"),
    )
    small, small_b21 = for_smoke(_E1, (64,)), for_smoke(_E1_B21, (64, 16))
    smoke = (
        *made(_part(small, "R22"), rows("float32", "bfloat16", "bfloat16-product", "float16"), small),
        *made(_part(small_b21, "B21"), rows("float32", "float64"), small_b21, "b21-"),
    )
    return TrainingScenario(
        "E1",
        TITLES["E1"],
        "[R22] Fig. 1; [B21] Fig. 1",
        {"full": full, "cpu": cpu, "smoke": smoke},
        ("distance",),
        overview=False,
        fitted={"": ARITHMETICS["E1"]},
    )


# ---------------------------------------------------------------- E2 and E3

#: The published network, data, optimiser and length, with ten seeds.
E2_SETTINGS: Final = Settings(
    *("mnist", Network("mlp", (200, 200, 200)), members_of(SEEDS, SUBGRADIENTS)), optimiser=ADAM, epochs=50, every=67
)
_PUBLISHED: Final = "MNIST, Adam, ReLU [R22]"
#: Subgradients of an earlier version of [R22]'s notebook, whose counts of hits are known.
NOTEBOOK_SUBGRADIENTS: Final[tuple[float, ...]] = (1.0, 2.0, 4.0, 8.0)


def _fewer(settings: Settings) -> str:
    """The title of the table of runs that are shorter than the published one."""
    return f"MNIST, Adam, ReLU, {settings.epochs} epochs"


def _e2() -> TrainingScenario:
    pair = rows("float32", "bfloat16")
    few = dataclasses.replace(E2_SETTINGS, members=with_seeds(E2_SETTINGS, SEEDS[:3]))
    one = dataclasses.replace(E2_SETTINGS, members=with_seeds(E2_SETTINGS, SEEDS[:1]))
    short = dataclasses.replace(E2_SETTINGS, epochs=3)
    middle = dataclasses.replace(E2_SETTINGS, epochs=15)
    five = dataclasses.replace(short, members=with_seeds(E2_SETTINGS, SEEDS[:5]))
    brief = (
        *made(_fewer(short), (*EMULATED, *EMULATED_FLOAT16), short, suffix="-3-epochs"),
        *made(_fewer(short), FITTED, five, suffix="-3-epochs"),
    )
    longer = (*ROUNDED, *rows("bfloat16-split-k-4"))
    notebook = dataclasses.replace(E2_SETTINGS, epochs=10, members=members_of(SEEDS, NOTEBOOK_SUBGRADIENTS))
    part = f"{_fewer(notebook)}, s = 1, 2, 4, 8"
    # the comparisons that a machine without a GPU answers best come first, the most expensive last
    cpu = (
        *made(_PUBLISHED, rows("float32", "bfloat16", "float16", "bfloat16-rounded"), few),
        *brief,
        *made(
            _fewer(middle),
            longer,
            dataclasses.replace(middle, members=with_seeds(E2_SETTINGS, SEEDS[:5])),
            suffix="-15-epochs",
        ),
        # for processors without bfloat16 instructions, where 50 epochs take hours
        *made(_fewer(middle), rows("bfloat16"), dataclasses.replace(few, epochs=15), suffix="-15-epochs"),
        *made(*(part, FITTED, dataclasses.replace(notebook, members=with_seeds(notebook, SEEDS[:5]))), suffix="-10-epochs"),
        *made(_PUBLISHED, FITTED, few),
        *made(_PUBLISHED, rows("bfloat16-product"), one),
        *made(_PUBLISHED, rows("bfloat16-split-k-4"), few),
    )
    full = [*made(_PUBLISHED, (*NATIVE, *SWITCHED, *EMULATED, *ROUNDED), E2_SETTINGS), *brief]
    full += made(_PUBLISHED, (*FITTED, *NEAR), dataclasses.replace(E2_SETTINGS, members=with_seeds(E2_SETTINGS, SEEDS[:5])))
    full += made(_fewer(middle), longer, middle, suffix="-15-epochs")
    arms = (*rows("bfloat16", "bfloat16-strict"), *REDUCED)
    full += made(part, arms, dataclasses.replace(notebook, members=with_seeds(notebook, SEEDS[:5])), suffix="-10-epochs")
    full += made(part, (*rows("float32"), *ROUNDED, *FITTED, *NEAR), notebook, suffix="-10-epochs")
    full += made("Ablation: which sums are split in 4 parts, 3 epochs", ABLATION, short, "split-k-4-", "-3-epochs")
    small = for_smoke(E2_SETTINGS, (64, 64, 64))
    smoke = [*made("digits, Adam, ReLU", (*pair, *rows("float16", "bfloat16-product")), small)]
    return TrainingScenario(
        "E2",
        TITLES["E2"],
        "[R22] Figs. 2 and 3",
        {"full": tuple(full), "cpu": cpu, "smoke": tuple(smoke)},
        ("distance", "loss", "error", "boxes"),
        published=ERRORS,
        version=3,  # since 3, emulations in 16 bits round the batch norm of `batchnorm-*` once
        fitted={"": ARITHMETICS["E2"]},
    )


def _e3(e2: TrainingScenario) -> TrainingScenario:
    """E3, whose runs are those of E2 in the published setting; they come first there."""
    scales = {
        scale: tuple(comparison for comparison in every if comparison.part == every[0].part)
        for scale, every in e2.scales.items()
    }
    return TrainingScenario(
        "E3",
        TITLES["E3"],
        "[R22] Fig. 4",
        scales,
        ("boxes",),
        published=ERRORS,
        shares=("E2",),
        fitted={"": ARITHMETICS["E2"]},
    )


_E2_SCENARIO: Final = _e2()
#: The training scenarios of MLPs, by name.
SCENARIOS: Final[Mapping[str, TrainingScenario]] = {
    scenario.name: scenario for scenario in (_e1(), _E2_SCENARIO, _e3(_E2_SCENARIO))
}
