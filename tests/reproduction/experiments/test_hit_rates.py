"""The report on hit rates: tables, figure and the committed files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

from relucheck.hits.plans import Planned
from relucheck.hits.states import State
from relucheck.hits.trained import Measured
from relucheck.hits.validation import ValidatedLayer
from relucheck.reproduction.experiments import hit_rates
from relucheck.reproduction.experiments.results_files import ReportError
from relucheck.reproduction.report import rates
from relucheck.results.figures import png


def few_cells() -> list[ValidatedLayer]:
    return [
        ValidatedLayer("float16", "grey", 16, 1, 1, 4, 11.5, 12, 10**7),
        ValidatedLayer("float16", "grey", 64, 1, 1, 4, 30.0, 20, 10**7),
        ValidatedLayer("float64", "grey", 16, 1, 1, 4, 1e-9, 0, 10**5),
    ]


def test_tables(snapshot: SnapshotAssertion) -> None:
    tables = (rates.agreement_table(few_cells()), rates.shape_table(few_cells()))
    assert ["\n".join(table.markdown()) for table in tables] == snapshot


def _results(remark: str) -> hit_rates.Results:
    plan = Planned("net", "a step", "bfloat16", "bfloat16", "single", 9, 1.0, 2.0, 0.01)
    state = State("residual", 9, 1.0, density=0.2, offsets=(0.1, 0.2), near=0.03, sizes=(0.5,))
    measured = Measured("a training", 0, 13, (state,), 110.0, 100, 9000)
    trained = dataclasses.replace(plan, network="net, as a training after 13 steps", per_step=3.0)
    tables = [("float32", "float32")], [("bfloat16", "-")]
    return hit_rates.Results(few_cells(), 3.0, "2.0", [plan], [measured], [trained], *tables, "2.1", remark)


@pytest.mark.parametrize("remark", ["", "Two runs, put together: so it is."])
def test_results_are_written_whole_and_read_again(tmp_path: Path, remark: str) -> None:
    path = tmp_path / "hit_rates.json"
    results = _results(remark)
    path.write_text(results.json())
    assert hit_rates.read_results(path) == results
    content = json.loads(results.json())
    path.write_text(json.dumps({**content, "schema": 99}))
    with pytest.raises(ReportError, match="schema 99, this version reads 3"):
        hit_rates.read_results(path)
    path.write_text(json.dumps({**content, "remark": 3}))
    with pytest.raises(ReportError, match=r"hit_rates\.json: remark 3 is not text; write it as"):
        hit_rates.read_results(path)
    del content["planned"]
    path.write_text(json.dumps(content))
    with pytest.raises(ReportError, match="holds no results of hit rates: 'planned'"):
        hit_rates.read_results(path)
    path.write_text("{")
    with pytest.raises(ReportError, match="holds no results"):
        hit_rates.read_results(path)


COMMITTED = Path(__file__).parents[3] / "reports" / "volume"


@pytest.mark.skipif(not (COMMITTED / "hit_rates.json").exists(), reason="the reports are not part of this source tree")
def test_the_committed_report_is_the_commands(tmp_path: Path) -> None:
    """Every character of it comes from the committed results, and so does the figure, without computing anything."""
    results = COMMITTED / "hit_rates.json"
    assert hit_rates.main(["--cells", str(results), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "hit_rates.md").read_text() == (COMMITTED / "hit_rates.md").read_text()
    assert (tmp_path / "hit_rates.json").read_text() == results.read_text()


def test_the_figure_is_a_png() -> None:
    assert png(rates.figure(few_cells())).startswith(b"\x89PNG")


def test_plans_have_their_errors_beside_them() -> None:
    results = _results("")
    (row,) = rates.plan_table(results.planned).rows
    assert row[-2:] == ("2", "1.0 %")
    exact, tiny = (dataclasses.replace(results.planned[0], error=error) for error in (0.0, 1e-4))
    assert [one[-1] for one in rates.plan_table([exact, tiny]).rows] == ["0", "<0.1 %"]


def test_states_stand_beside_counted_hits() -> None:
    (measured,) = _results("").measured
    (row,) = rates.state_table([measured]).rows
    assert row == (
        *("a training", "13 steps", "0", "residual", "0.200, 3.00 % of sums", "0.150, 0.500", "110", "100", "1.10"),
    )
    other = dataclasses.replace(measured, planned=50.0)
    none = dataclasses.replace(measured, hits=0)
    assert rates.states_sentence([measured, other, none]) == (
        "Planned from their own states, the networks' hits are 0.50 to 1.10 times the counted ones, in 2 states with "
        "200 hits."
    )
    assert rates.states_sentence([none]) == "No hit was counted beside a state."


def test_the_sentence_on_plans_compares_trained_with_random_weights() -> None:
    results = _results("")
    late = [dataclasses.replace(results.trained[0], network="net, as a training after 50 steps", per_step=1.5)]
    assert rates.plans_sentence(results.planned, results.trained + late).endswith(
        "; from random to trained pre-activations, hits change by the factors 0.5 to 0.5 for net."
    )
    assert rates.plans_sentence(results.planned, []).endswith("by format and rounding.")
    assert rates.plans_sentence([], results.trained) == "No network is planned for."
