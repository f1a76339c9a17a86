"""E7: draws of the published search space in pairs, and a response surface, as data.

[R22] compares a search with tuned subgradients with a search without. Their trials differ in learning rate and batch size,
too, and in the MobileNet alpha and beta never reached the model. Here every draw (batch size, learning rate, alpha, beta,
seed) of the same space trains (0, 0), the tuned subgradients under both rules, and two nudges, which differ from (0, 0) by
one bit. The surface has alpha and beta on a grid, at one learning rate and batch size.

Scale *full* has the whole of MNIST and the published numbers of epochs. Scale *cpu* has 12,000 images and 5 epochs for the
MLP, and 1,600 images and 3 epochs for the MobileNet. Scale *smoke* is for CI: the shipped digits and tiny networks.

[R22] Martorella, Ramirez Contreras, Cerezo Garcia, Reproducibility Challenge, EPFL CS-433, 2022.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

from relucheck.networks.network import Network
from relucheck.reproduction import TITLES
from relucheck.reproduction.experiments.rows import ROUNDED, Row, made, rows
from relucheck.reproduction.experiments.searches.further import HELD_OUT, MOBILENET
from relucheck.reproduction.experiments.searches.trials import MLP, SEARCHES
from relucheck.reproduction.published import ARITHMETICS
from relucheck.reproduction.report.pairs.page import draw, sections
from relucheck.reproduction.scenario import Comparison
from relucheck.reproduction.searched import SearchScenario
from relucheck.search.space import Draw, Space
from relucheck.training.members import RULES, Member, members_of
from relucheck.training.settings import Optimiser, Settings

_change: Final = dataclasses.replace
#: Of the draws of the pairs; the searches draw with seed 0.
SEED: Final = 7
#: Nudges of each pair, and of each seed of the surface.
_NUDGES: Final = 2
_MORE_NUDGES: Final = 5
#: Values of alpha and of beta on the surface; (0, 0) is the reference.
GRID: Final[tuple[float, ...]] = (0.0, 1 / 3, 2 / 3, 1.0)
_PAIR: Final[tuple[Row, ...]] = (*rows("float32"), *ROUNDED)


def _base(network: Network, epochs: int, train_samples: int | None, data: str = "mnist") -> Settings:
    return Settings(
        data,
        network,
        members_of((0,), (1.0,)),
        optimiser=Optimiser("adam", 1e-3, fused=False),
        epochs=epochs,
        train_samples=train_samples,
        shuffle=True,
        validation=HELD_OUT,
    )


def _named(settings: Settings) -> str:
    """The network of a part, for example "784-2000-10, ReLU6, 5 epochs"."""
    kind = settings.network.kind
    name = "MobileNetV3-small" if kind == "mobilenet-v3-small" else settings.network.name
    return f"{name}, ReLU6, {settings.epochs} epochs"


def _once_an_epoch(settings: Settings) -> Settings:
    return _change(settings, every=settings.steps_of(settings.trained(settings.train_samples or 60_000)))


def _of_draw(base: Settings, one: Draw) -> Settings:
    """What one draw trains: its learning rate and batch size, (0, 0), its subgradients under both rules, and nudges."""
    members = members_of((one.seed,), (one.alpha,), RULES, second=one.beta, nudges=_NUDGES)
    optimiser = _change(base.optimiser, lr=one.lr)
    return _once_an_epoch(_change(base, members=members, optimiser=optimiser, batch_size=one.batch_size))


def _pairs(name: str, base: Settings, count: int, arithmetics: Sequence[Row]) -> tuple[Comparison, ...]:
    """The pairs of a network: each draw in each arithmetic."""
    return tuple(
        _change(comparison, pairs=count)
        for one in Space().draws(count, SEED)
        for comparison in made(
            f"{_named(base)}, pairs", arithmetics, _of_draw(base, one), f"{name}-pair-{one.number + 1:02}-"
        )
    )


def _surface(name: str, base: Settings, seeds: Sequence[int], arithmetics: Sequence[Row]) -> tuple[Comparison, ...]:
    """The response surface: alpha and beta on a grid, under both rules, at one learning rate and batch size."""
    members: list[Member] = []
    for seed in seeds:
        members += members_of((seed,), (), nudges=_MORE_NUDGES)
        members += [
            Member(seed, alpha, rule, second=beta) for rule in RULES for alpha in GRID for beta in GRID if alpha or beta
        ]
    settings = _once_an_epoch(_change(base, members=tuple(members)))
    return made(f"{_named(base)}, response surface", arithmetics, settings, f"{name}-surface-")


def _e7() -> SearchScenario:
    device = (*_PAIR, *rows("bfloat16"))
    whole, whole_convolved = _base(MLP, 10, None), _base(MOBILENET, 6, None)
    full = (
        *_pairs("mlp", whole, 40, device),
        *_pairs("mobilenet", whole_convolved, 20, device),
        *_surface("mlp", whole, (0, 1, 2), (*ROUNDED, *rows("bfloat16"))),
    )
    reduced = _base(MLP, 5, 12_000)
    cpu = (
        *_pairs("mlp", reduced, 12, _PAIR),
        *_surface("mlp", reduced, (0, 1), ROUNDED),
        *_pairs("mobilenet", _base(MOBILENET, 3, 1600), 6, ROUNDED),
    )
    tiny = _base(_change(MLP, widths=(24,)), 2, 500, "digits")
    convolved = _base(_change(MOBILENET, kind="inverted-residual", widths=(3,), classes=10), 2, 160, "digits")
    coarse = rows("bfloat16-product")  # which gives hits at once
    smoke = (
        *_pairs("mlp", tiny, 3, (*rows("float32"), *coarse)),
        *_surface("mlp", tiny, (0, 1), coarse),
        *_pairs("mobilenet", convolved, 1, ROUNDED),
    )
    return SearchScenario(
        "E7",
        TITLES["E7"],
        "[R22] Fig. 7, searches",
        {"full": full, "cpu": cpu, "smoke": smoke},
        (),
        tables=False,
        overview=False,
        fitted={"": ARITHMETICS["E8"]},
        sections=sections,
        draws=draw,
        searches=SEARCHES,
    )


E7: Final = _e7()
