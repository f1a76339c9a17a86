"""Hypothesis strategies: dtypes, floats by bit pattern around kinks, subgradients, and aimed examples.

hypothesis-torch 2.0.7 was evaluated for tensors: it draws bfloat16 as float32 and rounds (so that values next to a kink are
hardly ever drawn), draws sparse layouts by default, and knows no networks with a purpose; it is not used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from relucheck.extras import require
from relucheck.networks.examples import EXAMPLE_KINDS, Aim, Example, ExampleKind, Inputs, Weights, network_for
from relucheck.networks.network import ACTIVATIONS, ActivationName
from relucheck.numerics.bits import from_ordinals, ordinals
from relucheck.numerics.dtypes import DTYPES, bits_dtype, dtype_name

require("relucheck.networks.strategies", "hypothesis")
from hypothesis import strategies as st  # noqa: E402


def dtypes() -> st.SearchStrategy[torch.dtype]:
    """The four supported dtypes."""
    return st.sampled_from(DTYPES)


def floats_at(dtype: torch.dtype, kinks: Sequence[float] = (0.0,), *, within: int = 4) -> st.SearchStrategy[Tensor]:
    """0-dimensional tensors: half of them a kink or one of its ``within`` nearest neighbours, the rest any bit pattern.

    Drawn by bit pattern, not by rounding a wider float, so that subnormals and the values next to a kink are all drawn.
    Infinities, NaN and both zeros occur, also in the wide dtypes, of whose patterns each is one of very many.
    """
    width = torch.iinfo(bits_dtype(dtype)).bits
    near = st.builds(
        lambda at, step: from_ordinals(ordinals(torch.tensor(at, dtype=dtype)) + step, dtype),
        st.sampled_from(list(kinks)),
        st.integers(-within, within),
    )
    limits = torch.finfo(dtype)
    subnormal = limits.smallest_normal * limits.eps
    special = [0.0, subnormal, limits.smallest_normal - subnormal, limits.smallest_normal, limits.max, math.inf, math.nan]
    signed = torch.tensor([*special, *(-value for value in special)], dtype=dtype).view(bits_dtype(dtype)).tolist()
    # sign and exponent apart from the significand: wide integers are mostly drawn small, which would all be subnormals
    fraction = -round(math.log2(limits.eps))
    patterns = st.builds(
        lambda upper, lower: upper * 2**fraction + lower,
        st.integers(-(2 ** (width - 1 - fraction)), 2 ** (width - 1 - fraction) - 1),
        st.integers(0, 2**fraction - 1),
    )
    anything = (patterns | st.sampled_from(signed)).map(
        lambda bits: torch.tensor(bits, dtype=bits_dtype(dtype)).view(dtype)
    )
    return near | anything


def tensors_at(
    dtype: torch.dtype, kinks: Sequence[float] = (0.0,), *, most: int = 80, within: int = 4
) -> st.SearchStrategy[Tensor]:
    """One-dimensional tensors of up to ``most`` elements drawn by :func:`floats_at`: long enough for a vectorised tail."""
    return st.lists(floats_at(dtype, kinks, within=within), min_size=0, max_size=most).map(
        lambda values: torch.stack(values) if values else torch.empty(0, dtype=dtype)
    )


def subgradients(*, dyadic: bool = False) -> st.SearchStrategy[float]:
    """Subgradients: the published ones, ends and middle of the Clarke interval, values outside of it.

    With ``dyadic`` only small multiples of 1/4, whose products with small integers are exact in every dtype.
    """
    if dyadic:
        return st.integers(-8, 8).map(lambda quarters: quarters / 4)
    published = st.sampled_from([0.0, 1.0, 0.5, -0.5, 0.8])
    return published | st.floats(-2, 2, width=16, allow_subnormal=False)


def two_subgradients(*, dyadic: bool = False) -> st.SearchStrategy[tuple[float, float]]:
    """Two different subgradients; (0, 1), which define the bifurcation zone, shrink first."""
    drawn = st.tuples(subgradients(dyadic=dyadic), subgradients(dyadic=dyadic)).filter(lambda two: two[0] != two[1])
    return st.just((0.0, 1.0)) | drawn


@st.composite
def examples(
    draw: st.DrawFn,
    dtype: str | torch.dtype,
    *,
    kinds: Sequence[ExampleKind] = EXAMPLE_KINDS,
    activations: Sequence[ActivationName] = tuple(ACTIVATIONS),
    weights: Sequence[Weights] = ("default", "integer"),
    inputs: Sequence[Inputs] = ("normal", "integer", "tiny", "digits", "ink"),
    aims: Sequence[Aim] = ("none",),
    batch_norm: bool | None = None,
    max_depth: int = 3,
    max_width: int = 6,
    max_batch: int = 8,
) -> Example:
    """Examples of one dtype: the knobs say what may be drawn, and combinations that could not keep their promise are not.

    Args:
        dtype: of parameters and inputs.
        kinds, activations: as in :class:`~relucheck.networks.network.Network`.
        weights, inputs, aims: as in :class:`~relucheck.networks.examples.Example`. An aim overrides the others, and weights
            the inputs, where it could not be kept otherwise.
        batch_norm: None draws it.
        max_depth, max_width, max_batch: upper limits, at least 1 (2 where an aim or batch normalisation needs two).
    """
    name = dtype if isinstance(dtype, str) else dtype_name(dtype)
    aim = draw(st.sampled_from(list(aims)))
    kind: ExampleKind = draw(st.sampled_from(["mlp"] if aim in ("negated twin", "shifted bias") else list(kinds)))
    chosen_weights = draw(st.sampled_from(list(weights)))
    if aim in ("negated twin", "shifted bias"):
        chosen_weights = "integer"  # these two cancel exactly, or not at all
    if chosen_weights == "offset" and kind == "residual":
        kind = "mlp"  # a sum of half-integers may be an integer
    possible: list[ActivationName] = ["relu6"] if aim == "saturated unit" else list(activations)
    if chosen_weights == "positive" and aim == "none":
        possible = [name for name in possible if name != "relu6"] or ["relu"]
    if chosen_weights == "offset" or aim in ("negated twin", "shifted bias"):
        possible_inputs: list[Inputs] = ["integer"]
    elif chosen_weights == "positive":
        possible_inputs = ["positive", "digits"]
    else:
        possible_inputs = list(inputs)
    depth = draw(st.integers(1, max_depth))
    width = draw(st.integers(1, max_width))
    if chosen_weights == "offset":
        depth = min(depth, 2)  # sums stay small enough to be exact in bfloat16
    if aim == "negated twin":
        depth, width = max(depth, 2), max(width, 2)
    batch = draw(st.integers(1, max_batch))
    exact = chosen_weights in ("offset", "positive") or aim in ("negated twin", "shifted bias", "dead input")
    normalised = False if exact else draw(st.booleans()) if batch_norm is None else batch_norm
    if normalised and kind == "mlp":
        batch = max(batch, 2)  # one sample has no variance
    activation = draw(st.sampled_from(possible))
    chosen_inputs = draw(st.sampled_from(possible_inputs))
    return Example(
        dtype=name,
        network=network_for(
            kind, activation, depth, width, batch_norm=normalised, weights=chosen_weights, inputs=chosen_inputs
        ),
        weights=chosen_weights,
        inputs=chosen_inputs,
        aim=aim,
        batch=batch,
        seed=draw(st.integers(0, 2**16)),
    )
