"""The file of claims: what is in it, and what its reader refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest

from relucheck.reproduction import TITLES
from relucheck.reproduction.claims import Claim, ClaimError, Finding, Statistic, read_claims
from relucheck.reproduction.published import SOURCES
from relucheck.reproduction.report.deciding.catalogue import catalogue
from relucheck.reproduction.report.deciding.registry import STATISTICS


def _nothing(case: Any, **options: Any) -> Finding:
    raise AssertionError("reading decides nothing")


_KNOWN: Final = {
    "grows": Statistic(_nothing, "training", {"endpoint": ("error", "accuracy"), "margin": float, "at": list}),
    "larger": Statistic(_nothing, "training", {}, compares=True),
    "moves": Statistic(_nothing, "training", {}, nudged=True),
    "differs": Statistic(_nothing, "training", {}, about_s=True),
}
_ENTRY: Final = """
schema = 1
[scenarios]
E2 = "Training an MLP"
[[claim]]
id = "E2-error"
source = "R22"
place = "Figure 3"
statement = "The error grows."
figures = [{ what = "error, s = 1", value = 11, unit = "%", read = "off the figure" }]
scenario = "E2"
statistic = "grows"
options = { endpoint = "error", margin = 0.2, at = [] }
arms = ["bfloat16*"]
epochs = 50
rules = ["injected"]
subgradients = [0.5, 1]
controls = ["0-0", "nudges"]
"""


def test_an_entry_becomes_a_frozen_claim() -> None:
    (claim,) = read_claims(_ENTRY, _KNOWN).claims
    assert (claim.arms, claim.rules, claim.subgradients) == (("bfloat16*",), ("injected",), (0.5, 1.0))
    assert claim.figures[0].value == 11
    assert claim.options["margin"] == 0.2
    with pytest.raises(AttributeError):
        claim.id = "another"  # type: ignore[misc]
    with pytest.raises(TypeError):
        claim.options["margin"] = 9  # type: ignore[index]


def _replaced(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return change


def _as(text: str, statistic: str) -> str:
    """The entry with another statistic, which has no options."""
    return text.replace('"grows"', f'"{statistic}"').replace('{ endpoint = "error", margin = 0.2, at = [] }', "{}")


@pytest.mark.parametrize("statistic", ["moves", "differs"])
def test_an_entry_with_rules_and_nudges_is_read(statistic: str) -> None:
    (claim,) = read_claims(_as(_ENTRY, statistic), _KNOWN).claims
    assert claim.statistic == statistic


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_replaced("schema = 1", "schema = 9"), "schema=9: this version of relucheck reads schema 1"),
        (_replaced("schema = 1", "schema 1"), "the file is no TOML"),
        (_replaced("[scenarios]", "[scenario]"), "the file: unknown key 'scenario'; did you mean 'scenarios'?"),
        (_replaced("epochs = 50", "epoch = 50"), "claim E2-error: unknown key 'epoch'; did you mean 'epochs'?"),
        (_replaced("epochs = 50", "epochs = -1"), "claim E2-error: epochs=-1: must be a whole number of at least 0"),
        (_replaced('source = "R22"', 'source = "R23"'), "claim E2-error: source 'R23' is unknown; did you mean 'R22'?"),
        (_replaced('scenario = "E2"', 'scenario = "E3"'), "claim E2-error: scenario 'E3' is unknown; did you mean 'E2'?"),
        (_replaced('"grows"', '"grow"'), "claim E2-error: statistic 'grow' is unknown; did you mean 'grows'?"),
        (_replaced('place = "Figure 3"\n', ""), "claim E2-error: place missing; add it"),
        (_replaced('id = "E2-error"\n', ""), "claim (without an id): id missing; add it"),
        (_replaced('statement = "The error grows."', 'statement = ""'), "claim E2-error: statement='': must be a text"),
        (_replaced('["bfloat16*"]', "[]"), "claim E2-error: arms=[]: name at least one"),
        (_replaced('["bfloat16*"]', '"bfloat16*"'), "claim E2-error: arms='bfloat16*': must be a list of texts"),
        (_replaced("[0.5, 1]", '["a half"]'), "claim E2-error: subgradients=['a half']: must be a list of numbers"),
        (_replaced('["injected"]', '["inject"]'), "claim E2-error: rules 'inject' is unknown; did you mean 'injected'?"),
        (_replaced('["0-0", "nudges"]', '["nudge"]'), "controls 'nudge' is unknown; did you mean 'nudges'?"),
        (_replaced('["0-0", "nudges"]', '["nudges"]'), 'nudges need a reference that is proved; add "0-0"'),
        (
            _replaced('endpoint = "error"', 'endpoint = "errors"'),
            "endpoint 'errors' is unknown; did you mean 'error'",
        ),
        (_replaced("margin = 0.2", 'margin = "small"'), "option margin='small': must be a number"),
        (_replaced("at = []", "at = 3"), "option at=3: must be a list of numbers; [] means all"),
        (_replaced("margin = 0.2, ", ""), "claim E2-error: options: margin missing; add it"),
        (
            _replaced("margin = 0.2", "margins = 0.2"),
            "options: unknown key 'margins'; did you mean 'margin'?",
        ),
        (_replaced(', read = "off the figure"', ""), "claim E2-error: figure: read missing; add it"),
        (_replaced("value = 11", 'value = "11"'), "claim E2-error: figure: value='11': must be a number"),
        (_replaced('unit = "%"', 'units = "%"'), "claim E2-error: figure: unknown key 'units'; did you mean 'unit'?"),
        (_replaced("epochs = 50", 'against = "float32"'), "against='float32': grows compares with no other arm"),
        (
            lambda text: text.replace('"grows"', '"larger"').replace('{ endpoint = "error", margin = 0.2, at = [] }', "{}"),
            "against='': larger needs the arm to compare with",
        ),
        (
            lambda text: _as(text, "moves").replace('["0-0", "nudges"]', '["0-0"]'),
            "controls=['0-0']: moves looks at nudges; add \"nudges\"",
        ),
        (
            lambda text: _as(text, "moves").replace('controls = ["0-0", "nudges"]', ""),
            'controls=[]: moves looks at nudges; add "nudges"',
        ),
        (
            lambda text: _as(text, "differs").replace('rules = ["injected"]', ""),
            "rules=[]: differs looks at every s; name injected or chain, or both",
        ),
        (
            lambda text: _as(text, "differs").replace('["injected"]', "[]"),
            "rules=[]: differs looks at every s; name injected or chain, or both",
        ),
        (lambda text: text + text[text.index("[[claim]]") :], "claim E2-error: two entries have this id"),
    ],
)
def test_what_cannot_be_used_is_one_clear_error(change: Callable[[str], str], says: str) -> None:
    with pytest.raises(ClaimError) as raised:
        read_claims(change(_ENTRY), _KNOWN)
    assert says in str(raised.value)
    assert raised.value.exit_code == 2


# ---------------------------------------------------------------- the package's claims


def _claims() -> tuple[Claim, ...]:
    return catalogue().claims


def test_every_published_experiment_and_every_source_has_claims() -> None:
    assert list(catalogue().scenarios) == [f"E{number}" for number in range(1, 11)]
    nothing_published = {"E11"}
    assert {claim.scenario for claim in _claims()} == set(catalogue().scenarios) == set(TITLES) - nothing_published
    assert {claim.source for claim in _claims()} == set(SOURCES)


def test_every_statistic_decides_a_claim() -> None:
    assert {claim.statistic for claim in _claims()} == set(STATISTICS)
    for claim in _claims():
        assert (STATISTICS[claim.statistic].about == "volume") == (claim.scenario == "E4")


def test_a_claim_that_s_matters_needs_both_controls() -> None:
    for claim in _claims():
        if STATISTICS[claim.statistic].nudged:
            assert claim.controls == ("0-0", "nudges"), claim.id
        elif claim.scenario != "E4":
            assert claim.controls == ("0-0",), claim.id


@pytest.mark.parametrize("field", ["statement", "place"])
def test_texts_are_sentences_and_places(field: str) -> None:
    for claim in _claims():
        text = getattr(claim, field)
        assert text[0].isupper() or text.startswith("s = 0"), claim.id
        assert text.endswith(".") == (field == "statement"), claim.id
