"""The published claims as data: what was claimed, and what decides it.

``relucheck/_data/claims.toml`` has an entry for each claim, and says what its fields mean. The functions that decide are in
:mod:`relucheck.reproduction.report.deciding`.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, get_args

from relucheck.errors import RelucheckError, did_you_mean
from relucheck.reproduction.published import SOURCES
from relucheck.results.statistics import Evidence, Outcome

#: Version of the layout of the file.
SCHEMA: Final = 1
#: The verdicts on a claim, in the order of reports.
VERDICTS: Final[tuple[Outcome, ...]] = get_args(Outcome)
#: The controls that a claim can need.
CONTROLS: Final = ("0-0", "nudges")
RULES: Final = ("injected", "chain")


class ClaimError(RelucheckError, ValueError):
    """An entry of the file of claims that cannot be used."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """A published number.

    Attributes:
        what: what was measured.
        value: the number.
        unit: its unit.
        read: how it was read: off a figure, from printed output, from released results.
    """

    what: str
    value: float
    unit: str
    read: str


@dataclasses.dataclass(frozen=True)
class Claim:
    """A published claim, and what decides it.

    Attributes:
        id: unique.
        source: a key of :data:`relucheck.reproduction.published.SOURCES`.
        place: the section or figure of the source.
        statement: the claim in this project's words.
        scenario: whose results decide it.
        statistic: the name of the function that decides it.
        options: the options of this function: endpoints, directions, thresholds and margins.
        arms: names of comparisons, globs of names, or arithmetics; each is needed.
        figures: the published numbers behind the claim.
        against: the arm with which each case is compared; "" if there is none.
        epochs: of the comparisons that count; 0 means any number.
        rules: those that are decided separately; () for claims about s = 0 alone.
        subgradients: those that are needed; () means every one of a comparison but 0.
        controls: the controls that are needed, of :data:`CONTROLS`.
    """

    id: str
    source: str
    place: str
    statement: str
    scenario: str
    statistic: str
    arms: tuple[str, ...]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    figures: tuple[Figure, ...] = ()
    against: str = ""
    epochs: int = 0
    rules: tuple[str, ...] = ()
    subgradients: tuple[float, ...] = ()
    controls: tuple[str, ...] = ()


class Finding(NamedTuple):
    """What a statistic says of a case: evidence for and against the claim, and it in words."""

    evidence: Evidence
    measured: str


#: What an option of a statistic allows: a number (``float``), a list of numbers (``list``), or one of some words.
Option = type[float] | type[list[float]] | tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Statistic:
    """A function that decides claims.

    Attributes:
        decide: takes a case and the options.
        about: what it looks at: "training", "pairs" (comparisons of one draw each) or "volume".
        options: each with what it allows.
        compares: whether a claim must name the arm with which each case is compared.
        nudged: whether it looks at nudges, so that a claim must have them as a control.
        about_s: whether it looks at every s but 0, so that a claim must name the rules.
    """

    decide: Callable[..., Finding]
    about: Literal["training", "pairs", "volume"]
    options: Mapping[str, Option]
    compares: bool = False
    nudged: bool = False
    about_s: bool = False


@dataclasses.dataclass(frozen=True)
class Decision:
    """The verdict on a claim in one case.

    Attributes:
        claim: the claim.
        case: the comparison, for a volume the arithmetic, or the arm for which there is none.
        rule: "chain" or "injected"; "" for a claim without a rule.
        verdict: one of :data:`VERDICTS`.
        measured: the numbers behind it in words; for "not run" what is missing in detail.
        missing: for "not run" which part is missing: "results", "arm", "members", "pairs", "0-0" or "nudges";
            else "".
    """

    claim: Claim
    case: str
    rule: str
    verdict: Outcome
    measured: str
    missing: str = ""

    @property
    def said(self) -> str:
        """The verdict with what is missing, for example "not run: nudges"."""
        return f"{self.verdict}: {self.missing}" if self.missing else self.verdict

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        names = {"claim": self.claim.id, "source": self.claim.source, "place": self.claim.place}
        names["statement"] = self.claim.statement
        return {
            **names,
            "case": self.case,
            "rule": self.rule,
            "verdict": self.verdict,
            "missing": self.missing,
            "measured": self.measured,
        }


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """All claims, with the titles of the published experiments by name."""

    scenarios: Mapping[str, str]
    claims: tuple[Claim, ...]


def read_claims(text: str, statistics: Mapping[str, Statistic]) -> Catalogue:
    """Read a file of claims.

    Args:
        text: its content.
        statistics: the functions that exist, by name.

    Raises:
        ClaimError: for the first entry that cannot be used; the message names it, the rule and the fix.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ClaimError(f"claims: the file is no TOML: {error}") from error
    _known("the file", content, ("schema", "scenarios", "claim"))
    if content.get("schema") != SCHEMA:
        raise ClaimError(f"claims: schema={content.get('schema')!r}: this version of relucheck reads schema {SCHEMA}")
    scenarios: dict[str, str] = content.get("scenarios", {})
    claims = tuple(_claim(entry, scenarios, statistics) for entry in content.get("claim", []))
    ids = [claim.id for claim in claims]
    twice = next((name for name in ids if ids.count(name) > 1), None)
    if twice is not None:
        raise ClaimError(f"claim {twice}: two entries have this id; give each an id of its own")
    return Catalogue(MappingProxyType(scenarios), claims)


_TEXTS: Final = ("id", "source", "place", "statement", "scenario", "statistic")
_LISTS: Final[Mapping[str, tuple[type, ...]]] = {
    "arms": (str,),
    "rules": (str,),
    "subgradients": (int, float),
    "controls": (str,),
}
_NAMES: Final = tuple(field.name for field in dataclasses.fields(Claim))


def _claim(entry: Mapping[str, Any], scenarios: Mapping[str, str], statistics: Mapping[str, Statistic]) -> Claim:
    name = f"claim {entry.get('id', '(without an id)')}"
    _known(name, entry, _NAMES)
    _required(name, entry, (*_TEXTS, "arms"))
    for field in (*_TEXTS, *({"against"} & set(entry))):
        if not isinstance(entry[field], str) or not entry[field]:
            raise ClaimError(f"{name}: {field}={entry[field]!r}: must be a text")
    for field, kinds in _LISTS.items():
        values = entry.get(field, [])
        if not isinstance(values, list) or not all(isinstance(one, kinds) for one in values):
            raise ClaimError(f"{name}: {field}={values!r}: must be a list of {'texts' if str in kinds else 'numbers'}")
    if not entry["arms"]:
        raise ClaimError(f"{name}: arms=[]: name at least one comparison, glob or arithmetic")
    epochs = entry.get("epochs", 0)
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 0:
        raise ClaimError(f"{name}: epochs={epochs!r}: must be a whole number of at least 0; 0 means any number")
    _among(name, "source", [entry["source"]], SOURCES)
    _among(name, "scenario", [entry["scenario"]], scenarios)
    _among(name, "statistic", [entry["statistic"]], statistics)
    _among(name, "rules", entry.get("rules", []), RULES)
    _among(name, "controls", entry.get("controls", []), CONTROLS)
    statistic, options = statistics[entry["statistic"]], entry.get("options", {})
    _options(name, options, statistic)
    if statistic.compares != bool(entry.get("against")):
        need = "needs the arm to compare with" if statistic.compares else "compares with no other arm"
        raise ClaimError(f"{name}: against={entry.get('against', '')!r}: {entry['statistic']} {need}")
    if "nudges" in entry.get("controls", []) and "0-0" not in entry["controls"]:
        raise ClaimError(f'{name}: controls={entry["controls"]!r}: nudges need a reference that is proved; add "0-0"')
    if statistic.nudged and "nudges" not in entry.get("controls", []):
        raise ClaimError(
            f'{name}: controls={entry.get("controls", [])!r}: {entry["statistic"]} looks at nudges; add "nudges"'
        )
    if statistic.about_s and not entry.get("rules"):
        raise ClaimError(f"{name}: rules=[]: {entry['statistic']} looks at every s; name {' or '.join(RULES)}, or both")
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    figures = tuple(_figure(name, one) for one in entry.get("figures", []))
    subgradients = tuple(map(float, entry.get("subgradients", [])))
    fields |= {"figures": figures, "options": MappingProxyType(options), "subgradients": subgradients}
    return Claim(**fields)


def _figure(name: str, entry: Mapping[str, Any]) -> Figure:
    where, names = f"{name}: figure", tuple(field.name for field in dataclasses.fields(Figure))
    _known(where, entry, names)
    _required(where, entry, names)
    if isinstance(entry["value"], bool) or not isinstance(entry["value"], int | float):
        raise ClaimError(f"{where}: value={entry['value']!r}: must be a number")
    return Figure(**entry)


def _options(name: str, options: Mapping[str, Any], statistic: Statistic) -> None:
    where = f"{name}: options"
    _known(where, options, tuple(statistic.options))
    _required(where, options, tuple(statistic.options))
    for key, allowed in statistic.options.items():
        value = options[key]
        if isinstance(allowed, tuple):
            _among(name, f"option {key}", [value], allowed)
        elif allowed is float and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ClaimError(f"{name}: option {key}={value!r}: must be a number")
        elif allowed is list and not isinstance(value, list):
            raise ClaimError(f"{name}: option {key}={value!r}: must be a list of numbers; [] means all")


def _known(where: str, entry: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for key in entry:
        if key not in names:
            known = f"known: {', '.join(names)}" if names else "it has none"
            raise ClaimError(f"{where}: unknown key {key!r}; {did_you_mean(key, names)}{known}")


def _required(where: str, entry: Mapping[str, Any], names: tuple[str, ...]) -> None:
    missing = [name for name in names if name not in entry]
    if missing:
        raise ClaimError(f"{where}: {', '.join(missing)} missing; add {'it' if len(missing) == 1 else 'them'}")


def _among(name: str, field: str, values: list[Any], known: Any) -> None:
    for value in values:
        if value not in known:
            raise ClaimError(f"{name}: {field} {value!r} is unknown; {did_you_mean(value, known)}known: {', '.join(known)}")
