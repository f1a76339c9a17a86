"""The report of a training scenario: Markdown to read, JSON to compute with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from relucheck.reproduction.published import AGREEMENT, READ_OFF
from relucheck.reproduction.report import layers
from relucheck.reproduction.report.conclusion import conclusion, title
from relucheck.reproduction.report.deciding.page import LEGEND, case_table, claim_table
from relucheck.reproduction.report.nudges import tables as nudge_tables
from relucheck.reproduction.report.reasons import reason
from relucheck.reproduction.report.summary import Checked, Reproduction, group, kernel, label
from relucheck.reproduction.report.tables import legend, markdown, published_table
from relucheck.reproduction.scenario import Comparison
from relucheck.results.tables import Table, counted
from relucheck.training.results.result import Result
from relucheck.training.settings import Settings

#: Version of ``summary.json``.
SUMMARY_VERSION: Final = 4


def summary(reproduction: Reproduction) -> dict[str, Any]:
    """Build the content of ``summary.json``: what was run, cells, effects, claims, figures."""
    return {
        "schema": "relucheck-reproduction-summary",
        "schema_version": SUMMARY_VERSION,
        "scenario": reproduction.experiment.name,
        "scale": reproduction.scale,
        "missing": list(reproduction.missing),
        "runs": [
            {
                "comparison": comparison.name,
                "part": comparison.part,
                "digest": result.settings.digest,
                "settings": result.settings.to_json(),
                **{name: getattr(result, name) for name in ("device", "executor", "versions", "wall_s", "void")},
            }
            for comparison, result in reproduction.runs
        ],
        "cells": [cell.as_dict() for cell in reproduction.cells],
        "nudges": [nudges.as_dict() for nudges in reproduction.nudges],
        "effects": [effect.as_dict() for effect in reproduction.effects],
        "published": [checked.as_dict() for checked in reproduction.published],
        "claims": [decision.as_dict() for decision in reproduction.decisions],
        **(
            {"sections": {one.title: one.data for one in reproduction.sections if one.data is not None}}
            if reproduction.sections
            else {}
        ),
    }


def report(reproduction: Reproduction) -> str:
    """Format the report as Markdown; figures have relative paths."""
    lines = [f"# {title(reproduction)}", ""]
    if reproduction.void:
        lines += [
            f"**Void, because a control differed: {', '.join(reproduction.void)}. Nothing may be concluded from it.**",
            "",
        ]
    sentences = conclusion(reproduction)
    lines += [*(f"- {sentence}" for sentence in sentences), ""] if reproduction.sections else [" ".join(sentences), ""]
    first, *others = [_linked(reproduction, path) for path in reproduction.figures] or [""]
    lines += [first, ""] if first else []
    for section in reproduction.sections:
        lines += section.markdown()
    lines += _results(reproduction) if reproduction.experiment.tables else []
    lines += _outcomes(reproduction)
    if others:
        lines += ["## More figures", ""]
        for figure in others:
            lines += [figure, ""]
    lines += ["## Controls", "", "For every seed, s = 0 is run a second time from the start.", ""]
    lines += [*controls_table(reproduction.runs).markdown(), "", "## How it was run", "", *_facts(reproduction), ""]
    lines += [*how_table(reproduction.runs).markdown(), "", *settings_table(reproduction.runs).markdown(), ""]
    return "\n".join(lines)


def _results(reproduction: Reproduction) -> list[str]:
    """The tables of all comparisons, of hits by layer and of nudges."""
    published = reproduction.experiment.published_at(reproduction.scale)
    lines = ["## Results", "", *markdown(reproduction.cells, published)]
    images = reproduction.experiment.evaluated
    columns = legend(*(() if published else ("published %",)), images=images)
    lines += [*(f"- {line}" for line in columns), ""]
    lines += layers.markdown(reproduction.runs) if layers.BY_LAYER in reproduction.experiment.figures else []
    return lines + nudge_tables.markdown(reproduction.nudges, reproduction.effects, images)


def _linked(reproduction: Reproduction, path: Path) -> str:
    relative = os.path.relpath(path, reproduction.folder).replace(os.sep, "/")
    return f"![{path.stem}]({relative})"


def _facts(reproduction: Reproduction) -> list[str]:
    wall = sum(result.wall_s for _, result in reproduction.runs)
    executors = sorted({result.executor for _, result in reproduction.runs})
    facts = [
        f"- Published: {reproduction.experiment.source}.",
        f"- Scale {reproduction.scale}: {counted(len(reproduction.runs), 'comparison')}, {_duration(wall)} of training.",
    ]
    facts += [f"- Executor {_executor(name)}." for name in executors]
    return facts + [f"- Not run (yet): {', '.join(reproduction.missing)}."] * bool(reproduction.missing)


_EXECUTORS: Final = {
    "forking": "forking: each member runs by itself, with nn.Linear's kernels or the emulation that is named",
    "stacked": "stacked: all members share one torch.baddbmm per layer; native 16-bit ones on CUDA are forked, because "
    "batched products ignore the precision switches there. `--executor forking` runs nn.Linear's kernels, whose exact "
    "zeros may differ",
}


def _executor(name: str) -> str:
    return _EXECUTORS.get(name, name)


def _outcomes(reproduction: Reproduction) -> list[str]:
    """List the verdicts on published claims and figures."""
    if not (reproduction.decisions or reproduction.published):
        return []

    def why(checked: Checked) -> str:
        return reason(checked, reproduction.cells)

    lines = ["## Against the published figures", ""]
    if reproduction.decisions:
        lines += ["### Claims", "", *claim_table(reproduction.decisions).markdown(), ""]
        lines += [*case_table(reproduction.decisions).markdown(), "", *(f"- {line}" for line in LEGEND), ""]
    if reproduction.published:
        lines += ["### Test errors", "", *published_table(reproduction.published, why).markdown(), ""]
        lines += [
            "- confirmed: the measured mean is significantly within the margin of the published value, wherever that lies "
            "within its error of reading (TOST). refuted: it is significantly outside.",
            "- undecided: neither is shown; always so with one seed, or if a seed is lost, because its run diverged.",
            "- not run: no such run is here.",
            "- reason: given only where numbers of this run show it.",
        ]
        lines += [
            f"- published: read off, to within {READ_OFF:g} point, from a figure of one run on a GPU; its code injects the "
            "subgradient itself, which for s = 0 is the chain rule. Emulated arithmetics stand beside the published "
            "bfloat16.",
            f"- margin: the distance in points that is still confirmed. The published errors of neighbouring subgradients "
            f"are {AGREEMENT:g} points or more apart.",
            "- p confirms, p refutes: of the tests for and against the published value, each corrected by Holm over "
            "the rows that have a test.",
        ]
    return [*lines, ""]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


Runs = Sequence[tuple[Comparison, Result]]


def controls_table(runs: Runs) -> Table:
    """The outcome of the controls of each comparison."""
    body = []
    for comparison, result in runs:
        controls = group(result)[0.0, "chain", True]
        distances = [value for member in controls for value in member.steps.l1]
        largest = f"{max(distances):g}" if distances else "no step recorded"
        body.append([comparison.name, str(len(controls)), f"{len(distances):,}", largest, result.void or "identical"])
    return Table(["comparison", "controls", "recorded steps", "largest L1 distance", "outcome"], body)


def how_table(runs: Runs) -> Table:
    """Where and how each comparison was run."""
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


def settings_table(runs: Runs) -> Table:
    """What each comparison trained."""
    body = []
    for comparison, result in runs:
        settings = result.settings
        body.append(
            [
                comparison.name,
                network(settings),
                _images(settings),
                settings.optimiser.label,
                f"{settings.epochs} of {settings.batch_size} a batch, {'shuffled' if settings.shuffle else 'file order'}",
                ", ".join(map(str, settings.seeds)),
                settings.digest[:12],
            ]
        )
    return Table(["comparison", "network", "data", "optimiser", "epochs", "seeds", "digest"], body)


def _images(settings: Settings) -> str:
    """The training images in words, for example "mnist (12000 samples, 20 % held out)"."""
    held_out = f"{100 * settings.validation:g} % held out" if settings.validation is not None else ""
    details = (f"{settings.train_samples} samples" if settings.train_samples else "", held_out)
    return settings.data + (f" ({', '.join(filter(None, details))})" if any(details) else "")


def network(settings: Settings) -> str:
    """The network in words, for example "784-200-200-200-10, relu"."""
    return ", ".join((settings.network.name, *settings.network.traits))
