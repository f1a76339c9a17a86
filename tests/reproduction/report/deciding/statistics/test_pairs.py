"""The claims on E7, decided from made-up pairs: confirmed, refuted, undecided, and not run."""

from __future__ import annotations

import pytest

from relucheck.reproduction.report.deciding.cases import Trained
from relucheck.reproduction.report.deciding.catalogue import decided
from relucheck.training.members import Member
from tests.reproduction.report.pairs.made_up_pairs import Accuracy, noise, reproduction, worse_if_injected

MLP = "mlp-pair-*-bfloat16-rounded"


def _decided(
    accuracy: Accuracy, pattern: str = MLP, *, quiet: bool = False, void: int = 0
) -> dict[tuple[str, str, str], str]:
    runs = reproduction(accuracy, pattern, quiet=quiet).runs
    for _, result in runs[:void]:
        result.void = "the control differs"
    found = decided({"E7": [Trained(comparison, result) for comparison, result in runs]}, scenario="E7")
    return {(one.claim.id, one.case, one.rule): one.said for one in found}


def test_a_loss_of_three_points_under_one_rule() -> None:
    found = _decided(worse_if_injected)
    assert found["E7-mlp", MLP, "injected"] == "confirmed"
    assert found["E7-mlp", MLP, "chain"] == "refuted", "noise is below the margin"
    assert found["E7-mlp", "mlp-pair-*-float32", ""] == "not run: arm"
    assert found["E7-mobilenet", "mobilenet-pair-*-bfloat16-rounded", ""] == "not run: arm"


def test_what_nudges_lose_too_confirms_nothing() -> None:
    found = _decided(lambda member: 0.9 + noise(f"{member}") - 0.03 * bool(member.s or member.nudge))
    assert found["E7-mlp", MLP, "injected"] == found["E7-mlp", MLP, "chain"] == "refuted"


def _wild(member: Member) -> float:
    return 0.9 + 50 * noise(f"{member}")


@pytest.mark.parametrize(("accuracy", "quiet"), [(_wild, False), (worse_if_injected, True)], ids=["noise", "no live hit"])
def test_noise_and_pairs_without_a_hit_are_undecided(accuracy: Accuracy, quiet: bool) -> None:
    found = _decided(accuracy, quiet=quiet)
    assert found["E7-mlp", MLP, "injected"] == found["E7-mlp", MLP, "chain"] == "undecided"


def test_void_pairs_do_not_count() -> None:
    assert _decided(worse_if_injected, void=1)["E7-mlp", MLP, "injected"] == "confirmed"
    runs = reproduction(worse_if_injected, MLP).runs
    runs[0][1].void = "the control differs"
    (measured,) = [
        one.measured
        for one in decided({"E7": [Trained(*run) for run in runs]}, scenario="E7")
        if (one.case, one.rule) == (MLP, "injected")
    ]
    assert measured.endswith("(11 pairs); 1 more pair is void")
    assert _decided(worse_if_injected, void=12)["E7-mlp", MLP, "injected"] == "not run: 0-0"


def test_pairs_that_have_not_run_yet_decide_nothing() -> None:
    """The seeded fault: the 11 pairs that have finished would confirm the claim."""
    runs = [Trained(*one) for one in reproduction(worse_if_injected, MLP).runs]
    (found,) = [
        one
        for one in decided({"E7": runs[1:]}, scenario="E7")
        if (one.claim.id, one.case, one.rule) == ("E7-mlp", MLP, "injected")
    ]
    assert (found.said, found.measured) == ("not run: pairs", "11 of 12 pairs have finished")


def test_the_scale_whose_pairs_are_all_there_decides() -> None:
    reduced = [Trained(*one) for one in reproduction(worse_if_injected, MLP).runs]
    full = [Trained(*one) for one in reproduction(worse_if_injected, MLP, "full").runs][12:]
    for runs in ([*reduced, *full], [*full, *reduced]):
        found = {(one.case, one.rule): one for one in decided({"E7": runs}, scenario="E7") if one.claim.id == "E7-mlp"}
        assert found[MLP, "injected"].measured.endswith("(12 pairs)")
        assert found[MLP, "injected"].said == "confirmed"


def test_the_measure_speaks_of_pairs() -> None:
    runs = reproduction(worse_if_injected, MLP).runs
    found = decided({"E7": [Trained(comparison, result) for comparison, result in runs]}, scenario="E7")
    (measured,) = [one.measured for one in found if (one.case, one.rule) == (MLP, "injected")]
    assert measured.startswith("accuracy, smaller than that of the nudges by: 2.98 [")
    assert measured.endswith("(12 pairs)")
