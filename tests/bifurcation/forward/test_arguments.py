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
