"""Kink cards show values, derivatives, kinks and failing inputs, and never leave a file half written."""

from __future__ import annotations

import math

import pytest
from PIL import Image

from relucheck.__main__ import main
from relucheck.commands import cards
from relucheck.errors import FAILED, MISSING, OK, UNWRITABLE

X = (-1.0, 0.0, 1.0)


def row(dtype="float32", *, outcome="passed", x="0.0", taken=0.0, activation="act", curve=True, at=0.0):
    kink = {"at": at, "left": 0.0, "right": 1.0, "jump": 0.0, "singular": False, "rounded": None}
    example = {"x": x, "kink": at, "ulp": 0} if outcome == "failed" else None
    values = {"x": X, "value": (0.0, math.nan, 1.0), "gradient": (0.0, math.nan, 1.0)}
    return {
        "activation": activation, "law": "law", "dtype": dtype, "device": "cpu", "outcome": outcome, "cause": "",
        "group": "gradient", "message": f"{activation}/law/{dtype}: wrong", "counterexample": example,
        "kinks": ({**kink, "subgradient": {"reverse": taken}},) if curve else None, "curve": values if curve else None,
    }  # fmt: skip


def drawn(results, monkeypatch, tmp_path):
    """The matplotlib figures of the cards."""
    figures = []
    monkeypatch.setattr(cards, "save", lambda figure, path: figures.append(figure))
    cards.draw_cards(results, tmp_path)
    return figures


def test_a_card_shows_curves_kinks_and_subgradients(monkeypatch, tmp_path):
    (figure,) = drawn([row(), row("bfloat16", taken=0.5)], monkeypatch, tmp_path)
    value, slope = figure.axes
    assert [line.get_label() for line in value.get_lines()] == ["float32", "bfloat16"]
    assert len({str(line.get_linestyle()) for line in value.get_lines()}) == 2
    marks = {
        (line.get_marker(), *map(float, line.get_ydata())) for line in slope.get_lines() if line.get_marker() != "None"
    }
    assert marks == {("<", 0.0), (">", 1.0), ("o", 0.0), ("^", 0.5)}
    (interval,) = (line for line in slope.get_lines() if line.get_linewidth() == 5)
    assert list(interval.get_ydata()) == [0.0, 1.0]
    assert slope.get_xlabel().replace("\n", " ") == "at 0: left 0, right 1, taken 0 or 0.5"


def test_a_singular_kink_has_no_interval(monkeypatch, tmp_path):
    """Its one-sided derivatives are those of an infinite slope, between which nothing lies."""
    result = row()
    result["kinks"] = ({**result["kinks"][0], "singular": True},)
    (figure,) = drawn([result], monkeypatch, tmp_path)
    assert not [line for line in figure.axes[1].get_lines() if line.get_linewidth() == 5]


def test_the_curves_of_one_device_are_shown(monkeypatch, tmp_path):
    other = {**row(), "device": "cuda", "curve": {"x": X, "value": (5.0, 5.0, 5.0), "gradient": (5.0, 5.0, 5.0)}}
    (figure,) = drawn([row(), other], monkeypatch, tmp_path)
    (line,) = figure.axes[0].get_lines()
    assert list(line.get_ydata())[::2] == [0.0, 1.0]


@pytest.mark.parametrize(("x", "marked", "says"), [("0.0", True, "fails law"), ("40.0", False, "(at 40 outside)")])
def test_failing_inputs_are_marked(monkeypatch, tmp_path, x, marked, says):
    (figure,) = drawn([row(), row(outcome="failed", x=x, curve=False)], monkeypatch, tmp_path)
    for panel in figure.axes:
        assert any(line.get_marker() == "x" for line in panel.get_lines()) == marked
    assert says in figure.axes[1].get_xlabel().replace("\n", " ")


def test_one_card_for_each_activation(tmp_path):
    files = cards.draw_cards([row(activation="a[0]:b"), row(activation="c", at=1e300)], tmp_path / "new")
    assert [file.name for file in files] == ["a_0__b.png", "c.png"]
    for file in files:
        with Image.open(file) as picture:
            assert picture.size == (408, 396)
            assert picture.convert("L").getextrema() == (0, 255)


def test_cards_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acts.py").write_text("import torch\ndef act(x):\n    return torch.where(x > 0, x, 0.3 * x - 1)\n")
    options = ["acts.py", "--dtypes", "float32", "--no-isolate", "--plot", "cards"]
    assert main(["kinks", *options]) == OK
    with Image.open("cards/act.png") as picture:
        before = picture.convert("L").tobytes()
    report = ["--laws", "runs,derivative,subgradient,dtype_agreement", "--report", "out/report.md"]
    assert main(["check", *options, *report]) in (OK, FAILED)
    with Image.open("cards/act.png") as picture:
        assert len(picture.convert("L").tobytes()) == len(before)
    assert '<img src="../cards/act.png"' in (tmp_path / "out/report.md").read_text()
    assert main(["kinks", *options[:-1], "acts.py/cards"]) == UNWRITABLE
    assert "--plot acts.py/cards/card.png: the file cannot be written" in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert main(["kinks", *options]) == MISSING
    assert "--plot needs matplotlib" in capsys.readouterr().err
