"""The report of an audit: sections with text and tables, for a terminal and as Markdown."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from rich.console import RenderableType
from rich.text import Text

from relucheck.auditing.examined import Examined
from relucheck.auditing.outlook import Outlook
from relucheck.auditing.trained import Band, Run, Trained
from relucheck.results.tables import Table, counted, listed, with_verb

if TYPE_CHECKING:
    from relucheck.auditing.result import Audit, InArithmetic

_LAYERS: Final = 12  # how many layers are listed


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        title: its heading.
        before: text above the table.
        table: None for a section of text.
        after: text below the table.
    """

    title: str
    before: str
    table: Table | None = None
    after: str = ""


def sections(audit: Audit) -> Iterator[Section]:
    """The sections below the conclusion, in the order of the report."""
    yield _wiring(audit)
    yield _unreached(audit)
    for part in audit.parts:
        where = f" in {part.arithmetic}" if len(audit.parts) > 1 else ""
        yield _hits(part.examined, where)
        yield _batches(part.examined, where)
        yield _predicted(part.examined, audit.samples, where)
        yield _training(part, where)


def _wiring(audit: Audit) -> Section:
    answers = sum(wire.verdict == "answers" for wire in audit.wires)
    others = [wire for wire in audit.wires if wire.verdict != "answers"]
    answer = with_verb(answers, "answers", "answer")
    before = f"Of {counted(len(audit.wires), 'activation')}, {answer} to a subgradient setting by the chain rule."
    if not others:
        return Section("Wiring", before)
    rows = [(wire.site, wire.activation, wire.verdict, wire.detail) for wire in others]
    after = ""
    if audit.unserved:
        after = "Beyond the reach of this audit, too: " + listed([wire.site for wire in audit.unserved]) + "."
    return Section("Wiring", before, Table(("activation", "kind", "verdict", "why"), rows), after)


def _unreached(audit: Audit) -> Section:
    title, found = "Kinks out of reach", audit.unreached
    if not found:
        return Section(title, "None: the setting decides at every kink that a gradient meets.")
    rows = [(one.node, str(one.count), one.first) for one in found]
    table = Table(("function", "calls", "the first at"), rows, right=("calls",))
    return Section(title, "Functions with kinks or ties that keep torch's gradient in every run.", table)


def _hits(examined: Examined, where: str) -> Section:
    ordered = sorted((layer for layer in examined.layers if layer.hits), key=lambda layer: -layer.hits)
    before = (
        f"{with_verb(examined.hits, 'pre-activation is', 'pre-activations are')} exactly at a kink before training, of "
        f"{examined.activations:,} in {_batches_in_words(len(examined.batches))}."
    )
    if not ordered:
        return Section(f"Hits by layer{where}", before)
    rows = [
        (
            layer.site,
            f"{layer.activation} at {layer.kink:g}",
            f"{layer.hits:,}",
            f"{1e6 * layer.hits / layer.activations:,.1f}",
        )
        for layer in ordered[:_LAYERS]
    ]
    table = Table(("layer", "kink", "hits", "per million"), rows, right=("hits", "per million"))
    after = f"{len(ordered) - _LAYERS} more layers have hits. " if len(ordered) > _LAYERS else ""
    quiet = len({layer.site for layer in examined.layers} - {layer.site for layer in ordered})
    after += f"{counted(quiet, 'layer')} without a hit." if quiet else ""
    return Section(f"Hits by layer{where}", before, table, after.strip())


def _batches(examined: Examined, where: str) -> Section:
    counts = collections.Counter(batch.finding for batch in examined.batches)
    before = "Gradients of s = 0 and s = 1: " + listed([f"{number} {name}" for name, number in counts.items()]) + "."
    rows = [
        (
            str(batch.batch),
            batch.outcome,
            batch.zone or ("-" if batch.outcome != "bifurcate" else "not evaluated"),
            f"{batch.hits:,}",
            str(batch.parameters),
            f"{batch.largest:.2g}",
        )
        for batch in examined.batches
    ]
    header = ("batch", "outcome", "over the reals", "hits", "parameters", "largest")
    why = next((batch.unserved for batch in examined.batches if batch.unserved), "")
    after = f"Not evaluated over the reals: {why}." if why else ""
    return Section(f"Mini-batches{where}", before, Table(header, rows, right=header[3:]), after)


def _predicted(examined: Examined, samples: int, where: str) -> Section:
    scale = samples / examined.samples
    before = (
        f"A training step of {counted(samples, 'sample')} has {_number(examined.counted(samples))} hits at the counted "
        f"rate, and {_number(examined.expected(samples))} by prediction. A rule of prediction covers "
        f"{examined.covered:.0%} of the pre-activations."
    )
    groups: dict[str, list[Outlook]] = {}
    for one in examined.outlooks:
        groups.setdefault(one.before, []).append(one)
    rows = []
    for name, group in groups.items():
        known = [one.expected for one in group if one.expected is not None]
        predicted = _number(sum(known) * scale) if len(known) == len(group) else "no rule" if not known else "in part"
        seen, hits = (sum(values) * scale for values in zip(*((one.activations, one.hits) for one in group), strict=True))
        rows.append((name, f"{seen:,.0f}", predicted, _number(hits)))
    header = ("behind", "pre-activations", "predicted hits", "counted hits")
    reasons = dict.fromkeys(one.reason for one in examined.outlooks if one.reason)
    after = f"Without a prediction: {'; '.join(reasons)}." if reasons else ""
    return Section(f"Hits per training step{where}", before, Table(header, rows, right=header[1:]), after)


def _training(part: InArithmetic, where: str) -> Section:
    title, trained = f"Training{where}", part.trained
    if trained is None:
        return Section(title, "Nothing was trained.")
    header = ("run", "loss", "at the end", "distance", "hits", "differs from step")
    rows = [
        (
            run.name if run.outcome == "finished" else f"{run.name}: {run.outcome}",
            _number(run.loss),
            _number(run.last_loss),
            _number(run.distance),
            "-" if run.hits is None else f"{run.hits:,}",
            "-" if run.first_difference is None else str(run.first_difference),
        )
        for run in _told_apart(trained)
    ]
    before = (
        f"{trained.steps} steps with {part.optimiser}. The loss is the mean training loss over the second half of the "
        "steps; at the end, over the last tenth. The distance is the L2 norm of the weights less those of s = 0, after the "
        "last step."
    )
    return Section(title, before, Table(header, rows, right=header[1:]), _bands(trained))


def _told_apart(trained: Trained) -> Iterator[Run]:
    """The runs, with nudges that were not trained for one reason as one."""
    idle: dict[str, list[Run]] = {}
    for run in trained.runs:
        if run.nudged and run.loss is None and run.distance is None:
            idle.setdefault(run.outcome, []).append(run)
        else:
            yield run
    for runs in idle.values():
        yield runs[0] if len(runs) == 1 else dataclasses.replace(runs[0], name=f"{len(runs)} nudges")


def _bands(trained: Trained) -> str:
    if trained.void is not None:
        return f"Void: {trained.void}."
    if trained.loss is None or trained.distance is None:
        return ""
    return " ".join(
        _band(name, band) for name, band in (("Loss less that of s = 0", trained.loss), ("Distance", trained.distance))
    )


def _band(name: str, band: Band) -> str:
    side = "outside" if band.left else "within"
    interval = f"{_number(band.low)} to {_number(band.high)}"
    return f"{name}: {_number(band.value)} with s = 1, {side} the band of one more nudge, {interval}."


def _batches_in_words(number: int) -> str:
    return f"{number:,} mini-batch{'es' * (number != 1)}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def about(audit: Audit) -> str:
    """What was audited, in words."""
    sizes = f"{counted(audit.batches, 'mini-batch')} of {counted(audit.batch_samples, 'sample')}".replace(
        "batchs", "batches"
    )
    return (
        f"{audit.model}, {audit.parameters:,} parameters, in training mode; {sizes}; loss: {audit.loss}; order, random "
        f"numbers and nudges from seed {audit.seed}."
    )


def shown(audit: Audit) -> Iterable[RenderableType]:
    """Text and tables for a terminal, for ``relucheck.results.tables.render``."""
    yield Text(audit.conclusion, style="bold")
    yield Text(about(audit))
    for section in sections(audit):
        yield Text(f"\n{section.title}", style="bold")
        yield Text(section.before)
        if section.table is not None:
            yield section.table.rich(first=True)
        if section.after:
            yield Text(section.after)


def markdown(audit: Audit) -> str:
    """The report as Markdown."""
    here = audit.environment
    made = ", ".join(f"{name} {here[name]}" for name in ("relucheck", "torch", "python"))
    device = f"{here['kind']} ({here.get('model', '')}, {here['processor']})"
    lines = [f"# Audit of {audit.model}", "", f"**{audit.conclusion}**", "", about(audit)]
    lines += ["", f"Computed with {made}, on {device}."]
    for section in sections(audit):
        lines += ["", f"## {section.title}", "", section.before]
        if section.table is not None:
            lines += ["", *section.table.markdown()]
        if section.after:
            lines += ["", section.after]
    return "\n".join(lines) + "\n"
