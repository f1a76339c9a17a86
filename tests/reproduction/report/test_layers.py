"""Hits by layer: sums, bounds, published counts, and what is shown of them, on made-up counts of E5, E6 and E2."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest

from relucheck.networks.sites import RESIDUAL_SUM, Site, chosen, unreached
from relucheck.reproduction.experiments.convolutional import SCENARIOS
from relucheck.reproduction.published import counts
from relucheck.reproduction.report import layers
from relucheck.reproduction.report.summary import hits_per_epoch
from relucheck.reproduction.scenario import Comparison
from relucheck.results.proportions import interval
from relucheck.results.store import StoreError
from relucheck.results.tables import render
from relucheck.training.results.result import Result, Unreached
from tests.helpers import made_up

Run = tuple[Comparison, Result]


def comparison(scenario: str, name: str) -> Comparison:
    return SCENARIOS[scenario].comparisons("cpu", (name,))[0]


def run(scenario: str, name: str, hits: Callable[[Site, float, int], int]) -> Run:
    """A comparison with ``hits(site, kink, epoch)`` in the reference of its first seed, and 10 more in each further one."""
    found = comparison(scenario, name)
    result = made_up.result(found.settings)
    for member in result.members:
        if member.member.is_reference:
            extra = 10 * found.settings.seeds.index(member.member.seed)
            for number, (epoch, seen) in enumerate(zip(member.hits, member.activations, strict=True)):
                for place, site in enumerate(chosen(found.settings.network)):
                    seen[place] = 10**6
                    for kink, at in enumerate(site.kinks):
                        base = hits(site, at, number)
                        epoch[place][kink] = base + extra * bool(base)
    return found, result


def with_unreached(made: Run, hits: Callable[[Site, str, int], int]) -> Run:
    """The same with ``hits(site, kind, epoch)`` where no subgradient reaches, in the reference of every seed."""
    found, result = made
    places = unreached(found.settings.network)
    for member in result.members:
        if member.member.is_reference:
            member.unreached = [
                Unreached([[hits(site, kind, epoch) for kind in site.kinds] for site in places], [10**6] * len(places))
                for epoch in range(len(member.epochs))
            ]
    return found, result


def by_kind(site: Site, kind: str, epoch: int) -> int:
    return {"at -3": 20, "at 3": 30 + epoch, "ties": 400_000, "at 0": 3}[kind]


def at_sums(site: Site, kink: float, epoch: int) -> int:
    return 100 * site.depth + epoch if site.before == RESIDUAL_SUM else 0


def at_6(site: Site, kink: float, epoch: int) -> int:
    return 5 if (site.before, kink) == ("batch norm", 6.0) else 0


PUBLISHED = "bfloat16-rounded"


def test_hits_are_those_of_the_reference_layer_by_layer() -> None:
    found, result = run("E5", PUBLISHED, at_sums)
    every = layers.layer_hits(result)
    assert [one.site for one in every] == list(chosen(found.settings.network))
    assert [one.hits[0][0] for one in every[:4]] == [0, 0, 300, 0]
    assert every[2].hits[2] == tuple(320 + epoch for epoch in range(8))
    assert (every[2].mean(0), every[2].mean(-1), every[2].images(0, 1600)) == ("310", "317", "194")
    # the same numbers as those of the tables of members
    for index, member in enumerate(m for m in result.members if m.member.is_reference):
        assert hits_per_epoch(member) == sum(sum(one.hits[index]) for one in every) / 8


def test_sums_by_what_computes_the_pre_activation() -> None:
    _, result = run("E5", PUBLISHED, at_sums)
    norm, total = layers.by_source(result)
    assert (norm.site.before, norm.layers, norm.total, norm.seen) == ("batch norm", 10, 0, 10 * 8 * 3 * 10**6)
    assert (total.site.before, total.layers, total.seen) == (RESIDUAL_SUM, 9, 9 * 8 * 3 * 10**6)
    assert total.total == sum(100 * depth + epoch + extra for depth in range(3, 20, 2) for epoch in range(8)
                              for extra in (0, 10, 20))  # fmt: skip
    assert total.hits[0][0] == sum(range(300, 2000, 200))


def test_no_hit_is_a_bound() -> None:
    """The one-sided bound of Clopper and Pearson: 1 - 0.05 ** (1 / n), about 3.0 / n."""
    for seen in (1, 50, 10**6, 10**9):
        assert layers.share(0, seen) == pytest.approx(-math.expm1(math.log(0.05) / seen))
    assert layers.share(0, 10**6) == pytest.approx(3.0e-6, rel=2e-3)
    assert layers.share(0, 10**6) < interval(0, 10**6).high
    assert layers.share(3, 10**6) == 3e-6
    assert layers.share(0, 0) == 1
    norm, total = layers.by_source(run("E5", PUBLISHED, at_sums)[1])
    assert norm.per_million == "< 0.012"
    assert total.per_million == "1,114"
    assert dataclasses.replace(norm, activations=()).per_million == "-"


def test_the_first_and_the_last_epoch_stand_beside_the_published_ones() -> None:
    runs = [run("E5", PUBLISHED, at_sums), run("E5", "float32", lambda *_: 0), run("E5", "sgd-bfloat16-rounded", at_sums)]
    rows = layers.published_table(runs).rows
    first = [row for row in rows if row[0] == PUBLISHED]
    total = sum(range(300, 2000, 200)) + 9 * 10
    assert first == [
        (PUBLISHED, "0", "8", "1,600", f"{total:,}", f"{total + 63:,}", f"{total / 1.6:,.0f}", f"{(total + 63) / 1.6:,.0f}")
    ]
    assert [row[0] for row in rows] == [PUBLISHED, "float32", "published [R22], bfloat16", "published [R22], float32"]
    assert rows[2][3:] == ("60,000", "3,032,857", "4,457,698", "50,548", "74,295"), "not the epoch that was broken off"
    assert rows[3][2:] == ("whole run", "60,000", "1", "1", "-", "-")
    assert layers.published_table(runs[2:]).rows == [], "the published run used Adam"


def test_counts_at_both_kinks_stand_beside_those_of_mobilenet() -> None:
    rows = layers.published_table([run("E6", "relu6-alpha-bfloat16-rounded", at_6)]).rows
    assert [row[:2] for row in rows] == [
        *(("relu6-alpha-bfloat16-rounded", kink) for kink in "06"),
        *(("published [R22], bfloat16", kink) for kink in "60"),
    ]
    assert rows[1][4:] == ("75", "75", "46.9", "46.9")
    assert rows[2][2:] == ("10", "48,000", "1,665", "1,217", "34.7", "25.4")
    assert rows[3][2:] == ("each", "48,000", "0 to 3", "0 to 3", "0 to 0.062", "0 to 0.062")
    assert layers.beside(*run("E6", "relu-bfloat16-rounded", at_6)) == ()


def test_published_counts_say_how_many_images_an_epoch_has() -> None:
    assert {(count.experiment, count.images) for count in counts()} == {
        *((name, 60_000) for name in ("E1", "E2", "E5")),
        ("E9", 48_000),
    }


def test_the_table_by_layer_is_that_of_the_published_counts() -> None:
    runs = [
        run("E6", name, at_6) for name in ("relu-bfloat16-rounded", "relu6-alpha-float32", "relu6-alpha-bfloat16-rounded")
    ]
    assert layers.shown_by_layer(runs) == runs[2]
    assert layers.shown_by_layer(runs[:2]) == runs[1], "the first one with a hit"
    assert layers.shown_by_layer([(runs[0][0], dataclasses.replace(runs[0][1], void="so"))]) is None
    table = layers.layer_table(runs[2][1])
    assert len(table.rows) == 28
    assert list(table.rows[1]) == [
        *("model.features.1.block.0.2", "2", "ReLU6", "batch norm", "6"),
        *("1,000,000", "15", "15", "15"),
    ]
    assert table.rows[2][-1] == "< 0.12"


def test_reports_say_where_a_subgradient_reaches() -> None:
    runs = [run("E5", name, at_sums) for name in (PUBLISHED, "stem-only-bfloat16-rounded", "resnet-18-bfloat16-rounded")]
    reached = [row[1] for row in layers.reach_table([*runs, runs[0]]).rows]
    assert reached == ["ReLU: 19 of 19", "ReLU: 1 of 19", "ReLU: 17 of 17; MaxPool2d: 0 of 1"]
    mobile = layers.reach_table([run("E6", "relu6-alpha-bfloat16-rounded", at_6)]).rows
    assert [row[1] for row in mobile] == ["Hardswish: 0 of 19; ReLU6: 14 of 14; Hardsigmoid: 0 of 9"]


def test_the_section_of_a_report() -> None:
    runs = [run("E5", PUBLISHED, at_sums), run("E5", "float32", lambda *_: 0)]
    text = "\n".join(layers.markdown(runs))
    assert (
        "- float32: no hit in 456,000,000 pre-activations. At most 6.6e-09 of them are hits, with 95 % confidence." in text
    )
    assert f"- {PUBLISHED}: no hit" not in text
    assert "### By layer: MNIST, Adam, ReLU, 20 layers, 3x3 convolutions on all skips, s in all layers" in text
    assert text.count("| blocks.8.activation2 | 19 | ReLU | residual sum | 0 |") == 1
    assert not any(word in text for word in ("torch's", "ties", layers.NOT_COUNTED))
    void = [(found, dataclasses.replace(result, void="a control differed")) for found, result in runs]
    assert layers.markdown(void) == []
    assert "float32" not in "\n".join(layers.markdown([runs[0], void[1]])).partition("### Beside")[0]


def test_mlps_and_runs_that_diverged_are_tabulated_too() -> None:
    """Old results have one layer for each width; a seed without an epoch has no counts."""
    runs = made_up.runs_of_e2()
    assert tuple(layers.source_table(runs).rows[0][1:6]) == ("ReLU", "linear layer", "0", "3", "450,000")
    assert len(layers.layer_table(runs[0][1]).rows) == 3
    lost = made_up.result(runs[0][1].settings, diverged=lambda member: True)
    assert [row[4:] for row in layers.source_table([(runs[0][0], lost)]).rows] == [("3", "0", "-", "-", "-")]
    assert layers.quiet([(runs[0][0], lost)]) == []


def test_a_terminal_of_80_columns_shows_every_name_once() -> None:
    names = [each.name for each in SCENARIOS["E6"].comparisons("cpu")]
    runs = [run("E6", name, at_6) for name in names]
    shown = render(*(table.rich() for table in layers.terminal(runs)), width=80, color=False)
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    first = shown.partition("beside the published")[0]
    assert all(first.count(f"│ {name} ") == 1 for name in names)
    assert "batch norm, at 6" in first
    assert layers.terminal([]) == []


def test_counts_of_another_number_of_layers_are_refused() -> None:
    """Seeded fault: counts without those of a layer would be read as those of others."""
    _, result = run("E5", PUBLISHED, at_sums)
    for member in result.members:
        for epoch in member.hits:
            del epoch[3]
    with pytest.raises(StoreError, match="hits of 18 activations, and the network has 19; delete its results and run"):
        layers.layer_hits(result)


def test_torchs_activations_and_poolings_are_tabulated() -> None:
    """By class, by what is before them, and by kink; a layer table has them in the order of the modules."""
    mobile = with_unreached(run("E6", "relu6-alpha-bfloat16-rounded", at_6), by_kind)
    name = mobile[0].name
    rows = [tuple(row[1:]) for row in layers.source_table([mobile]).rows]
    assert [row[:4] for row in rows] == [
        *(("ReLU6", before, kink, count) for before, count in (("batch norm", "5"), ("convolution", "9")) for kink in "06"),
        *(("torch's Hardswish", "batch norm", kink, "18") for kink in ("-3", "3")),
        *(("torch's Hardsigmoid", "convolution", kink, "9") for kink in ("-3", "3")),
        *(("torch's Hardswish", "linear layer", kink, "1") for kink in ("-3", "3")),
    ]
    assert rows[5] == ("torch's Hardswish", "batch norm", "3", "18", f"{18 * 24 * 10**6:,}", "540", "666", "33.5")
    table = layers.layer_table(mobile[1])
    assert len(table.rows) == 2 * (14 + 19 + 9)
    assert [row[0] for row in table.rows[:2]] == ["model.features.0.2"] * 2
    assert tuple(table.rows[0][1:5]) == ("1", "torch's Hardswish", "batch norm", "-3")
    pooled = with_unreached(run("E5", "resnet-18-bfloat16-rounded", at_sums), by_kind)
    (ties,) = layers.unreached_hits(pooled[1])
    assert (ties.kind, ties.at, ties.activation, ties.per_million) == ("ties", "ties", "torch's MaxPool2d", "400,000")
    text = "\n".join(layers.markdown([pooled]))
    assert "| maxpool | 1 | torch's MaxPool2d | activation | ties | 1,000,000 | 400,000 | 400,000 | 400,000 |" in text
    assert "- ties: windows of a max pooling" in text
    assert layers.NOT_COUNTED not in text
    shown = render(*(each.rich() for each in layers.terminal([mobile, pooled])), width=80, color=False)
    assert max(map(len, shown.splitlines())) <= 80
    assert f"│ {name} " in shown
    assert "batch norm, Hardswish at 3" in shown
    assert "activation, MaxPool2d ties" in shown


def test_torchs_relu_stands_beside_the_one_that_s_reaches() -> None:
    """They are not added up: a subgradient reaches one of them."""
    made = with_unreached(run("E5", "stem-only-bfloat16-rounded", lambda *_: 0), by_kind)
    rows = [tuple(row[1:5]) for row in layers.source_table([made]).rows]
    assert rows == [
        ("ReLU", "batch norm", "0", "1"),
        ("torch's ReLU", "batch norm", "0", "9"),
        ("torch's ReLU", "residual sum", "0", "9"),
    ]
    (sentence,) = layers.quiet([made])
    assert "no hit in 8,000,000 pre-activations that a subgradient reaches." in sentence


def test_what_an_earlier_version_did_not_count_is_said_not_to_be_counted() -> None:
    made = run("E6", "relu6-alpha-bfloat16-rounded", at_6)
    rows = [tuple(row[1:]) for row in layers.source_table([made]).rows]
    assert rows[4] == ("torch's Hardswish", "batch norm", "-3", "18", "not counted", "-", "-", "-")
    assert len(layers.layer_table(made[1]).rows) == 28
    assert "- not counted: an earlier version of relucheck trained it" in "\n".join(layers.markdown([made]))
    assert "not counted" in render(*(each.rich() for each in layers.terminal([made])), width=80, color=False)
    # one seed of an earlier version is enough: a mean over the others would stand beside one over all
    _, result = with_unreached(made, by_kind)
    next(member for member in result.members if member.member.is_reference).unreached = []
    assert not any(one.counted for one in layers.unreached_hits(result))
    # a seed without an epoch has nothing to count
    next(member for member in result.members if member.member.is_reference).epochs = []
    assert all(one.counted for one in layers.unreached_hits(result))


def test_counts_of_another_number_of_poolings_are_refused() -> None:
    """Seeded fault."""
    _, result = with_unreached(run("E6", "relu6-alpha-bfloat16-rounded", at_6), by_kind)
    for member in result.members:
        for epoch in member.unreached:
            del epoch.hits[3]
    with pytest.raises(StoreError, match="hits of 27 activations and max poolings that no subgradient reaches, and the"):
        layers.unreached_hits(result)
