"""All laws, by name. Each is a small pure function in one of the ``laws_*`` files; this one says which there are.

A law looks at a :class:`~relucheck.cases.Case` and returns, or raises :class:`~relucheck.violations.LawViolation` (a
counterexample, with a level) or :class:`~relucheck.violations.NotApplicable` (it has nothing to say here, and why).
"""

from __future__ import annotations

from typing import Final

# imported for the laws that they register, in the order in which reports show them
from relucheck import laws_gradients, laws_kinks, laws_modes, laws_modules, laws_parameters, laws_values
from relucheck.law import REGISTRY, Law
from relucheck.violations import Counterexample, LawViolation, NotApplicable

__all__ = [
    "LAWS",
    "Counterexample",
    "Law",
    "LawViolation",
    "NotApplicable",
    "laws_gradients",
    "laws_kinks",
    "laws_modes",
    "laws_modules",
    "laws_parameters",
    "laws_values",
]

#: Every law by name.
LAWS: Final[dict[str, Law]] = {
    name: REGISTRY[name]
    for module in (laws_gradients, laws_parameters, laws_kinks, laws_values, laws_modes, laws_modules)
    for name in REGISTRY
    if REGISTRY[name].check.__module__ == module.__name__
}
