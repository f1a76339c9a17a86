"""The tables of nudges: numbers as they were computed, in 80 columns, and sentences that say what they are."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from relucheck.reproduction.report.nudges.effects import effects, nudge_groups
from relucheck.reproduction.report.nudges.tables import (
    EFFECT_LEGEND,
    NUDGE_LEGEND,
    effect_tables,
    markdown,
    nudge_table,
    terminal,
)
from relucheck.results.tables import render
from relucheck.training.results.result import Result
from tests.helpers import made_up

(COMPARISON,) = made_up.E2.comparisons("cpu", ("bfloat16-split-k-4-3-epochs",))


def _pair(quiet: tuple[int, ...] = (2, 4)) -> tuple[Any, dict[str, Result]]:
    result, nudges = made_up.with_nudges(COMPARISON.settings, quiet=quiet)
    return [(COMPARISON, result)], {COMPARISON.name: nudges}


def _cells(lines: list[str], columns: int) -> list[list[str]]:
    """The cells of the table rows of Markdown with so many columns."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [row for row in rows if len(row) == columns and not set(row[0]) <= {"-", ":"}]


def test_markdown_holds_every_number() -> None:
    runs, nudges = _pair()
    groups, found = nudge_groups(runs, nudges), effects(runs, nudges)
    lines = markdown(groups, found)
    header, row = _cells(lines, 6)
    (group,) = groups
    accuracy, l1 = group.accuracy["last epoch"], group.l1
    assert accuracy is not None
    assert l1 is not None
    assert row[:4] == [COMPARISON.name, "8 of 10", "40", str(group.again)]
    assert row[4] == f"{l1.mean:,.1f} ({l1.least:,.1f} to {l1.most:,.1f})"
    assert row[5] == f"{accuracy.mean:+.2f} ({accuracy.least:+.2f} to {accuracy.most:+.2f})"
    assert header[1:] == list(NUDGE_LEGEND)
    header, *rows = _cells(lines, 8)
    assert set(EFFECT_LEGEND) == set(header) - {"s", "rule"}
    assert len(rows) == len(found) == 16
    for effect, cells in zip(found, rows, strict=True):
        paired = effect.beyond.paired
        low, high = paired.difference.low, paired.difference.high
        assert low is not None
        assert high is not None
        assert paired.difference.mean is not None
        assert cells == [
            *(f"{effect.subgradient:g}", effect.rule, effect.endpoint, "8"),
            f"{paired.difference.mean:+.2f} ± {(high - low) / 2:.2f}",
            f"{paired.adjusted_difference:.2g}",
            *(paired.verdict, str(effect.seeds)),
        ]
    note = "2 seeds have no live hit. There s has no effect at all: every run is that of s = 0, bit for bit."
    assert f"- {COMPARISON.name}: {note}" in lines


def test_the_terminal_has_the_same_numbers_in_80_columns() -> None:
    runs, nudges = _pair()
    groups, found = nudge_groups(runs, nudges), effects(runs, nudges)
    text = render(*terminal(groups, found), width=80, color=False)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    (table,) = effect_tables(found)
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line.count("│") == 8]
    assert rows == [list(row) for row in table.without("p").rows]
    (row,) = nudge_table(groups).without("nudges").rows
    words = " ".join(cell for line in text.splitlines() if line.count("│") == 6 for cell in line.split("│")).split()
    assert sorted(words) == sorted(" ".join(row).split())


def test_a_seed_lost_is_shown() -> None:
    runs, nudges = _pair()
    nudges[COMPARISON.name].find(3, 0.0, nudge=4).outcome = "diverged: non-finite at step 9"
    (table,) = effect_tables(effects(runs, nudges))
    assert {row[3] for row in table.rows} == {"7 (1 lost)"}
    assert {row[-2] for row in table.rows} == {"undecided"}
    assert f"- {COMPARISON.name}: 1 nudge diverged." in markdown(nudge_groups(runs, nudges), [])


def test_a_nudge_whose_difference_rounding_has_undone_is_counted() -> None:
    runs, nudges = _pair()
    nudges[COMPARISON.name].find(3, 0.0, nudge=4).steps.l1[-1] = 0.0
    (group,) = nudge_groups(runs, nudges)
    assert group.returned == 1
    assert f"- {COMPARISON.name}: 1 nudge ended at the distance 0 from s = 0, because" in "\n".join(markdown([group], []))
    assert f"(0 to {group.l1.most:,.1f})" in "\n".join(markdown([group], [])) if group.l1 else False


def test_the_injected_rule_can_act_without_a_live_hit() -> None:
    runs, nudges = _pair()
    runs[0][1].find(2, 1.0, "injected").first_difference = 7
    text = "\n".join(markdown(nudge_groups(runs, nudges), effects(runs, nudges)))
    assert "no effect at all" not in text
    assert (
        "Under the injected rule 1 run differs from s = 0, because it also acts at hits whose upstream gradient is 0."
        in text
    )


def test_a_comparison_without_any_live_hit_has_no_table_of_effects() -> None:
    runs, nudges = _pair(quiet=tuple(range(10)))
    groups, found = nudge_groups(runs, nudges), effects(runs, nudges)
    assert effect_tables(found) == []
    text = "\n".join(markdown(groups, found))
    assert f"| {COMPARISON.name} | 0 of 10 | 0 | 0 | - | - |" in text
    assert "10 seeds have no live hit. There s has no effect at all" in text
    assert "seeds needed" not in text


def test_void_nudges_say_so_and_show_no_number() -> None:
    runs, nudges = _pair()
    nudges[COMPARISON.name].void = "the reference of seed 1 is another"
    text = "\n".join(markdown(nudge_groups(runs, nudges), effects(runs, nudges)))
    assert f"| {COMPARISON.name} | - | - | - | - | void |" in text
    assert "nothing may be concluded from them: the reference of seed 1 is another." in text
    assert "seeds needed" not in text


def test_a_report_without_nudges_has_no_section() -> None:
    assert markdown([], []) == terminal([], []) == []


@pytest.mark.parametrize("epochs", [2, 3])
def test_a_second_half_of_one_epoch_is_not_shown(epochs: int) -> None:
    short = dataclasses.replace(COMPARISON, settings=dataclasses.replace(COMPARISON.settings, epochs=epochs))
    result, nudges = made_up.with_nudges(short.settings)
    (table,) = effect_tables(effects([(short, result)], {short.name: nudges}))
    assert len(table.rows) == 8 * (1 + (epochs > 2))
