"""What a training shows, from made-up results of its members, and the sentence that says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from relucheck.auditing.conclusion import concluded
from relucheck.auditing.examined import Examined, Unreached
from relucheck.auditing.result import Audit, InArithmetic
from relucheck.auditing.trained import Trained, summarised
from relucheck.bifurcation.wiring import Wire
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.training.own.task import OwnSettings
from relucheck.training.results.result import (
    FINISHED,
    NO_EFFECT,
    NO_LIVE_HIT,
    Distances,
    Epoch,
    MemberResult,
    Nudge,
    SeedResult,
)

SETTINGS = OwnSettings(0, 10, Arithmetic(torch.float32), {})
DIVERGED = "diverged: non-finite at step 4"
#: The losses of the nudges less that of s = 0, and their distances.
CHANGES = (-2e-4, -1e-4, 0.0, 1e-4, 2e-4)
DISTANCES = (0.1, 0.11, 0.12, 0.13, 0.14)


def result(
    loss: float = 1.0, distance: float = 0.0, *, outcome: str = FINISHED, hits: int = 3, **changes: Any
) -> dict[str, Any]:
    whole = outcome == FINISHED
    return {
        "outcome": outcome,
        "first_difference": 2 if distance else None,
        "steps": Distances([10], [distance], [distance], [distance]) if whole else Distances(),
        "epochs": [Epoch(loss, None, 0.0, []) for _ in range(10 if whole else 0)],
        "hits": [[[hits, 0]] for _ in range(10)],
        "activations": [[100] for _ in range(10)],
        **changes,
    }


def trained(
    reference: dict[str, Any] | None = None,
    other: dict[str, Any] | None = None,
    nudges: tuple[dict[str, Any], ...] | None = None,
    void: str | None = None,
) -> Trained:
    zero, one = reference or result(), other or result()
    moved = [
        result(1 + change, distance, nudge=Nudge(1, 1, "weight", 0))
        for change, distance in zip(CHANGES, DISTANCES, strict=True)
    ]
    made = [zero, zero, one, *(moved if nudges is None else nudges)]
    members = [MemberResult(member, **fields) for member, fields in zip(SETTINGS.members, made, strict=True)]
    return summarised(SETTINGS, SeedResult(members, void, 1.0, {}))


def idle(outcome: str) -> tuple[dict[str, Any], ...]:
    return ({**result(outcome=outcome), "hits": [], "activations": []},) * 5


CASES: dict[str, tuple[Trained, str, str]] = {
    "void": (trained(void="control differed at step 1"), "void", "nothing can be concluded: control differed at step 1"),
    "reference diverged": (
        trained(result(outcome=DIVERGED), result(outcome=DIVERGED)),
        "diverged",
        "nothing can be concluded: training with s = 0 diverged: non-finite at step 4",
    ),
    "no hits": (
        trained(result(hits=0), result(hits=0), idle(NO_LIVE_HIT)),
        "no hits",
        "s cannot matter here: none of 1,000 pre-activations within reach in 10 steps was exactly at a kink",
    ),
    "no effect": (
        trained(nudges=idle(NO_LIVE_HIT)),
        "no effect",
        "s makes no difference here: 30 of 1,000",
    ),
    "inside": (trained(other=result(1.0001, 0.12)), "within the band", "does not matter here beyond chaos"),
    "nearer than a nudge": (trained(other=result(1.0, 0.001)), "within the band", "does not matter here beyond chaos"),
    "further": (trained(other=result(1.0001, 5.0)), "weights only", "does not matter for the loss here"),
    "a little": (
        trained(other=result(1.0009, 5.0)),
        "small",
        "by +0.09 %, more than a change of one bit does",
    ),
    "much": (
        trained(other=result(1.1, 5.0)),
        "matters",
        "by +10 %, and a change of one bit by 0.02 % at most",
    ),
    "better": (trained(other=result(0.9, 5.0)), "matters", "s matters here: s = 1 changes the training loss by -10 %"),
    "only s = 1 diverged": (
        trained(other=result(outcome=DIVERGED)),
        "matters",
        "s matters here: training with s = 1 diverged: non-finite at step 4, and with s = 0 it did not",
    ),
    "a nudge diverged, too": (
        trained(other=result(outcome=DIVERGED), nudges=(*idle(DIVERGED)[:1], *idle(NO_EFFECT)[1:])),
        "no band",
        "s cannot be told from chaos: training with s = 1 diverged",
    ),
    "no effective nudge": (
        trained(other=result(1.1, 5.0), nudges=idle(NO_EFFECT)),
        "no band",
        "it is open whether a change of one bit does as much",
    ),
}


def audit(
    found: Trained | None,
    wires: tuple[Wire, ...] = (Wire("act", "ReLU", "answers"),),
    unreached: tuple[Unreached, ...] = (),
) -> Audit:
    part = InArithmetic("float32", "adam", Examined((), (), unreached, ()), found)
    return Audit("Net", 10, wires, (part,), 1, 1, "loss", 10, 0, 1, {})


@pytest.mark.parametrize("name", CASES)
def test_findings_and_their_sentences(name: str) -> None:
    found, finding, sentence = CASES[name]
    assert found.finding == finding
    text = concluded(audit(found))
    assert sentence in text
    assert text.startswith("In float32 ")
    assert text.endswith(".")
    assert text.count(". ") == 0


def test_every_finding_is_reached() -> None:
    assert {finding for _, finding, _ in CASES.values()} == {
        "void", "diverged", "no hits", "no effect", "within the band", "weights only", "small", "matters", "no band",
    }  # fmt: skip


def test_faults_come_first_and_are_counted() -> None:
    wires = tuple(Wire(f"act{number}", "ReLU", "ignores") for number in range(4))
    text = concluded(audit(CASES["inside"][0], wires))
    assert text.startswith(
        "The wiring is faulty at 'act0' (ignores), 'act1' (ignores) and 2 more; in float32 where it arrives"
    )


@pytest.mark.parametrize("name", [*CASES, None])
def test_kinks_out_of_reach_come_last_and_are_counted(name: str | None) -> None:
    found = None if name is None else CASES[name][0]
    unreached = (Unreached("AbsBackward0", 2, "abs()"), Unreached("MaxBackward0", 1, "max()"))
    clause = "; kinks out of reach (3 calls) keep torch's gradient and were not counted"
    assert concluded(audit(found, unreached=unreached)) == f"{concluded(audit(found))[:-1]}{clause}."


def test_bands_are_wider_than_their_nudges() -> None:
    found = CASES["inside"][0]
    for band, low, high in ((found.loss, -2e-4, 2e-4), (found.distance, 0.1, 0.14)):
        assert band is not None
        assert band.low < low < high < band.high
        assert not band.left
    assert found.distance is not None
    assert found.distance.low > 0  # of logarithms
