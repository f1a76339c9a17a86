"""E10's section: which change of the setting changes what s does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from relucheck.reproduction.report.nudges.effects import LAST
from relucheck.reproduction.report.summary import (
    Effect,
    Reproduction,
    Section,
    Spread,
    final_accuracy,
    group,
    hits_per_epoch,
)
from relucheck.reproduction.report.tables import difference_text, number
from relucheck.results.figures import blank, save, wrapped
from relucheck.results.statistics import MARGIN, Paired, Summary, summarise
from relucheck.results.tables import Table, counted, listed, with_verb
from relucheck.training.results.result import Result
from relucheck.training.subgradients import along

#: The name of the comparisons in which nothing is changed.
UNCHANGED: Final = "unchanged"
RULES: Final = ("injected", "chain")
NAMED: Final = {"injected": "the injected rule of the published code", "chain": "the chain rule"}
#: How a cell marks its verdict; an undecided one has no mark.
MARKS: Final = {"differs": " *", "equivalent": " =", "identical": "", "undecided": ""}
#: What cells of effects mean, a line each.
EFFECTS_LEGEND: Final = (
    "effects: the {images} accuracy after the last epoch less the mean of the seed's nudges, in points: mean over the "
    "seeds with a live hit ± half its 95 % interval. The interval holds for these seeds, and if runs of s spread as nudges "
    "do. How other seeds differ it does not say.",
    f"*: differs from nudges (p < 0.05 after Holm's correction over this report). =: equivalent to nudges within "
    f"{MARGIN:g} points (TOST, corrected likewise). No mark: undecided.",
    "0 exactly: every run is that of s = 0, bit for bit. -: nothing to compare, because no seed has a live hit (one whose "
    "upstream gradient is not 0), or a run ended where s = 0 did.",
)
_LEGEND: Final = (
    "live: seeds with a live hit. In the others s does nothing under the chain rule, and they are in no mean.",
    "hits: pre-activations equal to 0 in an epoch, in the runs of s = 0, mean over seeds and epochs.",
    *EFFECTS_LEGEND,
    "nudges: their accuracy less that of s = 0 on the same seed, in points: the least and the largest.",
)
_WIDE: Final = ("nudges", "injected, 0.5", "chain, 0.5", "s = 0, %")
_FULL: Final = 1.0  # the s of the sentences
#: Colour, marker and place in its row of each rule (palette: Okabe and Ito 2008, colour-blind safe).
_STYLES: Final = {"injected": ("#D55E00", "v", 0.15), "chain": ("#0072B2", "o", -0.15)}


@dataclasses.dataclass(frozen=True)
class Variation:
    """One setting in one arithmetic.

    Attributes:
        name: of its comparison.
        setting: what differs from the published setting.
        arithmetic: in which it was trained.
        live: how many seeds have a live hit, of how many.
        hits: an epoch, of s = 0, mean over seeds and epochs.
        zero: the accuracies of s = 0 in %.
        effects: of each rule and s beyond nudges; None without a live hit in any seed.
        same: for each rule and s, whether all its runs are those of s = 0.
        nudges: the spread of the nudges' accuracies less that of s = 0; None without a nudge.
    """

    name: str
    setting: str
    arithmetic: str
    live: tuple[int, int]
    hits: float | None
    zero: Summary
    effects: Mapping[tuple[str, float], Paired | None]
    same: Mapping[tuple[str, float], bool]
    nudges: Spread | None

    @property
    def is_base(self) -> bool:
        """Whether nothing is changed."""
        return self.name.startswith(f"{UNCHANGED}-")

    def verdict(self, rule: str) -> str:
        """The verdict on s = 1 under a rule."""
        return verdict(self.effects[rule, _FULL], self.same[rule, _FULL])

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain["zero"], plain["nudges"] = vars(self.zero), self.nudges and vars(self.nudges)
        plain["effects"] = {
            f"{rule} {s:g}": found and dataclasses.asdict(found) for (rule, s), found in self.effects.items()
        }
        plain["same"] = {f"{rule} {s:g}": same for (rule, s), same in self.same.items()}
        return plain


def verdict(found: Paired | None, same: bool) -> str:
    """The verdict on the runs of one s.

    It is "identical" if all are that of s = 0, else the verdict on the effect beyond nudges.
    """
    return "identical" if same else "undecided" if found is None else found.verdict


def cell_text(found: Paired | None, same: bool) -> str:
    """An effect with the mark of its verdict."""
    if same:
        return "0 exactly"
    return "-" if found is None else f"{difference_text(found)}{MARKS[found.verdict]}"


def effects_of(effects: Sequence[Effect], name: str) -> dict[tuple[str, float], Paired]:
    """The effects of a comparison on the last epoch, by rule and s.

    Those that were measured in no seed are left out.
    """
    own = [one for one in effects if (one.comparison, one.endpoint) == (name, LAST)]
    return {
        (one.rule, along(one.subgradient)): one.beyond.paired for one in own if one.beyond.paired.n + one.beyond.paired.lost
    }


def same_runs(result: Result) -> dict[tuple[str, float], bool]:
    """For each rule and s but 0, whether no run of it departs from s = 0."""
    return {
        (rule, along(s)): all(member.first_difference is None for member in members)
        for (s, rule, control), members in group(result).items()
        if s and not control
    }


def variations(made: Reproduction) -> list[Variation]:
    """The valid comparisons of a report."""
    nudges = {one.comparison: one for one in made.nudges if one.void is None}
    found = []
    for comparison, result in made.runs:
        if result.void:
            continue
        reference = group(result)[0.0, "chain", False]
        same, effects = same_runs(result), effects_of(made.effects, comparison.name)
        hits = [each for member in reference if (each := hits_per_epoch(member)) is not None]
        accuracies = [each for member in reference if (each := final_accuracy(member)) is not None]
        beside = nudges.get(comparison.name)
        found.append(
            Variation(
                comparison.name,
                comparison.part,
                result.settings.arithmetic.name,
                (beside.live if beside else 0, len(result.settings.seeds)),
                summarise(hits).mean,
                summarise(accuracies),
                {key: effects.get(key) for key in same},
                same,
                beside.accuracy[LAST] if beside else None,
            )
        )
    return found


# ---------------------------------------------------------------- the section


def sections(made: Reproduction) -> tuple[Section, ...]:
    """The section of E10's report; none without a valid comparison."""
    every = variations(made)
    if not every:
        return ()
    arithmetics = list(dict.fromkeys(one.arithmetic for one in every))
    own = {name: [one for one in every if one.arithmetic == name] for name in arithmetics}
    said = tuple(sentence for name in arithmetics for sentence in _sentences(name, own[name]))
    legend = tuple(line.format(images=made.experiment.evaluated) for line in _LEGEND)
    tables = tuple(_table(name, own[name]) for name in arithmetics)
    data = [one.as_dict() for one in every]
    return (Section("What s does in each setting", said, tables, legend, _WIDE, data),)


def _sentences(arithmetic: str, every: Sequence[Variation]) -> list[str]:
    """What the settings of an arithmetic say, in the order of the rules, then what changes it."""
    said = []
    for rule in RULES:
        own = {word: [one for one in every if one.verdict(rule) == word] for word in MARKS}
        parts = []
        if own["differs"]:
            means = sorted(_mean(one, rule) for one in own["differs"])
            apart = f"{means[0]:+.2f}" if len(means) == 1 else f"{means[0]:+.2f} to {means[-1]:+.2f}"
            parts.append(f"changes the accuracy beyond nudges in {len(own['differs'])}, by {apart} points")
        if own["equivalent"]:
            parts.append(f"is equivalent to nudges within {MARGIN:g} points in {len(own['equivalent'])}")
        if own["identical"]:
            names = listed([one.setting for one in own["identical"]])
            parts.append(f"is the run of s = 0, bit for bit, in {len(own['identical'])} ({names})")
        if own["undecided"]:
            parts.append(f"is undecided in {len(own['undecided'])}")
        said.append(f"{arithmetic}, {counted(len(every), 'setting')}: under {NAMED[rule]}, s = 1 {listed(parts)}.")
    base = next((one for one in every if one.is_base), None)
    changed = [one for one in every if base and not one.is_base]
    if base is None or not changed:
        return said
    return [*said, *(f"{arithmetic}: {_changes(rule, base, changed)}" for rule in RULES)]


def _changes(rule: str, base: Variation, changed: Sequence[Variation]) -> str:
    """Which changes alter what s = 1 does under a rule in the published setting."""
    under = f"under {NAMED[rule]}"
    if base.verdict(rule) in ("undecided", "identical"):
        why = "is undecided" if base.verdict(rule) == "undecided" else "meets no hit that matters in these seeds"
        return f"{under}, nothing is decided about changes, because the published setting {why}."
    other = [f"{one.setting} ({one.verdict(rule)})" for one in changed if _contradicts(one, base, rule)]
    undecided = sum(one.verdict(rule) == "undecided" for one in changed)
    rest = f" ({with_verb(undecided, 'is', 'are')} undecided)" if undecided else ""
    of = f"of {counted(len(changed), 'change')}{rest}"
    if other:
        return f"{under}, {of}, {len(other)} {'alters' if len(other) == 1 else 'alter'} this: {listed(other)}."
    return f"{under}, {of}, none is shown to alter this."


def _contradicts(one: Variation, base: Variation, rule: str) -> bool:
    """Whether the two settings differ in whether s acts beyond nudges; an undecided one says nothing."""
    words = one.verdict(rule), base.verdict(rule)
    return "undecided" not in words and (words[0] == "differs") != (words[1] == "differs")


def _mean(one: Variation, rule: str) -> float:
    found = one.effects[rule, _FULL]
    assert found is not None
    assert found.difference.mean is not None
    return found.difference.mean


def _table(arithmetic: str, every: Sequence[Variation]) -> Table:
    keys = list(every[0].effects)
    header = ("setting", "live", "hits", "s = 0, %", *(f"{rule}, {s:g}" for rule, s in keys), "nudges")
    rows = []
    for one in every:
        cells = [cell_text(one.effects[key], one.same[key]) for key in keys]
        spread = "-" if one.nudges is None else f"{one.nudges.least:+.2f} to {one.nudges.most:+.2f}"
        hits = "-" if one.hits is None else f"{one.hits:,.1f}"
        rows.append((one.setting, f"{one.live[0]} of {one.live[1]}", hits, number(one.zero.mean), *cells, spread))
    return Table(header, rows, arithmetic, right=("hits", "s = 0, %"))


# ---------------------------------------------------------------- the figure


def draw(made: Reproduction, folder: Path) -> list[Path]:
    """Draw the effect of s = 1 in every setting, a panel for each arithmetic."""
    every = variations(made)
    if not every:
        return []
    path = folder / "variations.png"
    save(_figure(made.experiment.name, every), path)
    return [path]


def _figure(name: str, every: Sequence[Variation]) -> Any:
    arithmetics = list(dict.fromkeys(one.arithmetic for one in every))
    settings = list(dict.fromkeys(one.setting for one in every))
    width = 2.2 + 3.4 * len(arithmetics)
    figure = blank(width, 1.7 + 0.3 * len(settings))
    axes = figure.subplots(1, len(arithmetics), squeeze=False, sharey=True)[0]
    figure.suptitle(f"{name}: what s = 1 does to the accuracy beyond nudges, in points\n(mean over seeds, 95 % interval)")
    for panel, arithmetic in zip(axes, arithmetics, strict=True):
        panel.axvline(0, color="0.6", linewidth=0.8)
        for one in (each for each in every if each.arithmetic == arithmetic):
            for rule, (color, sign, aside) in _STYLES.items():
                place = settings.index(one.setting) + aside
                found = one.effects[rule, _FULL]
                if one.same[rule, _FULL]:
                    panel.plot(0, place, color=color, marker="|", markersize=7, linestyle="none")
                elif found is not None and found.difference.mean is not None:
                    low, high, mean = found.difference.low, found.difference.high, found.difference.mean
                    bars = None if low is None or high is None else [[mean - low], [high - mean]]
                    face = color if found.verdict == "differs" else "none"
                    panel.errorbar(
                        mean, place, xerr=bars, color=color, marker=sign, markersize=5, markerfacecolor=face, capsize=2,
                        linestyle="none",
                    )  # fmt: skip
        panel.set_yticks(range(len(settings)), settings)
        panel.set_title(wrapped(arithmetic, 3.0), fontsize=9)
        panel.grid(alpha=0.3)
    for rule, (color, sign, _) in _STYLES.items():
        axes[0].plot([], [], color=color, marker=sign, linestyle="none", label=rule)
    axes[0].plot([], [], color="0.3", marker="|", linestyle="none", label="every run is that of s = 0")
    axes[0].plot([], [], color="0.3", marker="o", markerfacecolor="none", linestyle="none", label="hollow: not significant")
    axes[0].invert_yaxis()
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    return figure
