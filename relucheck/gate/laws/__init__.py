"""All laws, by name. Each law is a function in one of the files of this package.

The function takes a ``Case``. It returns if the law holds, raises ``LawViolation`` with a counterexample if it does not,
and raises ``NotApplicable`` with a reason if the law does not apply.
"""

from __future__ import annotations

from typing import Final

# these modules are imported because they register laws
from relucheck.gate.laws import (
    arguments,
    calls,
    chain_rule,
    derivatives,
    implementations,
    joint,
    modes,
    modules,
    parameters,
    special_values,
    values,
)
from relucheck.gate.laws.law import REGISTRY, Law

__all__ = [
    "EXPLAINS_FAILURE",
    "LAWS",
    "Law",
]

#: All laws by name, in the order in which reports show them.
LAWS: Final[dict[str, Law]] = {
    name: REGISTRY[name]
    for module in (
        calls,
        chain_rule,
        arguments,
        joint,
        parameters,
        derivatives,
        implementations,
        values,
        special_values,
        modes,
        modules,
    )
    for name in REGISTRY
    if REGISTRY[name].check.__module__ == module.__name__
}

#: The law that reports why an activation does not run; an activation that cannot be constructed gets only its item.
(EXPLAINS_FAILURE,) = (law for law in LAWS.values() if law.explains_failure)
