"""What every reproduction must satisfy, at smoke and at full scale alike."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from pathlib import Path

from relucheck.networks.sites import chosen
from relucheck.reproduction.report.summary import Reproduction
from relucheck.reproduction.scenario import Comparison
from relucheck.training.results.result import NO_EFFECT, NO_LIVE_HIT, MemberResult, Result
from relucheck.training.settings import Settings


def comparisons_are_well_formed(comparisons: Sequence[Comparison]) -> None:
    """Names and settings differ, names are those of files, and settings are the same after a way through JSON."""
    names = [comparison.name for comparison in comparisons]
    assert len(set(names)) == len(names)
    assert len({(comparison.settings.digest, comparison.settings.seeds) for comparison in comparisons}) == len(names)
    for comparison in comparisons:
        assert re.fullmatch(r"[a-z0-9-]+", comparison.name), "it is a file name"
        assert Settings.from_json(json.loads(json.dumps(comparison.settings.to_json()))) == comparison.settings


def control_is_identical(result: Result) -> None:
    """The second run of s = 0 differs by exactly 0 at every recorded step, and in no step at all."""
    assert result.void is None
    for seed in result.settings.seeds:
        control = result.find(seed, 0.0, control=True)
        reference = result.find(seed, 0.0)
        assert control.first_difference is None
        assert control.steps.l1 == [0.0] * len(control.steps.step)
        assert control.steps.l2 == [0.0] * len(control.steps.step)
        assert control.steps.sum_difference == [0.0] * len(control.steps.step)
        assert (control.epochs, control.hits) == (reference.epochs, reference.hits)
        assert control.steps.step or reference.diverged


def shapes_fit(result: Result) -> None:
    """Lists are as long as epochs, steps, layers and kinks say."""
    settings = result.settings
    assert [member.member for member in result.members] == list(settings.members)
    for member in result.members:
        steps = member.steps
        assert len(steps.step) == len(steps.l1) == len(steps.l2) == len(steps.sum_difference)
        assert steps.step == sorted(set(steps.step))
        # a nudge that never moved was not trained
        untrained = member.member.nudge is not None and member.outcome in (NO_LIVE_HIT, NO_EFFECT)
        assert len(member.epochs) == (0 if untrained else settings.epochs) or member.diverged
        for epoch, hits, activations in zip(member.epochs, member.hits, member.activations, strict=False):
            assert len(hits) == len(activations) == len(chosen(settings.network))
            assert all(len(kinks) == len(settings.network.kinks) for kinks in hits)
            assert 0 <= epoch.test_accuracy <= 1
            assert epoch.test_batch_accuracies
        differs = any(value > 0 for value in steps.l1)
        assert not differs or member.first_difference is not None


def no_hits_no_difference(result: Result) -> None:
    """A seed whose reference meets no kink is one run for all subgradients and rules, bit for bit.

    A reference that diverged does not count: its hits end with its last finished epoch, those of the others do not.
    """
    for seed in result.settings.seeds:
        if result.find(seed, 0.0).diverged:
            continue
        if any(kink for epoch in result.find(seed, 0.0).hits for layer in epoch for kink in layer):
            continue
        for member in _of(result, seed):
            assert member.first_difference is None


def _of(result: Result, seed: int) -> list[MemberResult]:
    return [member for member in result.members if member.member.seed == seed]


def rules_differ(result: Result) -> None:
    """The injected rule moves the weights much further than the chain rule, for every seed and s, and hits are there."""
    for seed in result.settings.seeds:
        chain = {m.member.subgradient: m for m in _of(result, seed) if m.member.rule == "chain" and m.member.subgradient}
        injected = {m.member.subgradient: m for m in _of(result, seed) if m.member.rule == "injected"}
        assert set(chain) == set(injected)
        for s, member in chain.items():
            assert member.steps.l1[-1] > 0
            assert injected[s].steps.l1[-1] > 3 * member.steps.l1[-1]


def report_is_complete(made: Reproduction) -> None:
    """Report, summary and figures are there, and say device, versions, settings and wall time of every comparison."""
    assert made.missing == ()
    assert made.void == ()
    assert [comparison for comparison, _ in made.runs] == list(made.experiment.comparisons(made.scale))
    text = (made.folder / "report.md").read_text(encoding="utf-8")
    summary = json.loads((made.folder / "summary.json").read_text(encoding="utf-8"))
    assert len(summary["runs"]) == len(made.runs)
    for comparison, result in made.runs:
        name = f"`{comparison.name}`" if made.experiment.tables else comparison.name
        for needed in (name, result.settings.digest[:12], result.device, result.versions["torch"]):
            assert needed in text
    verdicts = {cell.paired.verdict for cell in made.cells if cell.paired}
    assert verdicts <= {"differs", "equivalent", "identical", "undecided"}
    parts = {comparison.part for comparison, _ in made.runs}
    assert len(made.figures) >= len(parts) * len(made.experiment.figures)
    for path in made.figures:
        assert png_size(path) > (400, 300)
        assert path.relative_to(made.folder).as_posix() in text


def png_size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG file, from its header."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    return width, height


def everything(made: Reproduction) -> None:
    """All of the above that holds for any comparison."""
    for _, result in made.runs:
        control_is_identical(result)
        shapes_fit(result)
        no_hits_no_difference(result)
    report_is_complete(made)
