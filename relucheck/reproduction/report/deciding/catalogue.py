"""The claims of the package, checked against the statistics that exist."""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Mapping, Sequence

from relucheck.reproduction.claims import Catalogue, Decision, read_claims
from relucheck.reproduction.report.deciding.cases import Trained, Volumes
from relucheck.reproduction.report.deciding.decide import decide
from relucheck.reproduction.report.deciding.registry import STATISTICS
from relucheck.reproduction.report.deciding.statistics import pairs, shares, trainings  # noqa: F401  they register their functions


@functools.cache
def catalogue() -> Catalogue:
    """Every published claim, in the order of the file ``claims.toml``."""
    return read_claims((importlib.resources.files("relucheck") / "_data" / "claims.toml").read_text("utf-8"), STATISTICS)


def decided(
    trained: Mapping[str, Sequence[Trained]],
    volumes: Mapping[str, Volumes] | None = None,
    scenario: str | None = None,
) -> tuple[Decision, ...]:
    """Decide the claims of the package from results by scenario.

    Args:
        trained: the finished comparisons, by scenario.
        volumes: the finished volumes, by scenario.
        scenario: whose claims are decided; None decides all.
    """
    claims = [claim for claim in catalogue().claims if scenario in (None, claim.scenario)]
    return decide(claims, STATISTICS, trained, volumes or {})
