"""All laws, by name. Each is a small pure function in one of the files of this package; this one says which there are.

A law looks at a :class:`~relucheck.gate.cases.case.Case` and returns, or raises
:class:`~relucheck.gate.cases.violation.LawViolation` (a counterexample, with a level) or
:class:`~relucheck.gate.cases.violation.NotApplicable` (it has nothing to say here, and why).
"""

from __future__ import annotations

from typing import Final

# imported for the laws that they register, in the order in which reports show them
from relucheck.gate.laws import (
    calls,
    chain_rule,
    derivatives,
    implementations,
    modes,
    modules,
    parameters,
    special_values,
)
from relucheck.gate.laws.law import REGISTRY, Law

__all__ = [
    "EXPLAINS_FAILURE",
    "LAWS",
    "Law",
]

#: Every law by name.
LAWS: Final[dict[str, Law]] = {
    name: REGISTRY[name]
    for module in (calls, chain_rule, parameters, derivatives, implementations, special_values, modes, modules)
    for name in REGISTRY
    if REGISTRY[name].check.__module__ == module.__name__
}

#: The one law that says why an activation does not run; an activation that could not be made gets an item of it alone.
(EXPLAINS_FAILURE,) = (law for law in LAWS.values() if law.explains_failure)
