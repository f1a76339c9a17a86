"""E4 in float32: gaps to [B21] with their intervals, and TF32 on the same networks."""

from __future__ import annotations

import pytest

from relucheck.reproduction.report.volume import precision
from relucheck.reproduction.report.volume.summary import Line, judge
from relucheck.results.statistics import share_difference
from tests.reproduction.report.volume.made_up import line, report, theirs

DEEP, MIDDLE = theirs("hidden_layers", 32, 6), theirs("hidden_layers", 32, 3)  # 697 and 463 of 1,000
TF32 = "float32 emulated (tf32)"


def said(*lines: Line) -> str:
    one = report(*lines)
    return precision.sentence(precision.gaps(judge(one)), precision.pairs(one.estimates))


def test_gaps_have_newcombes_intervals() -> None:
    found = precision.gaps(judge(report(line(DEEP, 50, "float32"), line(MIDDLE, 44, "float32"), line(DEEP, 70, TF32))))
    assert [one.published for one in found["float32"]] == [DEEP, MIDDLE]
    assert found["float32"][0].bounds == share_difference(50, 100, 697, 1000)
    assert found["float32"][0].difference == pytest.approx(-0.197)
    assert len(found[TF32]) == 1
    assert "-0.197 [" in precision.gap_table(found).rows[0][6]


def test_the_sentence_says_lower_higher_and_not_told() -> None:
    low = said(line(DEEP, 40, "float32"), line(MIDDLE, 45, "float32"))
    assert low.startswith("In float32 our shares are lower than [B21]'s in 1 of 2 tests, by 0.30 at 6 x 256")
    assert low.endswith("TF32 was not run on the same networks.")
    assert "our shares are higher than [B21]'s in 1 of 1 tests, by 0.30" in said(line(DEEP, 100, "float32"))
    both = said(line(DEEP, 40, "float32"), line(MIDDLE, 80, "float32"))
    assert "lower or higher than [B21]'s in 2 of 2 tests" in both
    assert "In float32 none of 1 tests tells our shares from [B21]'s; the largest gap is +0.00" in said(
        line(DEEP, 70, "float32")
    )
    assert said(line(theirs("hidden_layers", 32, 3, "R22"), 70, "float32")) == "float32 was not compared with [B21]."


@pytest.mark.parametrize(
    ("native", "tf32", "words"),
    [
        (range(40), range(60), "TF32 raises the share on the same networks in 1 of 1 cells, by 0.20 at 6 x 256."),
        (range(60), range(40), "TF32 lowers the share on the same networks in 1 of 1 cells, by 0.20 at 6 x 256."),
        (range(40), range(2, 43), "TF32 is not shown to change the share on the same networks, in any of 1 cells."),
    ],
)
def test_tf32_is_judged_on_the_same_networks(native: range, tf32: range, words: str) -> None:
    assert said(line(DEEP, native, "float32"), line(DEEP, tf32, TF32)).endswith(words)


def test_pairs_are_the_seeds_that_both_have_and_the_same_cell() -> None:
    """With TF32 of a device as of an emulation; and a cell of another mini-batch is no partner."""
    native = line(DEEP, range(10, 30), "float32", draws=60)
    for name in precision.TF32:
        (pair,) = precision.pairs(report(native, line(DEEP, range(20, 100), name)).estimates)
        assert (pair.test.pairs, pair.test.first, pair.test.second) == (60, 10, 30)
        row = precision.pair_table([pair], {native.estimate.cell.name: 0.25}).rows[0]
        assert row[1] == ("emulated" if "emulated" in name else "the device's own")
        assert row[-3:] == ("0.2500", f"{pair.tf32.hits_per_million:.4f}", "-")
    assert not precision.pairs(report(native, line(theirs("batch_size", 32, 16), 9, TF32)).estimates)


def test_hits_are_compared_with_the_hit_model() -> None:
    def rates(more: int, expected: float) -> list[str]:
        lines = line(DEEP, 50, "float32", hits=100), line(DEEP, 50, TF32, hits=more)
        predicted = dict(zip((one.estimate.cell.name for one in lines), (100.0, expected), strict=True))
        return precision.rates_sentence(precision.rates(precision.pairs(report(*lines).estimates), predicted))

    (agrees,), (differs,) = rates(110, 100.0), rates(300, 100.0)
    assert "TF32 has 1.10 times the hits per activation of native float32 (95 %: 0.8" in agrees
    assert "expects 1.00 times, which agrees. It expects 100 hits in native float32 and 100 in TF32." in agrees
    assert "TF32 has 3.00 times" in differs
    assert "expects 1.00 times, which does not agree." in differs
    assert precision.rates_sentence(precision.rates((), {})) == []
