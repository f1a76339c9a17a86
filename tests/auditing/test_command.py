"""The command ``relucheck model``: exit codes, files, and what it is given by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from relucheck.__main__ import main
from relucheck.auditing import targets
from relucheck.errors import FAILED, INTERRUPTED, MISSING, OK, UNWRITABLE, USAGE
from relucheck.training.own.task import OwnBatches

MODELS = """
import torch
from torch import nn
import relucheck

class Net(nn.Module):
    def __init__(self, activation, wrong=False, width=4):
        super().__init__()
        self.first, self.one = nn.Linear(784, width), activation()
        self.second, self.two = nn.Linear(width, 10), nn.ReLU() if wrong else activation()

    def forward(self, x):
        return self.two(self.second(self.one(self.first(x.flatten(1)))))

def net(subgradient=0.0, wrong=False, width=4):
    return Net(lambda: relucheck.ReLU(subgradient), wrong, width)

class Drifting(nn.Module):
    runs = 0

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):
        Drifting.runs += 1
        return self.net(x) * (1 + 0.001 * Drifting.runs)

images = [(torch.rand(4, 784), torch.tensor([0, 1, 2, 3]))]

def batches():
    return [(torch.rand(4, 784), torch.rand(4, 10)) for _ in range(2)]

def squares(output, targets):
    return (output - targets).square().mean()

def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.5)

text = "no model"
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def run(*arguments: str) -> int:
    return main(["model", *arguments, "--quiet"])


@pytest.mark.usefixtures("models")
def test_a_report_and_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("models.py:net", "--data", "digits", "--batch-size", "8", "--steps", "10", "--out", str(tmp_path / "out"))
    assert run(*command) == OK
    printed = capsys.readouterr().out
    assert printed.startswith("In float32 s cannot matter here")
    assert max(map(len, printed.partition("report: ")[0].splitlines())) <= 80
    content = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert (content["model"], content["batches"], content["batch_samples"]) == ("net", 10, 8)
    page = (tmp_path / "out" / "audit.md").read_text()
    assert f"**{content['conclusion']}**" in page
    assert run(*command) == OK  # reads the training
    assert (tmp_path / "out" / "audit.md").read_text() == page


@pytest.mark.usefixtures("models")
def test_a_fault_in_the_wiring_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models.py:net", "--set", "wrong=True", "--set", "width=3", "--steps", "0") == FAILED
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith("The wiring is faulty at 'two' (ignores); in float32")
    assert "net(wrong=True, width=3), 2,395 parameters" in printed


@pytest.mark.usefixtures("models")
def test_a_control_that_differs_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models.py:Drifting", "--steps", "10", "--compared", "1") == FAILED
    assert "nothing can be concluded: control differed at step 1" in " ".join(capsys.readouterr().out.split())


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("keep", [True, False])
def test_an_interrupted_command_says_what_is_kept(
    keep: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: OwnBatches, epoch: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(OwnBatches, "begin", interrupted)
    assert run("models.py:net", "--steps", "10", *(["--out", "out"] if keep else [])) == INTERRUPTED
    says = "run the same again to begin there" if keep else "nothing is kept, as no folder was given"
    assert says in capsys.readouterr().err


@pytest.mark.usefixtures("models")
def test_mini_batches_loss_and_optimiser_of_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--data", "models.py:batches", "--loss", "models.py:squares", "--optimiser", "models.py:sgd")
    assert run("models.py:net", *options, "--steps", "10", "--samples", "1000", "--arithmetic", "bfloat16") == OK
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 mini-batches of 4 samples; loss: squares" in printed
    assert "10 steps with SGD, lr 0.5" in printed
    assert "A training step of 1,000 samples has" in printed
    assert printed.startswith("In bfloat16 ")


ERRORS = {
    "no module": (("nowhere:net",), MISSING, "no module named 'nowhere'"),
    "no name": (("models.py",), MISSING, "model 'models.py': must be MODULE:NAME or FILE.py:NAME"),
    "no file": (("others.py:net",), MISSING, "no such file"),
    "misspelt": (("models.py:nett",), MISSING, "'nett' does not exist; did you mean 'net'?"),
    "no model": (("models.py:text",), USAGE, "is of class str: must be an nn.Module or build one"),
    "arguments": (("models.py:net", "--set", "width"), USAGE, "--set 'width': must be NAME=VALUE"),
    "other arguments": (("models.py:net", "--set", "depth=1"), USAGE, "unexpected keyword argument 'depth'"),
    "no data": (("models.py:net", "--data", "digit"), MISSING, "did you mean 'digits'?"),
    "data": (("models.py:net", "--data", "models.py:text"), USAGE, "batches is of class str"),
    "shape": (("models.py:net", "--shape", "gray"), USAGE, "did you mean 'grey'?"),
    "optimiser": (("models.py:net", "--optimiser", "sgd:fast"), USAGE, "learning rate='fast': must be a finite number"),
    "batch size": (("models.py:net", "--batch-size", "0"), USAGE, "--batch-size=0"),
    "steps": (("models.py:net", "--steps", "12"), USAGE, "steps=12: must be a multiple of 10"),
    "folder": (("models.py:net", "--out", "models.py"), UNWRITABLE, "cannot be written"),
}


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("name", ERRORS)
def test_errors_have_one_line_and_an_exit_code(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, code, message = ERRORS[name]
    assert run(*arguments) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1


def test_images_of_a_data_set_have_the_shape_and_the_seed() -> None:
    (x, y), *others = targets.batches("digits", "rgb", 8, 3, 0)
    assert (x.shape, y.shape, len(others)) == ((8, 3, 28, 28), (8,), 2)
    assert torch.equal(x[:, 0], x[:, 2])
    (flat, same), *_ = targets.batches("digits", "flat", 8, 3, 0)
    assert torch.equal(flat, x[:, 0].flatten(1))
    assert torch.equal(same, y)
    assert not torch.equal(targets.batches("digits", "flat", 8, 3, 1)[0][0], flat)


@pytest.mark.parametrize(("text", "value"), [("10", 10), ("0.5", 0.5), ("True", True), ("None", None), ("mean", "mean")])
def test_values_of_arguments(text: str, value: object) -> None:
    assert targets.arguments([f"one={text}"]) == {"one": value}
