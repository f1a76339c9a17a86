"""What a comparison costs on a CPU: measured steps, to say before a run how long it takes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Final

import torch

from relucheck.reproduction.experiments.mlp import SCENARIOS
from relucheck.reproduction.scenario import Comparison
from relucheck.training.settings import Settings

#: ms for a step of all members of one seed, by (hidden widths, arithmetic): forking executor, one thread of an EPYC with
#: AVX-512 and bfloat16, torch 2.14.1, batch 128, torch's default Adam. E2: 10 members, once hits have parted them; E1: 4.
_E1: Final = (2000,)
_E2: Final = (200, 200, 200)
_B21: Final = (2000, 128)
MEASURED_MS: Final[Mapping[tuple[tuple[int, ...], str], float]] = {
    (_E2, "float32"): 30,
    (_E2, "bfloat16"): 34,
    (_E2, "float16"): 54,
    (_E2, "bfloat16 emulated (rounded)"): 46,  # with AVX2
    (_E2, "bfloat16 emulated (product)"): 52,
    (_E2, "float16 emulated (product)"): 53,
    (_E2, "bfloat16 emulated (split-k 4)"): 74,
    (_E1, "float64"): 75,
    (_E1, "float32"): 50,
    (_E1, "bfloat16"): 28,
    (_E1, "float16"): 410,
    (_E1, "mixed bfloat16"): 38,
    (_E1, "mixed float16"): 460,
    (_E1, "bfloat16 emulated (product)"): 110,
    (_E1, "bfloat16 emulated (split-k 4)"): 120,
    (_B21, "float64"): 73,
    (_B21, "float32"): 46,
}
#: The same where torch does not hand bfloat16 products to oneDNN (an EPYC with AVX2).
WITHOUT_BFLOAT16_MS: Final[Mapping[tuple[tuple[int, ...], str], float]] = {
    (_E2, "bfloat16"): 240,
    (_E1, "bfloat16"): 300,
    (_E1, "mixed bfloat16"): 290,
}
_SAMPLES: Final = 60_000


@functools.cache
def has_bfloat16() -> bool:
    """Whether torch hands bfloat16 products to oneDNN on this processor; else it takes loops, many times as long."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a build without oneDNN
        return False


def expected_seconds(settings: Settings) -> float | None:
    """Seconds for a run on one thread of this CPU, or None for what was not measured; good to a factor of two."""
    key = settings.network.widths, settings.arithmetic.name
    found = MEASURED_MS.get(key) if has_bfloat16() else WITHOUT_BFLOAT16_MS.get(key, MEASURED_MS.get(key))
    if found is None or settings.network.kind != "mlp" or settings.data not in ("mnist", "fashionmnist"):
        return None
    if settings.arithmetic.name == "float16" and settings.optimiser.name == "adam" and settings.optimiser.eps < 6e-8:
        return float(len(settings.seeds))  # diverges at the first steps
    steps = -(-(settings.train_samples or _SAMPLES) // settings.batch_size) * settings.epochs
    return found / 1000 * steps * len(settings.seeds)


def in_words(seconds: float | None) -> str:
    """ "about 35 min", "about 1.4 h"; "not measured" for None."""
    if seconds is None:
        return "not measured"
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def total(comparisons: tuple[Comparison, ...]) -> float | None:
    """The sum of what was measured, or None where nothing was."""
    known = [seconds for comparison in comparisons if (seconds := expected_seconds(comparison.settings)) is not None]
    return sum(known) if known else None


def lines() -> list[str]:
    """For the help: the comparisons of scale cpu in their order, with seeds, epochs and expected time."""
    told = []
    for scenario in SCENARIOS.values():
        comparisons = scenario.comparisons("cpu")
        if scenario.shares:
            told.append(f"  {scenario.name}: none where {' and '.join(scenario.shares)} ran before; else as there")
            continue
        told.append(f"  {scenario.name}: {in_words(total(comparisons))} in all")
        for comparison in comparisons:
            settings = comparison.settings
            seeds, epochs = len(settings.seeds), settings.epochs
            told.append(
                f"    {comparison.name:<29}{seeds:>3} seed{'s' if seeds > 1 else ' '} {epochs:>3} "
                f"epoch{'s' if epochs > 1 else ' '}  {in_words(expected_seconds(settings))}"
            )
    return told
