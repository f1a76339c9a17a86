"""Every exception of the package is a RelucheckError with an exit code; the checks name input, rule and fix."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

import pytest
import torch

import relucheck
from relucheck import errors
from relucheck.activations.kink_search import find_kinks
from relucheck.activations.kinks import Activation, Kink
from relucheck.errors import (
    ModelError,
    RelucheckError,
    SettingsError,
    did_you_mean,
    number,
    one_of,
    printable,
    truth,
    whole,
)
from relucheck.gate.constructors import register_constructor
from relucheck.gate.discovery import as_activation

#: What code of a target must not be able to catch as an Exception, and how pytest hears that an item failed.
OUTSIDE = {"TimeLimitExceeded", "Interrupted", "GateVerdict"}


def exceptions() -> dict[str, type[BaseException]]:
    """Every public exception class that a module of relucheck defines, by its qualified name."""
    found: dict[str, type[BaseException]] = {}
    for module in pkgutil.walk_packages(relucheck.__path__, "relucheck."):
        if module.name.endswith("__main__"):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if inspect.isclass(value) and issubclass(value, BaseException) and value.__module__ == module.name:
                found[f"{module.name}.{name}"] = value
    return found


def test_every_exception_is_a_relucheck_error_with_a_documented_exit_code() -> None:
    found = exceptions()
    assert len(found) > 20
    known = {errors.FAILED, errors.USAGE, errors.MISSING, errors.UNWRITABLE}
    strangers = {
        name
        for name, value in found.items()
        if not name.rpartition(".")[2].startswith("_")
        and name.rpartition(".")[2] not in OUTSIDE
        and not (issubclass(value, RelucheckError) and value.exit_code in known)
    }
    assert strangers == set()


@pytest.mark.parametrize(
    ("refused", "builtin"),
    [
        (lambda: Kink(float("nan"), 0, 1), ValueError),
        (lambda: Activation("a/b", torch.nn.ReLU), ValueError),
        (lambda: Activation("a", torch.nn.ReLU, (Kink(0, 0, 1), Kink(0, 0, 1))), ValueError),
        (lambda: Activation("a", 3), TypeError),
        (lambda: find_kinks(torch.relu, scan=(1.0, 0.0)), ValueError),
        (lambda: register_constructor("Scaled", 3), TypeError),
        (lambda: as_activation(3), TypeError),
    ],
)
def test_what_declares_activations_refuses_with_an_error_of_relucheck(refused: Any, builtin: type[Exception]) -> None:
    with pytest.raises(RelucheckError) as caught:
        refused()
    assert isinstance(caught.value, builtin)


def test_the_command_ends_with_the_exit_code_of_the_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from relucheck.__main__ import main
    from relucheck.commands import reproduce

    class Peculiar(RelucheckError):
        exit_code = 4

    def stop(arguments: Any) -> int:
        raise Peculiar("colour='mauve': must be a colour")

    monkeypatch.setattr(reproduce, "run", stop)
    assert main(["reproduce", "E1"]) == 4
    assert capsys.readouterr().err == "relucheck: colour='mauve': must be a colour\n"


@pytest.mark.parametrize("value", [0, -1, True, 1.0, "1", None])
def test_what_is_no_whole_number_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ModelError, match=r"^width=.*: must be a whole number of at least 1$"):
        whole("width", value, error=ModelError)


def test_what_passes_the_checks() -> None:
    whole("width", 1)
    whole("seed", 0, 0)
    number("lr", 0.1, above=0)
    one_of("rule", "chain", ("chain", "injected"))
    truth("strict", False)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0, "1", True, -1e-9])
def test_what_is_out_of_bounds_is_refused(value: Any) -> None:
    with pytest.raises(SettingsError, match="must be a finite number above 0"):
        number("lr", value, above=0)


def test_an_unknown_name_is_answered_by_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"^rule='chian': did you mean 'chain'\? must be one of chain, injected$"):
        one_of("rule", "chian", ("chain", "injected"))
    with pytest.raises(SettingsError, match=r"^rule=3: must be one of"):
        one_of("rule", 3, ("chain", "injected"))


def test_suggestions() -> None:
    assert did_you_mean("RELU", ["relu", "gelu"]) == "did you mean 'relu'? "
    assert did_you_mean("relux", ["relu", "relu6"], most=2) == "did you mean 'relu' or 'relu6'? "
    assert did_you_mean("softmax", ["relu"]) == did_you_mean(None, ["None"]) == ""


def test_text_that_a_terminal_would_act_on_is_escaped() -> None:
    assert printable("slope é 中") == "slope é 中"
    assert printable("\x1b[2J\0\n\ud800\u202e") == r"\x1b[2J\x00\n\ud800\u202e"
    assert printable("one\ntwo\r", lines=True) == "one\ntwo\\r"
    assert errors.error_text(ValueError("a \x1b[31m\0 b\n c")) == r"ValueError: a \x1b[31m\x00 b c"
