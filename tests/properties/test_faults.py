"""Every property finds a counterexample to the faults that it is there for, and none to a hand-written right one."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from relucheck.networks.aims import AIMS
from relucheck.networks.examples import INVERTED, Example, ExampleKind
from relucheck.networks.strategies import examples, subgradients, two_subgradients
from relucheck.results.tally import Tally
from tests.faults.faulty_subjects import FAULTS
from tests.properties import properties
from tests.properties.subjects import FaultySubject, Subject

# No shrinking: that a counterexample exists is the point. The same examples in every run.
SEARCH = settings(
    max_examples=300,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)
Drawer = Callable[[st.DataObject], tuple[Any, ...]]

_DYADIC = subgradients(dyadic=True)
_EXACT: dict[str, Any] = {
    "weights": ("integer",),
    "inputs": ("integer",),
    "aims": AIMS,
    "batch_norm": False,
    "max_depth": 2,
    "max_batch": 4,
}


def _dropped() -> st.SearchStrategy[Example]:
    """Networks with dropout."""
    return examples("float32", kinds=(INVERTED,), weights=("default",)).filter(lambda example: example.network.dropout > 0)


def _any(dtype: str = "float32", **knobs: Any) -> st.SearchStrategy[Example]:
    return examples(dtype, **{"aims": AIMS, "inputs": ("normal", "integer", "tiny"), **knobs})


def _rows() -> st.SearchStrategy[Example]:
    return _any(kinds=("mlp",), inputs=("integer",), batch_norm=False).map(
        lambda example: dataclasses.replace(example, batch=32)
    )


def _aimed_mlp(**knobs: Any) -> st.SearchStrategy[Example]:
    return _any(kinds=("mlp",), weights=("default",), batch_norm=False, **knobs)


#: For each property, how its arguments are drawn.
DRAWERS: dict[str, Drawer] = {
    "forward_is_torchs": lambda data: (data.draw(_any()), data.draw(two_subgradients())),
    "native_gradient_is_torchs": lambda data: (data.draw(_any()),),
    "no_hit_agrees": lambda data: (
        data.draw(examples("float32", weights=("offset", "positive")) | _any(aims=("none",))),
        data.draw(two_subgradients()),
    ),
    "gradient_is_the_oracles": lambda data: (data.draw(_any()), data.draw(two_subgradients())),
    "dead_unit_differs_in_its_row": lambda data: (
        data.draw(_aimed_mlp(aims=("dead unit",))),
        data.draw(two_subgradients()),
    ),
    "linear_in_the_cotangent": lambda data: (data.draw(examples("float32", **_EXACT)), data.draw(_DYADIC)),
    "polynomial_in_the_subgradient": lambda data: (data.draw(properties.exact_networks()),),
    "affine_in_the_subgradient": lambda data: (
        data.draw(_aimed_mlp(dtype="float64", aims=("dead unit", "saturated unit"))),
        data.draw(subgradients()),
    ),
    "scaling_keeps_hits": lambda data: (
        data.draw(
            _any(activations=("relu", "leaky_relu"), aims=("none", "dead unit"), inputs=("normal",), batch_norm=False)
        ),
        data.draw(st.integers(-3, 3)),
    ),
    "blocks_cover_the_batch": lambda data: (data.draw(_rows()), data.draw(two_subgradients())),
    "control_is_identical": lambda data: (data.draw(_any()), data.draw(subgradients())),
    "hits_are_where_kinks_are": lambda data: (data.draw(_any()),),
    "members_agree": lambda data: (data.draw(examples("float32", **_EXACT)), (0.0, data.draw(_DYADIC))),
    "compiled_agrees": lambda data: (data.draw(examples("float32", **_EXACT)), (0.0, 1.0)),
}


def _pairs(drawn: Callable[[], st.SearchStrategy[Example]]) -> Drawer:
    return lambda data: (data.draw(drawn()), data.draw(two_subgradients()))


#: Faults that few of a property's examples show, with examples that often do.
OWN_DRAWERS: dict[tuple[str, str], Drawer] = {
    ("dropout masks drawn anew", "forward_is_torchs"): _pairs(_dropped),
    ("dropout masks drawn anew", "gradient_is_the_oracles"): _pairs(_dropped),
    # pre-activations that float16 rounds to 0
    ("hits in a narrow dtype", "no_hit_agrees"): _pairs(lambda: _any(kinds=("mlp",), aims=("none",), inputs=("tiny",))),
}


def search(subject: Subject, name: str, *, most: int = 300, drawer: Drawer | None = None) -> None:
    """Tries a property on a subject with up to ``most`` generated examples."""
    options = {"backend": "aot_eager"} if name == "compiled_agrees" else {}

    @settings(SEARCH, max_examples=most)
    @given(data=st.data())
    def attempt(data: st.DataObject) -> None:
        example, *rest = (drawer or DRAWERS[name])(data)
        getattr(properties, name)(example, subject, *rest, **options)

    attempt()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside torch's compiler
@pytest.mark.parametrize(
    ("fault", "name"),
    [pytest.param(fault, name, id=f"{fault.name}-{name}") for fault, names in FAULTS.items() for name in names],
)
def test_fault_is_found(fault: Subject, name: str, relucheck_tally: Tally) -> None:
    drawer = OWN_DRAWERS.get((fault.name, name))
    with pytest.raises(AssertionError):
        search(fault, name, drawer=drawer)
    relucheck_tally.killed(fault.name, name)


@pytest.mark.parametrize("name", sorted(set(DRAWERS) - {"members_agree", "compiled_agrees"}))
def test_a_right_one_passes(name: str) -> None:
    """A hand-written activation without a fault: what the faults differ from, so that it is the fault that is found."""
    search(FaultySubject("right"), name, most=25)


#: Faults that each deep architecture has to show, with the property that finds them there.
IN_EVERY_ARCHITECTURE: dict[str, str] = {
    "cotangent dropped": "gradient_is_the_oracles",
    "hits tested with <=": "gradient_is_the_oracles",
    "forward in a narrow dtype": "forward_is_torchs",
    "hits reported with a tolerance": "hits_are_where_kinks_are",
}


@pytest.mark.parametrize("kind", ["resnet", "resnet-convolved-skips", "inverted-residual"])
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.name in IN_EVERY_ARCHITECTURE], ids=lambda f: f.name)
def test_every_architecture_shows_a_fault(fault: Subject, kind: ExampleKind, relucheck_tally: Tally) -> None:
    """The same with one kind of network alone: none is drawn in a form that hides what its activations do."""
    name = IN_EVERY_ARCHITECTURE[fault.name]

    def drawer(data: st.DataObject) -> tuple[Any, ...]:
        example = data.draw(_any(kinds=(kind,), weights=("default",), aims=("none", "dead unit", "saturated unit")))
        return (example,) if name == "hits_are_where_kinks_are" else (example, data.draw(two_subgradients()))

    with pytest.raises(AssertionError):
        search(fault, name, drawer=drawer)
    relucheck_tally.killed(fault.name, name)


def test_every_property_has_a_fault() -> None:
    found = {name for names in FAULTS.values() for name in names}
    public = {name for name, value in vars(properties).items() if inspect.isfunction(value) and not name.startswith("_")}
    own = {name for name in public if getattr(properties, name).__module__ == properties.__name__}
    assert found == set(DRAWERS) == own - {"exact_networks"}
