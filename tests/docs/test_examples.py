"""The examples of README.md and docs/ run as they stand, print what the documents say, and name options that exist."""

from __future__ import annotations

import contextlib
import doctest
import importlib.util
import io
import os
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import relucheck
from relucheck import pytest_plugin
from relucheck.__main__ import _parser
from relucheck.gate import config as gate_config
from relucheck.gate.constructors import REGISTERED
from relucheck.gate.run import check_laws
from relucheck.networks import Network
from tests.docs.documents import GATE, PAGES, README, REASONS, ROOT, Block, blocks, commands, name_of, plugin_options
from tests.helpers import forked

LANGUAGES = {"python", "console", "text", "toml", "yaml"}

every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def of_language(language: str, page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language == language]


def assert_prints(page: Path, block: Block, printed: str) -> None:
    """Compares what a block printed with the document: ``...`` stands for anything, and spaces count as one."""
    assert block.output is not None
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.OutputChecker().check_output(block.output, printed, flags), (
        f"{name_of(page)}:{block.line} prints\n{printed}\nthe document says\n{block.output}"
    )


def known_to_readers() -> dict[str, Any]:
    """What README.md, which has no room for it, takes as given: a model, a mini-batch, and the imports."""
    return {
        "torch": torch,
        "relucheck": relucheck,
        "model": Network("mlp", (8, 8)).build(),
        "images": torch.rand(4, 1, 28, 28),
        "labels": torch.tensor([0, 1, 2, 3]),
    }


# -- blocks --------------------------------------------------------------------------------------------------------------


@every_page
def test_blocks_are_of_a_known_kind(page: Path) -> None:
    """What is not executed says so, with one of few reasons; a block of another language would not be looked at at all."""
    for block in blocks(page):
        where = f"{name_of(page)}:{block.line}"
        assert block.language in LANGUAGES, where
        assert block.reason is None or (block.language == "python" and block.reason in REASONS), where


@pytest.fixture
def own_constructors() -> Iterator[None]:
    """What a page registers is gone after it; other tests of the process must not construct with it."""
    before = dict(REGISTERED)
    yield
    REGISTERED.clear()
    REGISTERED.update(before)


def test_there_are_examples() -> None:
    assert len([block for page in PAGES for block in of_language("python", page)]) >= 15
    assert len([block for page in PAGES for block in blocks(page) if block.reason]) <= 2


@pytest.mark.parametrize("page", [page for page in PAGES if of_language("python", page)], ids=name_of)
@pytest.mark.usefixtures("own_constructors")
def test_python_runs(page: Path) -> None:
    """All blocks of a page one after another, as a reader would paste them."""
    namespace = known_to_readers() if page == README else {}
    namespace["__name__"] = "__main__"
    for block in of_language("python", page):
        if block.reason is not None:
            continue
        printed = io.StringIO()
        code = compile("\n" * (block.line - 1) + block.text, name_of(page), "exec")  # errors name the page's lines
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        if block.output is not None:
            assert_prints(page, block, printed.getvalue())


# -- commands ------------------------------------------------------------------------------------------------------------


SHOWN = ("relucheck check ", "relucheck model ")


def shown_runs() -> list[Any]:
    """The commands whose output a document shows."""
    return [
        pytest.param(page, block, id=f"{name_of(page)}:{block.line}")
        for page in PAGES
        for block in of_language("console", page)
        if block.output is not None and any(command.startswith(SHOWN) for command in block.commands)
    ]


@pytest.mark.parametrize(("page", "block"), shown_runs())
def test_commands_print_what_documents_show(page: Path, block: Block, tmp_path: Path) -> None:
    """In a folder with the files of the page, and with those that docs/gate.md shows, which README.md takes as known."""
    for shown in (*of_language("python", GATE), *of_language("python", page)):
        if shown.file is not None:
            path = tmp_path / shown.file
            path.parent.mkdir(exist_ok=True)
            path.write_text(shown.text, encoding="utf-8")
    (command,) = (command for command in block.commands if command.startswith(SHOWN))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    run = forked.python("-m", *shlex.split(command), cwd=tmp_path, environment=environment, timeout=300)
    assert not run.stderr or command.startswith("relucheck model ")  # shows its progress
    assert_prints(page, block, run.stdout)


@every_page
def test_commands_of_relucheck_parse(page: Path) -> None:
    for command in commands(page):
        words = shlex.split(command)
        if words[0] != "relucheck":
            continue
        arguments = _parser().parse_args(words[1:])  # exits where an option does not exist
        if getattr(arguments, "laws", None):
            check_laws(arguments.laws.split(","))
        if arguments.command == "reproduce":
            from relucheck.reproduction.experiments import find_scenario

            find_scenario(arguments.scenario).parts(arguments.scale or "full", arguments.only)


@every_page
def test_other_commands_name_what_exists(page: Path) -> None:
    """Markers and files of pytest, modules of ``python -m``."""
    markers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"].get("markers", [])
    known = {marker.split(":")[0].split("(")[0] for marker in [*markers, *pytest_plugin._MARKERS]}
    for command in commands(page):
        words = shlex.split(command)
        pytest_from = next((at for at, word in enumerate(words) if word.endswith("pytest")), len(words))
        for at, word in enumerate(words):
            if at and words[at - 1] == "-m" and at > pytest_from:
                assert word in known, command
            elif at and words[at - 1] == "-m":
                assert word == "pytest" or importlib.util.find_spec(word) is not None, command
            if word.startswith(("tests/", "reports/")):
                assert (ROOT / word).exists(), command


@every_page
def test_options_of_the_plugin_exist(page: Path) -> None:
    words = page.read_text(encoding="utf-8").replace("`", " ").replace('"', " ").replace("=", " ").split()
    named = {word.rstrip(".,;:)") for word in words if word.startswith("--relucheck")}
    assert named <= plugin_options()


# -- configuration -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in PAGES if of_language("toml", page)], ids=name_of)
def test_configuration_is_read(page: Path) -> None:
    for block in of_language("toml", page):
        config = gate_config.from_table(tomllib.loads(block.text)["tool"]["relucheck"])
        assert config.targets


@pytest.mark.parametrize("page", [page for page in PAGES if of_language("yaml", page)], ids=name_of)
def test_workflow_parses(page: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="comes with the extra docs")
    for block in of_language("yaml", page):
        (job,) = yaml.safe_load(block.text)["jobs"].values()
        runs = [step["run"] for step in job["steps"] if "run" in step]
        assert any("--relucheck" in run for run in runs)
