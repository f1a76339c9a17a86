"""E4: the published tables as data, what the scales hold, tests against published counts, tables, figures."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import itertools
import json
import shutil
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from relucheck.extras import MissingExtraError
from relucheck.numerics.dtypes import as_dtype
from relucheck.reproduction import published
from relucheck.reproduction.experiments import volumes
from relucheck.reproduction.published import PublishedCell
from relucheck.reproduction.report.volume import figures as volume_figures
from relucheck.reproduction.report.volume import page as volume_page
from relucheck.reproduction.report.volume.summary import SWEEP_TITLES, Entry, Line, Report, judge
from relucheck.reproduction.run import reproduce
from relucheck.reproduction.scenario import Place, Reported, ScenarioError
from relucheck.results import proportions
from relucheck.results.holm import holm
from relucheck.results.store import Store, packed
from relucheck.results.tables import render
from relucheck.volume import cell as volume_cell
from relucheck.volume import estimate as volume_estimate
from relucheck.volume.cell import columns
from relucheck.volume.compensation import ZoneSplit
from relucheck.volume.estimate import Cell, Draw, Estimate, StoreError
from relucheck.work import Event, Listener, Local, Unit
from tests.helpers.uniform import mlp

# ---------------------------------------------------------------- published figures


def test_published_cells_are_the_published_ones() -> None:
    """Figures and sums that were read in the papers."""
    cells = published.volume_cells()
    by = {
        source: [cell for cell in cells if cell.source == source and cell.precision_bits == 32] for source in ("B21", "R22")
    }
    assert len(cells) == 100
    assert [cell.bifurcated for cell in by["B21"] if cell.varied == "hidden_layers"] == [54, 258, 463, 647, 697]
    assert [cell.bifurcated for cell in by["B21"] if cell.varied == "neurons"] == [21, 163, 478, 582, 873]
    assert [cell.bifurcated for cell in by["R22"] if cell.varied == "sample_size"] == [2, 2, 4, 3, 3]
    assert {(cell.source, cell.runs) for cell in cells} == {("B21", 1000), ("R22", 100)}
    assert all(0 <= cell.bifurcated <= cell.runs for cell in cells)
    assert {cell.source for cell in cells} <= set(published.SOURCES)
    assert {cell.varied for cell in cells} == set(volume_cell.SWEEPS)


def test_the_releases_did_not_compute_float64_by_depth() -> None:
    missing = [cell for cell in published.volume_cells() if not cell.computed]
    assert {(cell.precision_bits, cell.varied) for cell in missing} == {(64, "hidden_layers")}
    assert {cell.source for cell in missing} == {"B21", "R22"}
    assert len(missing) == 10


# ---------------------------------------------------------------- the scales


@pytest.mark.parametrize("scale", ["full", "cpu"])
def test_every_published_figure_has_its_cell(scale: str) -> None:
    entries = volumes.entries(scale)
    assert {entry.published for entry in entries} - {None} == set(published.volume_cells())
    for entry in entries:
        cell, theirs = entry.cell, entry.published
        assert getattr(cell, entry.varied) == entry.x or (entry.x == 60_000 and cell.sample_size == 60_000)
        assert (cell.sample == "with replacement") == (entry.varied == "sample_size")
        assert (cell.data, cell.watch) == ("mnist", "first layer")
        if theirs is not None:
            assert (cell.hidden_layers, cell.neurons, cell.batch_size) == (
                *(theirs.hidden_layers, theirs.neurons),
                theirs.batch_size,
            )
            assert (cell.sample_size or 60_000) == theirs.sample_size
            assert torch.finfo(cell.arithmetic.dtype).bits == theirs.precision_bits
            assert cell.arithmetic.dtype != torch.bfloat16
        assert entry.comparable == (theirs is not None and theirs.computed)
    columns = {(entry.source, entry.varied, entry.x) for entry in entries}
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        here = {(e.source, e.varied, e.x) for e in entries if e.cell.arithmetic.dtype == as_dtype(dtype)}
        by_shape = {column for column in columns if column[1] in ("hidden_layers", "neurons")}
        # at scale cpu, sweeps by images have the dtypes of published figures alone
        assert columns >= here >= (columns if scale == "full" or dtype in ("float16", "float32") else by_shape)


def test_full_scale_has_the_published_draws_and_both_arithmetics() -> None:
    entries = volumes.entries("full")
    assert all(entry.cell.draws == {"B21": 1000, "R22": 100}[entry.source] for entry in entries)
    columns = {(entry.source, entry.varied, entry.x) for entry in entries}
    for arithmetic in ("float16", "float16 strict", "bfloat16", "bfloat16 strict", "float32", "float32 TF32", "float64"):
        assert {(e.source, e.varied, e.x) for e in entries if e.cell.arithmetic.name == arithmetic} == columns


def test_the_cpu_scale_draws_at_most_what_was_published_and_favours_float32() -> None:
    cells = volumes.cells("cpu")
    most = {(entry.cell.name, {"B21": 1000, "R22": 100}[entry.source]) for entry in volumes.entries("cpu")}
    assert {name for name, _ in most} == {cell.name for cell in cells}
    draws = {cell.name: cell.draws for cell in cells}
    assert all(10 <= draws[name] <= limit for name, limit in most)
    alike = {
        cell.arithmetic.name: cell for cell in cells if (cell.hidden_layers, cell.neurons, cell.batch_size) == (3, 256, 256)
    }
    widths = {name: proportions.interval(cell.draws // 2, cell.draws).half_width for name, cell in alike.items()}
    assert min(("float32", "float16", "bfloat16", "float64"), key=lambda name: widths[name]) == "float32"
    assert widths["float32"] < 0.06


def test_every_row_of_the_table_of_draws_is_a_cell_of_the_cpu_scale() -> None:
    used = {
        (cell.hidden_layers, cell.neurons, cell.batch_size, cell.sample_size, cell.arithmetic.name): cell.draws
        for cell in volumes.cells("cpu")
    }
    assert used == published.cpu_draws()


@pytest.mark.parametrize("scale", ["full", "cpu"])
def test_cells_of_the_sweeps_by_images_have_networks_of_their_own(scale: str) -> None:
    """No network is in two cells of such a sweep, and each cell has the same ones in every arithmetic."""
    for source, varied in itertools.product(("B21", "R22"), ("batch_size", "sample_size")):
        mine = [e for e in volumes.entries(scale) if (e.source, e.varied) == (source, varied)]
        starts = {x: {e.cell.first_seed for e in mine if e.x == x} for x in {e.x for e in mine}}
        assert all(len(seeds) == 1 for seeds in starts.values())
        ranges = [range(start := min(starts[x]), start + max(e.cell.draws for e in mine if e.x == x)) for x in starts]
        assert all(not set(one) & set(two) for one, two in itertools.combinations(ranges, 2))
    assert {e.cell.first_seed for e in volumes.entries(scale) if e.varied in ("hidden_layers", "neurons")} == {0}


def test_large_cells_come_first_and_each_once() -> None:
    cells = volumes.cells("cpu")
    work = [cell.draws * cell.hidden_layers * cell.neurons for cell in cells]
    assert work == sorted(work, reverse=True)
    assert len({cell.name for cell in cells}) == len(cells) < len(volumes.entries("cpu"))


def test_an_unknown_scale_is_refused() -> None:
    with pytest.raises(ScenarioError, match=r"unknown scale 'huge'; known: full, cpu, smoke"):
        volumes.entries("huge")


# ---------------------------------------------------------------- smoke, as CI runs it


def run(folder: Path, **options: Any) -> Reported:
    return reproduce("E4", "smoke", folder, device="cpu", progress=False, say=lambda line: None, **options)


def text_of(outcome: Reported) -> str:
    return render(*outcome.shown(200), width=200, color=False)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The smoke scale, run once, and the text that a terminal shows."""
    folder = tmp_path_factory.mktemp("E4") / "E4-smoke"
    return folder, text_of(run(folder))


def test_smoke_fills_every_table(smoke: tuple[Path, str]) -> None:
    folder, text = smoke
    rows = json.loads((folder / "E4.json").read_text())["rows"]
    entries = volumes.entries("smoke")
    assert [(row["source"], row["varied"], row["x"]) for row in rows] == [(e.source, e.varied, e.x) for e in entries]
    assert len(list((folder / "cells").iterdir())) == len(volumes.cells("smoke"))
    for row in rows:
        assert row["bifurcated"] + row["agree"] + row["non_finite"] == row["draws"] == 4
        assert row["low"] <= row["share"] <= row["high"]
        assert row["verdict"] in ("no published figure", "other data", "not computed by the release")
        assert (folder / row["file"]).exists()
        # rounding the product before the bias makes hits by the thousand; float64 makes none
        assert row["bifurcated"] == {"bfloat16 emulated (product)": 4, "float64": 0}.get(
            row["arithmetic"], row["bifurcated"]
        )
    page = (folder / "E4.md").read_text()
    for sweep in SWEEP_TITLES.values():
        assert f"by {sweep}: share of random networks" in text
        assert f"by {sweep}: share of random networks" in page
    for needed in (
        "Clopper-Pearson",
        "Fisher's exact test",
        torch.__version__,
        "with replacement",
        "cpu",
        "[R22]",
        "## Limits",
    ):
        assert needed in page
    assert "…" not in text  # no column is cut


@pytest.mark.usefixtures("undrawn")
def test_a_narrow_terminal_gets_whole_words(smoke: tuple[Path, str], tmp_path: Path) -> None:
    """At 80 columns fewer columns, none of them cut."""
    folder = shutil.copytree(smoke[0], tmp_path / "E4")
    text = render(*run(folder).shown(80), width=80, color=False)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for heading in ("arithmetic", "ours", "share, 95 %", "published", "verdict"):
        assert heading in text
    assert "hits / M" not in text.partition("Half-widths")[0]


def test_a_second_smoke_run_computes_nothing(smoke: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("an engine was made")

    monkeypatch.setattr(volume_estimate, "_engine", refuse)
    before = [(smoke[0] / name).read_text() for name in ("E4.md", "E4.json")]  # with the seconds that it took
    assert text_of(run(smoke[0])) == smoke[1]
    assert [(smoke[0] / name).read_text() for name in ("E4.md", "E4.json")] == before


@pytest.mark.usefixtures("undrawn")
def test_a_resumed_run_has_only_its_own_draws_to_do(smoke: tuple[Path, str], tmp_path: Path) -> None:
    """What an earlier sitting decided is no step of this one."""
    folder = tmp_path / "E4"
    shutil.copytree(smoke[0], folder)
    first, second = volumes.cells("smoke")[:2]
    store = Store(folder / "cells")
    store.finished_path(first.name).unlink()
    content = json.loads(gzip.decompress(store.finished_path(second.name).read_bytes()))
    store.finished_path(second.name).unlink()
    estimate = Estimate.from_json(content["result"])
    half = {**columns(estimate.decisions[:3]), "hits": 0, "activations": 0, "wall_s": 0.0, "plan": ""}
    store.append(second.name, content["identity"], content["origin"], half)
    place = Place("smoke", folder, None, "cpu", "forking")
    assert {unit.name: (unit.done, unit.steps) for unit in volumes.E4.units(place)} == {
        first.name: (0, first.draws),
        second.name: (3, second.draws),
    }
    heard: list[Event] = []

    class Heard:
        def run(self, units: Sequence[Unit], listen: Listener | None = None) -> None:
            Local(1).run(units, heard.append)

    run(folder, backend=Heard())
    assert sum(event.steps for event in heard) == first.draws + 1
    assert any(event.note == f"{first.hidden_layers}x{first.neurons} {first.arithmetic.name}" for event in heard)
    # the resumed cell is what it was
    again = json.loads(gzip.decompress(store.finished_path(second.name).read_bytes()))["result"]
    assert [again[key] for key in ("outcomes", "batches")] == [content["result"][key] for key in ("outcomes", "batches")]


def test_smoke_draws_a_figure_for_each_sweep(smoke: tuple[Path, str]) -> None:
    paths = sorted((smoke[0] / "figures").iterdir())
    assert [path.name for path in paths] == sorted(f"volume_by_{varied}.png" for varied in volume_cell.SWEEPS)
    for path in paths:
        head = path.read_bytes()[:24]
        assert head[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", head[16:24])
        assert width > 500
        assert height > 500


def test_a_folder_of_another_run_is_not_overwritten(smoke: tuple[Path, str]) -> None:
    path = sorted((smoke[0] / "cells").iterdir())[0]
    kept = path.read_bytes()
    changed = packed({**json.loads(gzip.decompress(kept)), "schema": 1})
    path.write_bytes(changed)
    try:
        with pytest.raises(StoreError, match=r"has schema version 1, this relucheck reads 3"):
            run(smoke[0])
        assert path.read_bytes() == changed
    finally:
        path.write_bytes(kept)


# ---------------------------------------------------------------- verdicts, tables, figures


@functools.cache
def theirs(varied: str, bits: int, x: int, source: str = "B21") -> PublishedCell:
    cells = published.volume_cells()
    return next(
        cell for cell in cells if (cell.source, cell.varied, cell.precision_bits, cell.x) == (source, varied, bits, x)
    )


def line(beside: PublishedCell | None, bifurcated: int, *, draws: int = 100, non_finite: int = 0, **fields: object) -> Line:
    cell = Cell(draws=draws, **fields)  # type: ignore[arg-type]
    outcomes = ["bifurcate"] * bifurcated + ["non-finite"] * non_finite
    outcomes += ["agree"] * (draws - len(outcomes))
    decisions = tuple(Draw(seed, outcome, 0) for seed, outcome in enumerate(outcomes))  # type: ignore[arg-type]
    versions = {"torch": "2", "relucheck": "0", "python": "3", "processor": "a CPU"}
    found = Estimate(cell, decisions, 5, 10**6, 1.0, "0", "cpu", versions, "")
    varied, x = ("hidden_layers", 3) if beside is None else (beside.varied, beside.x)
    return Line(Entry("B21", varied, x, cell, beside, beside is not None and beside.computed), found)


def report(*lines: Line) -> Report:
    return Report("cpu", lines)


def test_verdicts_are_holms_over_the_tests_of_a_question() -> None:
    """An arithmetic and a release; tests that cannot differ, and those of other questions, are not counted."""
    near, far = theirs("hidden_layers", 32, 3), theirs("hidden_layers", 32, 1)
    lines = (
        line(near, 46),
        line(far, 80),
        line(near, 35),
        line(theirs("hidden_layers", 64, 3), 0, arithmetic="float64"),
        line(None, 3),
        line(theirs("neurons", 64, 64), 0, arithmetic="float64"),
        line(theirs("neurons", 16, 64), 100, arithmetic="float16"),
        line(theirs("neurons", 16, 16), 50, arithmetic="float16"),
    )
    judged = judge(report(*lines))
    assert [one.text for one in judged] == [
        *("not distinguished", "differs", "not distinguished"),
        *("not computed by the release", "no published figure", "no test: both 0", "no test: both 1", "differs"),
    ]
    assert judged[-1].adjusted == judged[-1].p  # the only test of its question
    raw = [proportions.exact_test(46, 100, 463, 1000), proportions.exact_test(80, 100, 54, 1000)]
    raw.append(proportions.exact_test(35, 100, 463, 1000))
    assert [one.p for one in judged[:3]] == raw
    assert [one.adjusted for one in judged[:3]] == holm(raw)
    assert raw[2] < 0.05 < holm(raw)[2]  # the correction decides here
    assert [one.p for one in judged[3:7]] == [None] * 4
    # alone it differs
    assert judge(report(lines[2]))[0].text == "differs"


def test_tables_show_counts_intervals_and_what_is_missing() -> None:
    lines = (
        line(theirs("hidden_layers", 32, 3), 46),
        line(theirs("hidden_layers", 64, 3), 0, arithmetic="float64", non_finite=2),
    )
    page = volume_page.markdown(report(*lines), judge(report(*lines)))
    first, second = [text for text in page.splitlines() if text.startswith("| 3 |")]
    bounds = proportions.interval(46, 100)
    for needed in ("46/100", f"0.460 [{bounds.low:.3f}, {bounds.high:.3f}]", "463/1000", "0.463 [0.432, 0.494]", "| 5 |"):
        assert needed in first
    assert "0/100 (2 non-finite)" in second
    assert "not computed by the release" in second
    assert "0/1000 |  |" in second  # no interval of what was not computed
    header = page[: page.index("| 3 |")].splitlines()[-2:]
    assert header[0].count("|") == header[1].count("|") == first.count("|") == second.count("|")


def test_notes_plan_the_draws_for_a_half_width() -> None:
    """For the cell of each arithmetic whose share is nearest to one half, as planned for that share."""
    lines = (line(None, 46), line(None, 2, network=mlp(784, 16, 3)), line(None, 0, arithmetic="float64"))
    (note,) = [text for text in volume_page.notes(report(*lines), ()) if "half-width of 0.05" in text]
    worst, none = proportions.draws_for(0.05, 0.46), proportions.draws_for(0.05, 0.0)
    assert none < proportions.draws_for(0.05, 0.02) < worst
    assert note.endswith(f"float32 {worst}; float64 {none}.")


def test_the_split_is_shown_everywhere(tmp_path: Path) -> None:
    one = line(None, 2)
    found = {one.estimate.cell.name: ZoneSplit(((0, "bifurcation"), (1, "compensation")))}
    text = render(*volume_page.write(report(one), tmp_path, found, figures=False)(200), width=200, color=False)
    assert json.loads((tmp_path / "E4.json").read_text())["split"] == {
        "float32": {"draws": 2, "networks": 2, "bifurcation": 1, "compensation": 1, "undecided": 0}
    }
    assert "| float32 | 2 | 2 | 1 | 1 | 0 |" in (tmp_path / "E4.md").read_text()
    assert "over the reals" in text


def test_figures_show_what_they_are_given(tmp_path: Path) -> None:
    """The picture changes with a share and with nothing else."""
    base = line(theirs("neurons", 16, 64), 40, arithmetic="float16")
    other = dataclasses.replace(base, estimate=line(None, 41, arithmetic="float16").estimate)
    drawn = [
        volume_figures.draw(report(one), tmp_path / str(index))[0].read_bytes()
        for index, one in enumerate((base, base, other))
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_points_stand_at_the_shares() -> None:
    from matplotlib.figure import Figure

    one = line(theirs("neurons", 16, 64), 40, arithmetic="float16")
    axes = Figure().subplots()
    volume_figures._panel(axes, [one])
    published_point, ours = axes.containers
    assert published_point.lines[0].get_ydata().tolist() == [1.0]
    assert ours.lines[0].get_ydata().tolist() == [0.4]
    bars = ours.lines[2][0].get_segments()[0][:, 1]
    bounds = proportions.interval(40, 100)
    assert bars.tolist() == pytest.approx([bounds.low, bounds.high])


def test_without_matplotlib_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match="a figure needs matplotlib"):
        volume_page.write(report(line(None, 1)), tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
