"""E9: the published counts of hits, and the arithmetics that could give them, as data.

The notebooks of [R22] print these counts epoch by epoch. They are the only published numbers that show how the GPU rounded:
an arithmetic that stands for it has to give them. So the networks of the counts are trained here in many candidate
arithmetics, and ``relucheck.reproduction.report.hits.fit`` compares their counts with the published ones.

[R22] Martorella, Ramirez Contreras, Cerezo Garcia, Reproducibility Challenge, EPFL CS-433, 2022.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, Final

from relucheck.networks.network import Network
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.reproduction import TITLES
from relucheck.reproduction.counted import CountsScenario
from relucheck.reproduction.experiments.mlp import NOTEBOOK_SUBGRADIENTS
from relucheck.reproduction.experiments.searches.further import E8
from relucheck.reproduction.published import ARITHMETICS, TUNED_MLP
from relucheck.reproduction.scenario import Comparison
from relucheck.results.tables import counted
from relucheck.training.members import RULES, members_of
from relucheck.training.settings import Optimiser, Settings

#: Seeds that every candidate is trained with, and further seeds for the candidates that fit.
SEEDS: Final[tuple[int, ...]] = tuple(range(10))
FURTHER: Final[tuple[int, ...]] = tuple(range(10, 30))
_STEPS: Final = 469  # of an epoch of 60,000 images in mini-batches of 128

# ---------------------------------------------------------------- candidates

#: Ways to round the forward product of the first layer, K = 784: by number of parts, the reductions and places of the bias.
_SPLITS: Final = {
    4: ("", " bias joined", " wide", " wide bias joined", " in place", " in place bias joined"),
    **dict.fromkeys((3, 5), ("", " bias joined", " wide bias joined", " in place bias joined")),
    2: ("", " bias joined", " in place bias joined"),
    **dict.fromkeys((6, 8), ("", " in place bias joined")),
}
#: Multiples of so many terms at which K is cut: 4 parts of 196 terms become 208, 224 or 256 terms and a shorter last one.
_CUTS: Final = (16, 32, 64)


def _first(rounding: str) -> str:
    """The arithmetic that rounds the forward product of the first layer in a way of its own, and all others once."""
    return f"bfloat16 emulated (rounded; layer 1 forward: {rounding})"


#: Every sum rounded once or in one other way.
_EVERYWHERE: Final = tuple(f"bfloat16 emulated ({rounding})" for rounding in ("rounded", "product", "split-k 4"))
#: The first layer's forward product split.
_SPLIT: Final = tuple(_first(f"split-k {parts}{rest}") for parts, every in _SPLITS.items() for rest in every)
_CUT: Final = tuple(
    _first(f"split-k 4 by {cut}{rest}") for cut in _CUTS for rest in ("", " bias joined", " wide bias joined")
)
#: Other layers and directions.
_ELSEWHERE: Final = (
    _first("product"),
    "bfloat16 emulated (rounded; layer 2: split-k 4)",
    "bfloat16 emulated (rounded; layers 2, 3: split-k 4)",
    "bfloat16 emulated (rounded; layer 1: split-k 4)",
    "bfloat16 emulated (rounded; layer 1: split-k 4 bias joined)",
    "bfloat16 emulated (rounded; layer 1: split-k 3 wide bias joined)",
    "bfloat16 emulated (rounded; layer 1 backward: split-k 4)",
)
CANDIDATES: Final[tuple[str, ...]] = (*_EVERYWHERE, *_ELSEWHERE, *_SPLIT, *_CUT)
#: Those that are trained for the networks whose counts decide less.
FEW: Final[tuple[str, ...]] = (
    *_EVERYWHERE,
    _first("product"),
    _first("split-k 2"),
    _first("split-k 4"),
    _first("split-k 4 wide bias joined"),
    _first("split-k 3 wide bias joined"),
)
#: Those that are trained with further seeds. Ten seeds exclude the fourth to the sixth and leave the seven others. Further
#: seeds exclude three of these seven: the first, the third and ``split-k 8``.
FINALISTS: Final[tuple[str, ...]] = (
    _first("split-k 4 bias joined"),
    _first("split-k 3 wide bias joined"),
    "bfloat16 emulated (rounded; layer 1: split-k 4)",
    _first("split-k 4"),
    _first("split-k 5"),
    _first("split-k 2"),
    _first("split-k 4 by 64 wide bias joined"),
    _first("split-k 4 by 32 bias joined"),
    _first("split-k 8"),
    "bfloat16 emulated (rounded; layer 1: split-k 3 wide bias joined)",
)

# ---------------------------------------------------------------- networks

#: torch's default kernels, which the published runs used.
_ADAM: Final = Optimiser("adam", 1e-3, fused=False)
_NET_E1: Final = Network("mlp", (2000,))
_NET_E2: Final = Network("mlp", (200, 200, 200))
_NET_E9: Final = Network("mlp", (128,), activation="relu6")
_SPELLED: Final = {"relu": "ReLU", "relu6": "ReLU6"}


def _e2(seeds: Sequence[int]) -> Settings:
    return Settings(
        "mnist", _NET_E2, members_of(seeds, NOTEBOOK_SUBGRADIENTS, ("injected",)), _ADAM, epochs=10, every=_STEPS
    )


def _e1(seeds: Sequence[int]) -> Settings:
    return Settings("mnist", _NET_E1, members_of(seeds, (1.0,), ("injected",)), _ADAM, epochs=2, every=_STEPS)


def _e9(seeds: Sequence[int], lr: float, batch_size: int, epochs: int) -> Settings:
    """E8's MLP, whose counts E9 reports: shuffled, trained on 80 % of the training images (here the first 48,000).

    The published runs have 30 epochs. Of the run with tuned subgradients ten epochs are trained here; at 6 its first four
    counts are published.
    """
    steps = 48_000 // batch_size
    return Settings(
        *("mnist", _NET_E9, members_of(seeds, TUNED_MLP[:1], RULES, second=TUNED_MLP[1])),
        optimiser=Optimiser("adam", lr, fused=False),
        epochs=epochs,
        batch_size=batch_size,
        train_samples=48_000,
        shuffle=True,
        every=steps,
    )


def name_of(prefix: str, arithmetic: str) -> str:
    """The name of a comparison, for example ``e2-layer-1-forward-split-k-4``."""
    label = arithmetic.removeprefix("bfloat16 emulated (").removesuffix(")").removeprefix("rounded; ")
    return "-".join([prefix, *re.findall(r"[a-z0-9]+", label.lower())])


def _part(prefix: str, settings: Settings) -> str:
    """What a comparison trains, for example "784-2000-10, ReLU, 2 epochs"."""
    shuffled = f"lr {settings.optimiser.lr:g}, mini-batches of {settings.batch_size}"
    how = shuffled if settings.shuffle else counted(settings.epochs, "epoch")
    network = f"{settings.network.name}, {_SPELLED[settings.network.activation]}"
    return f"{network}, {how}{', further seeds' * (prefix == 'more')}"


def _made(prefix: str, settings: Settings, arithmetics: Sequence[str]) -> tuple[Comparison, ...]:
    return tuple(
        Comparison(
            name_of(prefix, name), _part(prefix, settings), dataclasses.replace(settings, arithmetic=Arithmetic.parse(name))
        )
        for name in arithmetics
    )


def _scale(
    seeds: Sequence[int], candidates: Sequence[str], few: Sequence[str], further: Sequence[int] = ()
) -> tuple[Comparison, ...]:
    """The comparisons of a scale, those that take least first."""
    return (
        *_made("default", _e9(seeds, 0.0027, 128, 30), few),
        *_made("custom", _e9(seeds, 0.0009, 32, 10), [name for name in few if name.endswith("(rounded)")]),
        *_made("e1", _e1(seeds), few),
        *_made("e2", _e2(seeds), candidates),
        *(_made("more", _e2(further), FINALISTS) if further else ()),
    )


def _of_e8(scale: str) -> tuple[Comparison, ...]:
    """Comparisons of E8 in 16 bits, whose counts E9 reports, too: the MLP's custom configuration, and the MobileNet.

    Those of the MLP's default configuration are trained here with more seeds.
    """
    return tuple(
        one
        for one in E8.comparisons(scale)
        if one.name.startswith(("mlp-custom-", "mobilenet-")) and one.settings.arithmetic.dtype.itemsize == 2
    )


def _smoke() -> tuple[Comparison, ...]:
    """Some of these comparisons on the shipped digits, with networks of a few units and three seeds."""
    small = []
    for comparison in _scale(SEEDS[:3], FINALISTS[:3], (*_EVERYWHERE[:1], FINALISTS[0])):
        settings = comparison.settings
        widths = tuple(min(32, width) for width in settings.network.widths)
        changes: dict[str, Any] = {"train_samples": 500, "test_samples": 200, "batch_size": 50, "epochs": 2, "every": 10}
        network = dataclasses.replace(settings.network, widths=widths)
        settings = dataclasses.replace(settings, data="digits", network=network, **changes)
        small.append(Comparison(comparison.name, _part(comparison.name.partition("-")[0], settings), settings))
    return tuple(small)


E9: Final = CountsScenario(
    "E9",
    TITLES["E9"],
    "[R22], counts that its notebooks print",
    {
        "full": (*_scale(SEEDS, CANDIDATES, ("bfloat16", *FEW), FURTHER), *_of_e8("full")),
        # a processor without 16-bit instructions takes long for its own bfloat16, which rounds once
        "cpu": (
            *_scale(SEEDS[:3], (_EVERYWHERE[0], ARITHMETICS["E2"]), (*_EVERYWHERE[:2], ARITHMETICS["E2"])),
            *_of_e8("cpu"),
        ),
        "smoke": (*_smoke(), *_of_e8("smoke")),
    },
    (),
    overview=False,
    shares=("E8",),
    fitted={
        "mlp-": ARITHMETICS["E8"],
        "mobilenet-": ARITHMETICS["E8"],
        "default-": ARITHMETICS["E9"],
        "custom-": ARITHMETICS["E9"],
        "e1-": ARITHMETICS["E1"],
        "e2-": ARITHMETICS["E2"],
        "more-": ARITHMETICS["E2"],
    },
)
