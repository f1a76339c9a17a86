"""The report on hits behind batch norm and residual sums: what is run, tables, sentences and the committed files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from relucheck.hits.normed import Expected, Forecast
from relucheck.networks.network import Network
from relucheck.networks.sites import Site
from relucheck.numerics.determinism import generator
from relucheck.reproduction.experiments import hits_by_layer
from relucheck.reproduction.experiments.hits_by_layer import Cell, Results, Run
from relucheck.reproduction.experiments.results_files import ReportError

SUM = Site("blocks.0.activation2", "ReLU", (0.0,), "residual sum", 3, True)
NORM = Site("activation", "ReLU", (0.0,), "batch norm", 1, True)
CONV = Site("fc", "ReLU", (0.0,), "convolution", 2, True)


def few_cells() -> list[Cell]:
    def cell(site: Site, after: int, hits: int, repeated: int, expected: Expected | None, name: str = "net") -> Cell:
        return Cell(name, "bfloat16", after, Forecast(site, 0.0, 10**6, hits, repeated, expected))

    return [
        cell(NORM, 0, 0, 0, Expected(1e-3, 300)),
        cell(SUM, 0, 100, 0, Expected(120.0, 4000, 300.0)),
        cell(SUM, 13, 400, 300, Expected(110.0, 3500, 90.0, 20.0)),
        cell(CONV, 0, 0, 0, None),
    ]


def results() -> Results:
    return Results(few_cells(), True, 12.0, "2.0")


def test_tables() -> None:
    rows = hits_by_layer.by_source_table(few_cells()).rows
    assert [row[:3] for row in rows] == [
        ("net", "bfloat16", before) for before in ("batch norm", "residual sum", "convolution")
    ]
    assert rows[1][4:] == ("1", "2,000,000", "500", "230", "0.46 (0.42-0.50)")
    assert rows[0][-2:] == ("0.001", "-")
    assert rows[2][-2:] == ("not predicted", "-")
    layers = hits_by_layer.by_layer_table(few_cells()).rows
    assert layers == [
        ("blocks.0.activation2", "0 steps", "100", "120", "1.20", "0", "0", "1.20", "3.00"),
        ("blocks.0.activation2", "13 steps", "400", "110", "0.28", "300", "20", "0.90", "0.23"),
    ]


def test_the_conclusion_names_what_is_far_off_and_says_why() -> None:
    first, second, third = hits_by_layer.conclusion(results())
    assert first.startswith("1 of 2 residual sums with at least 10 predicted hits have a prediction within a factor of 2")
    assert "blocks.0.activation2 after 13 steps (net)" in second
    assert "Without these pairs, 1 of the 1 predictions is within that factor." in second
    counted = "Behind batch norm, 0 hits at 0 among 1,000,000 pre-activations were counted and 0.001 predicted."
    assert third == counted
    cells = few_cells()
    worse = dataclasses.replace(cells[2].forecast, repeated=0)
    cells[2] = dataclasses.replace(cells[2], forecast=worse)
    still = hits_by_layer.conclusion(dataclasses.replace(results(), cells=cells))[1]
    assert "Without these pairs, 0 of the 1 predictions are" in still
    near = hits_by_layer.conclusion(dataclasses.replace(results(), cells=cells[:2]))
    assert [len(near), near[0][:6]] == [2, "1 of 1"]


def test_results_are_written_whole_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "hits.json"
    path.write_text(results().json())
    assert hits_by_layer.read_results(path) == results()
    content = json.loads(results().json())
    path.write_text(json.dumps({**content, "schema": 99}))
    with pytest.raises(ReportError, match="schema 99, this version reads 1"):
        hits_by_layer.read_results(path)
    for wrong in ("{", json.dumps({**content, "cells": [{}]})):
        path.write_text(wrong)
        with pytest.raises(ReportError, match="holds no hits by layer"):
            hits_by_layer.read_results(path)


def test_a_run_trains_and_pools_seeds_and_mini_batches() -> None:
    network = Network("resnet", (4,), batch_norm=True, input_shape=(1, 8, 8))
    images = torch.randn(256, 1, 8, 8, generator=generator(0))
    labels = torch.randint(10, (256,), generator=generator(1))
    run = Run("tiny", network, "bfloat16 emulated (rounded)", (0, 1), (0, 3), 2)
    cells = hits_by_layer.carry_out(run, images, labels)
    assert [(cell.after, cell.forecast.site.depth) for cell in cells] == [(s, d) for s in (0, 3) for d in (1, 2, 3)]
    assert {cell.forecast.activations for cell in cells} == {2 * 2 * 128 * 4 * 64}
    untrained, trained = cells[2].forecast, cells[5].forecast
    assert untrained.hits > 30
    assert trained != untrained
    one = hits_by_layer.carry_out(dataclasses.replace(run, seeds=(0,), after=(3,), batches=1), images, labels)
    assert 0 < one[2].forecast.hits < trained.hits


def test_runs_are_of_the_published_networks() -> None:
    assert [run.network.kind for run in hits_by_layer.runs()] == [
        *("resnet-convolved-skips", "resnet", "resnet-convolved-skips", "mobilenet-v3-small")
    ]
    assert {run.after for run in hits_by_layer.runs()} == {(0, 13, 50)}


COMMITTED = Path(__file__).parents[3] / "reports" / "training"


@pytest.mark.skipif(not (COMMITTED / "hits.json").exists(), reason="the reports are not part of this source tree")
def test_the_committed_report_is_the_commands(tmp_path: Path) -> None:
    assert hits_by_layer.main(["--out", str(tmp_path), "--cells", str(COMMITTED / "hits.json")]) == 0
    for name in ("hits.md", "hits.json"):
        assert (tmp_path / name).read_bytes() == (COMMITTED / name).read_bytes()
