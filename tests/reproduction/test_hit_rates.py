"""The report on hit rates: tables, figure and the committed files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

from relucheck.hits.validation import ValidatedLayer
from relucheck.reproduction.experiments import hit_rates
from relucheck.results.figures import png
from relucheck.results.tables import Table


def few_cells() -> list[ValidatedLayer]:
    return [
        ValidatedLayer("float16", "grey", 16, 1, 1, 4, 11.5, 12, 10**7),
        ValidatedLayer("float16", "grey", 64, 1, 1, 4, 30.0, 20, 10**7),
        ValidatedLayer("float64", "grey", 16, 1, 1, 4, 1e-9, 0, 10**5),
    ]


def test_tables(snapshot: SnapshotAssertion) -> None:
    tables = (hit_rates.agreement_table(few_cells()), hit_rates.shape_table(few_cells()))
    assert ["\n".join(table.markdown()) for table in tables] == snapshot


@pytest.mark.parametrize("remark", ["", "Two runs, put together: so it is."])
def test_results_are_written_whole_and_read_again(tmp_path: Path, remark: str) -> None:
    path = tmp_path / "hit_rates.json"
    results = hit_rates.Results(few_cells(), 3.0, remark)
    path.write_text(results.json())
    assert hit_rates.read_results(path) == results
    content = json.loads(results.json())
    del content["remark"]  # as earlier versions wrote it
    path.write_text(json.dumps(content))
    assert hit_rates.read_results(path) == dataclasses.replace(results, remark="")
    path.write_text(json.dumps({**content, "schema": 99}))
    with pytest.raises(hit_rates.ReportError, match="schema 99, this version reads 1"):
        hit_rates.read_results(path)
    path.write_text(json.dumps({**content, "remark": 3}))
    with pytest.raises(hit_rates.ReportError, match=r"hit_rates\.json: remark 3 is no text; write it as"):
        hit_rates.read_results(path)
    path.write_text("{")
    with pytest.raises(hit_rates.ReportError, match="holds no results"):
        hit_rates.read_results(path)


COMMITTED = Path(__file__).parents[2] / "reports" / "volume"


@pytest.mark.skipif(not (COMMITTED / "hit_rates.json").exists(), reason="the reports are not part of this source tree")
def test_the_committed_report_is_the_templates() -> None:
    """Written by the command and not by hand: what does not depend on this machine is as the command writes it."""
    found = hit_rates.read_results(COMMITTED / "hit_rates.json")
    written = hit_rates.report(found, [], Table(("heading",), []))
    page = (COMMITTED / "hit_rates.md").read_text()
    begin, end = "## Validation", "### What this CPU's linear layers do"
    assert found.remark
    theirs, ours = (text[text.index(begin) : text.index(end)].splitlines() for text in (page, written))
    assert [one for one, other in zip(theirs, ours, strict=False) if one != other] == []
    assert len(theirs) == len(ours)
    for part in (hit_rates._NOTES.strip(), f"took {found.seconds:,.0f} s of CPU time", "writes this file"):
        assert part in page


def test_the_figure_is_a_png() -> None:
    assert png(hit_rates.figure(few_cells())).startswith(b"\x89PNG")
