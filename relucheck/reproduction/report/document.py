"""The report of a training scenario: Markdown to read, JSON to compute with."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Final

from relucheck.reproduction.published import READ_OFF
from relucheck.reproduction.report.claims import reason
from relucheck.reproduction.report.summary import Checked, Reproduction, group, kernel, label
from relucheck.reproduction.report.tables import LEGEND, claim_table, markdown, published_table
from relucheck.reproduction.scenario import Comparison
from relucheck.results.tables import Table
from relucheck.training.result import Result
from relucheck.training.settings import Settings

#: Version of ``summary.json``.
SUMMARY_VERSION: Final = 3


def summary(made: Reproduction) -> dict[str, Any]:
    """What ``summary.json`` holds: scenario, scale, runs (settings, device, versions, wall time), cells, figures."""
    return {
        "schema": "relucheck-reproduction-summary",
        "schema_version": SUMMARY_VERSION,
        "scenario": made.experiment.name,
        "scale": made.scale,
        "missing": list(made.missing),
        "runs": [
            {
                "comparison": comparison.name,
                "part": comparison.part,
                "digest": result.settings.digest,
                "settings": result.settings.to_json(),
                **{name: getattr(result, name) for name in ("device", "executor", "versions", "wall_s", "void")},
            }
            for comparison, result in made.runs
        ],
        "cells": [cell.as_dict() for cell in made.cells],
        "published": [checked.as_dict() for checked in made.published],
        "findings": [dataclasses.asdict(claim) for claim in made.claims],
    }


def report(made: Reproduction) -> str:
    """The report as Markdown; figures are linked by their paths below the folder."""
    experiment = made.experiment
    wall = sum(result.wall_s for _, result in made.runs)
    executors = sorted({result.executor for _, result in made.runs})
    lines = [
        f"# {experiment.name}: {experiment.title}",
        "",
        f"Published: {experiment.source}. Scale {made.scale}; {_counted(len(made.runs))}, {_duration(wall)} of training.",
        "",
    ]
    if executors:
        lines += [f"Executor: {'; '.join(map(_executor, executors))}.", ""]
    if made.missing:
        lines += [f"Not run (yet): {', '.join(made.missing)}.", ""]
    if made.void:
        lines += [f"**Void, as a control differed: {', '.join(made.void)}.**", ""]
    lines += ["## Results", "", _sentence(LEGEND), "", *markdown(made.cells, experiment.published_at(made.scale))]
    lines += _outcomes(made)
    if made.figures:
        lines += ["## Figures", ""]
    for path in made.figures:
        relative = os.path.relpath(path, made.folder).replace(os.sep, "/")
        lines += [f"![{path.stem}]({relative})", ""]
    lines += ["## Controls", "", "A second run of s = 0 for every seed, really computed.", ""]
    lines += [*_controls(made.runs).markdown(), "", "## How it was run", "", *_how(made.runs).markdown(), ""]
    lines += [*_settings(made.runs).markdown(), ""]
    return "\n".join(lines)


_EXECUTORS: Final = {
    "forking": "forking (each member by itself, with nn.Linear's own kernels or the emulation that is named)",
    "stacked": "stacked (all members in one torch.baddbmm per layer, 16-bit ones on CUDA in one nn.Linear each, as batched "
    "products heed no switch there; `--executor forking` runs nn.Linear's own kernels, whose exact zeros may be others)",
}


def _executor(name: str) -> str:
    return _EXECUTORS.get(name, name)


def _outcomes(made: Reproduction) -> list[str]:
    """What agrees and what does not, finding by finding and figure by figure."""
    if not (made.claims or made.published):
        return []

    def why(checked: Checked) -> str:
        return reason(checked, made.cells)

    lines = [
        "## What agrees and what does not agree with the published figures",
        "",
        "agrees: the published range and the measured 95 % interval meet, or the finding in words holds in this run; "
        "disagrees: they do not, or it does not; one run: fewer than 2 seeds, nothing to test with; not measured: "
        "no such run here. Reasons are given where the numbers of this run show them.",
        "",
    ]
    if made.claims:
        lines += ["### Published findings", "", *claim_table(made.claims).markdown(), ""]
    if made.published:
        text = (
            f"Read off, to within {READ_OFF:g} point, from a figure of one run on a GPU whose code injects the subgradient "
            "itself (for s = 0 that is the chain rule). Emulated arithmetics stand beside the published bfloat16."
        )
        lines += ["### Published figures", "", text, "", *published_table(made.published, why).markdown(), ""]
    return lines


def _counted(number: int) -> str:
    return f"{number} comparison{'s' * (number != 1)}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


_Runs = tuple[tuple[Comparison, Result], ...]


def _controls(runs: _Runs) -> Table:
    body = []
    for comparison, result in runs:
        controls = group(result)[0.0, "chain", True]
        distances = [value for member in controls for value in member.steps.l1]
        largest = f"{max(distances):g}" if distances else "no step recorded"
        body.append([comparison.name, str(len(controls)), f"{len(distances):,}", largest, result.void or "identical"])
    return Table(["comparison", "controls", "recorded steps", "largest L1 distance", "outcome"], body)


def _how(runs: _Runs) -> Table:
    body = [
        [
            comparison.name,
            label(result.settings),
            result.device,
            f"{result.executor} ({kernel(result)})",
            ", ".join(f"{name} {version}" for name, version in result.versions.items()),
            _duration(result.wall_s),
        ]
        for comparison, result in runs
    ]
    return Table(["comparison", "arithmetic", "device", "executor", "versions", "wall time"], body)


def _settings(runs: _Runs) -> Table:
    body = []
    for comparison, result in runs:
        settings = result.settings
        body.append(
            [
                comparison.name,
                network(settings),
                settings.data + (f" ({settings.train_samples} samples)" if settings.train_samples else ""),
                settings.optimiser.label,
                f"{settings.epochs} of {settings.batch_size} a batch, {'shuffled' if settings.shuffle else 'file order'}",
                ", ".join(map(str, settings.seeds)),
                settings.digest[:12],
            ]
        )
    return Table(["comparison", "network", "data", "optimiser", "epochs", "seeds", "digest"], body)


def network(settings: Settings) -> str:
    """The network in words, for example "784-200-200-200-10, relu"."""
    return ", ".join((settings.network.name, *settings.network.traits))
