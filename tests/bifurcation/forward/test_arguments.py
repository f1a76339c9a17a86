"""Arguments of models, and the models and inputs that are refused with the fix."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relucheck.bifurcation.compare import backprop, compare
from relucheck.bifurcation.decide import decide
from relucheck.bifurcation.explain import explain
from relucheck.bifurcation.subgradient import set_subgradient
from relucheck.bifurcation.wiring import check_wiring, probe_wiring
from relucheck.errors import ModelError

X = torch.ones(2, 4)
MEASURES: dict[str, Callable[[nn.Module, Any], Any]] = {
    "compare": compare,
    "backprop": backprop,
    "explain": explain,
    "probe_wiring": probe_wiring,
}


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.relu = nn.Linear(4, 4, bias=False), nn.ReLU()
        nn.init.eye_(self.linear.weight)

    def forward(self, input: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        assert input is not None
        hidden: Tensor = self.relu(self.linear(input))
        return hidden if mask is None else hidden * mask


class Whole(Named):
    """It takes a mapping itself."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        return super().forward(batch["input"])


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    "inputs",
    [
        {"input": X},
        {"input": X, "mask": None},
        {"mask": torch.zeros(4), "input": X},
        collections.UserDict({"input": X}),
        (X, None),
        [X],
    ],
    ids=["a dict", "None in a dict", "another order", "a mapping", "None in a tuple", "a list"],
)
def test_arguments_by_position_and_by_name(inputs: Any, measure: str) -> None:
    result = MEASURES[measure](Named(), inputs)
    if measure == "backprop":
        assert torch.equal(result.output, torch.zeros(2, 4)) == ("mask" in inputs and inputs["mask"] is not None)
    if measure == "probe_wiring":
        assert [(wire.site, wire.verdict) for wire in result] == [("relu", "answers")]


@pytest.mark.parametrize("measure", MEASURES)
def test_what_is_no_argument_is_refused(measure: str) -> None:
    for inputs, message in (
        ({"ids": X}, r"names ids, which are no arguments of Named.forward.*pass \(inputs,\)"),
        (None, "inputs is of class NoneType: must be a tensor, a list or tuple"),
        (X.numpy(), "inputs is of class ndarray"),
    ):
        with pytest.raises(ModelError, match=message):
            MEASURES[measure](Named(), inputs)
    with pytest.raises(ModelError, match=r"names input, which are no arguments of Whole.forward.*pass \(inputs,\)"):
        MEASURES[measure](Whole(), {"input": X})
    MEASURES[measure](Whole(), ({"input": X},))


@pytest.mark.parametrize("measure", MEASURES)
def test_lazy_parameters_are_refused(measure: str) -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU())
    with pytest.raises(ModelError, match=r"module '0' is a LazyLinear.*run the model once"):
        MEASURES[measure](model, X)
    assert model[0].has_uninitialized_params(), "it is as it was"
    model(X)
    MEASURES[measure](model, X)


def test_a_function_is_no_model() -> None:
    def function(x: Tensor) -> Tensor:
        return x.relu()

    for run in (
        lambda: compare(function, X),  # type: ignore[arg-type]
        lambda: decide(function, X, torch.zeros(2, dtype=torch.int64)),  # type: ignore[arg-type]
        lambda: set_subgradient(function, 0.5),  # type: ignore[arg-type]
    ):
        with pytest.raises(ModelError, match=r"model is of class function: must be an nn.Module; wrap"):
            run()


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.ones(2, 5), r"fails on these inputs \(torch.float32 \(2, 5\)\): RuntimeError.*shapes cannot be multiplied"),
        (X.double(), r"fails on these inputs \(torch.float64 \(2, 4\)\): RuntimeError.*same dtype"),
        ((X, None, 3), r"\(torch.float32 \(2, 4\), NoneType, int\): TypeError.*takes from 1 to 3 positional arguments"),
        ({"mask": X}, r"\(mask=torch.float32 \(2, 4\)\): AssertionError"),
    ],
    ids=["width", "dtype", "number", "missing"],
)
def test_inputs_on_which_the_model_fails_are_refused(inputs: Any, message: str, measure: str) -> None:
    with pytest.raises(ModelError, match=rf"Named.forward .*{message}.*pass inputs on which"):
        MEASURES[measure](Named(), inputs)


def test_decide_refuses_inputs_on_which_the_model_fails() -> None:
    with pytest.raises(ModelError, match=r"Named.forward fails on these inputs"):
        decide(Named(), torch.ones(2, 5), torch.zeros(2, dtype=torch.int64))


class Nested(Named):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        parts = torch.nested.nested_tensor([x[:1], x[1:]], layout=self.layout)
        return self.relu(self.linear(parts)).to_padded_tensor(0.0)

    layout = torch.strided


class Jagged(Nested):
    layout = torch.jagged


class Linearized(Named):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        y, product = torch.func.linearize(lambda t: self.relu(self.linear(t)), x)
        return y + product(torch.ones_like(x))


@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype stage")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*is deprecated:FutureWarning")  # as linearize imports its modules
@pytest.mark.parametrize("measure", MEASURES)
def test_values_that_cannot_be_looked_at_are_refused(measure: str) -> None:
    for model in (Nested(), Jagged()):
        with pytest.raises(ModelError, match=r"nested tensors.*pass padded tensors"):
            MEASURES[measure](model, X)
    with pytest.raises(ModelError, match="nested tensors"):
        MEASURES[measure](nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.nested.nested_tensor([X, X[:1]]))
    with pytest.raises(ModelError, match=r"traces a part of itself.*torch.func.jvp"):
        MEASURES[measure](Linearized(), X)


def test_what_builds_no_model_is_refused() -> None:
    with pytest.raises(ModelError, match=r"build is of class str: must be an nn.Module, or a function"):
        check_wiring("a", X)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"build takes no subgradient.*called with one number"):
        check_wiring(lambda: Named(), X)  # type: ignore[misc, arg-type]


class Mapped(nn.Module):
    """An activation inside of a vmap over the samples."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.activation = nn.Linear(4, 4), activation
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.vmap(lambda row: self.activation(self.linear(row)))(x)


def test_a_vmap_in_the_forward() -> None:
    assert [wire.verdict for wire in check_wiring(Mapped(nn.ReLU()), X)] == ["answers"]
    comparison = compare(Mapped(nn.ReLU()), X)
    assert (comparison.outcome, comparison.hit_count) == ("bifurcate", 8)
    assert explain(Mapped(nn.ReLU()), X).comparison.outcome == "bifurcate"
