"""Hypothesis strategies for dtypes, floats near kinks, subgradients and examples.

The package hypothesis-torch (2.0.7) is not used. It draws bfloat16 by rounding float32, so that values next to a kink are
hardly ever drawn, and it draws sparse tensors by default.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from relucheck.errors import ModelError
from relucheck.extras import require
from relucheck.networks.aims import RESIDUAL, Aim
from relucheck.networks.examples import EXAMPLE_KINDS, INVERTED, Example, ExampleKind, Inputs, Weights, network_for
from relucheck.networks.network import ACTIVATIONS, ActivationName
from relucheck.numerics.bits import from_ordinals, ordinals
from relucheck.numerics.dtypes import DTYPES, bits_dtype, dtype_name

require("relucheck.networks.strategies", "hypothesis")
from hypothesis import strategies as st  # noqa: E402

T = TypeVar("T")


def dtypes() -> st.SearchStrategy[torch.dtype]:
    """Draw one of the four supported dtypes."""
    return st.sampled_from(DTYPES)


def floats_at(dtype: torch.dtype, kinks: Sequence[float] = (0.0,), *, within: int = 4) -> st.SearchStrategy[Tensor]:
    """Draw 0-dimensional tensors: half of them near a kink, the others any bit pattern.

    Values are drawn by bit pattern and not by rounding a wider float, so that subnormals and the neighbours of a kink
    occur. Infinities, NaN and both zeros are also drawn on purpose, because they are rare among the bit patterns of wide
    dtypes.

    Args:
        dtype: the dtype of the tensors.
        kinks: the positions of the kinks.
        within: how many representable values a neighbour is away from its kink at most.
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
    # sign and exponent are drawn apart from the significand: Hypothesis prefers small integers, which would be subnormals
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
    """Draw one-dimensional tensors of up to ``most`` elements from ``floats_at``.

    80 elements are enough for a vectorised loop and for the scalar loop over its last elements.
    """
    return st.lists(floats_at(dtype, kinks, within=within), min_size=0, max_size=most).map(
        lambda values: torch.stack(values) if values else torch.empty(0, dtype=dtype)
    )


def subgradients(*, dyadic: bool = False) -> st.SearchStrategy[float]:
    """Draw subgradients inside and outside of the Clarke interval [0, 1].

    Published values are among them.

    Args:
        dyadic: whether to draw only multiples of 1/4 from -2 to 2, whose products with small integers are exact in every
            dtype.
    """
    if dyadic:
        return st.integers(-8, 8).map(lambda quarters: quarters / 4)
    published = st.sampled_from([0.0, 1.0, 0.5, -0.5, 0.8])
    return published | st.floats(-2, 2, width=16, allow_subnormal=False)


def two_subgradients(*, dyadic: bool = False) -> st.SearchStrategy[tuple[float, float]]:
    """Draw two different subgradients; (0, 1), which define the zone, shrink first."""
    drawn = st.tuples(subgradients(dyadic=dyadic), subgradients(dyadic=dyadic)).filter(lambda two: two[0] != two[1])
    return st.just((0.0, 1.0)) | drawn


@st.composite
def examples(
    draw: st.DrawFn,
    dtype: str | torch.dtype,
    *,
    kinds: Sequence[ExampleKind] | None = None,
    activations: Sequence[ActivationName] = tuple(ACTIVATIONS),
    weights: Sequence[Weights] = ("default", "integer"),
    inputs: Sequence[Inputs] = ("normal", "integer", "tiny", "digits", "ink"),
    aims: Sequence[Aim] = ("none",),
    batch_norm: bool | None = None,
    max_depth: int = 3,
    max_width: int = 6,
    max_batch: int = 8,
) -> Example:
    """Draw examples of one dtype.

    The arguments list what may be drawn. Where a choice contradicts an aim, or inputs contradict the weights, the choice is
    replaced: for example, the aim "negated twin" always gives an "mlp" with integer weights. An "inverted-residual" network
    is drawn only where batch normalisation may be. The aim "cancelled sum" is drawn only where residual kinds are.

    Args:
        dtype: the dtype of parameters and inputs, or its name.
        kinds: the kinds of networks; None means all, without "inverted-residual" where torchvision is not installed.
        activations: the activations.
        weights: the ways to draw weights, as in ``Example``.
        inputs: the ways to draw inputs, as in ``Example``.
        aims: the aims, as in ``Example``.
        batch_norm: whether networks have batch normalisation; None draws it.
        max_depth: the largest number of hidden layers or blocks. An aim that needs 2 overrides a smaller limit.
        max_width: the largest number of units or channels. An aim that needs 2 overrides a smaller limit.
        max_batch: the largest number of samples. Batch normalisation of an "mlp", which needs 2, overrides a smaller limit.

    Raises:
        ModelError: for the aim "cancelled sum" alone without a residual kind, and for values that ``Example`` refuses.
    """
    name = dtype if isinstance(dtype, str) else dtype_name(dtype)
    if kinds is None:
        kinds = [kind for kind in EXAMPLE_KINDS if kind != INVERTED or importlib.util.find_spec("torchvision")]
    adding: list[ExampleKind] = [kind for kind in kinds if kind in RESIDUAL]
    served = [aim for aim in aims if adding or aim != "cancelled sum"]
    if not served:
        raise ModelError(
            f"examples: aims={tuple(aims)!r}, kinds={tuple(kinds)!r}: add one of the kinds {', '.join(RESIDUAL)}"
        )
    aim = draw(st.sampled_from(served))
    # All choices are drawn here and replaced below where they do not fit. To Hypothesis fewer choices are simpler, so a
    # choice that is drawn only sometimes would keep an example from shrinking to the first of several.
    chosen_weights, chosen_inputs = draw(st.sampled_from(list(weights))), draw(st.sampled_from(list(inputs)))
    kind, activation = draw(st.sampled_from(list(kinds))), draw(st.sampled_from(list(activations)))
    depth, width, batch = (draw(st.integers(1, most)) for most in (max_depth, max_width, max_batch))
    normed = draw(st.booleans()) if batch_norm is None else batch_norm
    dropout = draw(st.sampled_from([0.0, 0.5])) if INVERTED in kinds else 0.0

    normed_aims = [one for one in served if one in ("none", "dead unit", "saturated unit")]
    if kind == INVERTED and batch_norm is not False and normed_aims:
        aim = _instead(aim, served, normed_aims)  # otherwise this kind would be rare
    cancels = aim in ("negated twin", "shifted bias")
    if cancels or (aim == "cancelled sum" and chosen_weights == "offset"):
        chosen_weights = "integer"  # so that the first two cancel exactly, whatever the rounding
    exact = chosen_weights in ("offset", "positive") or aim not in normed_aims
    normed = normed and not exact
    possible = [one for one in kinds if one != INVERTED or (batch_norm is not False and not exact)]
    if cancels:
        possible = ["mlp"]
    elif aim == "cancelled sum":
        possible = adding
    elif chosen_weights == "offset":  # a residual block adds two half-integers, which may give an integer
        possible = [one for one in possible if one not in RESIDUAL]
    kind = _instead(kind, kinds, possible or ["mlp"])

    if aim == "saturated unit":
        activation = "relu6"
    elif aim == "cancelled sum":
        activation = _instead(activation, activations, [one for one in activations if one != "leaky_relu"] or ["relu"])
    elif chosen_weights == "positive" and aim == "none":
        activation = _instead(activation, activations, [one for one in activations if one != "relu6"] or ["relu"])
    if chosen_weights == "offset" or cancels:
        chosen_inputs = "integer"
    elif chosen_weights == "positive":
        chosen_inputs = _instead(chosen_inputs, inputs, ["positive", "digits"])

    if chosen_weights == "offset":
        depth = min(depth, 2)  # with more layers, sums would be too large to be exact in bfloat16
    if aim == "negated twin":
        depth, width = max(depth, 2), max(width, 2)
    if normed and kind == "mlp":
        batch = max(batch, 2)  # batch norm fails on one sample, which has no variance
    return Example(
        dtype=name,
        network=network_for(
            *(kind, activation, depth, width),
            batch_norm=normed,
            dropout=dropout if kind == INVERTED else 0.0,
            weights=chosen_weights,
            inputs=chosen_inputs,
        ),
        weights=chosen_weights,
        inputs=chosen_inputs,
        aim=aim,
        batch=batch,
        seed=draw(st.integers(0, 2**16)),
    )


def _instead(drawn: T, among: Sequence[T], possible: Sequence[T]) -> T:
    """What was drawn among several if it is possible, or else one that is."""
    return drawn if drawn in possible else possible[list(among).index(drawn) % len(possible)]
