"""Property 11: vmap over members, torch.compile and eager give the same outcome."""

from __future__ import annotations

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from relucheck.networks.aims import AIMS
from relucheck.networks.strategies import examples, subgradients
from relucheck.results.tally import Tally
from tests.helpers.per_dtype import fewer
from tests.properties import properties
from tests.properties.test_properties import check, every_dtype

_DYADIC = subgradients(dyadic=True)


@every_dtype
@fewer
@given(data=st.data())
def test_11_members_agree(data: st.DataObject, dtype: str, relucheck_tally: Tally) -> None:
    exact = examples(
        dtype, weights=("integer",), inputs=("integer",), aims=AIMS, batch_norm=False, max_depth=2, max_batch=4
    )
    example = data.draw(exact, label="example")
    members = tuple(data.draw(st.lists(_DYADIC, min_size=2, max_size=4), label="subgradients of the members"))
    check(relucheck_tally, example, members[:2], properties.members_agree, members)


def _compiled(data: st.DataObject, dtype: str, tally: Tally, backend: str) -> None:
    exact = examples(
        dtype, weights=("integer",), inputs=("integer",), aims=AIMS, batch_norm=False, max_depth=2, max_batch=4
    )
    example = data.draw(exact, label="example")
    pair = data.draw(st.tuples(_DYADIC, _DYADIC), label="subgradients")
    check(tally, example, pair, properties.compiled_agrees, pair, backend=backend)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside torch's compiler
@every_dtype
@settings(max_examples=max(2, settings().max_examples // 8))  # each example is compiled
@given(data=st.data())
def test_11_compiled_agrees(data: st.DataObject, dtype: str, relucheck_tally: Tally) -> None:
    _compiled(data, dtype, relucheck_tally, "aot_eager")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside torch's compiler
@pytest.mark.usefixtures("subnormal_numbers")
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.long)])
@settings(max_examples=max(1, settings().max_examples // 25), phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(data=st.data())
def test_11_compiled_by_inductor_agrees(data: st.DataObject, dtype: str, relucheck_tally: Tally) -> None:
    """The default backend, which calls a C++ compiler for each example: few of them, and none to shrink."""
    _compiled(data, dtype, relucheck_tally, "inductor")
