"""The second set of activations, reports/gate/second_set: each has an answer, and each answer an activation."""

import importlib.util
import tomllib
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "reports" / "gate" / "second_set"


def _named(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return set(module.__all__)


def test_answers_and_activations_have_the_same_names():
    answers = tomllib.loads((FOLDER / "answers.toml").read_text())
    kinds = answers.pop("reasons")
    assert {name: set(table) for name, table in answers.items()} == {
        name: _named(FOLDER / f"{name}.py") for name in answers
    }
    for table in answers.values():
        for answer in table.values():
            assert set(answer.get("kinds", ())) <= set(kinds)
            assert bool(answer.get("kinds")) == (answer["verdict"] in {"faulty", "edge"})
