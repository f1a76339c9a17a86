"""Settings that cannot be used get one clear error; expected failures are strict."""

from __future__ import annotations

import pytest
import torch

from relucheck.activations.kinks import Activation, Kink
from relucheck.gate.config import ConfigError, ExpectedFailure, GateConfig, from_table, read
from relucheck.gate.run import Gate

from . import mutants


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"target": ["a"]}, "unknown key 'target': did you mean 'targets'"),
        ({"targets": "a"}, "a list of strings is needed"),
        ({"dtypes": ["float23"]}, "did you mean 'float32'"),
        ({"convention": "clark"}, "did you mean 'clarke'"),
        ({"fail-on": "warning"}, "must be one of error, notice"),
        ({"compile": 1}, "true or false is needed"),
        ({"time-limit": "1"}, "a number is needed"),
        ({"time-limit": -1}, "must be greater than 0"),
        ({"scan": [3, 1]}, "must be smaller"),
        ({"scan": [3]}, "two numbers are needed"),
        ({"constructors": {"A": 3}}, "a table of keyword arguments or a list"),
        ({"expected-failures": {"id": "x"}}, "a table per entry is needed"),
        ({"expected-failures": [{"id": "A/b/c"}]}, "reason is missing"),
        ({"expected-failures": [{"id": "A/b/c", "reason": "r", "why": "x"}]}, "unknown key 'why'"),
        ({"expected-failures": [{"id": "A", "reason": "r"}]}, "an id is Activation/law/dtype"),
        ({"expected-failures": [{"id": "A/b/c", "reason": "r", "message": "("}]}, "is no regular expression"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_one_clear_error(table, says):
    with pytest.raises(ConfigError, match=says.replace("(", r"\(")):
        from_table(table)


def test_file_is_read_and_broken_toml_named(tmp_path):
    file = tmp_path / "pyproject.toml"
    file.write_text(
        '[tool.relucheck]\ntargets = ["a.b"]\nfail-on = "notice"\n[tool.relucheck.constructors]\nScaled = { slope = 0.1 }\n'
        '[[tool.relucheck.expected-failures]]\nid = "A/*/float16"\nreason = "known"\nissue = "https://example.org/1"\n'
    )
    config = read(tmp_path)
    assert config.targets == ("a.b",)
    assert config.fail_on == "notice"
    assert config.expected[0].matches("A/chain_rule/float16")
    assert not config.expected[0].matches("B/chain_rule/float16")
    file.write_text("[tool.relucheck\n")
    with pytest.raises(ConfigError, match=r"pyproject\.toml"):
        read(tmp_path)


def test_unknown_law_gets_a_suggestion():
    with pytest.raises(ConfigError, match="did you mean 'chain_rule'"):
        Gate(GateConfig(laws=("chainrule",)))


def run(expected, law="chain_rule", activation=mutants.injected_relu, **settings):
    act = Activation("act", lambda: activation)
    gate = Gate(GateConfig(dtypes=("float32",), laws=(law,), expected=tuple(expected), **settings), [act])
    return {item.id: gate.run(item) for item in gate.items()}


def test_expected_failure_is_expected():
    (result,) = run(
        [ExpectedFailure("act/chain_*/*", "known", "cotangent is not passed on", "https://example.org/7")]
    ).values()
    assert result.outcome == "expected"
    assert "https://example.org/7" in result.message


def test_expected_failure_cannot_hide_another_fault():
    (result,) = run([ExpectedFailure("act/chain_rule/float32", "known", "something else")]).values()
    assert result.outcome == "failed"
    assert "does not match 'something else'" in result.message


def test_expected_failure_that_passes_fails():
    (result,) = run([ExpectedFailure("act/chain_rule/float32", "known")], activation=torch.relu).values()
    assert result.outcome == "failed"
    assert "expected to fail, and passes" in result.message


def test_expected_failure_that_names_nothing_fails_with_a_suggestion():
    results = run([ExpectedFailure("act/chain_rules/float32", "known")], activation=torch.relu)
    (stale,) = (result for result in results.values() if result.law == "expected-failures")
    assert stale.outcome == "failed"
    assert "did you mean 'act/chain_rule/float32'" in stale.message


def test_names_with_brackets_are_no_character_classes():
    assert ExpectedFailure("acts[0]/runs/*", "r").matches("acts[0]/runs/float32")
    assert not ExpectedFailure("acts[0]/runs/*", "r").matches("acts0/runs/float32")


def test_notices_fail_when_asked_for():
    (result,) = run([], law="infinities", activation=torch.nn.functional.gelu).values()
    assert result.outcome == "notice"
    (result,) = run([], law="infinities", activation=torch.nn.functional.gelu, fail_on="notice").values()
    assert result.outcome == "failed"


def test_conventions():
    clamp = Activation("act", lambda: mutants.clamp_closed)

    def outcome(convention, law="subgradient", activation=clamp):
        gate = Gate(GateConfig(dtypes=("float32",), laws=(law,), convention=convention), [activation])
        return [gate.run(item).outcome for item in gate.items()]

    assert outcome("clarke") == ["passed"]
    assert outcome("minimum-norm") == ["failed"]
    assert outcome("declared") == ["failed"]  # nothing is declared
    declared = Activation("act", lambda: mutants.clamp_closed, kinks=[Kink(0, 0, 1, 1), Kink(6, 1, 0, 1)])
    assert outcome("declared", activation=declared) == ["passed"]
    assert outcome(
        "clarke", activation=Activation("act", lambda: mutants.clamp_closed, kinks=[Kink(0, 0, 1, 0), Kink(6, 1, 0)])
    ) == ["failed"]
    assert outcome("reference", law="reference") == ["failed"]  # no reference is declared
    assert outcome(
        "reference", law="reference", activation=Activation("act", torch.nn.ReLU6, reference=torch.nn.ReLU6())
    ) == ["passed"]


def test_activation_declarations_are_checked():
    with pytest.raises(ValueError, match="a name is not empty"):
        Activation("a/b", torch.nn.ReLU)
    with pytest.raises(TypeError, match="must be callable"):
        Activation("a", torch.nn.ReLU, reference=3)


def test_names_that_nothing_has_are_noticed():
    gate = Gate(
        GateConfig(dtypes=("float32",), laws=("runs",), surrogates=("ReLUU", "ReLU"), constructors={"Scaled": [1.0]}),
        [torch.nn.ReLU],
    )
    noticed = {result.id: result for result in map(gate.run, gate.items()) if result.outcome == "notice"}
    assert list(noticed) == ["ReLUU/configuration/-", "Scaled/configuration/-"]
    assert "did you mean 'ReLU'" in noticed["ReLUU/configuration/-"].message
