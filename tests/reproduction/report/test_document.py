"""The report and its summary, whole."""

from __future__ import annotations

import json
from pathlib import Path

from syrupy.assertion import SnapshotAssertion

from relucheck.reproduction.report import summary as report_summary
from relucheck.reproduction.report.document import report, summary
from relucheck.reproduction.report.summary import Reproduction
from tests.helpers.made_up import E2, runs_of_e2


def test_report_and_summary(tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    runs = tuple(runs_of_e2())
    cells = tuple(report_summary.analyse(runs))
    drawn = (tmp_path / "figures" / "one.png",)
    whole = Reproduction(E2, "cpu", tmp_path, runs, ("float16",), cells, figures=drawn)
    assert report(whole) == snapshot
    body = json.loads(json.dumps(summary(whole), allow_nan=False))
    assert body["schema_version"] == 4
    assert {run["comparison"] for run in body["runs"]} == {"float32", "bfloat16"}
    assert len(body["cells"]) == len(cells)
    assert "](figures/one.png)" in report(whole)
    assert "](figures" not in report(Reproduction(E2, "cpu", tmp_path, runs, (), cells))
