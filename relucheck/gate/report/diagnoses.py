"""Folds the failures of a run: one diagnosis for what is usually one fault.

Failures of one activation at one place, under laws of one group, have one cause as a rule. A diagnosis names the laws and
the dtypes, and shows the failure that a person understands most easily.

This module handles only plain data, as ``relucheck.gate.report.tables`` does.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np

from relucheck.gate.cases.natural import ORDINARY, unnatural
from relucheck.gate.config import DTYPE_NAMES
from relucheck.gate.report.tables import Row
from relucheck.gate.verdicts import GRADIENT
from relucheck.numerics.floats import FORMATS
from relucheck.results.tables import counted, listed

#: An input is beside a kink up to this distance, in representable numbers of the dtype.
_BESIDE: Final = 8
#: Columns of the labels in a message.
_INDENT: Final = 13


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Failures that usually have one cause.

    Attributes:
        failures: the verdicts of the failed items as dictionaries, in the order of the run.
    """

    failures: Sequence[Row]

    @functools.cached_property
    def main(self) -> Row:
        """The failure to show: one with a natural input and a known cause."""
        return min(self.failures, key=_unnatural)

    @property
    def id(self) -> str:
        """The id of the failure to show."""
        return _first_line(self.main).partition(": ")[0]

    @property
    def sentence(self) -> str:
        """What is wrong, in one sentence."""
        return _first_line(self.main).partition(": ")[2]

    @property
    def cause(self) -> str:
        """What such failures usually mean; empty if nothing is known."""
        return self.main["cause"] or next((row["cause"] for row in self.failures if row["cause"]), "")

    def laws(self) -> str:
        """Return the laws and dtypes of the failures, such as "A and B in float32; C in float64"."""
        dtypes: dict[str, list[str]] = {}
        for row in sorted(self.failures, key=lambda row: _position(row["dtype"])):
            place = row["dtype"] + ("" if row["device"] == "cpu" else f" on {row['device']}")
            dtypes.setdefault(row["law"], []).append(place)
        together: dict[tuple[str, ...], list[str]] = {}
        for law, places in dtypes.items():
            together.setdefault(tuple(places), []).append(law)
        return "; ".join(
            f"{listed(laws)} in {'all dtypes' if places == DTYPE_NAMES else listed(places)}"
            for places, laws in together.items()
        )

    def text(self, width: int = 120) -> str:
        """Return the whole diagnosis: the message of the failure to show, the cause and the laws.

        Args:
            width: the number of columns for the lines about cause and laws.
        """
        first, *rest = self.main["message"].split("\n")
        return "\n".join([*textwrap.wrap(first, width, subsequent_indent="  "), *self._lines(width), *rest])

    def numbers(self, width: int = 120) -> str:
        """Return the diagnosis without the script."""
        return self.text(width).partition("\n  reproduce:")[0]

    def short(self, width: int = 120) -> str:
        """Return the diagnosis without the numbers and the script of the failure to show."""
        example = self.main["counterexample"] or {}
        at = f" (at {example['x']})" if example.get("x") else ""
        laws = f"; {counted(len(self.failures), 'failure')}: {self.laws()}" if len(self.failures) > 1 else ""
        return "\n".join(textwrap.wrap(f"{_first_line(self.main)}{at}{laws}", width, subsequent_indent="  "))

    def _lines(self, width: int) -> list[str]:
        laws = f"{counted(len(self.failures), 'failure')}: {self.laws()}" if len(self.failures) > 1 else ""
        lines: list[str] = []
        for label, text in (("likely", self.cause), ("laws", laws)):
            if text:
                lines += textwrap.wrap(
                    text,
                    max(width, 2 * _INDENT),
                    initial_indent=f"  {label:<{_INDENT - 2}}",
                    subsequent_indent=" " * _INDENT,
                    break_on_hyphens=False,
                )
        return lines


def diagnose(results: Iterable[Row]) -> list[Diagnosis]:
    """Fold the failures of a run.

    Args:
        results: verdicts as dictionaries, in any order.

    Returns:
        The diagnoses in the order of the first failure of each, activation by activation.
    """
    activations: dict[str, dict[tuple[Any, ...], list[Row]]] = {}
    for row in results:
        if row["outcome"] == "failed":
            activations.setdefault(row["activation"], {}).setdefault(_key(row), []).append(row)
    diagnoses = []
    for groups in activations.values():
        diagnoses += [Diagnosis(rows) for rows in groups.values()]
    return diagnoses


def shown(diagnoses: Sequence[Diagnosis], width: int = 120, *, whole: bool = False) -> str:
    """Format the diagnoses of a run for a terminal.

    The first diagnosis of an activation is shown with its numbers and its script.

    Args:
        diagnoses: what ``diagnose`` returns.
        width: the number of columns.
        whole: whether all diagnoses are shown so.
    """
    parts, cut = [], 0
    for full, short in by_activation(diagnoses, whole=whole):
        parts += [diagnosis.text(width) for diagnosis in full]
        if short:
            parts.append("\n".join(diagnosis.short(width) for diagnosis in short))
        cut += len(short)
    if cut:
        parts.append(f"{counted(cut, 'further fault')} in short; --verbose shows numbers and a script for each")
    return "".join(f"{part}\n\n" for part in parts)


def by_activation(
    diagnoses: Iterable[Diagnosis], *, whole: bool = False
) -> Iterator[tuple[Sequence[Diagnosis], Sequence[Diagnosis]]]:
    """Yield for each activation the diagnoses to show in full and those to show in short.

    Args:
        diagnoses: what ``diagnose`` returns.
        whole: whether all are to be shown in full; otherwise the first of each activation is.
    """
    for _, group in itertools.groupby(diagnoses, key=lambda diagnosis: diagnosis.main["activation"]):
        found = list(group)
        number = len(found) if whole else 1
        yield found[:number], found[number:]


def _key(row: Row) -> tuple[Any, ...]:
    """Return what the failures of one diagnosis share."""
    if row["counterexample"] is None:  # an error, which all laws meet
        return (_first_line(row).partition(": ")[2],)
    if row["group"] == GRADIENT:
        return GRADIENT, place(row)
    return (row["group"] or row["law"],)


def place(row: Row) -> str:
    """Return in words at what kind of input an item fails.

    Args:
        row: the verdict as a dictionary.
    """
    example = row["counterexample"] or {}
    if not example.get("x"):
        return "everywhere"
    x = float(example["x"])
    if not math.isfinite(x):
        return "at NaN and infinities"
    kink = example["kink"]
    if kink is not None and (abs(example["ulp"]) <= _BESIDE or abs(x - kink) <= 1e-6 * abs(kink)):
        return f"at the kink at {kink:.3g}"
    if 0 < abs(x) < FORMATS[row["dtype"]].tiny:
        return "at subnormal inputs"
    return "at large inputs" if abs(x) > ORDINARY else "at ordinary inputs"


def _unnatural(row: Row) -> tuple[Any, ...]:
    """Return by what a person finds a failure hard to understand, the worst first."""
    example = row["counterexample"] or {}
    return (
        int(unnatural(np.array([float(example["x"])]), np.array([example["ulp"] == 0]))[0]) if example.get("x") else 4,
        not row["cause"],
        _position(row["dtype"]),
        row["device"] != "cpu",
    )


def _position(dtype: str) -> int:
    return DTYPE_NAMES.index(dtype) if dtype in DTYPE_NAMES else -1


def _first_line(row: Row) -> str:
    return str(row["message"]).partition("\n")[0]
