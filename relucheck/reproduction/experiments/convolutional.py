"""The published trainings of convolutional networks as data: E5 and E6.

E5 trains a residual network, E6 MobileNetV3-small.

Scale *full* has the published lengths, with several seeds. Scale *cpu* trains on 1,600 images for 8 epochs (104 steps),
which a machine without a GPU can do in hours. Scale *smoke* is for CI: the shipped digits and tiny networks of the same
kinds.

Settings are quoted from the text and the released code of [R22] (Martorella, Ramirez Contreras, Cerezo Garcia,
Reproducibility Challenge, EPFL CS-433, 2022). Its "ResNet-18" is a residual network of 20 layers whose convolutions have
biases, with batch norm and a 3x3 convolution on every skip, and the setting reaches its stem only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from relucheck.networks.mobilenet import MOBILENET_V3_SMALL
from relucheck.networks.network import Network
from relucheck.networks.resnets import RESNET_18, RESNET_20
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.reproduction import TITLES
from relucheck.reproduction.experiments.rows import ADAM, ROUNDED, Row, made, rows, with_seeds
from relucheck.reproduction.published import ARITHMETICS, SUBGRADIENTS
from relucheck.reproduction.report.layers import BY_LAYER
from relucheck.reproduction.scenario import Comparison
from relucheck.reproduction.trained import TrainingScenario
from relucheck.training.members import members_of
from relucheck.training.settings import Optimiser, Settings

_change: Final = dataclasses.replace
#: Products rounded once, and batch norm as the device's own kernels compute it. A CPU's round several times.
_NATIVE_NORM: Final[tuple[Row, ...]] = (
    ("bfloat16-native-norm", Arithmetic.parse("bfloat16 emulated (rounded; batch norm native)"), ADAM),
)
#: What a machine without a GPU answers best, and the two arithmetics of the tests in CI.
_PAIR: Final[tuple[Row, ...]] = (*rows("float32"), *ROUNDED)


def _on_a_cpu(settings: Settings, seeds: tuple[int, ...] = (0, 1, 2)) -> Settings:
    """Shorten a comparison to 104 steps."""
    return _change(
        settings,
        train_samples=1600,
        test_samples=1000,
        epochs=8,
        every=4,
        members=with_seeds(settings, seeds),
    )


def _in_ci(settings: Settings, kind: str, widths: tuple[int, ...], seeds: tuple[int, ...] = (0, 1)) -> Settings:
    """Shrink a comparison to the shipped digits and a tiny network, so that it takes seconds."""
    return _change(
        settings,
        data="digits",
        network=_change(settings.network, kind=kind, widths=widths),
        train_samples=100,
        test_samples=100,
        batch_size=50,
        epochs=2,
        every=1,
        members=with_seeds(settings, seeds),
    )


# ---------------------------------------------------------------- E5

_CONVOLVED: Final = "resnet-convolved-skips"
_E5: Final = Settings(
    "mnist",
    Network(_CONVOLVED, RESNET_20, batch_norm=True),
    members_of((42069, 1, 2, 3, 4), SUBGRADIENTS),
    optimiser=ADAM,
    epochs=20,
    every=67,
)
_NET: Final = "20 layers, 3x3 convolutions on all skips"
_E5_PUBLISHED: Final = f"MNIST, Adam, ReLU, {_NET}, s in all layers"


def _e5_variations(base: Settings) -> tuple[tuple[str, str, Settings], ...]:
    """What differs from the published network with the setting in all layers, as (prefix, part, settings)."""

    def network(**changes: Any) -> Settings:
        return _change(base, network=_change(base.network, **changes))

    return (
        (
            "stem-only-",
            f"{_NET}, s in the stem only, as the published code has it",
            network(kind=f"{_CONVOLVED}-stem-only"),
        ),
        ("no-batchnorm-", f"{_NET}, without batch norm", network(batch_norm=False)),
        ("identity-skips-", "20 layers, identity skips", network(kind="resnet")),
        ("fashionmnist-", f"FashionMNIST, {_NET}", _change(base, data="fashionmnist")),
        ("leaky-", f"LeakyReLU, {_NET}", network(activation="leaky_relu")),
        ("sgd-", f"SGD, {_NET}", _change(base, optimiser=Optimiser("sgd", 0.1, fused=False))),
    )


def _e5() -> TrainingScenario:
    reduced = _change(_E5, members=members_of(_E5.seeds, (0.5, 1.0)))
    first = _change(_E5, epochs=2, members=members_of((42,), (1.0,)), every=7)
    further = _change(first, members=with_seeds(first, (1, 2, 3)))
    resnet_18 = Network("resnet-18", RESNET_18, batch_norm=True)
    in_18 = "torchvision's ResNet-18, first convolution for grey images"
    full = [
        *made(
            _E5_PUBLISHED,
            (
                *rows("float32", "float32-tf32", "bfloat16"),
                *ROUNDED,
                *rows("float16", "float16-eps1e-4", "mixed-bfloat16", "mixed-float16"),
            ),
            _E5,
        ),
        *made(f"First run, 2 epochs, {_NET}, s in all layers", (*rows("float32", "bfloat16"), *ROUNDED), first, "first-"),
        *made(f"The same with three other seeds, 2 epochs, {_NET}", (*rows("bfloat16"), *ROUNDED), further, "further-"),
    ]
    cpu = [*made(_E5_PUBLISHED, (*ROUNDED, *rows("float32")), _on_a_cpu(reduced))]
    one = _on_a_cpu(reduced, (0,))
    tiny = _in_ci(reduced, _CONVOLVED, (2, 4))
    smoke = [*made("digits, tiny net, 3x3 convolutions on all skips", _PAIR, tiny)]
    for prefix, part, settings in _e5_variations(_E5):
        full += made(part, (*rows("float32", "bfloat16"), *ROUNDED), settings, prefix)
    for prefix, part, settings in _e5_variations(one):
        cpu += made(part, _PAIR if prefix in ("no-batchnorm-", "stem-only-") else ROUNDED, settings, prefix)
    for prefix, _, settings in _e5_variations(_in_ci(reduced, _CONVOLVED, (2, 4), (0,))):
        if settings.data == "digits":
            smoke += made("digits, variations", ROUNDED, settings, prefix)
    full += made(in_18, (*rows("float32", "bfloat16"), *ROUNDED), _change(_E5, network=resnet_18), "resnet-18-")
    cpu += made(in_18, ROUNDED, _change(one, network=resnet_18), "resnet-18-")
    cpu += made(f"{_NET}, batch norm of the CPU", _NATIVE_NORM, one)
    return TrainingScenario(
        "E5",
        TITLES["E5"],
        "[R22] Fig. 6",
        {"full": tuple(full), "cpu": tuple(cpu), "smoke": tuple(smoke)},
        ("distance", "error", BY_LAYER),
        fitted={"": ARITHMETICS["E5"]},
    )


# ---------------------------------------------------------------- E6

_SMALL: Final = Network("mobilenet-v3-small", MOBILENET_V3_SMALL, batch_norm=True, dropout=0.2)
_E6_SEEDS: Final = (12345, 1, 2, 3, 4)
_E6: Final = Settings("mnist", _SMALL, members_of(_E6_SEEDS, (1.0,)), optimiser=ADAM, epochs=10, every=67)
#: (name in files, words of the table, activation).
_E6_FORMS: Final = (
    ("relu-", "ReLU", "relu"),
    ("relu6-alpha-", "ReLU6, (alpha, beta) = (s, 0)", "relu6"),
    ("relu6-beta-", "ReLU6, (alpha, beta) = (0, s)", "relu6"),
)


def _e6_forms(base: Settings) -> tuple[tuple[str, str, Settings], ...]:
    """The settings of each activation, as (prefix, words, settings)."""
    forms = []
    for prefix, words, activation in _E6_FORMS:
        members = base.members
        if prefix == "relu6-alpha-":
            members = members_of(base.seeds, (1.0,), second=0.0)
        elif prefix == "relu6-beta-":
            members = members_of(base.seeds, (1.0,), upper=True)
        network = _change(base.network, activation=activation)
        forms.append((prefix, words, _change(base, network=network, members=members)))
    return tuple(forms)


def _e6() -> TrainingScenario:
    def name(settings: Settings) -> str:
        return f"MobileNetV3-small, {settings.network.classes} outputs, {settings.epochs} epochs"

    published = _change(_E6, network=_change(_SMALL, classes=1000), epochs=2)
    full: list[Comparison] = []
    cpu: list[Comparison] = []
    smoke: list[Comparison] = []
    one, two = (_change(published, members=with_seeds(published, _E6_SEEDS[:count])) for count in (1, 2))
    # without hits all members are one run, so a second seed of float32 decides little
    for base, arithmetics in ((one, rows("float32", "float32-tf32")), (two, (*rows("bfloat16"), *ROUNDED))):
        for prefix, words, settings in _e6_forms(base):
            full += made(f"{name(settings)}, {words}", arithmetics, settings, f"published-{prefix}")
    for prefix, words, settings in _e6_forms(_E6):
        full += made(f"{name(settings)}, {words}", (*rows("float32", "bfloat16"), *ROUNDED), settings, prefix)
        short = _on_a_cpu(settings)
        cpu += made(f"{name(short)}, {words}", (*ROUNDED, *rows("float32")), short, prefix)
        tiny = _in_ci(settings, "inverted-residual", (3,), (0,))
        smoke += made(f"digits, tiny net, {words}", _PAIR if prefix == "relu-" else ROUNDED, tiny, prefix)
    for prefix, words, settings in _e6_forms(_on_a_cpu(published, (0,)))[:2]:
        cpu += made(f"{name(settings)}, {words}", ROUNDED, settings, f"published-{prefix}")
    return TrainingScenario(
        "E6",
        TITLES["E6"],
        "[R22], MobileNet",
        {"full": tuple(full), "cpu": tuple(cpu), "smoke": tuple(smoke)},
        ("distance", "error", BY_LAYER),
        fitted={"": ARITHMETICS["E6"]},
    )


#: The training scenarios of convolutional networks, by name.
SCENARIOS: Final[Mapping[str, TrainingScenario]] = {scenario.name: scenario for scenario in (_e5(), _e6())}
