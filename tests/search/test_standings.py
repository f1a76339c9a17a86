"""The table of trials while a search runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from relucheck.search.records import Records
from relucheck.search.standings import standings
from tests.search.cases import SEARCH, epoch
from tests.search.test_records import filled, report


def test_trials_are_ranked_by_their_last_epoch(tmp_path: Path) -> None:
    head, *rows = standings(filled(tmp_path)).splitlines()
    assert head.split() == ["trial", "batch", "lr", "alpha", "beta", "epoch", "accuracy", "%", "loss"]
    cells = [(row.split()[0], *row.split()[5:]) for row in rows]
    assert [cell[:3] for cell in cells] == [
        ("1", "2/4", "90.00"),
        ("3", "1/4", cells[1][2]),
        ("0", "4/4", "40.00"),
        ("2", "1/4", "-"),
    ]
    assert [cell[-1] for cell in cells if cell[0] != "3"] == ["stopped", "finished", "diverged"]


def test_the_best_is_the_least_where_the_loss_decides(tmp_path: Path) -> None:
    records = Records(dataclasses.replace(SEARCH, metric="loss"), tmp_path)
    for draw, loss in zip(SEARCH.draws, (0.5, 0.1, None, 0.3), strict=True):
        records.add(draw, report(epoch(1, 0.5, loss)), False)
    _, *rows = standings(records).splitlines()
    assert [row.split()[0] for row in rows] == ["1", "3", "0", "2"]


def test_what_is_left_out_is_counted_and_80_columns_hold_it(tmp_path: Path) -> None:
    records = Records(SEARCH, tmp_path)
    assert standings(records).splitlines()[-1] == "4 not begun"
    for draw in SEARCH.draws[:3]:
        records.add(draw, report(epoch(1, 0.25)), False)
    lines = standings(records, most=2).splitlines()
    assert lines[-1] == "1 more, 1 not begun"
    assert len(lines) == 4
    assert max(map(len, lines)) < 80
