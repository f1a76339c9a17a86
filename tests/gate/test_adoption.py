"""``--update`` writes what fails now into pyproject.toml, and leaves the rest of the file alone."""

from __future__ import annotations

import re

import pytest

from relucheck.__main__ import main
from relucheck.errors import OK
from relucheck.gate.config import ConfigError, read
from relucheck.gate.report.adoption import UNEXPLAINED, update

START = '# mine\n[project]\nname = "x"  # kept\n\n[tool.relucheck]\ntargets = ["acts"]\n'
ENTRY = '\n[[tool.relucheck.expected-failures]]\nid = "{}"\nreason = "known"\nmessage = "{}"\n'


def row(law, dtype, outcome="expected", what="it is wrong, 3 of 7", activation="act"):
    message = f"{activation}/{law}/{dtype}: {what}\n  input 0.0" if outcome == "expected" else ""
    keys = {"activation": activation, "law": law, "dtype": dtype, "device": "cpu"}
    return {**keys, "outcome": outcome, "message": message}


def ids(root):
    return [entry.id for entry in read(root).expected]


def test_entries_name_what_fails_and_nothing_else(tmp_path):
    (tmp_path / "pyproject.toml").write_text(START)
    rows = [row("a", "float32"), row("a", "float16"), row("b", "float32"), row("b", "float16", "passed")]
    rows += [row("c", "float32", what='quotes "x"\\ (1)'), row("d", "float32", "passed"), row("a", "float64", "skipped")]
    rows += [row("a", "bfloat16", "skipped")]
    said = update(tmp_path, rows)
    assert said.startswith("expected failures in pyproject.toml: 3 new entries; replace the reason")
    entries = {entry.id: entry for entry in read(tmp_path).expected}
    assert list(entries) == ["act/a/*", "act/b/float32", "act/c/float32"]
    assert {entry.reason for entry in entries.values()} == {UNEXPLAINED}
    for entry, covered in zip(entries.values(), (rows[0], rows[2], rows[4]), strict=True):
        assert entry.matches(f"act/{covered['law']}/float32")
        assert entry.covers(covered["message"])
        assert not entry.covers("act/a/float32: another fault")
    text = (tmp_path / "pyproject.toml").read_text()
    assert text.startswith(START)
    assert update(tmp_path, rows) == "expected failures in pyproject.toml: 0 new entries, 3 kept"
    assert (tmp_path / "pyproject.toml").read_text() == text


def test_entries_go_when_their_faults_are_mended(tmp_path):
    after = '\n[tool.other]\nkey = "[not a header"\n'
    text = START + ENTRY.format("act/a/*", "wrong") + ENTRY.format("act/b/*", "wrong") + after
    (tmp_path / "pyproject.toml").write_text(text)
    assert update(tmp_path, [row("a", "float32"), row("b", "float32", "passed")]).endswith(
        ": 0 new entries, 1 kept, 1 removed"
    )
    assert (tmp_path / "pyproject.toml").read_text() == START + ENTRY.format("act/a/*", "wrong") + "\n" + after.lstrip("\n")


def test_a_run_of_some_dtypes_says_nothing_about_the_others(tmp_path):
    rows = [row("a", "float32"), row("a", "float16")]
    update(tmp_path, rows)
    assert ids(tmp_path) == ["act/a/float32", "act/a/float16"]
    (tmp_path / "pyproject.toml").write_text('[tool.relucheck]\ndtypes = ["float32", "float16"]\n')
    update(tmp_path, rows)
    assert ids(tmp_path) == ["act/a/*"]


def test_comments_and_ends_of_lines_stay(tmp_path):
    after = "# about ruff\n[tool.ruff]\nline-length = 88\n"
    text = (START + ENTRY.format("act/a/*", "wrong") + "\n" + after).replace("\n", "\r\n")
    (tmp_path / "pyproject.toml").write_bytes(text.encode())
    update(tmp_path, [row("b", "float32"), row("a", "float32", "passed")])
    new = (tmp_path / "pyproject.toml").read_bytes().decode()
    assert new.startswith((START + "\n" + after).replace("\n", "\r\n"))
    assert new.count("\n") == new.count("\r\n")
    assert ids(tmp_path) == ["act/b/float32"]


def test_a_device_is_part_of_an_id(tmp_path):
    update(tmp_path, [{**row("a", "float32"), "device": "cuda:0"}])
    assert ids(tmp_path) == ["act/a/float32@cuda:0"]


def test_an_entry_that_became_too_wide_is_replaced_and_keeps_its_reason(tmp_path):
    (tmp_path / "pyproject.toml").write_text(START + ENTRY.format("act/a/*", "wrong"))
    update(tmp_path, [row("a", "float32"), row("a", "float16", "passed")])
    (entry,) = read(tmp_path).expected
    assert (entry.id, entry.reason, entry.message) == ("act/a/float32", "known", "wrong")


def test_entries_about_items_that_did_not_run_stay(tmp_path):
    (tmp_path / "pyproject.toml").write_text(START + ENTRY.format("act/later/*", "wrong"))
    update(tmp_path, [row("a", "float32")])
    assert ids(tmp_path) == ["act/later/*", "act/a/float32"]


def test_another_fault_is_a_new_entry(tmp_path):
    (tmp_path / "pyproject.toml").write_text(START + ENTRY.format("act/a/float32", "other"))
    update(tmp_path, [row("a", "float32")])
    assert [(entry.reason, entry.message) for entry in read(tmp_path).expected] == [(UNEXPLAINED, "it is wrong")]


def test_a_list_in_another_form_is_refused_and_untouched(tmp_path):
    for entries in ('[{ id = "act/b/*", reason = "known" }]', "[]"):
        text = f"[tool.relucheck]\nexpected-failures = {entries}\n"
        (tmp_path / "pyproject.toml").write_text(text)
        with pytest.raises(ConfigError, match=r"written as \[\[tool"):
            update(tmp_path, [row("b", "float32", "passed"), row("c", "float32")])
        assert (tmp_path / "pyproject.toml").read_text() == text


def test_a_library_with_faults_adopts_the_gate_in_one_step(tmp_path, monkeypatch, capsys):
    (tmp_path / "acts.py").write_text(
        "import torch\n"
        "class F(torch.autograd.Function):\n"
        "    @staticmethod\n    def forward(ctx, x):\n        return torch.relu(x)\n"
        "    @staticmethod\n    def backward(ctx, v):\n        return v\n"
        "def act(x):\n    return F.apply(x)\n"
    )
    monkeypatch.chdir(tmp_path)
    command = [
        "check",
        "acts.py",
        "--dtypes",
        "float32",
        "--laws",
        "runs,chain_rule,derivative,subgradient",
        "--no-isolate",
    ]
    assert main(command) != OK
    assert main([*command, "--update"]) == OK
    out = capsys.readouterr().out
    assert "expected failures in pyproject.toml: 1 new entry; replace the reason" in out
    assert re.search(r'id = "act/derivative/float32"', (tmp_path / "pyproject.toml").read_text())
    assert main(command) == OK
