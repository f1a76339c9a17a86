"""The README's Python examples run as they stand, and its commands are those of the project."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import relucheck
from relucheck import data
from relucheck.networks import Network

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


class MyResNet(nn.Module):
    """A residual network that hands its activation to the stem only, as the published one does."""

    def __init__(self, activation: Any) -> None:
        super().__init__()
        self.blocks = Network("residual", (1,)).build().blocks
        self.stem = activation()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.stem(x))


def _namespace() -> dict[str, Any]:
    import torchvision

    return {
        "torch": torch,
        "torchvision": torchvision,
        "relucheck": relucheck,
        "MyResNet": MyResNet,
        "model": Network("mlp", (8, 8)).build(),
        "images": torch.rand(4, 1, 28, 28),
        "labels": torch.tensor([0, 1, 2, 3]),
    }


def test_there_are_examples() -> None:
    assert len(BLOCKS) >= 6


@pytest.mark.parametrize("block", BLOCKS, ids=[str(index) for index in range(len(BLOCKS))])
def test_example_runs(block: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(data, "load_mnist", lambda root: data.load_digits())  # no network in tests
    namespace = _namespace()
    if "WiringError" in block:
        with pytest.raises(ValueError, match=re.escape(block.split("WiringError: ")[1].strip())):
            exec(block, namespace)
        return
    exec(block, namespace)
    if "subgradient=0.5)" in block and "autograd" in block:
        printed = capsys.readouterr().out
        assert "0.5000" in printed
        assert "-0.5000" in printed
    if "test_mine" in block:
        namespace["test_mine"]()


def test_ci_runs_the_readmes_commands() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    install, test = 'pip" install --quiet -c constraints.txt -e ".[test]"', 'pytest" -n auto'
    assert install in ci
    assert test in ci
    assert README.count('.venv/bin/pip install -c constraints.txt -e ".[test]" && .venv/bin/pytest') == 2
    assert ".venv/bin/pytest -n auto\n" in README
    assert ".venv/bin/pytest -m bifurcation -n auto\n" in README
