"""Settings of a search: those of its trials, digests, the JSON form, and bad input."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from relucheck.errors import ModelError, SettingsError
from relucheck.networks import Network
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.search import Search, Space
from relucheck.training.members import Member
from relucheck.training.settings import Settings

MLP = Network("mlp", (16,), activation="relu6")
SEARCH = Search(network=MLP, data="digits", trials=4, epochs=3, train_samples=500)


def test_a_trial_trains_the_reference_its_control_and_the_draw() -> None:
    search = dataclasses.replace(SEARCH, rule="injected", arithmetic="bfloat16")
    draw = search.draws[2]
    settings = search.settings(draw)
    assert settings.members == (
        Member(draw.seed, 0.0),
        Member(draw.seed, 0.0, control=True),
        Member(draw.seed, draw.alpha, "injected", second=draw.beta),
    )
    assert search.member(draw) == settings.members[2]
    assert (settings.optimiser.name, settings.optimiser.lr, settings.optimiser.fused) == ("adam", draw.lr, False)
    assert (settings.batch_size, settings.epochs, settings.shuffle) == (draw.batch_size, 3, True)
    assert (settings.validation, settings.train_samples, settings.test_samples) == (0.2, 500, None)
    assert settings.arithmetic == Arithmetic.parse("bfloat16")
    assert settings.every == settings.steps_of(400) == -(-400 // draw.batch_size)


@pytest.mark.parametrize("rule", ["chain", "injected"])
def test_a_trial_of_the_control_search_is_its_own_reference(rule: str) -> None:
    control = dataclasses.replace(SEARCH, space=Space().default, rule=rule)
    for draw, tuned in zip(control.draws, SEARCH.draws, strict=True):
        settings = control.settings(draw)
        assert settings.members == (Member(draw.seed, 0.0), Member(draw.seed, 0.0, control=True))
        assert control.member(draw) == settings.members[0]
        # so the reference of a tuned trial is the trial of the control search, bit for bit
        assert settings.shared == SEARCH.settings(tuned).shared


def test_a_network_with_one_kink_has_no_second_subgradient() -> None:
    space = dataclasses.replace(Space(), beta=(0.0, 0.0))
    relu = dataclasses.replace(SEARCH, network=Network("mlp", (16,)), space=space)
    draw = relu.draws[0]
    assert relu.member(draw) == Member(draw.seed, draw.alpha)
    with pytest.raises(SettingsError, match=r"space.beta=\(0.0, 1.0\): relu has no kink at 6; use \(0.0, 0.0\), or a"):
        dataclasses.replace(relu, space=Space())


def test_a_search_has_a_json_form_and_a_digest() -> None:
    search = dataclasses.replace(SEARCH, space=Space((8, 16)), arithmetic="bfloat16 emulated (rounded)", metric="loss")
    text = json.dumps(search.to_json())
    assert Search.from_json(json.loads(text)) == search
    assert Search.from_json(json.loads(text)).digest == search.digest
    assert search.mode == "min"
    assert SEARCH.mode == "max"
    digests = {search.digest, SEARCH.digest}
    for change in ({"trials": 5}, {"epochs": 4}, {"seed": 1}, {"rule": "injected"}, {"grace": 1}, {"space": Space((8,))}):
        digests.add(dataclasses.replace(SEARCH, **change).digest)
    assert len(digests) == 8
    # files of stored trials hold this form, so it must stay
    assert list(SEARCH.to_json()) == [
        *("schema", "network", "data", "space", "trials", "epochs", "arithmetic", "rule", "seed", "train_samples"),
        *("validation", "grace", "reduction", "metric"),
    ]


def test_names_of_data_sets_are_those_of_settings() -> None:
    assert dataclasses.replace(SEARCH, data="Digits").digest == SEARCH.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "mlp"}, "network='mlp': must be of class Network"),
        ({"data": "digit"}, "data='digit': must be one of digits"),
        ({"space": (32, 64)}, "space=(32, 64): must be of class Space, for example Space()"),
        ({"trials": 0}, "trials=0: must be a whole number of at least 1"),
        ({"epochs": 0}, "epochs=0: must be a whole number"),
        ({"arithmetic": "float8"}, "arithmetic 'float8'"),
        ({"rule": "chian"}, "rule='chian': did you mean 'chain'? must be one of chain, injected"),
        ({"seed": -1}, "seed=-1: must be a whole number of at least 0"),
        ({"train_samples": None}, "train_samples=None: must be a whole number"),
        ({"validation": None}, "validation=None: trials are compared by the images that they hold out"),
        ({"validation": 1}, "validation=1: must be less than 1"),
        ({"train_samples": 2}, "validation=0.2: holds out 0 of 2 training images"),
        ({"grace": 0}, "grace=0: must be a whole number of at least 1"),
        ({"reduction": 1}, "reduction=1: must be a whole number of at least 2"),
        ({"metric": "accurary"}, "metric='accurary': did you mean 'accuracy'? must be one of accuracy, loss"),
    ],
)
def test_bad_searches_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises((SettingsError, ValueError)) as caught:
        dataclasses.replace(SEARCH, **change)
    assert str(caught.value).startswith(message)


def test_a_bad_json_form_is_refused() -> None:
    content = SEARCH.to_json()
    with pytest.raises(SettingsError, match="search of schema 0: this version of relucheck reads schema 1"):
        Search.from_json({**content, "schema": 0})
    with pytest.raises(SettingsError, match=r"search: 3 is no JSON object; pass what Search.to_json wrote"):
        Search.from_json(3)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"search: .*unexpected keyword argument 'gamma'"):
        Search.from_json({**content, "gamma": 1})
    with pytest.raises(SettingsError, match="search: 'network'"):
        Search.from_json({name: value for name, value in content.items() if name != "network"})
    with pytest.raises(ModelError, match="network: "):
        Search.from_json({**content, "network": {}})


def test_settings_of_a_trial_are_settings() -> None:
    assert Settings.from_json(SEARCH.settings(SEARCH.draws[0]).to_json()) == SEARCH.settings(SEARCH.draws[0])
