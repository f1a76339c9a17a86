"""The figure of hits by layer and by epoch."""

from __future__ import annotations

from typing import Any

from relucheck.reproduction.experiments.convolutional import SCENARIOS
from relucheck.reproduction.report import layers
from relucheck.reproduction.report.depth import by_depth
from tests.reproduction.report.test_layers import PUBLISHED, Run, at_6, at_sums, by_kind, run, with_unreached


def panels(scenario: str, runs: list[Run]) -> tuple[Any, list[Any]]:
    figure = by_depth(SCENARIOS[scenario], "cpu", "a part", runs, {})
    return figure, figure.get_axes()


def points(panel: Any, marker: str, face: str | None = None) -> list[tuple[float, float]]:
    """The single points with a marker, which may be hollow."""
    return [
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for line in panel.get_lines()
        if line.get_marker() == marker
        and len(line.get_xdata()) == 1
        and (face is None or line.get_markerfacecolor() == face)
    ]


def test_each_layer_has_its_share_or_its_bound() -> None:
    runs = [run("E5", PUBLISHED, at_sums), run("E5", "float32", lambda *_: 0)]
    figure, (half, single, epochs, none) = panels("E5", runs)
    every = layers.layer_hits(runs[0][1])
    sums = [one for one in every if one.total]
    last = [(one.site.depth, sum(seed[-1] for seed in one.hits) / 3e6) for one in sums]
    assert points(half, "o") == last
    lines = [line for line in half.get_lines() if len(line.get_xdata()) == 2]
    assert [float(line.get_ydata()[0]) for line in lines] == [sum(seed[0] for seed in one.hits) / 3e6 for one in sums]
    bounds = [(one.site.depth, layers.share(0, one.seen)) for one in every if not one.total]
    assert points(half, "v", "none") == bounds
    assert len(points(single, "v", "none")) == 19
    assert (half.get_yscale(), single.get_ylim()) == ("log", half.get_ylim())
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["behind batch norm", "behind residual sum", "hollow: no hit, below this (95 %)", "published [R22]"]
    assert [text.get_text() for text in none.texts] == ["no hit"]
    assert points(epochs, "x") == [(60_000, 3_032_857 / 60), (120_000, 4_457_698 / 60)]


def test_epochs_are_drawn_over_the_images_seen() -> None:
    runs = [run("E6", "relu6-alpha-bfloat16-rounded", at_6)]
    figure, (_, panel) = panels("E6", runs)
    (line,) = [line for line in panel.get_lines() if len(line.get_xdata()) == 8]
    assert list(line.get_xdata()) == [1600.0 * epoch for epoch in range(1, 9)]
    assert list(line.get_ydata()) == [75 / 1.6] * 8
    assert len(points(panel, "x")) == 10
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"behind batch norm, at 0", "behind batch norm, at 6", "published [R22], at 6"} <= set(names)


def test_a_seed_that_diverged_leaves_the_others() -> None:
    found, result = run("E6", "relu6-alpha-bfloat16-rounded", at_6)
    first, second, _ = (member for member in result.members if member.member.is_reference)
    del first.epochs[:], first.hits[:], first.activations[:]
    del second.epochs[3:], second.hits[3:], second.activations[3:]
    _, (above, panel) = panels("E6", [(found, result)])
    (line,) = [line for line in panel.get_lines() if len(line.get_xdata()) == 8]
    assert list(line.get_ydata()) == [100 / 1.6] * 3 + [125 / 1.6] * 5  # 75 and 125 hits, then 125
    assert points(above, "v", "none")
    for member in result.members:
        if member.member.is_reference:
            del member.epochs[:], member.hits[:], member.activations[:]
    _, (above, panel) = panels("E6", [(found, result)])
    assert points(above, "v", "none") == []
    assert [text.get_text() for text in panel.texts] == []  # the published counts are drawn


def test_one_layer_has_whole_depths_beside_it() -> None:
    _, (above, _) = panels("E5", [run("E5", "stem-only-float32", lambda *_: 0)])
    low, high = above.get_xlim()
    assert [tick for tick in above.get_xticks() if low < tick < high] == [0, 1, 2]


def test_without_a_finished_epoch_it_is_not_said_that_there_is_no_hit() -> None:
    found, result = run("E5", "float32", lambda *_: 0)
    for member in result.members:
        if member.member.is_reference:
            del member.epochs[:], member.hits[:], member.activations[:]
    _, (_, panel) = panels("E5", [(found, result)])
    assert [text.get_text() for text in panel.texts] == ["diverged in the first epoch"]


def test_the_legend_is_no_wider_than_the_figure() -> None:
    figure, _ = panels("E6", [run("E6", "relu6-alpha-bfloat16-rounded", at_6), run("E6", "relu6-alpha-float32", at_6)])
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1


def test_torchs_activations_are_drawn_where_they_were_counted() -> None:
    """Each kink of each activation has its marker and its place beside the others; below are those that s reaches."""
    made = with_unreached(run("E6", "relu6-alpha-bfloat16-rounded", at_6), by_kind)
    figure, (above, below) = panels("E6", [made])
    every = [one for one in layers.unreached_hits(made[1]) if one.site.activation == "Hardswish"]
    shares = {(one.site.depth, one.kind): sum(seed[-1] for seed in one.hits) / 3e6 for one in every}
    for place, kind, marker in ((2, "-3", "<"), (3, "3", ">")):
        wanted = [(depth + 0.15 * place, value) for (depth, kink), value in shares.items() if kink == kind]
        assert points(above, marker) == wanted
    assert len(points(above, "^")) == len(points(above, "P")) == 9, "Hardsigmoid"
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"Hardswish behind batch norm, at -3", "Hardsigmoid behind convolution, at 3"} <= set(names)
    assert {line.get_marker() for line in below.get_lines()} == {"o", "s", "x"} - {"o"}
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
    (figure, (above, _)) = panels("E6", [run("E6", "relu6-alpha-bfloat16-rounded", at_6)])
    assert points(above, "<") == [], "not counted"
    assert not any("Hardswish" in text.get_text() for text in figure.legends[0].get_texts())
    (figure, (above, _)) = panels("E5", [with_unreached(run("E5", "resnet-18-bfloat16-rounded", at_sums), by_kind)])
    assert points(above, "<") == [(1 + 0.15, 0.4)]
    assert "MaxPool2d behind activation, ties" in [text.get_text() for text in figure.legends[0].get_texts()]
