"""Endpoints that tests of trainings reach through claims alone."""

from __future__ import annotations

from relucheck.reproduction.report.deciding.endpoints import ENDPOINTS
from relucheck.training.members import Member
from relucheck.training.results.result import MemberResult


def test_hits_per_million_do_not_depend_on_the_length_of_an_epoch() -> None:
    short = MemberResult(Member(0, 0.0), hits=[[[3], [1, 2]]] * 4, activations=[[1_000_000, 2_000_000]] * 4)
    long = MemberResult(Member(0, 0.0), hits=[[[12], [4, 8]]], activations=[[4_000_000, 8_000_000]])
    of = ENDPOINTS["hits per million"].of
    assert of(short, short) == of(long, long) == 2.0
    assert of(MemberResult(Member(0, 0.0)), short) is None, "no epoch, so nothing was seen"
    diverged = MemberResult(
        Member(0, 0.0), outcome="diverged: non-finite at step 9", hits=short.hits, activations=short.activations
    )
    assert of(diverged, short) is None
