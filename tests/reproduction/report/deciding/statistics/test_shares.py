"""Each statistic on volumes gives each verdict that it can give."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

import pytest

from relucheck.reproduction.claims import Claim, Decision
from relucheck.reproduction.report.deciding.cases import Share, Volumes
from relucheck.reproduction.report.deciding.decide import decide
from relucheck.reproduction.report.deciding.registry import STATISTICS
from tests.reproduction.report.deciding.constructed import claim


def _claim(statistic: str, **options: Any) -> Claim:
    return claim(statistic, "E4", options=options, arms=("float32",), rules=(), controls=())


def _shares(*counts: tuple[int, int], arithmetic: str = "float32", source: str = "R22") -> tuple[Share, ...]:
    return tuple(Share(source, "neurons", 4 * 2**i, arithmetic, count, draws) for i, (count, draws) in enumerate(counts))


def _decided(of: Claim, shares: tuple[Share, ...], zones: Mapping[str, Mapping[str, int]] | None = None) -> Decision:
    (decision,) = decide([of], STATISTICS, {}, {"E4": Volumes(shares, zones or {})})
    return decision


_NEAR_1: Final = _claim("volume_lies_between", sweep="neurons", at=[], least=0.9, most=1.0)
_HALF: Final = _claim("volume_lies_between", sweep="neurons", at=[8], least=0.4, most=0.6)
_ZERO: Final = _claim("volume_lies_between", sweep="neurons", at=[], least=0.0, most=0.01)
_LARGER: Final = _claim("volume_is_larger", sweep="neurons", at=[4, 16])
_CONSTANT: Final = _claim("volume_is_constant", sweep="neurons", margin=0.1)
_CASES: Final = (
    (_NEAR_1, _shares((100, 100), (100, 100)), "confirmed"),
    (_NEAR_1, _shares((100, 100), (50, 100)), "refuted"),
    (_NEAR_1, _shares((10, 10), (100, 100)), "undecided"),
    (_HALF, _shares((0, 1000), (500, 1000)), "confirmed"),
    (_HALF, _shares((500, 1000), (250, 1000)), "refuted"),
    (_HALF, _shares((500, 1000), (10, 20)), "undecided"),
    (_ZERO, _shares((0, 1000)), "confirmed"),
    (_ZERO, _shares((100, 1000), (0, 1000)), "refuted"),
    (_ZERO, _shares((0, 10)), "undecided"),
    (_LARGER, _shares((0, 100), (5, 100), (23, 100)), "confirmed"),
    (_LARGER, _shares((23, 100), (5, 100), (0, 100)), "refuted"),
    (_LARGER, _shares((0, 100), (60, 100), (23, 100)), "confirmed"),
    (_LARGER, _shares((5, 100), (60, 100), (6, 100)), "undecided"),
    (_CONSTANT, _shares((30, 1000), (40, 1000), (35, 1000)), "confirmed"),
    (_CONSTANT, _shares((30, 1000), (400, 1000)), "refuted"),
    (_CONSTANT, _shares((3, 100), (4, 100)), "undecided"),
)


@pytest.mark.parametrize(("of", "shares", "says"), _CASES)
def test_each_statistic_gives_each_verdict(of: Claim, shares: tuple[Share, ...], says: str) -> None:
    decision = _decided(of, shares)
    assert decision.verdict == says, decision.measured
    assert f"{shares[-1].bifurcated}/{shares[-1].draws}" in decision.measured


def test_a_zone_occurs_once_a_network_is_proved_to_lie_in_it() -> None:
    """That none was drawn refutes nothing: the zone may be rare."""
    of, shares = _claim("zone_occurs", zone="bifurcation"), _shares((3, 9))
    assert _decided(of, shares, {"float32": {"bifurcation": 1, "compensation": 8}}).verdict == "confirmed"
    assert _decided(of, shares, {"float32": {"bifurcation": 0, "compensation": 9}}).verdict == "undecided"
    assert _decided(of, shares).verdict == "undecided"


def test_the_cases_are_complete() -> None:
    of_volumes = {name for name, one in STATISTICS.items() if one.about == "volume"}
    for name in of_volumes - {"zone_occurs"}:
        assert {says for one, _, says in _CASES if one.statistic == name} == {"confirmed", "refuted", "undecided"}, name


def test_what_is_missing_is_said() -> None:
    assert _decided(_NEAR_1, _shares((1, 2), arithmetic="float16")).said == "not run: arm"
    other = dataclasses.replace(_NEAR_1, options={**_NEAR_1.options, "sweep": "hidden_layers"})
    assert _decided(other, _shares((1, 2))).said == "not run: results"
    elsewhere = dataclasses.replace(_HALF, options={**_HALF.options, "at": [999]})
    assert _decided(elsewhere, _shares((1, 2))).said == "not run: results"


def test_both_ends_of_a_comparison_are_needed() -> None:
    assert _decided(_LARGER, _shares((0, 100), (60, 100))).said == "not run: results"


def test_a_case_names_the_device_which_rounds_its_way() -> None:
    (decision,) = decide([_HALF], STATISTICS, {}, {"E4": Volumes(_shares((0, 9), (11, 45)), {}, "cuda")})
    assert decision.measured == "networks in the zone (float32 on cuda): 11/45 at 8"


def test_the_tables_of_the_source_decide() -> None:
    """[B21] and [R22] vary the width at other depths."""
    both = (*_shares((100, 100)), *_shares((0, 100), source="B21"))
    assert _decided(_NEAR_1, both).verdict == "confirmed"
    assert _decided(dataclasses.replace(_NEAR_1, source="B21"), both).verdict == "refuted"


def test_an_arithmetic_is_a_case() -> None:
    of = dataclasses.replace(_NEAR_1, arms=("float16", "float16 emulated (*"))
    shares = (*_shares((100, 100), arithmetic="float16"), *_shares((0, 100), arithmetic="float16 emulated (product)"))
    found = decide([of], STATISTICS, {}, {"E4": Volumes(shares)})
    assert [(one.case, one.verdict) for one in found] == [
        ("float16", "confirmed"),
        ("float16 emulated (product)", "refuted"),
    ]
