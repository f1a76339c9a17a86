"""Write the figures of a training report."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from relucheck.reproduction.report.figures.kinds import FIGURES, Drawing
from relucheck.reproduction.report.figures.overview import differences
from relucheck.reproduction.report.figures.panels import Nudges, Runs
from relucheck.reproduction.scenario import Experiment
from relucheck.results.figures import save

COLUMNS: Final = 4  # arithmetics in one figure


def draw(
    experiment: Experiment,
    scale: str,
    runs: Runs,
    folder: Path,
    *,
    nudges: Nudges | None = None,
    figures: Mapping[str, Drawing] | None = None,
) -> list[Path]:
    """Write the figures of each part of the results as PNG files; return their paths.

    A part with more arithmetics than fit goes on in further files; files of an earlier call for the part that this one has
    no use for are removed. Void comparisons are drawn and say so. ``nudges`` are those of the comparisons that
    have any, by their names. ``figures`` are the kinds that can be drawn, by name.

    Raises:
        ImportError: without matplotlib; says how to install it.
    """
    written: list[Path] = []
    if experiment.overview:
        written.append(folder / "differences.png")
        save(differences(experiment, scale, runs), written[0])
    for part in dict.fromkeys(comparison.part for comparison, _ in runs):
        shown = [run for run in runs if run[0].part == part]
        pages = [shown[start : start + COLUMNS] for start in range(0, len(shown), COLUMNS)]
        for kind in experiment.figures:
            for number, page in enumerate(pages, start=1):
                page_name = f"-{number}" if len(pages) > 1 else ""
                path = folder / f"{_slug(part)}-{kind}{page_name}.png"
                save((figures or FIGURES)[kind](experiment, scale, part, page, nudges or {}), path)
                written.append(path)
            # pages of an earlier report, which had more or fewer of them
            name = re.compile(rf"{re.escape(f'{_slug(part)}-{kind}')}(-\d+)?\.png")
            for old in folder.glob("*.png"):
                if name.fullmatch(old.name) and old not in written:
                    old.unlink(missing_ok=True)
    for old in folder.glob("*-of-*-seed*.png"):  # of a part that has more seeds by now
        if re.search(r"-\d+-of-\d+-seeds?-", old.name) and old not in written:
            old.unlink(missing_ok=True)
    return written


def _slug(text: str) -> str:
    return "-".join("".join(sign if sign.isalnum() else " " for sign in text.lower()).split())
