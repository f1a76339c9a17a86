"""Property 12: on real digits, the share of fresh networks in the bifurcation zone grows as the dtype gets coarser."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import pytest
import torch
from hypothesis import settings
from scipy import stats
from torch import Tensor, nn

from relucheck import data
from relucheck.bifurcation.compare import compare
from relucheck.networks import Network
from relucheck.results.tally import Tally

DRAWS = 40 * max(1, settings().max_examples // 25)  # the thorough profile tries 20 times as many
BATCH = 250
DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SIGNIFICANCE = 0.01

NETWORK = Network("mlp", (128, 128, 128))


@functools.cache
def digits(dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """The shipped training digits in mini-batches, as ink (1) on paper (0)."""
    train = data.load_digits("train")
    ink = (train.images > 127).flatten(1).to(dtype)
    return list(zip(ink.split(BATCH), train.labels.split(BATCH), strict=True))


@dataclasses.dataclass
class Zone:
    """One network up to the mini-batch that decides, or over the whole data set, as a tally counts it."""

    outcome: str = "agree"
    hit_count: int = 0
    activation_count: int = 0


def in_zone(draw: int, dtype: torch.dtype, tally: Tally) -> bool:
    """Whether backprop_0 and backprop_1 differ on some mini-batch for the fresh network number ``draw``.

    No hit means agree (property 3), so only a mini-batch with a hit needs the comparison.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw)
        model = NETWORK.build().to(dtype)
    zone, hits = Zone(), 0

    def count(module: nn.Module, args: tuple[Tensor]) -> None:
        nonlocal hits
        hits += int((args[0] == 0).sum())
        zone.activation_count += args[0].numel()

    text = ""
    for images, labels in digits(dtype):
        hits = 0
        handles = [module.register_forward_pre_hook(count) for module in model.modules() if isinstance(module, nn.ReLU)]
        with torch.no_grad():
            model(images)
        for handle in handles:
            handle.remove()
        zone.hit_count += hits
        if hits:
            comparison = compare(model, images, labels)
            zone.outcome = comparison.outcome
            text = f"# torch.manual_seed({draw}); {NETWORK!r}.build() on the shipped digits as ink\n# "
            text += str(comparison).replace("\n", "\n# ")
            if zone.outcome != "agree":
                break
    tally.observe(str(dtype)[6:], zone, size=zone.activation_count, text=text, population="fresh networks on real digits")
    return zone.outcome == "bifurcate"


def is_ordered(share: Callable[[str], int], draws: int = DRAWS) -> None:
    """float64 <= float32 <= each 16-bit dtype: float64's share is 0, and each 16-bit share exceeds float32's significantly.

    By Fisher's exact test, one-sided; the intervals in the message are Clopper and Pearson's.
    """
    found = {name: share(name) for name in DTYPES}
    shown = {
        name: f"{count}/{draws} (95 %: {interval.low:.3f} to {interval.high:.3f})"
        for name, count in found.items()
        for interval in [stats.binomtest(count, draws).proportion_ci(0.95, method="exact")]
    }
    assert found["float64"] == 0, shown
    for narrow in ("float16", "bfloat16"):
        table = [[found[narrow], draws - found[narrow]], [found["float32"], draws - found["float32"]]]
        p = stats.fisher_exact(table, alternative="greater").pvalue
        assert p < SIGNIFICANCE, f"{narrow} is not above float32 (p = {p:.3g}): {shown}"


@pytest.mark.slow
def test_12_zone_is_ordered_by_dtype(relucheck_tally: Tally) -> None:
    def share(name: str) -> int:
        relucheck_tally.examples["zone_is_ordered_by_dtype"] = (
            relucheck_tally.examples.get("zone_is_ordered_by_dtype", 0) + DRAWS
        )
        return sum(in_zone(draw, DTYPES[name], relucheck_tally) for draw in range(DRAWS))

    is_ordered(share)


@pytest.mark.parametrize("really", ["bfloat16", "float32"])
def test_a_dtype_that_is_not_what_it_says_is_found(really: str, relucheck_tally: Tally) -> None:
    """Seeded fault: every model is cast to one dtype, whichever was asked for, so that all shares are one number."""
    draws = 20
    everywhere = sum(in_zone(draw, DTYPES[really], Tally()) for draw in range(draws))
    with pytest.raises(AssertionError, match="bfloat16"):
        is_ordered(lambda name: everywhere, draws)
    relucheck_tally.killed(f"computes in {really}", "zone_is_ordered_by_dtype")
