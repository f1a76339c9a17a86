"""Emulations: how each sum of products in a model is rounded.

An emulation has one rounding for all sums, with overrides by layer, by length of the sum and by direction.

An emulation is an arithmetic with a name (``relucheck.numerics.arithmetic``). It rounds as some device might, on any
device, and it does not reproduce the bits of any particular GPU.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Final, Literal, get_args

import torch
from torch import Tensor

from relucheck.errors import instance, listed, one_of, truth, whole
from relucheck.numerics.dtypes import as_dtype, dtype_name
from relucheck.numerics.emulation.rounding import DIGITS, EmulationError, Rounding
from relucheck.numerics.emulation.rounding import FORMS as ROUNDINGS

Direction = Literal["forward", "input gradient", "weight gradient"]
DIRECTIONS: Final[tuple[Direction, ...]] = get_args(Direction)
BACKWARD: Final = DIRECTIONS[1:]
FORMS: Final = (
    f'{ROUNDINGS}. Overrides "; SELECTION: ROUNDING" may follow; SELECTION is "layer N" or "layers N, N", "K from N" '
    f"and a direction ({', '.join(DIRECTIONS)}, or backward for both gradients), in this order, at least one of them. "
    '"; batch norm native" may come last'
)
_NATIVE_NORM: Final = "batch norm native"
_ONE: Final = f"(?:{'|'.join((*DIRECTIONS, 'backward'))})"
_SELECTION: Final = re.compile(
    rf"(?: layers? (?P<layers>[0-9]{{1,{DIGITS}}}(?:, [0-9]{{1,{DIGITS}}})*))?(?: k from (?P<terms>[0-9]{{1,{DIGITS}}}))?"
    rf"(?: (?P<directions>{_ONE}(?:, {_ONE})*))?",
    re.IGNORECASE,
)

#: The rounding of a sum by its length: pairs (number of terms, rounding from that number on), the first one from 0 on.
_Steps = tuple[tuple[int, Rounding], ...]
_Table = Mapping[Direction, _Steps]


@dataclasses.dataclass(frozen=True)
class Override:
    """Another rounding for some of a model's sums.

    Attributes:
        rounding: how these sums are rounded.
        layers: numbers of the layers, from 1 on; () means all. ``emulate`` says how layers are numbered.
        terms: the least number of terms of these sums; 0 means sums of any length. The length is that of the sum itself:
            for a linear layer it is the number of inputs in forward, of outputs in the gradient of the input, and of rows
            of the mini-batch in the gradient of the weight.
        directions: some of ``DIRECTIONS``.

    Raises:
        EmulationError: for values that are not allowed, for a selection of all sums, and for a place of the bias where only
            gradients are selected.
    """

    rounding: Rounding
    layers: tuple[int, ...] = ()
    terms: int = 0
    directions: tuple[Direction, ...] = DIRECTIONS

    def __post_init__(self) -> None:
        instance("override: rounding", self.rounding, Rounding, "Rounding(parts=4)", error=EmulationError)
        layers = listed("override: layers", self.layers, "(1,)", error=EmulationError)
        for number in layers:
            whole("override: layer", number, error=EmulationError)
        whole("override: terms (K from)", self.terms, 0, error=EmulationError)
        directions = listed("override: directions", self.directions, '("forward",)', error=EmulationError)
        for direction in directions:
            one_of("override: direction", direction, DIRECTIONS, error=EmulationError)
        object.__setattr__(self, "layers", tuple(sorted(set(layers))))
        object.__setattr__(self, "directions", tuple(one for one in DIRECTIONS if one in directions))
        if self.terms == 1:
            raise EmulationError("override: K from 1: every sum has a term; leave it out, or give at least 2")
        if not self.directions or self.selection == "":
            raise EmulationError(
                f"override to {self.rounding.name!r}: it selects {'every sum' if self.directions else 'no direction'}; "
                "name layers, the least number of terms or directions"
            )
        if "forward" not in self.directions and self.rounding != self.rounding.without_bias:
            raise EmulationError(
                f"override {self.name!r}: a gradient has no bias; write {self.rounding.without_bias.name!r}"
            )

    @property
    def selection(self) -> str:
        """The selected sums in words, for example "layer 1 K from 512 forward"; "" for all."""
        words = [f"layer{'s' * (len(self.layers) > 1)} {', '.join(map(str, self.layers))}"] * bool(self.layers)
        words += [f"K from {self.terms}"] * bool(self.terms)
        if self.directions == BACKWARD:
            words.append("backward")
        elif self.directions != DIRECTIONS:
            words.append(", ".join(self.directions))
        return " ".join(words)

    @property
    def name(self) -> str:
        """The override as an emulation's name has it, for example "layer 1 forward: split-k 4"."""
        return f"{self.selection}: {self.rounding.name}"

    @classmethod
    def parse(cls, text: str) -> Override:
        """Read an override from its name.

        Raises:
            EmulationError: for a text that is no override; the message lists the possible forms.
        """
        selection, colon, rounding = text.partition(": ")
        found = _SELECTION.fullmatch(f" {selection}") if colon else None
        if found is None:
            raise EmulationError(f"override {text!r}: must be SELECTION: ROUNDING; ROUNDING is {FORMS}")
        if found["terms"] and int(found["terms"]) < 2:
            raise EmulationError(f"override {text!r}: K from takes at least 2 terms; leave it out for sums of any length")
        named = (found["directions"] or "").lower().split(", ")
        chosen = [one for one in DIRECTIONS if one in named or (one in BACKWARD and "backward" in named)]
        return cls(
            Rounding.parse(rounding),
            layers=tuple(map(int, found["layers"].split(", "))) if found["layers"] else (),
            terms=int(found["terms"] or 0),
            directions=tuple(chosen) or DIRECTIONS,
        )


@dataclasses.dataclass(frozen=True)
class Emulation:
    """How the sums of products of a model are rounded to ``dtype``.

    In 16 bits, batch normalisation is rounded once: it is computed in float32 from its 16-bit input, parameters and running
    statistics, and its result, its gradients and the new statistics are rounded to the dtype. An H200's own kernels give
    the same results in bfloat16, but other gradients: for images, 19 to 38 % of them differ. A CPU's kernels round several
    times. ``relucheck kernels`` surveys those of a device.

    Where two overrides select the same sum, the later one holds. Emulations that round every sum alike are equal: the
    overrides are brought into one order and form when the object is made.

    Attributes:
        dtype: the dtype of parameters, activations and gradients.
        rounding: how sums are rounded that no override selects.
        overrides: other roundings for some sums.
        native_norm: whether batch normalisation in 16 bits is left to the device's kernels instead.

    Raises:
        EmulationError: for a rounding that does not fit the dtype, for an override that changes nothing, and for native
            batch norm in 32 and 64 bits, where it would change nothing.
        UnsupportedDtypeError: for a dtype that is not supported.
    """

    dtype: torch.dtype
    rounding: Rounding
    overrides: tuple[Override, ...] = ()
    native_norm: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", as_dtype(self.dtype))
        truth("emulation: native_norm", self.native_norm, error=EmulationError)
        if self.native_norm and self.dtype.itemsize > 2:
            raise EmulationError(
                f"emulation of {dtype_name(self.dtype)}: batch norm is the device's own anyway; leave out {_NATIVE_NORM!r}"
            )
        instance("emulation: rounding", self.rounding, Rounding, "Rounding(parts=4)", error=EmulationError)
        overrides = listed("emulation: overrides", self.overrides, "()", error=EmulationError)
        for one in overrides:
            instance("emulation: override", one, Override, "Override(Rounding(), layers=(1,))", error=EmulationError)
        for rounding in (self.rounding, *(one.rounding for one in overrides)):
            rounding.check(self.dtype)
        rounding, form = _normal(_tables(self.rounding, overrides))
        for place, one in enumerate(overrides):
            rest = (*overrides[:place], *overrides[place + 1 :])
            if _normal(_tables(self.rounding, rest)) == (rounding, form):
                raise EmulationError(
                    f"emulation {self.rounding.name!r}: the override {one.name!r} changes nothing; leave it out (where two "
                    "overrides select a sum, the later one holds)"
                )
        object.__setattr__(self, "rounding", rounding)
        object.__setattr__(self, "overrides", form)

    @functools.cached_property
    def label(self) -> str:
        """The roundings in words, for example "product" or "rounded; layer 1 forward: split-k 4"."""
        return "; ".join([self.rounding.name, *(one.name for one in self.overrides), *[_NATIVE_NORM] * self.native_norm])

    @property
    def name(self) -> str:
        """The name in tables, for example ``"bfloat16 emulated (split-k 4)"``."""
        return f"{dtype_name(self.dtype)} emulated ({self.label})"

    @classmethod
    def parse(cls, dtype: torch.dtype, label: str) -> Emulation:
        """Read an emulation of a dtype from its label; the inverse of ``label``.

        Raises:
            EmulationError: for a text that is no emulation; the message lists the possible forms.
        """
        first, *rest = label.split("; ") if isinstance(label, str) else [label]
        native = bool(rest) and rest[-1].lower() == _NATIVE_NORM
        overrides = rest[:-1] if native else rest
        return cls(dtype, Rounding.parse(first), tuple(map(Override.parse, overrides)), native)

    @property
    def by_layer(self) -> bool:
        """Whether layers are rounded differently because of their numbers."""
        return any(one.layers for one in self.overrides)

    def layer(self, number: int) -> Emulation:
        """The emulation of one layer, by its number from 1 on.

        It is this emulation without the overrides for other layers.
        """
        whole("emulation: layer", number, error=EmulationError)
        if not self.by_layer:
            return self
        return Emulation(self.dtype, *_normal({0: _table(self.rounding, self.overrides, number)}), self.native_norm)

    def layers(self, count: int) -> tuple[Emulation, ...]:
        """The emulations of the layers of a model that has ``count`` layers with products.

        Raises:
            EmulationError: if an override names a layer that the model does not have.
        """
        unknown = [number for one in self.overrides for number in one.layers if number > count]
        if unknown:
            raise EmulationError(
                f"{self.name}: layer {unknown[0]} of a model with {count} layer{'s' * (count != 1)} with products; name "
                f"layers from 1 to {count}"
            )
        return tuple(self.layer(number) for number in range(1, count + 1))

    def sum(self, direction: Direction, terms: int) -> Rounding:
        """How a sum of so many terms is rounded.

        Raises:
            EmulationError: if layers are rounded differently; take the emulation of one with ``layer``.
        """
        if self.by_layer:
            raise EmulationError(
                f"{self.name}: layers are rounded differently; take the emulation of one with layer(number)"
            )
        return _at(self._table[direction], terms)

    @functools.cached_property
    def _table(self) -> _Table:
        return _table(self.rounding, self.overrides, 0)

    def check(self, *tensors: Tensor | None) -> None:
        """Check that operands have the emulation's dtype; None is allowed.

        Raises:
            EmulationError: for an operand of another dtype.
        """
        for tensor in tensors:
            if tensor is not None and tensor.dtype != self.dtype:
                raise EmulationError(
                    f"{self.name}: got a tensor of {dtype_name(tensor.dtype)}; convert the model and its inputs to "
                    f"{dtype_name(self.dtype)} first"
                )


def _at(steps: _Steps, terms: int) -> Rounding:
    return next(rounding for least, rounding in reversed(steps) if terms >= least)


def _table(rounding: Rounding, overrides: Iterable[Override], layer: int) -> _Table:
    """The steps of each direction of one layer; 0 stands for every layer that no override names."""
    table: dict[Direction, _Steps] = {}
    for direction in DIRECTIONS:
        chosen = [one for one in overrides if direction in one.directions and (not one.layers or layer in one.layers)]
        steps: list[tuple[int, Rounding]] = []
        for terms in sorted({0, *(one.terms for one in chosen)}):
            found = next((one.rounding for one in reversed(chosen) if terms >= one.terms), rounding)
            found = found if direction == "forward" else found.without_bias
            if not steps or steps[-1][1] != found:
                steps.append((terms, found))
        table[direction] = tuple(steps)
    return table


def _tables(rounding: Rounding, overrides: Iterable[Override]) -> dict[int, _Table]:
    """The table of each layer that an override names, and of 0, which stands for all others."""
    overrides = tuple(overrides)
    numbers = {number for one in overrides for number in one.layers}
    return {number: _table(rounding, overrides, number) for number in sorted({0, *numbers})}


def _normal(tables: Mapping[int, _Table]) -> tuple[Rounding, tuple[Override, ...]]:
    """The one rounding and the one list of overrides that stand for these tables.

    The rounding is that of short sums in forward. For the other layers and directions, overrides begin at the least number
    of terms where something changes. Overrides that differ in direction or layer only become one.
    """
    others = tables[0]
    rounding = others["forward"][0][1]
    changes: dict[tuple[int, int, Rounding], dict[Direction, Rounding]] = {}
    for number, table in tables.items():
        for direction, steps in table.items():
            plain = rounding if direction == "forward" else rounding.without_bias
            base: _Steps = others[direction] if number else ((0, plain),)
            terms = sorted({least for least, _ in (*steps, *base)})
            first = next((least for least in terms if _at(steps, least) != _at(base, least)), None)
            if first is not None:
                for least, found in [(first, _at(steps, first)), *(step for step in steps if step[0] > first)]:
                    changes.setdefault((number, least, found.without_bias), {})[direction] = found
    merged: dict[tuple[bool, int, tuple[Direction, ...], Rounding], list[int]] = {}
    for (number, least, plain), found_in in changes.items():
        key = number > 0, least, tuple(found_in), found_in.get("forward", plain)
        merged.setdefault(key, []).append(number)
    overrides = [
        Override(found, tuple(numbers) if named else (), least, directions)
        for (named, least, directions, found), numbers in merged.items()
    ]
    return rounding, tuple(sorted(overrides, key=_place))


def _place(override: Override) -> tuple[bool, int, tuple[int, ...], list[int]]:
    """Where an override stands in the list: of those that meet, the one that must hold comes later."""
    directions = [DIRECTIONS.index(one) for one in override.directions]
    return bool(override.layers), override.terms, override.layers, directions
