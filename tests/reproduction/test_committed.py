"""The committed results under reports/ belong to this version: schemas, digests and the file names that hold them."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from pathlib import Path

import pytest

from relucheck.reproduction import counted, trained
from relucheck.reproduction.counted import CountsScenario
from relucheck.reproduction.experiments import scenarios, volumes
from relucheck.reproduction.folder import MARK, described, differences
from relucheck.reproduction.report.deciding.page import page
from relucheck.reproduction.report.document import SUMMARY_VERSION
from relucheck.reproduction.report.hits.page import VERSION as COUNTS_VERSION
from relucheck.reproduction.scenario import Place
from relucheck.reproduction.stored import decide_folders
from relucheck.reproduction.trained import so_far
from relucheck.results.store import FINISHED
from relucheck.results.store import SCHEMA as STORE_SCHEMA
from relucheck.training.results.thinning import thinning
from relucheck.volume.cell import Cell, Estimate

COMMITTED = Path(__file__).parents[2] / "reports"
pytestmark = pytest.mark.skipif(not COMMITTED.exists(), reason="an sdist holds no committed results")


TRAINED = sorted(mark.parent.name for mark in (COMMITTED / "training").rglob(MARK))


def _place(folder: Path) -> tuple[trained.TrainingScenario, Place]:
    found = described(folder)
    scenario = scenarios()[found["scenario"]]
    assert isinstance(scenario, trained.TrainingScenario)
    return scenario, Place(found["scale"], folder, None, found["device"], found["executor"])


@pytest.mark.parametrize("name", TRAINED)
def test_committed_training_results_are_read_by_this_version(name: str) -> None:
    """Each run is one of the scenario's comparisons, by its digest; summary and report name the same digests."""
    scenario, place = _place(COMMITTED / "training" / name)
    comparisons = {comparison.name: comparison for comparison in scenario.comparisons(place.scale)}
    runs = [path.name for path in (place.folder / "runs").iterdir()]
    assert runs
    found = {run: so_far(place, comparisons[run]) for run in runs}  # of a lent device, some seeds
    results = {run: one[1] for run, one in found.items() if one is not None}
    assert set(results) == set(runs)
    assert differences(place, scenario, place.folder) == []
    text = (place.folder / "report.md").read_text(encoding="utf-8")
    for result in results.values():
        assert result.settings.digest[:12] in text
    summary = json.loads((place.folder / "summary.json").read_text(encoding="utf-8"))
    if isinstance(scenario, CountsScenario):
        assert summary["schema_version"] == COUNTS_VERSION
        return
    assert summary["schema_version"] == SUMMARY_VERSION
    assert {run["comparison"] for run in summary["runs"]} == set(runs)
    for run in summary["runs"]:
        result = results[run["comparison"]]
        assert run["settings"] == result.settings.to_json()
        assert run["digest"] == result.settings.digest


@pytest.mark.parametrize("name", TRAINED)
def test_committed_training_reports_are_those_of_the_committed_results(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every character of report and summary; the figures that the report links are there."""
    folder, copy = COMMITTED / "training" / name, tmp_path / name
    shutil.copytree(folder, copy)
    text = (folder / "report.md").read_text(encoding="utf-8")
    linked = [copy / path for path in re.findall(r"^!\[.*\]\((figures/.*)\)$", text, flags=re.MULTILINE)]
    assert sorted(linked) == sorted((copy / "figures").iterdir())
    monkeypatch.setattr(trained, "_figures", lambda *arguments: linked)
    monkeypatch.setattr(counted, "write_figures", lambda made: linked)
    scenario, place = _place(copy)
    scenario.report(place)
    for written in ("report.md", "summary.json"):
        assert (copy / written).read_text(encoding="utf-8") == (folder / written).read_text(encoding="utf-8")


def test_the_committed_page_on_claims_is_that_of_the_committed_results() -> None:
    """Every folder of results decides, of E4 the one with most draws.

    Nothing but the package and these folders does, so the page is reproducible.
    """
    folders = sorted(mark.parent for mark in COMMITTED.rglob(MARK) if mark.parent.name != "E4-cuda")
    assert (COMMITTED / "claims.md").read_text(encoding="utf-8") == page(decide_folders(folders))


def test_committed_results_say_that_they_are_thinned() -> None:
    """Each by the rule of its scenario, so that no file holds more than its report needs."""
    folders = sorted(mark.parent for mark in (COMMITTED / "training").rglob(MARK))
    assert folders
    for folder in folders:
        scenario = scenarios()[json.loads((folder / MARK).read_text(encoding="utf-8"))["scenario"]]
        assert isinstance(scenario, trained.TrainingScenario)
        files = [path for kind in ("runs", "nudges") for path in (folder / kind).glob("*/*")]
        assert files
        for path in files:
            assert json.loads(gzip.decompress(path.read_bytes()))["result"]["thinned"] == thinning(scenario.figures)


def test_reports_are_small() -> None:
    assert sum(path.stat().st_size for path in COMMITTED.rglob("*") if path.is_file()) < 20e6


def test_committed_volumes_are_read_by_this_version() -> None:
    """Each cell of the scale lies under its name, with its split, and E4.json points to it."""
    folder = COMMITTED / "volume" / "E4"
    cells = {cell.name: cell for cell in volumes.cells("cpu")}
    assert {path.name for path in (folder / "cells").iterdir()} == {f"{name}{FINISHED}" for name in cells}
    assert {path.name for path in (folder / "splits").iterdir()} == {f"split-{name}{FINISHED}" for name in cells}
    for name, cell in cells.items():
        content = json.loads(gzip.decompress((folder / "cells" / f"{name}{FINISHED}").read_bytes()))
        assert content["schema"] == STORE_SCHEMA
        assert content["identity"]["cell"] == cell.deciding
        assert Estimate.from_json(content["result"], cell.varied).cell == cell
        half = json.loads(gzip.decompress((folder / "splits" / f"split-{name}{FINISHED}").read_bytes()))
        assert (half["schema"], half["identity"]["cell"]) == (STORE_SCHEMA, cell.deciding)
    table = json.loads((folder / "E4.json").read_text(encoding="utf-8"))
    assert table["schema"] == STORE_SCHEMA
    for row in table["rows"]:
        assert row["file"] == f"cells/{Cell.from_json(row['cell']).name}{FINISHED}"
        assert row["cell"]["arithmetic"] == row["arithmetic"]
    assert differences(Place("cpu", folder, None, "cpu", "forking"), volumes.E4, folder) == []
