"""E10's section: verdicts from made-up results that must say the one and the other."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from relucheck.reproduction.experiments.variations import E10
from relucheck.reproduction.report import variations
from relucheck.reproduction.report.nudges.effects import effects, nudge_groups
from relucheck.reproduction.report.summary import Reproduction
from relucheck.reproduction.scenario import Comparison
from relucheck.results.tables import render
from relucheck.training.results.result import Result
from tests.helpers import invariants, made_up

_SEEDS = (0, 1, 2)


def _short(comparison: Comparison) -> Comparison:
    return dataclasses.replace(comparison, settings=dataclasses.replace(comparison.settings, epochs=3))


def _made(folder: Path, quiet: tuple[str, ...] = (), costly: tuple[str, ...] = ()) -> Reproduction:
    """In every setting the injected rule costs 5 points and the chain rule none, but for those that are named.

    In quiet settings nothing departs from s = 0. In costly ones the chain rule costs what the injected one does.
    """
    names = [f"{name}-bfloat16-published" for name in ("unchanged", "sgd", "batchnorm", "relu6")]
    runs: list[tuple[Comparison, Result]] = []
    nudges = {}
    for comparison in map(_short, E10.comparisons("full", names)):
        name = comparison.name.removesuffix("-bfloat16-published")
        result, beside = made_up.with_nudges(comparison.settings, quiet=_SEEDS if name in quiet else ())
        for member in result.members:
            if name in costly and member.member.rule == "chain" and member.member.s:
                for epoch in member.epochs:
                    epoch.test_accuracy -= 0.05
        runs.append((comparison, result))
        nudges[comparison.name] = beside
    made = Reproduction(E10, "full", folder, tuple(runs), nudges=tuple(nudge_groups(runs, nudges)))
    return dataclasses.replace(made, effects=tuple(effects(runs, nudges, within_seeds=True)))


def _said(made: Reproduction) -> str:
    (section,) = variations.sections(made)
    return " ".join(section.sentences)


def test_changes_that_change_nothing_are_said_to(tmp_path: Path) -> None:
    said = _said(_made(tmp_path))
    assert (
        "4 settings: under the injected rule of the published code, s = 1 changes the accuracy beyond nudges in 4, by"
        in said
    )
    assert "under the injected rule of the published code, of 3 changes, none is shown to alter this." in said


def test_a_setting_without_hits_is_named(tmp_path: Path) -> None:
    made = _made(tmp_path, quiet=("batchnorm",))
    said = _said(made)
    assert "is the run of s = 0, bit for bit, in 1 (batch norm)" in said
    assert "of 3 changes, 1 alters this: batch norm (identical)." in said
    found = {one.setting: one for one in variations.variations(made)}
    assert found["batch norm"].effects["injected", 1.0] is None
    assert found["SGD"].verdict("injected") == "differs"
    assert (found["SGD"].live, found["batch norm"].live) == ((3, 3), (0, 3))


def test_settings_beside_one_without_hits_are_no_changes(tmp_path: Path) -> None:
    said = _said(_made(tmp_path, quiet=("unchanged",)))
    assert said.count("because the published setting meets no hit that matters in these seeds") == 2


def test_a_setting_in_which_the_chain_rule_costs_is_named(tmp_path: Path) -> None:
    said = _said(_made(tmp_path, costly=("sgd",)))
    assert "under the chain rule, s = 1 changes the accuracy beyond nudges in 1" in said
    undecided = "under the chain rule, nothing is decided about changes, because the published setting is undecided" in said
    assert ("SGD (differs)" in said) != undecided, "beside an undecided base a verdict is no change"


def test_relu6_has_the_s_of_its_lower_kink(tmp_path: Path) -> None:
    found = next(one for one in variations.variations(_made(tmp_path)) if one.setting == "ReLU6")
    assert set(found.effects) == {(rule, s) for rule in ("chain", "injected") for s in (0.5, 1.0)}


def test_the_table_fits_a_terminal_and_the_figure_is_drawn(tmp_path: Path) -> None:
    made = _made(tmp_path, quiet=("batchnorm",))
    (section,) = variations.sections(made)
    (table,) = [table.without(*section.wide) for table in section.tables]
    shown = render(table.rich(first=True), width=80, color=False)
    assert max(map(len, shown.splitlines())) <= 80
    assert "0 exactly" in shown
    (path,) = variations.draw(made, tmp_path)
    assert min(invariants.png_size(path)) > 300


def test_nothing_valid_has_no_section(tmp_path: Path) -> None:
    made = _made(tmp_path)
    void = tuple((comparison, dataclasses.replace(result, void="differs")) for comparison, result in made.runs)
    empty = dataclasses.replace(made, runs=void, effects=(), nudges=())
    assert variations.sections(empty) == ()
    assert variations.draw(empty, tmp_path) == []


@pytest.mark.parametrize(("scale", "arms", "epochs"), [("full", 3, 10), ("cpu", 2, 5)])
def test_a_variation_differs_from_the_unchanged_run_in_one_thing(scale: str, arms: int, epochs: int) -> None:
    found = {one.name: one.settings for one in E10.comparisons(scale)}
    changed = set()
    for name, settings in found.items():
        arm = next(arm for arm in ("-bfloat16-published", "-bfloat16", "-float32") if name.endswith(arm))
        base = found[f"unchanged{arm}"]
        differ = {
            field.name
            for field in dataclasses.fields(settings)
            if field.name != "members" and getattr(settings, field.name) != getattr(base, field.name)
        }
        assert len(differ) == (not name.startswith("unchanged"))
        changed |= differ
        assert (settings.epochs, settings.seeds) == (epochs, _SEEDS)
        assert {member.subgradient for member in settings.members} == {0.0, 0.5, 1.0}
    assert changed == {"data", "network", "optimiser", "batch_size"}
    assert len(found) == 15 * arms
