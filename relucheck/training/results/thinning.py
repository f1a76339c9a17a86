"""What of a result its report needs: the rule by which committed results are thinned."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from relucheck.errors import SettingsError
from relucheck.training.results.result import MemberResult, SeedResult

#: Into how many equal parts a figure divides a run: a panel is about 300 pixels wide.
PARTS: Final = 200
#: What a thinned file keeps, for two kinds of figures: if a scenario has the figure, and if it does not have it.
_KEPT: Final = {
    "distance": (
        f"distances of every member but the controls: only the last recorded step of each of {PARTS} equal parts of the "
        "run, and each member's last step",
        "distances of every member but the controls: only each member's last step",
    ),
    "boxes": (
        "accuracies of test mini-batches: only those of the first seed",
        "accuracies of test mini-batches: none",
    ),
}


def drawn_steps(members: Iterable[MemberResult]) -> set[int]:
    """The recorded steps that figures draw, which a thinned result keeps.

    The run is divided into :data:`PARTS` equal parts. Kept are the last recorded step of each part, and the last step of
    each member. Of the steps that are kept, all are kept again.
    """
    known = [member.steps.step for member in members if member.steps.step]
    every = sorted({step for steps in known for step in steps})
    last_of_part = {(step - 1) * PARTS // every[-1]: step for step in every}
    return {*last_of_part.values(), *(steps[-1] for steps in known)}


def thinning(figures: Collection[str]) -> str:
    """What a thinned file says of itself, for a scenario with these kinds of figures."""
    return "; ".join(kept if kind in figures else left for kind, (kept, left) in _KEPT.items())


def _draws(rule: str, figures: Collection[str]) -> bool:
    """Whether what a rule keeps is enough for kinds of figures; an unknown rule never is."""
    kept = rule.split("; ")
    return all(has in kept or (kind not in figures and lacks in kept) for kind, (has, lacks) in _KEPT.items())


def thinned(seeds: Mapping[int, SeedResult], figures: Collection[str]) -> dict[int, SeedResult]:
    """The results of all seeds of a comparison as its report needs them.

    Args:
        seeds: the results; the accuracies of test mini-batches are drawn of the first seed only.
        figures: the kinds of figures that the report draws. Only "distance" needs distances of many steps, and only
            "boxes" needs accuracies of test mini-batches.

    Raises:
        SettingsError: for a result that was thinned by another rule and lacks what these figures need, because it would say
            that it holds what it does not.
    """
    for seed, part in seeds.items():
        if part.thinned is not None and not _draws(part.thinned, figures):
            raise SettingsError(
                f"the result of seed {seed} was thinned before, by the rule {part.thinned!r}, and lacks what the figures "
                f"{', '.join(sorted(figures)) or '(none)'} need; run the seed again, or restore its whole file"
            )
    drawn = drawn_steps(member for part in seeds.values() for member in part.members)
    first = next(iter(seeds), None)

    def less(member: MemberResult) -> MemberResult:
        kept = drawn if "distance" in figures else member.steps.step[-1:]
        fewer = member if member.member.control else member.at(kept)
        return fewer if "boxes" in figures and member.member.seed == first else fewer.without_batches()

    rule = thinning(figures)
    return {
        seed: dataclasses.replace(part, members=[less(member) for member in part.members], thinned=rule)
        for seed, part in seeds.items()
    }
