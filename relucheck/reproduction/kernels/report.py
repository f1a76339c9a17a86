"""The report on a device's kernels: a conclusion, then tables, for terminals and Markdown."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from rich.console import RenderableType
from rich.text import Text

from relucheck.numerics.environment import Environment
from relucheck.numerics.kernels import profiling
from relucheck.reproduction.kernels.calls import SAMPLES
from relucheck.reproduction.kernels.survey import Finding, NormFinding, Survey
from relucheck.results.tables import Table, counted, listed, with_verb

_MOST: Final = 4  # products that a sentence names
_HEADER: Final = ("product", "K", "arithmetic", "rounding", "zeros", "float64", "off", "kernels")
_RIGHT: Final = ("K", "zeros", "float64", "off")
_NORMS: Final = ("input", "direction", "arithmetic", "differ", "kernels")
_LEGEND: Final = (
    "zeros: outputs that are exactly 0 on realistic inputs; float64: the same if float64 sums the same factors; "
    "kernels: their numbers in the list below"
)
_OFF: Final = "off: outputs that differ from the first rounding on realistic inputs, where the order of float32's additions counts, too"
_HOW: Final = """\
Each product is computed as training computes it, by `nn.Linear`, `nn.Conv2d` and autograd, with deterministic algorithms.
Its inputs are fixed: integers on which every sum is exact in the accumulation dtype (float32 for 16 bits), in any order of
its terms. So the result depends on nothing but the roundings to the narrow dtype. It is compared with every emulation that
`relucheck` knows, up to 32 parts, and the simplest one that is equal in every output on two such inputs is named. "And 1
other" means that another emulation is equal as well, so that the inputs cannot tell them apart. "None" means that no
emulation is equal, for example because the kernel accumulates in 16 bits. In 32 and 64 bits, exact sums show only how
factors are rounded (TF32), not the order of a sum.

The exact zeros are those of realistic inputs: the first 128 of the shipped digits, PyTorch's default initialisation with
seed 0, and the gradients of the first training step."""


@dataclasses.dataclass(frozen=True)
class Names:
    """The kernels of a survey, numbered from 1 on in the order in which they were seen."""

    numbers: dict[str, int]

    @classmethod
    def of(cls, found: Survey) -> Names:
        """Number all kernels of a survey."""
        numbers: dict[str, int] = {}
        for kernels in [*(one.kernels for one in found.findings), *(one.kernels for one in found.norms)]:
            for name in kernels:
                numbers.setdefault(name, len(numbers) + 1)
        return cls(numbers)

    def cell(self, kernels: Sequence[str]) -> str:
        """The numbers of some kernels."""
        return ", ".join(str(self.numbers[name]) for name in kernels) or "not seen"


def conclusion(found: Survey) -> list[str]:
    """What the survey says, as lines.

    The first line names the device. Indented lines belong to the line before them.
    """
    lines = [f"Device and versions: {Environment(**found.environment)}."]
    every = [one.arithmetic for one in found.findings]
    usual = [one for one in found.findings if one.samples == SAMPLES[0]]
    for arithmetics, group in _alike(usual):
        counts: dict[str, list[Finding]] = {}
        for one in group:
            counts.setdefault(one.equal[0] if one.equal else "", []).append(one)
        ordered = sorted(counts.items(), key=lambda item: -len(item[1]))
        words = [f"{with_verb(len(members), 'equals', 'equal')} {_emulation(name)}" for name, members in ordered]
        lines.append(f"In {_arithmetics(arithmetics, every)}, of {counted(len(group), 'product')} {listed(words)}.")
        lines += [f"  {_emulation(name)}: {_some(members)}" for name, members in ordered if name != "rounded"]
    others = [one for one in found.findings if one.samples != SAMPLES[0]]
    if others:
        lines.append(f"A mini-batch of {SAMPLES[1]} changes kernels or rounding: {_some(others)}.")
    else:
        lines.append(f"The last mini-batch of an epoch, of {SAMPLES[1]}, changes neither kernels nor rounding.")
    norms: dict[str, float] = {}
    for norm in found.norms:
        norms[norm.arithmetic] = max(norms.get(norm.arithmetic, 0.0), norm.differs)
    for share in dict.fromkeys(norms.values()):
        where = _arithmetics([name for name, most in norms.items() if most == share], every)
        lines.append(
            f"In {where}, batch norm is not float32 rounded once: up to {share:.0%} of its outputs or gradients differ."
            if share
            else f"In {where}, batch norm is float32 rounded once."
        )
    return [*lines, *found.notes]


def _alike(findings: Iterable[Finding]) -> Iterator[tuple[list[str], list[Finding]]]:
    """Group arithmetics in which every product has the same rounding; the findings are those of the first one."""
    by_name: dict[str, list[Finding]] = {}
    for one in findings:
        by_name.setdefault(one.arithmetic, []).append(one)
    groups: dict[Any, list[str]] = {}
    for name, members in by_name.items():
        key = name.split()[0], tuple((one.layer, one.direction, one.equal, one.nearest) for one in members)
        groups.setdefault(key, []).append(name)
    for names in groups.values():
        yield names, by_name[names[0]]


def _emulation(name: str) -> str:
    return f"`{name}`" if name else "no emulation"


def _some(findings: Sequence[Finding]) -> str:
    """Products in words, by direction; the first few of each."""
    directions: dict[str, list[str]] = {}
    for one in findings:
        layers = directions.setdefault(one.direction, [])
        layers += [one.layer] * (one.layer not in layers)
    words = []
    for direction, layers in directions.items():
        rest = len(layers) - _MOST
        words.append(f"{direction} of {listed([*layers[:_MOST], *[f'{rest} more'] * (rest > 0)])}")
    return "; ".join(words)


def _arithmetics(names: Iterable[str], every: Iterable[str]) -> str:
    """Arithmetics as a table lists them: "bfloat16 (default, strict)", or "bfloat16 (every state)"."""
    chosen, all_states = _states(names), _states(every)
    words = []
    for dtype, states in chosen.items():
        if len(all_states[dtype]) == 1:
            words.append(dtype)
        else:
            words.append(f"{dtype} ({'every state' if len(states) == len(all_states[dtype]) else ', '.join(states)})")
    return listed(words)


def _states(names: Iterable[str]) -> dict[str, list[str]]:
    """The states of the switches for each dtype; the one without a name is the default in 16 bits."""
    dtypes: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        dtype, _, state = name.partition(" ")
        dtypes.setdefault(dtype, []).append(state or ("no TF32" if dtype == "float32" else "default"))
    return dtypes


def tables(found: Survey) -> list[Table]:
    """One table for each network, then one for batch norm.

    A product is in the table of the first network that computes it.
    """
    names, every = Names.of(found), [one.arithmetic for one in found.findings]
    networks = dict.fromkeys(name for one in found.findings for name in one.networks[:1])
    shown: list[Table] = []
    for network in networks:
        mine = [one for one in found.findings if one.networks[0] == network]
        rows, sections = [], []
        for product in dict.fromkeys((one.layer, one.direction, one.samples) for one in mine):
            rows += _rows([one for one in mine if (one.layer, one.direction, one.samples) == product], names, every)
            sections.append(len(rows) - 1)
        shown.append(Table(_HEADER, rows, network, _RIGHT, sections, _LEGEND if not shown else ""))
    if found.norms:
        rows = [
            [cell, direction, _arithmetics(arithmetics, every), f"{differs:.1%}", names.cell(kernels)]
            for (cell, direction, differs, kernels), arithmetics in _norm_rows(found.norms).items()
        ]
        caption = "differ: outputs that differ from float32 rounded once"
        shown.append(Table(_NORMS, rows, "batch norm in training", ("differ",), caption=caption))
    return shown


def _rows(findings: Sequence[Finding], names: Names, every: Sequence[str]) -> list[list[str]]:
    """The rows of one product; arithmetics that agree in every cell share one."""
    first = findings[0]
    samples = f", {first.samples} samples" * (first.samples != SAMPLES[0])
    rows: dict[tuple[str, ...], list[str]] = {}
    for one in findings:
        off = "" if one.realistic is None else f"{one.realistic:.1%}"
        numbers = f"{one.zeros:,}", f"{one.zeros_float64:,}", off
        cells = str(one.identification), *numbers, names.cell(one.kernels)
        rows.setdefault(cells, []).append(one.arithmetic)
    product = f"{first.layer}: {first.direction}{samples}"
    return [
        [product if not place else "", f"{first.terms:,}" if not place else "", _arithmetics(arithmetics, every), *cells]
        for place, (cells, arithmetics) in enumerate(rows.items())
    ]


def _norm_rows(norms: Iterable[NormFinding]) -> dict[tuple[str, str, float, tuple[str, ...]], list[str]]:
    rows: dict[tuple[str, str, float, tuple[str, ...]], list[str]] = {}
    for one in norms:
        rows.setdefault(("x".join(map(str, one.shape)), one.direction, one.differs, one.kernels), []).append(one.arithmetic)
    return rows


def shown(found: Survey) -> list[RenderableType]:
    """The report for ``relucheck.results.tables.render``."""
    names = Names.of(found).numbers
    listed = Table(("", "kernel"), [[str(number), profiling.short(name)] for name, number in names.items()], "kernels")
    return [
        Text("\n".join(conclusion(found)).replace("`", "")),
        *(one.without("off").rich(first=True) for one in tables(found)),
        listed.rich(),
    ]


def markdown(found: Survey) -> str:
    """The report as Markdown."""
    every = tables(found)
    lines = ["# Kernels", "", *(re.sub(r"^( *)", r"\1- ", line) for line in conclusion(found)), "", _HOW, ""]
    lines += [f"Columns: {_LEGEND}; {_OFF}.", ""]
    shared = {one.networks for one in found.findings if len(one.networks) > 1}
    for table in every:
        also = sorted({name for networks in shared if networks[0] == table.title for name in networks[1:]})
        lines += [f"## {table.title[:1].upper()}{table.title[1:]}", ""]
        lines += [f"Some of these products are those of {listed(also)}, too.", ""] * bool(also)
        lines += [f"{table.caption[:1].upper()}{table.caption[1:]}.", ""] * (table is every[-1] and bool(found.norms))
        lines += [*table.markdown(), ""]
    lines += ["## Kernels by number", ""]
    if found.environment.get("kind") == "cpu":
        lines += [
            "The profiler sees no kernels on a CPU. These are ATen's operators; `ONEDNN_VERBOSE=1` in the environment "
            "makes oneDNN print which implementation it runs where an operator calls it.",
            "",
        ]
    lines += [f"{number}. `{name}`" for name, number in Names.of(found).numbers.items()]
    return "\n".join(lines) + "\n"
