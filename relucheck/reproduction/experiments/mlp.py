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
from collections.abc import Mapping, Sequence
from typing import Any, Final

from relucheck.networks.network import Network
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.reproduction import TITLES
from relucheck.reproduction.published import ARITHMETICS, ERRORS, SUBGRADIENTS
from relucheck.reproduction.scenario import Comparison
from relucheck.reproduction.trained import TrainingScenario
from relucheck.training.settings import Optimiser, Settings, members_of

SEEDS: Final[tuple[int, ...]] = tuple(range(10))


# ---------------------------------------------------------------- arithmetics

#: Adam for float16 parameters, where 1e-8 rounds to 0 and a gradient of 0 gives 0 / 0.
_ADAM_FLOAT16: Final = Optimiser("adam", 1e-3, eps=1e-4, fused=False)
#: torch's default kernels, which the published runs used. They round after every operation; the fused ones round once.
_ADAM: Final = Optimiser("adam", 1e-3, fused=False)

#: (name in files, arithmetic, optimiser): what PyTorch computes on the device at hand, by its defaults.
_Row = tuple[str, Arithmetic, Optimiser]
_NATIVE: Final[tuple[_Row, ...]] = (
    ("float64", Arithmetic.parse("float64"), _ADAM),
    ("float32", Arithmetic.parse("float32"), _ADAM),
    ("bfloat16", Arithmetic.parse("bfloat16"), _ADAM),
    ("float16", Arithmetic.parse("float16"), _ADAM),
    ("float16-eps1e-4", Arithmetic.parse("float16"), _ADAM_FLOAT16),
    ("mixed-bfloat16", Arithmetic.parse("mixed bfloat16"), _ADAM),
    ("mixed-float16", Arithmetic.parse("mixed float16"), _ADAM),
)
#: The other side of the switches; no switch changes a CPU's products, so these are for CUDA. float32 is strict by default.
_SWITCHED: Final[tuple[_Row, ...]] = (
    ("float32-tf32", Arithmetic.parse("float32 TF32"), _ADAM),
    ("bfloat16-strict", Arithmetic.parse("bfloat16 strict"), _ADAM),
    ("float16-eps1e-4-strict", Arithmetic.parse("float16 strict"), _ADAM_FLOAT16),
    ("mixed-bfloat16-strict", Arithmetic.parse("mixed bfloat16 strict"), _ADAM),
    ("mixed-float16-strict", Arithmetic.parse("mixed float16 strict"), _ADAM),
)
_EMULATED: Final[tuple[_Row, ...]] = (
    ("bfloat16-product", Arithmetic.parse("bfloat16 emulated (product)"), _ADAM),
    ("bfloat16-split-k-4", Arithmetic.parse("bfloat16 emulated (split-k 4)"), _ADAM),
)
#: The other two states of the switches for 16-bit products, of which the default is the row "bfloat16" above.
_REDUCED: Final[tuple[_Row, ...]] = (
    ("bfloat16-full-precision-reduction", Arithmetic.parse("bfloat16 full-precision reduction"), _ADAM),
)
#: The arithmetic that gives the counts of hits that the published notebook of E2 prints (scenario E9).
_FITTED: Final[tuple[_Row, ...]] = (("bfloat16-published", Arithmetic.parse(ARITHMETICS["E2"]), _ADAM),)
#: One that comes near to these counts with another way to add the parts.
_NEAR: Final[tuple[_Row, ...]] = (
    (
        "bfloat16-layer-1-split-k-4",
        Arithmetic.parse("bfloat16 emulated (rounded; layer 1 forward: split-k 4 bias joined)"),
        _ADAM,
    ),
)
#: The same, rounded once, as a CPU with bfloat16 instructions computes. Hits are rare then, so what differs between this
#: one and those above is an effect of coarse rounding.
_ROUNDED: Final[tuple[_Row, ...]] = (("bfloat16-rounded", Arithmetic.parse("bfloat16 emulated (rounded)"), _ADAM),)
_EMULATED_FLOAT16: Final[tuple[_Row, ...]] = (
    ("float16-product", Arithmetic.parse("float16 emulated (product)"), _ADAM_FLOAT16),
)


#: The places of a split into 4 parts: which layers, and forward or backward.
_ABLATION: Final[tuple[_Row, ...]] = tuple(
    (name, Arithmetic.parse(f"bfloat16 emulated (rounded; {where}: split-k 4)"), _ADAM)
    for name, where in (
        ("layer-1", "layer 1"),
        ("layer-2", "layer 2"),
        ("layer-3", "layer 3"),
        ("layers-2-3", "layers 2, 3"),
        ("forward", "forward"),
        ("backward", "backward"),
        ("layer-1-forward", "layer 1 forward"),
        ("layers-2-3-forward", "layers 2, 3 forward"),
    )
)


def _rows(*names: str) -> tuple[_Row, ...]:
    emulated = (*_FITTED, *_NEAR, *_EMULATED, *_ROUNDED, *_EMULATED_FLOAT16)
    every = {row[0]: row for row in (*_NATIVE, *_SWITCHED, *_REDUCED, *emulated)}
    return tuple(every[name] for name in names)


def _made(part: str, rows: Sequence[_Row], base: Settings, prefix: str = "", suffix: str = "") -> tuple[Comparison, ...]:
    """Build one comparison per arithmetic; Adam takes the arithmetic's eps."""
    return tuple(
        Comparison(
            f"{prefix}{name}{suffix}",
            part,
            dataclasses.replace(
                base, arithmetic=arithmetic, optimiser=optimiser if base.optimiser.name == "adam" else base.optimiser
            ),
        )
        for name, arithmetic, optimiser in rows
    )


def _small(settings: Settings, widths: tuple[int, ...]) -> Settings:
    """Shrink a comparison to the shipped digits, so that it takes seconds."""
    return dataclasses.replace(
        settings,
        data="digits",
        network=dataclasses.replace(settings.network, widths=widths),
        train_samples=500,
        test_samples=200,
        batch_size=50,
        epochs=min(2, settings.epochs),
        members=_with_seeds(settings, (0, 1)),
        every=1,
    )


def _with_seeds(settings: Settings, seeds: Sequence[int]) -> tuple[Any, ...]:
    first = settings.seeds[0]
    return tuple(
        dataclasses.replace(member, seed=seed) for seed in seeds for member in settings.members if member.seed == first
    )


# ---------------------------------------------------------------- E1

_E1_SEED: Final = 42069
_E1: Final = Settings("mnist", Network("mlp", (2000,)), members_of((_E1_SEED,), (1.0,)), optimiser=_ADAM, epochs=2)
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
        *_made(_part(_E1, "R22"), (*_NATIVE, *_EMULATED), _E1),
        *_made(_part(_E1_B21, "B21"), _rows("float32", "float64"), _E1_B21, "b21-"),
    )
    many = dataclasses.replace(_E1, members=_with_seeds(_E1, (_E1_SEED, *SEEDS[1:])))
    many_b21 = dataclasses.replace(_E1_B21, members=_with_seeds(_E1_B21, (123, *SEEDS[1:])))
    full = (
        *_made(_part(many, "R22"), (*_NATIVE, *_SWITCHED, *_EMULATED, *_REDUCED, *_ROUNDED), many),
        *_made(_part(many_b21, "B21"), _rows("float32", "float64"), many_b21, "b21-"),
        *_made(_part(many_b21, "B21"), _rows("float32-tf32"), many_b21, "b21-"),
    )
    small, small_b21 = _small(_E1, (64,)), _small(_E1_B21, (64, 16))
    smoke = (
        *_made(_part(small, "R22"), _rows("float32", "bfloat16", "bfloat16-product", "float16"), small),
        *_made(_part(small_b21, "B21"), _rows("float32", "float64"), small_b21, "b21-"),
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

_E2: Final = Settings(
    *("mnist", Network("mlp", (200, 200, 200)), members_of(SEEDS, SUBGRADIENTS)), optimiser=_ADAM, epochs=50, every=67
)
_PUBLISHED: Final = "MNIST, Adam, ReLU [R22]"
#: Subgradients of an earlier version of [R22]'s notebook, whose counts of hits are known.
NOTEBOOK_SUBGRADIENTS: Final[tuple[float, ...]] = (1.0, 2.0, 4.0, 8.0)


def _fewer(settings: Settings) -> str:
    """The title of the table of runs that are shorter than the published one."""
    return f"MNIST, Adam, ReLU, {settings.epochs} epochs"


def _variations(base: Settings) -> tuple[tuple[str, str, Settings], ...]:
    """The variations that [R22] names, as (prefix, part, settings); each changes one thing."""
    change = dataclasses.replace

    def network(**changes: Any) -> Network:
        return change(base.network, **changes)

    # ReLU6 as [R22] has it: the subgradient at 0 varies, the one at 6 stays 0
    relu6 = members_of(base.seeds, SUBGRADIENTS, second=0.0)
    return (
        ("fashionmnist-", "FashionMNIST, Adam, ReLU", change(base, data="fashionmnist")),
        ("sgd-", "MNIST, SGD, ReLU", change(base, optimiser=Optimiser("sgd", 0.1, fused=False))),
        ("batchnorm-", "MNIST, Adam, ReLU, batch norm", change(base, network=network(batch_norm=True))),
        ("relu6-", "MNIST, Adam, ReLU6", change(base, network=network(activation="relu6"), members=relu6)),
        ("leaky-", "MNIST, Adam, LeakyReLU", change(base, network=network(activation="leaky_relu"))),
    )


def _e2() -> TrainingScenario:
    pair = _rows("float32", "bfloat16")
    switched = _rows("float32-tf32", "bfloat16-strict")
    few = dataclasses.replace(_E2, members=_with_seeds(_E2, SEEDS[:3]))
    one = dataclasses.replace(_E2, members=_with_seeds(_E2, SEEDS[:1]))
    short = dataclasses.replace(_E2, epochs=3)
    middle = dataclasses.replace(_E2, epochs=15)
    five = dataclasses.replace(short, members=_with_seeds(_E2, SEEDS[:5]))
    brief = (
        *_made(_fewer(short), (*_EMULATED, *_EMULATED_FLOAT16), short, suffix="-3-epochs"),
        *_made(_fewer(short), _FITTED, five, suffix="-3-epochs"),
    )
    longer = (*_ROUNDED, *_rows("bfloat16-split-k-4"))
    notebook = dataclasses.replace(_E2, epochs=10, members=members_of(SEEDS, NOTEBOOK_SUBGRADIENTS))
    part = f"{_fewer(notebook)}, s = 1, 2, 4, 8"
    # the comparisons that a machine without a GPU answers best come first, the most expensive last
    cpu = (
        *_made(_PUBLISHED, _rows("float32", "bfloat16", "float16", "bfloat16-rounded"), few),
        *brief,
        *_made(
            _fewer(middle), longer, dataclasses.replace(middle, members=_with_seeds(_E2, SEEDS[:5])), suffix="-15-epochs"
        ),
        # for processors without bfloat16 instructions, where 50 epochs take hours
        *_made(_fewer(middle), _rows("bfloat16"), dataclasses.replace(few, epochs=15), suffix="-15-epochs"),
        *_made(
            *(part, _FITTED, dataclasses.replace(notebook, members=_with_seeds(notebook, SEEDS[:5]))), suffix="-10-epochs"
        ),
        *_made(_PUBLISHED, _FITTED, few),
        *_made(_PUBLISHED, _rows("bfloat16-product"), one),
        *_made(_PUBLISHED, _rows("bfloat16-split-k-4"), few),
    )
    full = [*_made(_PUBLISHED, (*_NATIVE, *_SWITCHED, *_EMULATED, *_ROUNDED), _E2), *brief]
    full += _made(_PUBLISHED, (*_FITTED, *_NEAR), dataclasses.replace(_E2, members=_with_seeds(_E2, SEEDS[:5])))
    full += _made(_fewer(middle), longer, middle, suffix="-15-epochs")
    # a GPU computes 16-bit members one by one, for each state of the switches
    arms = (*_rows("bfloat16", "bfloat16-strict"), *_REDUCED)
    full += _made(part, arms, dataclasses.replace(notebook, members=_with_seeds(notebook, SEEDS[:2])), suffix="-10-epochs")
    full += _made(part, (*_rows("float32"), *_ROUNDED, *_FITTED, *_NEAR), notebook, suffix="-10-epochs")
    full += _made("Ablation: which sums are split in 4 parts, 3 epochs", _ABLATION, short, "split-k-4-", "-3-epochs")
    small = _small(_E2, (64, 64, 64))
    smoke = [*_made("digits, Adam, ReLU", (*pair, *_rows("float16", "bfloat16-product")), small)]
    for prefix, part, settings in _variations(_E2):
        full += _made(part, (*pair, *switched, *_rows("bfloat16-product")), settings, prefix)
    quick = dataclasses.replace(small, epochs=1, members=_with_seeds(small, (0,)))
    for prefix, _, settings in _variations(quick):
        if settings.data == "digits":
            smoke += _made("digits, variations", _rows("bfloat16-product"), settings, prefix)
    return TrainingScenario(
        "E2",
        TITLES["E2"],
        "[R22] Figs. 2 and 3",
        {"full": tuple(full), "cpu": cpu, "smoke": tuple(smoke)},
        ("distance", "loss", "error", "boxes"),
        published=ERRORS,
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
