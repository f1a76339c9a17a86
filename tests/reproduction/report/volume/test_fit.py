"""The fit of float16 cells: counts that make it choose one arithmetic, one for each shape, and neither."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from relucheck.reproduction.report.volume import fit
from relucheck.reproduction.report.volume.fit import Fit
from relucheck.reproduction.report.volume.summary import judge
from relucheck.results.statistics import log_chance
from tests.reproduction.report.volume.made_up import line, report, theirs

ONCE, COARSE, E2 = (f"float16 emulated ({name})" for name in ("rounded", "product", fit.E2_ROUNDING))
SIZES = (16, 32, 64, 128, 256)  # [R22] has 61, 100, 100, 56 and 100 of 100


def fitted(ours: Mapping[str, tuple[int, ...]], draws: int = 100) -> Fit:
    """[R22]'s cells by batch size, with these networks of ours in the zone."""
    lines = [
        line(theirs("batch_size", 16, x, "R22"), k, name, draws)
        for name, counts in ours.items()
        for x, k in zip(SIZES, counts, strict=True)
    ]
    (found,) = fit.fits(judge(report(*lines)))
    return found


def test_published_batch_sizes_need_a_choice_by_shape() -> None:
    found = fitted({ONCE: (50,) * 5, COARSE: (100,) * 5})
    assert found.by_shape_is_needed
    assert found.groups() == ([(16, 32), (128, 32)], [(32, 32), (64, 32), (256, 32)], [])
    assert found.single["(rounded)"] == pytest.approx(sum(log_chance(k, 100, 50, 100) for k in (61, 100, 100, 56, 100)))
    assert found.by_shape() == pytest.approx(
        sum(max(log_chance(k, 100, mine, 100) for mine in (50, 100)) for k in (61, 100, 100, 56, 100))
    )
    assert not found.unexplained
    words = fit.sentence([found])
    assert words.startswith("In float16, no single rounding explains [R22]'s 5 cells (log-likelihood ")
    assert words.endswith("rounding once at 16 x 32 and 128 x 32 and coarser rounding at 32 x 32, 64 x 32 and 256 x 32.")


def test_one_arithmetic_is_enough_where_it_explains_all_cells() -> None:
    found = fitted({ONCE: (61, 100, 100, 56, 100), COARSE: (100,) * 5})
    assert not found.by_shape_is_needed
    assert fit.sentence([found]) == (
        "In float16, rounding once in all cells explains [R22]'s 5 cells as well as a choice by shape, and 1 other "
        "rounding does not."
    )
    alike = fitted({ONCE: (61, 100, 100, 56, 100), COARSE: (60, 100, 100, 57, 100)})
    assert fit.sentence([alike]).startswith("In float16, rounding once and product in all cells explain [R22]'s")


def test_cells_that_no_arithmetic_explains_are_said_to_differ_still() -> None:
    found = fitted({ONCE: (0, 0, 0, 0, 50), COARSE: (100,) * 5})
    assert len(found.unexplained) == 2
    assert "; even by shape, 2 cells differ." in fit.sentence([found])


def test_a_gain_that_the_freedom_to_choose_explains_is_not_enough() -> None:
    found = fitted({ONCE: (61, 99, 99, 56, 99), COARSE: (100,) * 5})
    assert 0 < found.gain < found.price
    assert found.price == pytest.approx(math.log(2) * 4 + math.log(20))


def test_all_arithmetics_are_judged_by_equally_many_networks() -> None:
    """More draws of one alone do not make it likelier: the first ones that all have decide."""
    lines = [line(theirs("batch_size", 16, x, "R22"), k, ONCE, 100) for x, k in zip(SIZES, (100,) * 5, strict=True)]
    lines += [line(theirs("batch_size", 16, x, "R22"), 20, COARSE, 20) for x in SIZES]
    (found,) = fit.fits(judge(report(*lines)))
    assert {cell.draws for cell in found.cells} == {20}
    assert found.single["(rounded)"] == found.single["(product)"]


def test_e2s_rounding_is_left_or_not_and_the_machine_is_not_told() -> None:
    yes = fit.like_e2([fitted({ONCE: (50,) * 5, COARSE: (100,) * 5, E2: (100,) * 5})])
    no = fit.like_e2([fitted({ONCE: (50,) * 5, COARSE: (100,) * 5, E2: (60,) * 5})])
    assert yes[0].startswith("3 of [R22]'s 3 shapes with coarser rounding leave E2's;")
    assert "less likely than the choice among all by 0.0 " in yes[0]
    assert no[0].startswith("0 of [R22]'s 3 shapes with coarser rounding leave E2's;")
    assert "by 0.0 " not in no[0]
    assert "[R22]'s 128 x 32 takes rounding once" in yes[1]
    assert yes[1].startswith("E2's first product is 128 x 200, in bfloat16. No release has a float16 cell of this shape")
    assert fit.like_e2([fitted({ONCE: (50,) * 5, COARSE: (100,) * 5})]) == []


def test_releases_agree_or_not_at_a_shared_shape() -> None:
    """[B21] has 333 of 1,000 at 256 x 16 and 1,000 of 1,000 at 256 x 64; [R22] has 100 of 100 at both."""

    def said(once: int, x: int) -> list[str]:
        lines = [
            line(theirs("neurons", 16, x, source), count, name)
            for source in ("B21", "R22")
            for name, count in ((ONCE, once), (COARSE, 100))
        ]
        return fit.releases(fit.fits(judge(report(*lines))))

    assert said(33, 16) == [
        "[B21]'s 256 x 16 takes rounding once and [R22]'s 256 x 16 takes coarser rounding, so the releases do not have one "
        "choice by shape: their machines or versions differ."
    ]
    assert said(50, 64) == ["At 256 x 64, which the releases share, one rounding is left for all."]
    assert fit.releases([fitted({ONCE: (50,) * 5, COARSE: (100,) * 5})]) == []


def test_without_a_second_arithmetic_there_is_no_fit() -> None:
    lines = [line(theirs("batch_size", 16, x, "R22"), 50, ONCE) for x in SIZES]
    assert fit.fits(judge(report(*lines))) == ()
    assert fit.sentence(()) == "No arithmetic was fitted to published float16 cells."


def test_tables_name_cells_counts_and_hypotheses() -> None:
    found = fitted({ONCE: (50,) * 5, COARSE: (100,) * 5, E2: (100,) * 5})
    cells, totals = fit.cell_table(found), fit.total_table([found])
    assert cells.header[5:8] == ("rounding once", "product", "E2's")
    assert cells.rows[0][:6] == ("batch size", "16", "16 x 32", "61/100", "100", f"50 ({log_chance(61, 100, 50, 100):.1f})")
    assert cells.rows[1][-1] == "product and E2's"
    assert [row[1] for row in totals.rows] == [
        *("rounding once everywhere", "product everywhere", "E2's everywhere"),
        *("rounding once or product, by shape", "rounding once or E2's, by shape", "any of them, by shape"),
    ]
    assert totals.rows[-1][3] == f"{math.log(3) * 5:.1f}"
