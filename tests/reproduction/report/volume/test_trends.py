"""E4's trends: what the shares of a sweep make the report say, and what the corrections count."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from relucheck.reproduction.report.volume import trends
from relucheck.reproduction.report.volume.summary import Line
from relucheck.results.holm import holm
from tests.reproduction.report.volume.made_up import line, report, theirs

SIZES = (10_000, 20_000, 40_000, 50_000, 60_000)


def sweep(counts: Sequence[int], arithmetic: str = "bfloat16") -> list[Line]:
    return [line(theirs("sample_size", 16, x, "R22"), k, arithmetic) for x, k in zip(SIZES, counts, strict=True)]


@pytest.mark.parametrize(
    ("counts", "verdict", "words"),
    [
        ([5, 20, 30, 35, 40], "grows", "Of 1 row, the share grows in 1 (ours of [R22] in bfloat16)."),
        ([40, 35, 30, 20, 5], "falls", "Of 1 row, the share falls in 1 (ours of [R22] in bfloat16)."),
        ([40, 5, 40, 5, 40], "differs, no trend", "the share differs without a trend in 1 (ours"),
        ([20, 22, 19, 21, 20], "no change shown", "the share is not shown to change in 1 (ours"),
    ],
)
def test_the_verdict_follows_the_shares(counts: list[int], verdict: str, words: str) -> None:
    (found,) = trends.changes(report(*sweep(counts)))["sample_size"]
    assert found.text == verdict
    assert words in trends.sentence([found])
    assert trends.table("sample_size", [found]).rows[0][-1] == verdict


def test_published_shares_have_a_row_of_their_own() -> None:
    """[B21]'s float32 cells by batch size differ among themselves, whatever ours do."""
    found = trends.changes(report(*(line(theirs("batch_size", 32, x), 40, "float32") for x in (16, 64, 256, 512, 1024))))
    published, ours = found["batch_size"]
    assert (published.of.ours, ours.of.ours) == (False, True)
    assert published.same == pytest.approx(4.6e-10, rel=0.02)
    assert published.of.cells[0] == (16, 439, 1000)
    assert ours.text == "no change shown"
    assert "the published shares of [B21] in float32" in trends.sentence([published])


def test_the_correction_is_over_the_rows_of_a_sweep_that_can_change() -> None:
    lines = [*sweep([9, 14, 16, 18, 22]), *sweep([0] * 5, "float64"), *sweep([100] * 5, "float16 emulated (product)")]
    rows = trends.changes(report(*lines))["sample_size"]
    assert [one.of.arithmetic for one in rows] == ["float16", "bfloat16"]  # the first one is published
    assert [one.adjusted for one in rows] == holm([one.trend.p for one in rows])
    other = [line(theirs("neurons", 16, x, "R22"), 50, "bfloat16") for x in (4, 8)]
    assert trends.changes(report(*lines, *other))["sample_size"] == rows


def test_many_rows_are_counted_and_not_named() -> None:
    rows = [trends.changes(report(*sweep([5, 20, 30, 35, 40])))["sample_size"][0]] * 5
    assert trends.sentence(rows) == "Of 5 rows, the share grows in 5."
