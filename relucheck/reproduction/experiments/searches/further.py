"""E8: the best configurations of the published searches, trained again, as data.

[R22] trained the best configuration with tuned subgradients ("custom") and the best one with (alpha, beta) = (0, 0)
("default") once more. For the MLP the two differ in learning rate and batch size, too. So here each configuration trains
(0, 0) and the tuned (alpha, beta) under both rules. For the MobileNet the published configurations differ in the
subgradients alone.

Scale *full* has the published lengths, with several seeds. Scale *cpu* has the MLP at its published length with three
seeds, and the MobileNet on 3,200 images for 4 epochs. Scale *smoke* is for CI: the shipped digits and tiny networks.

[R22] Martorella, Ramirez Contreras, Cerezo Garcia, Reproducibility Challenge, EPFL CS-433, 2022.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

from relucheck.networks.mobilenet import MOBILENET_V3_SMALL
from relucheck.networks.network import Network
from relucheck.reproduction import TITLES
from relucheck.reproduction.experiments.rows import ROUNDED, Row, made, rows
from relucheck.reproduction.published import ARITHMETICS, FURTHER, PublishedRun
from relucheck.reproduction.report.further import draw, sections
from relucheck.reproduction.scenario import Comparison
from relucheck.reproduction.trained import TrainingScenario
from relucheck.training.members import RULES, members_of
from relucheck.training.settings import Optimiser, Settings

_change: Final = dataclasses.replace
#: Share of the training images that is held out, as published.
HELD_OUT: Final = 0.2
#: The published seed comes first.
SEEDS: Final[tuple[int, ...]] = (42, 1, 2, 3, 4)
#: The published MLP of E8, and the published MobileNet, which has 1,000 outputs.
MLP: Final = Network("mlp", (128,), activation="relu6")
MOBILENET: Final = Network(
    "mobilenet-v3-small", MOBILENET_V3_SMALL, activation="relu6", batch_norm=True, dropout=0.2, classes=1000
)
_NETWORKS: Final = {"MLP": MLP, "MobileNet": MOBILENET}
_OWN: Final[tuple[Row, ...]] = (*ROUNDED, *rows("float32", "bfloat16"))


def _configurations() -> list[tuple[PublishedRun, Settings]]:
    """The configurations, each with the published run of tuned subgradients whose (alpha, beta) it trains."""
    custom = {run.network: run for run in FURTHER if run.member == "custom"}
    different = {run.comparisons: run for run in FURTHER}
    found = []
    for run in different.values():
        alpha, beta = custom[run.network].subgradients
        settings = Settings(
            "mnist",
            _NETWORKS[run.network],
            members_of(SEEDS, (alpha,), RULES, second=beta),
            optimiser=Optimiser("adam", run.lr, fused=False),
            epochs=run.epochs,
            batch_size=run.batch_size,
            shuffle=True,
            validation=HELD_OUT,
            every=48_000 // run.batch_size,
        )
        found.append((run, settings))
    return found


def _made(run: PublishedRun, settings: Settings, arithmetics: Sequence[Row]) -> tuple[Comparison, ...]:
    """One comparison for each arithmetic."""
    network = settings.network
    name = "MobileNetV3-small" if network.kind == "mobilenet-v3-small" else network.name
    part = f"{name}, ReLU6, lr {run.lr:g}, mini-batches of {settings.batch_size}, {settings.epochs} epochs"
    return made(part, arithmetics, settings, run.comparisons)


def _short(settings: Settings) -> Settings:
    """The MobileNet as a machine without a GPU can train it: 2,560 images, 40 steps an epoch."""
    return _change(settings.of_seeds(SEEDS[:2]), train_samples=3200, epochs=4, every=40)


def _tiny(settings: Settings) -> Settings:
    """A comparison on the shipped digits with a tiny network."""
    convolved = settings.network.kind == "mobilenet-v3-small"
    changes: dict[str, Any] = {"kind": "inverted-residual", "widths": (3,)} if convolved else {"widths": (32,)}
    return _change(
        settings.of_seeds(SEEDS[:2]),
        data="digits",
        network=_change(settings.network, **changes),
        train_samples=100 if convolved else 500,
        batch_size=40 if convolved else settings.batch_size // 2,
        epochs=2,
        every=2,
    )


def _e8() -> TrainingScenario:
    full: list[Comparison] = []
    cpu: list[Comparison] = []
    smoke: list[Comparison] = []
    for run, settings in _configurations():
        full += _made(run, settings, _OWN)
        # hits at 6 need a trained MLP; a coarse rounding gives some at 0 at once
        smoke += _made(run, _tiny(settings), rows("bfloat16-product") if run.network == "MLP" else ROUNDED)
        if run.network == "MLP":
            cpu += _made(run, settings.of_seeds(SEEDS[:3]), ROUNDED)
            cpu += _made(run, settings.of_seeds(SEEDS[:1]), rows("float32"))
        else:
            cpu += _made(run, _short(settings), (*ROUNDED, *rows("float32")))
    return TrainingScenario(
        "E8",
        TITLES["E8"],
        "[R22] Fig. 7",
        {"full": tuple(full), "cpu": tuple(cpu), "smoke": tuple(smoke)},
        ("loss", "error"),
        fitted={"": ARITHMETICS["E8"]},
        sections=sections,
        draws=draw,
    )


E8: Final = _e8()
