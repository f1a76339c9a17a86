"""Settings that cannot be used get one clear error; expected failures are strict."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from relucheck.activations.kinks import Activation, Kink
from relucheck.gate.config import OPTIONS, ConfigError, ExpectedFailure, GateConfig, from_table, merged, read
from relucheck.gate.report.documents import SCHEMA_VERSION, ReportError, as_json, read_json
from relucheck.gate.run import Gate
from tests.faults import wrong_gradients

COMMITTED = Path(__file__).parents[2] / "reports" / "gate"


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"target": ["a"]}, "[tool.relucheck] key='target': did you mean 'targets'? must be one of baseline, "),
        ({"targets": "a"}, "[tool.relucheck] targets='a': must be a list"),
        ({"targets": ["a", 3]}, "[tool.relucheck] targets=3: must be of class str"),
        ({"baseline": 3}, "[tool.relucheck] baseline=3: must be of class str"),
        ({"dtypes": ["float23"]}, "[tool.relucheck] dtypes='float23': did you mean 'float32'"),
        ({"convention": "clark"}, "did you mean 'clarke'"),
        ({"fail-on": "warning"}, "must be one of error, notice"),
        ({"compile": 1}, "[tool.relucheck] compile=1: must be true or false"),
        ({"time-limit": "1"}, "[tool.relucheck] time-limit='1': must be a finite number"),
        ({"time-limit": -1}, "[tool.relucheck] time-limit=-1.0: must be a finite number above 0"),
        ({"time-limit": 1e300}, "[tool.relucheck] time-limit=1e+300: must be a finite number above 0 and at most 1e+06"),
        ({"memory-limit": float("inf")}, "[tool.relucheck] memory-limit=inf: must be a finite number"),
        ({"scan": [3, 1]}, "must be smaller"),
        ({"scan": [3]}, "[tool.relucheck] scan=[3]: must be two numbers, for example [-32, 32]"),
        ({"scan": ["a", 3]}, "[tool.relucheck] scan='a': must be a finite number"),
        ({"constructors": {"A": 3}}, "a table of keyword arguments or a list"),
        ({"expected-failures": {"id": "x"}}, "a table per entry is needed"),
        ({"expected-failures": [{"id": "A/b/c"}]}, "reason is missing"),
        (
            {"expected-failures": [{"id": "A/b/c", "reason": "r", "why": "x"}]},
            "entry 1: key='why': must be one of id, reason, message, issue",
        ),
        ({"expected-failures": [{"id": 3}]}, "entry 1: id=3: must be of class str"),
        ({"expected-failures": [{"id": "A", "reason": "r"}]}, "an id is Activation/law/dtype"),
        ({"expected-failures": [{"id": "A/b/c", "reason": "r", "message": "("}]}, "is no regular expression"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_one_clear_error(table, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
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


def run(expected, law="chain_rule", activation=wrong_gradients.injected_relu, **settings):
    act = Activation("act", lambda: activation)
    gate = Gate(GateConfig(dtypes=("float32",), laws=(law,), expected=tuple(expected), **settings), [act])
    return {item.id: gate.run(item) for item in gate.items()}


def test_expected_failure_is_expected():
    (result,) = run(
        [ExpectedFailure("act/chain_*/*", "known", "not the cotangent times the derivative", "https://example.org/7")]
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
    assert "expected to fail, but passes" in result.message


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
    clamp = Activation("act", lambda: wrong_gradients.clamp_closed)

    def outcome(convention, law="subgradient", activation=clamp):
        gate = Gate(GateConfig(dtypes=("float32",), laws=(law,), convention=convention), [activation])
        return [gate.run(item).outcome for item in gate.items()]

    assert outcome("clarke") == ["passed"]
    assert outcome("minimum-norm") == ["failed"]
    assert outcome("declared") == ["failed"]  # nothing is declared
    declared = Activation("act", lambda: wrong_gradients.clamp_closed, kinks=[Kink(0, 0, 1, 1), Kink(6, 1, 0, 1)])
    assert outcome("declared", activation=declared) == ["passed"]
    assert outcome(
        "clarke",
        activation=Activation("act", lambda: wrong_gradients.clamp_closed, kinks=[Kink(0, 0, 1, 0), Kink(6, 1, 0)]),
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


def test_options_of_a_command_line_win(tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[tool.relucheck]\ntargets = ["a.b"]\ndtypes = ["float16"]\nfail-on = "notice"\ncompile = true\ntime-limit = 5\n'
    )
    folder = tmp_path / "sub"
    silent = dict.fromkeys(OPTIONS) | {"targets": [], "compile": False, "laws": ""}
    assert merged(tmp_path, silent, folder) == merged(tmp_path, {}, folder) == read(tmp_path)
    options = {"targets": ["c.py"], "dtypes": "float32, bfloat16", "laws": "runs", "fail_on": "error", "time_limit": 2.0}
    config = merged(tmp_path, silent | options, folder)
    assert (config.targets, config.dtypes, config.laws) == (("c.py",), ("float32", "bfloat16"), ("runs",))
    assert (config.fail_on, config.time_limit, config.compile) == ("error", 2.0, True)
    # a target of the command line lies where that was given, one of the file beside the file
    assert (config.root, read(tmp_path).root) == (folder, tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'float32'"):
        merged(tmp_path, {"dtypes": "float31"}, folder)
    with pytest.raises(ConfigError, match="must be a finite number above 0"):
        merged(tmp_path, {"time_limit": 0.0}, folder)


def test_reports_of_another_schema_are_refused_by_name(tmp_path):
    file = tmp_path / "old.json"
    for version, fix in ((1, "write the table again"), (SCHEMA_VERSION + 1, "update relucheck")):
        file.write_text(as_json([], []).replace(f'"schema_version": {SCHEMA_VERSION}', f'"schema_version": {version}'))
        with pytest.raises(ReportError, match=rf"old\.json: schema version {version}, .*; {fix}"):
            read_json(file)


@pytest.mark.skipif(not COMMITTED.exists(), reason="an sdist holds no committed results")
@pytest.mark.parametrize("name", ["torch-2.4.1.json", "torch-2.11.0.json", "torch-2.15.0.json"])
def test_committed_tables_can_be_compared(name):
    body = read_json(COMMITTED / "history" / name)
    for row in body["kinks"]:
        assert set(row["subgradient"]) <= set(body["searched"][row["activation"]])
