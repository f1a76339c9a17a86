"""One smoke run of each scenario for all tests that look at it, in whatever worker they run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from relucheck.reproduction.report.summary import Reproduction
from relucheck.reproduction.report.volume import figures as volume_figures
from relucheck.reproduction.run import reproduce
from relucheck.results import figures

#: A rehearsal takes a few steps of each comparison; the trainings take a million, the volumes draw 149,200 networks.
_LAST = ("test_full.py", "test_full_e4.py")
#: The modules that render figures, and what they render them with.
_DRAWING, _PNG = (figures, volume_figures), figures.png


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long comes last, in whatever order pytest-randomly has the rest."""
    items.sort(key=lambda item: _LAST.index(item.path.name) if item.path.name in _LAST else -1)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of figures are empty, for tests that look at none of them: drawing them takes most of the time of a report."""
    for module in _DRAWING:
        monkeypatch.setattr(module, "png", lambda figure: b"")


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reproduction]:
    """``smoke("E2")``: the scenario at smoke scale, run once; E2 and E3 lie in one parent folder.

    Under pytest-xdist the first worker that needs a scenario runs it, and the others wait and read what it made.
    """
    parent = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        parent = parent.parent  # of the workers' own folders, one for each session
    parent = parent / "smoke"
    parent.mkdir(exist_ok=True)
    made: dict[str, Reproduction] = {}

    def run(name: str) -> Reproduction:
        if name not in made:
            made[name] = _run_once(name, parent)
        return made[name]

    return run


def _run_once(name: str, parent: Path) -> Reproduction:
    import fcntl

    kept = parent / f"{name}.pickle"
    with (parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go of when the file is closed, or its process dies
        if kept.is_file():
            found: Reproduction = pickle.loads(kept.read_bytes())
            return found
        folder = parent / f"{name}-smoke"
        with pytest.MonkeyPatch.context() as patch:
            for module in _DRAWING:  # the first test that needs the scenario may be one without figures
                patch.setattr(module, "png", _PNG)
            made: Reproduction = reproduce(name, "smoke", folder, device="cpu", progress=False, say=lambda line: None).made
        kept.write_bytes(pickle.dumps(made))
        return made
