"""The claims of the package, checked against the statistics that exist."""

from __future__ import annotations

import functools
import importlib.resources

from relucheck.reproduction.claims import Catalogue, read_claims
from relucheck.reproduction.report.deciding import trainings, volumes  # noqa: F401  they register their functions
from relucheck.reproduction.report.deciding.registry import STATISTICS


@functools.cache
def catalogue() -> Catalogue:
    """Every published claim, in the order of the file ``claims.toml``."""
    return read_claims((importlib.resources.files("relucheck") / "_data" / "claims.toml").read_text("utf-8"), STATISTICS)
