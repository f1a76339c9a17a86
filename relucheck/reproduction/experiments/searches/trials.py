"""The random searches of E7 as data, with tuned and with default subgradients.

[R22] runs four searches with ASHA (grace period 3, reduction 2) in bfloat16: MobileNetV3-small (10 trials with tuned
subgradients and 10 with (0, 0), 6 epochs) and the MLP 784-2000-10 (12 and 12 trials, 10 epochs). A tuned search and its
default one draw the same batch sizes, learning rates and seeds here, and each rule has a search of its own.

Scale *cpu* has the searches of the MLP, on 12,000 images for 5 epochs. Scale *smoke* has one of three short trials.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from relucheck.networks.network import Network
from relucheck.reproduction.experiments.rows import ROUNDED, Row, rows
from relucheck.reproduction.experiments.searches.further import HELD_OUT, MOBILENET
from relucheck.reproduction.searched import Searching
from relucheck.search import Search, Space
from relucheck.training.members import RULES

#: The network of the published MLP search.
MLP: Final = Network("mlp", (2000,), activation="relu6")
_TINY: Final = Network("mlp", (16,), activation="relu6")
#: Of the draws; those of the pairs have another.
SEED: Final = 0
_PAIR: Final[tuple[Row, ...]] = (*rows("float32"), *ROUNDED)


def _searches(
    name: str, model: str, network: Network, arithmetics: Sequence[Row], trials: int, epochs: int, samples: int
) -> tuple[Searching, ...]:
    """A tuned search for each rule, and the default one, in each arithmetic."""

    def search(space: Space, rule: str, row: Row) -> Search:
        return Search(
            network=network,
            data="mnist",
            space=space,
            trials=trials,
            epochs=epochs,
            arithmetic=row[1],
            rule=rule,
            seed=SEED,
            train_samples=samples,
            validation=HELD_OUT,
        )

    tuned, default = Space(), Space().default
    found: list[Searching] = []
    for row in arithmetics:
        found += [
            Searching(f"search-{name}-tuned-{rule}-{row[0]}", model, f"tuned, {rule}", search(tuned, rule, row))
            for rule in RULES
        ]
        found.append(Searching(f"search-{name}-default-{row[0]}", model, "default", search(default, "chain", row)))
    return tuple(found)


def _tiny() -> tuple[Searching, ...]:
    """A search of three trials on the shipped digits, and its default one."""
    return tuple(
        Searching(
            f"search-mlp-{name}-float32",
            "",
            said,
            Search(network=_TINY, data="digits", space=space, trials=3, epochs=2, rule=rule, train_samples=250, grace=1),
        )
        for name, said, space, rule in (
            ("tuned-injected", "tuned, injected", Space(), "injected"),
            ("default", "default", Space().default, "chain"),
        )
    )


_DEVICE: Final[tuple[Row, ...]] = (*_PAIR, *rows("bfloat16"))
#: The searches of each scale.
SEARCHES: Final[Mapping[str, tuple[Searching, ...]]] = {
    "full": (
        *_searches("mlp", "mlp_2000", MLP, _DEVICE, 12, 10, 60_000),
        *_searches("mobilenet", "mobilenet_v3_small", MOBILENET, _DEVICE, 10, 6, 60_000),
    ),
    "cpu": _searches("mlp", "mlp_2000", MLP, _PAIR, 12, 5, 12_000),
    "smoke": _tiny(),
}
