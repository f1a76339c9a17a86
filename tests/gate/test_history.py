"""tools/torch_history.py and reports/gate/history.md: each change between versions of torch is there, and judged."""

import copy
import tomllib

import pytest

from relucheck.gate.report.drift import differences
from tests.docs.documents import ROOT, tool

FOLDER = ROOT / "reports" / "gate" / "history"
history = tool("torch_history")


def _result(activation, law, dtype, outcome, message=""):
    message = message and f"{activation}/{law}/{dtype}: {message}\n  input      0.0\n  reproduce:\n    import torch"
    return {
        "activation": activation,
        "law": law,
        "dtype": dtype,
        "device": "cpu",
        "outcome": outcome,
        "message": message,
        "counterexample": {"script": "import torch"} if message else None,
    }


def _kink(activation, at, **reverse):
    subgradient = {dtype: {"reverse": value} for dtype, value in reverse.items()}
    sides = {"left": 0.0, "right": 1.0, "jump": 0.0, "singular": False, "rounded": {}}
    return {"activation": activation, "device": "cpu", "at": at, **sides, "subgradient": subgradient}


def _body(torch, results, kinks=(), searched=("ReLU", "GELU")):
    body = {
        "schema": "relucheck-gate",
        "schema_version": 2,
        "targets": ["torch.nn"],
        "results": results,
        "counts": {"failed": 1, "passed": 2},
        "searched": {name: ["float32"] for name in searched},
        "kinks": list(kinks),
    }
    return history.thinned([body], {"torch": torch, "python": "3.11.7", "processor": "any", "model": "AVX2"})


OLD = [
    _result("GELU", "subnormals", "float32", "failed", "flushes 3 of 80 inputs"),
    _result("GELU", "position", "float32", "notice", "one value (nan), two gradients: position 64 of 83"),
    _result("ReLU", "vmap", "float32", "passed"),
]


def test_a_report_is_thinned_to_what_the_page_needs():
    body = _body("2.4.1+cu121", OLD)
    assert body["outcomes"] == [
        {"law": "subnormals", "outcome": "failed", "message": "flushes 3 of 80 inputs", "items": {"GELU": ["float32"]}},
        {
            "law": "position",
            "outcome": "notice",
            "message": "one value (nan), two gradients: position 64 of 83",
            "items": {"GELU": ["float32"]},
        },
    ]
    assert history.release(body) == "2.4.1"


def test_each_kind_of_change_is_a_change_and_nothing_else_is():
    new = copy.deepcopy(OLD)
    old = _body("2.4.1", OLD, [_kink("ReLU", 0.0, float32=0.0, bfloat16=0.0)])
    # the numbers of a message depend on what was tried first
    new[0]["message"] = new[0]["message"].replace("3 of 80", "4 of 80")
    assert history.changes([old, _body("2.11.0", new, [_kink("ReLU", 0.0, float32=0.0, bfloat16=0.0)])]) == []

    new[0]["message"] = new[0]["message"].replace("flushes", "negates")
    new[1] = _result("GELU", "position", "float32", "passed")
    new[2] = _result("ReLU", "vmap", "float32", "failed", "differs")
    new.append(_result("Swish", "runs", "float32", "failed", "raised"))
    kinks = [_kink("ReLU", 0.0, float32=0.0, bfloat16=1.0), _kink("GELU", 2.0, float32=0.0)]
    found = history.changes([old, _body("2.11.0", new, kinks)])
    assert {change.id: change.cells for change in found} == {
        "GELU/subnormals/float32": ("fails", "fails"),
        "GELU/position/float32": ("notice", "passes"),
        "ReLU/vmap/float32": ("passes", "fails"),
        "Swish/runs/float32": ("not there", "fails"),
        "ReLU/kink at 0": ("0", "float32: 0; bfloat16: 1"),
        "GELU/kink at 2": ("no kink", "0"),
    }


def test_an_activation_that_is_not_in_a_run_is_no_kink_that_went_away():
    old = _body("2.4.1", OLD, [_kink("ReLU", at, float32=0.0) for at in (0.0, 6.0)] + [_kink("GELU", 2.0, float32=0.0)])
    run = [_result("GELU", "subgradient", "float32", "passed") | {"kinks": []}]
    assert differences(old, run, "old.json") == [
        "GELU at 2: the kink no longer exists",
        "this run did not search for kinks of ReLU",
    ]


def test_a_change_without_a_judgement_is_named_and_so_is_a_judgement_without_a_change():
    old, new = _body("2.4.1", OLD), _body("2.11.0", [])
    judgements = [
        {"what": "GELU keeps subnormals", "items": ["GELU/subnormals/*"], "right": "2.11.0", "why": "It loses\nnothing."},
        {"what": "nothing", "items": ["Mish/*"], "right": "both", "why": "-"},
    ]
    text = {"opening": "# Title", "table": "Words.", "closing": "End.", "change": judgements}
    written, problems = history.page([old, new], text)
    assert "| GELU keeps subnormals | GELU: subnormals (float32) | fails | passes | 2.11.0 | It loses nothing. |" in written
    judgements[0]["items"].append("GELU/position/*")  # one change, of two laws
    both, _ = history.page([old, new], text)
    assert "| GELU: subnormals (float32); GELU: position (float32) | fails; notice | passes | 2.11.0 |" in both
    assert problems == ["no judgement: GELU/position/float32: notice -> passes", "no change: Mish/*"]


def test_items_of_a_law_stand_together():
    ids = [f"{name}/position/{dtype}" for name in ("ELU", "elu") for dtype in ("float32", "bfloat16")]
    assert history.items([*ids, "ReLU/kink at 0"]) == "ELU, elu: position (float32, bfloat16); ReLU: kink at 0"


@pytest.mark.skipif(not FOLDER.exists(), reason="an sdist holds no committed results")
def test_the_committed_page_is_that_of_the_stored_reports():
    text = tomllib.loads((FOLDER / "judgements.toml").read_text(encoding="utf-8"))
    written, problems = history.page(history.stored(), text)
    assert problems == []
    assert written == FOLDER.with_suffix(".md").read_text(encoding="utf-8")
