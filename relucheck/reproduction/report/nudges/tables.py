"""The tables of nudges, and of what each subgradient does beyond them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from relucheck.reproduction.report.nudges.effects import HALF, LAST
from relucheck.reproduction.report.summary import Effect, NudgeGroup, Spread
from relucheck.reproduction.report.tables import difference_text, number
from relucheck.results.statistics import LEVEL, MARGIN
from relucheck.results.tables import Table, counted, with_verb

#: What the columns of the nudges mean, a sentence each.
NUDGE_LEGEND: Final[Mapping[str, str]] = {
    "live": "seeds with a live hit, in which nudges run.",
    "nudges": "those in which a parameter moved.",
    "drawn again": "draws that were taken back, because they changed no gradient of the next step.",
    "L1 distance": "of the nudges' parameters from those of s = 0, at the last recorded step: mean over seeds (smallest to "
    "largest nudge).",
    "accuracy, points": "the nudges' {images} accuracy less that of s = 0 on the same seed, after the last epoch: mean "
    "over seeds (smallest to largest nudge).",
}
#: What the columns of the effects mean, a sentence each.
EFFECT_LEGEND: Final[Mapping[str, str]] = {
    "endpoint": f"{LAST}: {{images}} accuracy after it; {HALF}: mean {{images}} accuracy over the second half of the "
    "epochs, which often spreads less over seeds. A run of at most 2 epochs has one endpoint.",
    "n": "seeds with a live hit in which every nudge and the run of s ended; seeds without a live hit are not tested.",
    "effect": "the difference of s to s = 0 less the mean difference of the nudges of the same seed, in points: mean over "
    "seeds ± half its 95 % interval.",
    "p": "of a paired t-test that the mean effect is 0, corrected by Holm over every effect of this report.",
    "verdict": f"differs, if the corrected p is below {LEVEL:g}; else equivalent, if a test of equivalence within "
    f"{MARGIN:g} points (TOST), corrected in the same way, is; undecided if neither, and always with fewer than 2 seeds or "
    "with a run that has no accuracy.",
    "seeds needed": f"seeds with a live hit with which a paired t-test at {LEVEL:g}, uncorrected, finds a true effect of "
    f"{MARGIN:g} points with a probability of 80 %, if effects spread over seeds as they do here.",
}


def nudge_table(groups: Sequence[NudgeGroup]) -> Table:
    """Tabulate what the nudges do, a row for each comparison."""
    header = ["comparison", "live", "nudges", "drawn again", "L1 distance", "accuracy, points"]
    body = []
    for one in groups:
        if one.void:
            body.append([one.comparison, *["-"] * 4, "void"])
            continue
        row = [one.comparison, f"{one.live} of {one.live + one.quiet}", f"{one.nudges}", f"{one.again}"]
        body.append([*row, _spread(one.l1, 1, ""), _spread(one.accuracy[LAST], 2, "+")])
    return Table(header, body, "nudges: s = 0 with one parameter moved by one ulp", right=("nudges", "drawn again"))


def _spread(spread: Spread | None, digits: int, sign: str) -> str:
    if spread is None:
        return "-"

    def text(value: float) -> str:
        return f"{value:{sign},.{digits}f}" if sign or abs(value) >= 0.5 * 10**-digits else number(value, digits)

    return f"{text(spread.mean)} ({text(spread.least)} to {text(spread.most)})"


def nudge_notes(groups: Sequence[NudgeGroup]) -> list[str]:
    """What the numbers of a comparison's nudges need to be understood, a sentence each."""
    notes = []
    for one in groups:
        if one.void:
            notes.append(f"{one.comparison}: the nudges are void, and nothing may be concluded from them: {one.void}.")
            continue
        if one.quiet:
            notes.append(f"{one.comparison}: {with_verb(one.quiet, 'seed has', 'seeds have')} no live hit. {_quiet(one)}")
        if one.ineffective:
            notes.append(
                f"{one.comparison}: {counted(one.ineffective, 'nudge')} without effect: no draw changed a gradient of the "
                "next step."
            )
        if one.returned:
            notes.append(
                f"{one.comparison}: {counted(one.returned, 'nudge')} ended at the distance 0 from s = 0, because rounding "
                "undid the difference. The band of distances is that of the others."
            )
        if one.diverged:
            notes.append(f"{one.comparison}: {counted(one.diverged, 'nudge')} diverged.")
    return notes


def _quiet(one: NudgeGroup) -> str:
    """What s does in seeds without a live hit."""
    if not one.departed:
        return "There s has no effect at all: every run is that of s = 0, bit for bit."
    differ = f"{counted(one.departed, 'run')} {'differs' if one.departed == 1 else 'differ'}"
    return (
        f"There s has no effect under the chain rule. Under the injected rule {differ} from s = 0, because it also acts at "
        "hits whose upstream gradient is 0."
    )


def effect_tables(effects: Sequence[Effect], images: str = "test") -> list[Table]:
    """Tabulate the effects, a table for each comparison with a live hit in any seed."""
    tables = []
    live = [effect for effect in effects if effect.beyond.paired.n + effect.beyond.paired.lost]
    for name in dict.fromkeys(effect.comparison for effect in live):
        own = [effect for effect in live if effect.comparison == name]
        header = ["s", "rule", "endpoint", "n", "effect", "p", "verdict", "seeds needed"]
        body = [_row(effect) for effect in own]
        last = [i for i in range(1, len(own)) if own[i].rule != own[i - 1].rule]
        title = f"{name}: {images} accuracy, effect of s beyond that of a nudge"
        tables.append(Table(header, body, title, right=("s", "n", "seeds needed"), sections=[i - 1 for i in last]))
    return tables


def _row(effect: Effect) -> list[str]:
    paired = effect.beyond.paired
    lost = f" ({paired.lost} lost)" if paired.lost else ""
    p = "-" if paired.adjusted_difference is None else f"{paired.adjusted_difference:.2g}"
    return [
        *(f"{effect.subgradient:g}", effect.rule, effect.endpoint, f"{paired.n}{lost}"),
        *(difference_text(paired), p, paired.verdict),
        "-" if effect.seeds is None else f"{effect.seeds:,}",
    ]


def markdown(groups: Sequence[NudgeGroup], effects: Sequence[Effect], images: str = "test") -> list[str]:
    """The section of a report on nudges; no lines without nudges."""
    if not groups:
        return []
    lines = [
        "## Nudges",
        "",
        "A nudge is a run of s = 0 in which one parameter moves by one ulp after the first step with a live hit. It shows "
        "how far a run departs from s = 0 after a difference of one bit. What a nudge does too is not an effect of s.",
        "",
        *nudge_table(groups).markdown(),
        "",
        *(f"- {note}" for note in nudge_notes(groups)),
        *(f"- {column}: {meaning.format(images=images)}" for column, meaning in NUDGE_LEGEND.items()),
        "",
    ]
    tables = effect_tables(effects, images)
    for table in tables:
        lines += [f"**{table.title}**", "", *table.markdown(), ""]
    if tables:
        lines += [*(f"- {column}: {meaning.format(images=images)}" for column, meaning in EFFECT_LEGEND.items()), ""]
    return lines


def terminal(groups: Sequence[NudgeGroup], effects: Sequence[Effect], images: str = "test") -> list[Any]:
    """The same for a terminal, as rich objects, with fewer columns."""
    from rich.text import Text

    if not groups:
        return []
    left_out, tables = ("nudges", "p"), effect_tables(effects, images)
    explained = {**NUDGE_LEGEND, **(EFFECT_LEGEND if tables else {})}
    return [
        nudge_table(groups).without(*left_out).rich(),
        *map(Text, nudge_notes(groups)),
        *(table.without(*left_out).rich() for table in tables),
        *(
            Text(f"{column}: {meaning.format(images=images)}")
            for column, meaning in explained.items()
            if column not in left_out
        ),
    ]
