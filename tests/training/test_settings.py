"""Settings of the wrong type are refused with one clear error each; labels say what a run is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from relucheck.errors import SettingsError
from relucheck.networks import Network
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.training.members import NUDGES, Member, members_of
from relucheck.training.results.result import MemberResult, Nudge
from relucheck.training.settings import Optimiser, Settings, nudged
from tests.helpers.training_case import changed

SETTINGS = Settings("digits", Network("mlp", (16,)), members_of([0], [1.0]), batch_size=32, train_samples=64, epochs=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arithmetic": "float8"}, "arithmetic 'float8': dtype 'float8' is not supported"),
        ({"arithmetic": 32}, "arithmetic 32: must be a dtype"),
        ({"optimiser": "adam"}, "optimiser='adam': must be of class Optimiser, for example Optimiser(\"adam\")"),
        ({"shuffle": 1}, "shuffle=1: must be True or False"),
        ({"network": "mlp"}, "network='mlp': must be of class Network, for example Network(\"mlp\", (200, 200, 200))"),
        ({"members": None}, "members=None: must be a list or tuple, for example members_of([0, 1], [0.5])"),
        ({"members": (0, 1)}, "members=0: must be of class Member, for example Member(0, 0.5)"),
        ({"data": None}, "data=None: must be one of digits"),
        ({"train_samples": 10.0}, "train_samples=10.0: must be a whole number"),
        ({"validation": 1.0}, "validation=1.0: must be less than 1; 0.2 holds out a fifth"),
        ({"validation": 0.0}, "validation=0.0: must be a finite number above 0"),
        (
            {"validation": 0.001},
            "validation=0.001: holds out 0 of 64 training images; use a share",
        ),
        ({"validation": 0.2, "test_samples": 9}, "test_samples=9 with validation=0.2: the images held out take the place"),
        ({"validation": 0.5, "every": 3}, "every=3: the run has 2 steps (2 epochs of 1)"),
        ({"every": 5}, "every=5: the run has 4 steps (2 epochs of 2), so no distance would be recorded; use at most 4"),
        ({"every": 0}, "every=0: must be a whole number"),
    ],
)
def test_settings_of_a_wrong_type_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        dataclasses.replace(SETTINGS, **change)
    assert str(caught.value).startswith(message)
    assert changed(SETTINGS, every=4).steps_of(64) == 2


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (Member, {"seed": "0", "subgradient": 0.5}, "seed='0': must be a whole number"),
        (Member, {"seed": 0, "subgradient": "0.5"}, "subgradient='0.5': must be a finite number"),
        (Member, {"seed": 0, "subgradient": 0.0, "control": "no"}, "control='no': must be True or False"),
        (Member, {"seed": 0, "subgradient": 0.5, "rule": None}, "rule=None: must be one of chain, injected"),
        (Member, {"seed": 0, "subgradient": 0.5, "second": "1"}, "second='1': must be a finite number"),
        (Optimiser, {"name": None}, "optimiser=None: must be one of adam, sgd"),
        (Optimiser, {"lr": "0.1"}, "lr='0.1': must be a finite number above 0"),
        (Optimiser, {"fused": None}, "fused=None: must be True or False"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_parts_of_a_wrong_type_are_refused(kind: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        kind(**fields)
    assert str(caught.value).startswith(message)


def test_settings_of_another_schema_are_refused() -> None:
    assert Settings.from_json(SETTINGS.to_json()) == SETTINGS
    assert SETTINGS.to_json()["arithmetic"] == "float32"
    with pytest.raises(SettingsError, match=r"schema 1: .* reads schema 2; run it again$"):
        Settings.from_json({**SETTINGS.to_json(), "schema": 1})


def test_settings_that_hold_nothing_out_have_the_digests_of_before() -> None:
    assert "validation" not in SETTINGS.to_json()
    held_out = changed(SETTINGS, validation=0.25)
    assert Settings.from_json(held_out.to_json()) == held_out
    assert held_out.digest != SETTINGS.digest


def test_fused_momentum_under_a_scaler_is_refused() -> None:
    """torch's fused SGD would read momentum that was never written, if the first step overflows."""
    mixed = Arithmetic.parse("mixed float16")
    fused = Optimiser("sgd", 0.1, momentum=0.9, fused=True)
    with pytest.raises(SettingsError, match=r"momentum=0.9 with fused=True and a gradient scaler.*use fused=False"):
        changed(SETTINGS, arithmetic=mixed, optimiser=fused)
    for arithmetic, optimiser in (
        (mixed, dataclasses.replace(fused, fused=False)),
        (mixed, dataclasses.replace(fused, momentum=0.0)),
        (Arithmetic.parse("mixed bfloat16"), fused),
    ):
        changed(SETTINGS, arithmetic=arithmetic, optimiser=optimiser)


def test_labels_say_what_a_run_is() -> None:
    assert Optimiser().label == "adam, lr 0.001, eps 1e-08"  # torch's own default
    assert Optimiser("sgd", 0.1).label == "sgd, lr 0.1"
    assert Optimiser("sgd", 0.1, momentum=0.9, fused=True).label == "sgd, lr 0.1, momentum 0.9, fused"


# ---------------------------------------------------------------- nudges


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"nudge": 0}, "nudge=0"),
        ({"nudge": 6}, "at most 5 nudges"),
        ({"nudge": True}, "nudge=True"),
        ({"nudge": 1, "control": True}, "no control"),
        ({"nudge": 1, "subgradient": 1.0}, "a nudge is a run of s = 0"),
        ({"nudge": 1, "rule": "injected"}, "a nudge is a run of s = 0"),
        ({"nudge": 1, "second": 1.0}, "a nudge is a run of s = 0"),
    ],
)
def test_bad_nudges_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(SettingsError, match=match):
        Member(**{"seed": 0, "subgradient": 0.0, **options})


def test_members_that_are_no_nudges_keep_their_json_and_digest() -> None:
    settings = Settings(
        "digits",
        Network("mlp", (4, 3)),
        members_of([0], [1.0], ["chain"]),
        optimiser=Optimiser(lr=0.01),
        arithmetic=Arithmetic.parse("bfloat16 emulated (product)"),
        epochs=6,
        batch_size=16,
        train_samples=16,
        test_samples=60,
    )
    assert settings.to_json()["members"][0] == {
        "seed": 0,
        "subgradient": 0.0,
        "rule": "chain",
        "control": False,
        "second": None,
    }
    assert "nudge" not in MemberResult(Member(0, 0.0)).to_json()
    # computed before there were nudges
    assert settings.digest == "b9c5f71dbf45425b6b05e2d5b512ee5e4ae6febdbbb1b473c70c460c7bc9e73a"


def test_nudges_have_the_kinks_that_members_vary() -> None:
    forms: dict[str, tuple[dict[str, Any], tuple[float | None, bool]]] = {
        "(s, s)": ({}, (None, False)),
        "(s, 0)": ({"second": 0.0}, (0.0, False)),
        "(s, 1)": ({"second": 1.0}, (None, False)),
        "(0, s)": ({"upper": True}, (None, True)),
    }
    for options, expected in forms.values():
        settings = changed(SETTINGS, members=members_of([0, 1], [0.5, 1.0], **options))
        wanted = nudged(settings)
        assert {(m.second, m.upper) for m in wanted.members if m.nudge} == {expected}
        assert nudged(wanted) == wanted
        assert Settings.from_json(json.loads(json.dumps(wanted.to_json()))) == wanted
        assert ("upper" in wanted.to_json()["members"][-1]) == expected[1]
        listed = members_of([0, 1], [0.5, 1.0], nudges=NUDGES, **options)
        assert [m for m in listed if m.nudge] == [m for m in wanted.members if m.nudge]
    plane = (*members_of([0], [1.0], upper=True), Member(0, 1.0, second=0.0))
    assert not any(m.upper for m in nudged(changed(SETTINGS, members=plane)).members)
    assert [m.subgradients for m in members_of([0], [0.5], ["chain"], upper=True)] == [(0.0, 0.0)] * 2 + [(0.0, 0.5)]


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (lambda: Member(0, 1.0, upper=True), "says which hits count as live for a nudge; leave it out for other members"),
        (lambda: Member(0, 0.0, nudge=1, second=0.0, upper=True), "leave out second where it is given"),
        (lambda: Member(0, 0.0, nudge=1, upper=1), "upper=1: must be True or False"),  # type: ignore[arg-type]
        (lambda: members_of([0], [1.0], second=0.0, upper=True), "second=0.0 with upper=True: .*; give one of them"),
    ],
)
def test_kinks_of_nudges_that_contradict_are_refused(wrong: Callable[[], object], match: str) -> None:
    with pytest.raises(SettingsError, match=match):
        wrong()


def test_nudges_survive_json() -> None:
    settings = nudged(changed(SETTINGS, members=members_of([0, 1], [1.0], second=0.0)))
    assert {member.second for member in settings.members} == {None, 0.0}
    assert [member.nudge for member in settings.members if member.seed == 1] == [None, None, 1, 2, 3, 4, 5]
    assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    for result in (MemberResult(Member(0, 0.0, nudge=2), nudge=Nudge(3, 4, "a", 5)), MemberResult(Member(0, 0.0, nudge=2))):
        assert MemberResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert not Member(0, 0.0, nudge=2).is_reference
    assert Member(0, 0.0, nudge=2).name == "s = 0, nudge 2, seed 0"
