"""What compare, explain, decide and check_wiring take for a mini-batch: containers, empty ones, other inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relucheck.activations.modules import ReLU
from relucheck.bifurcation.compare import backprop, compare
from relucheck.bifurcation.decide import ZoneDataError, decide
from relucheck.bifurcation.explain import explain
from relucheck.bifurcation.wiring import check_wiring
from relucheck.errors import ModelError
from tests.helpers.aimed import X, Y, aimed


def _pads(model: nn.Module) -> nn.Module:
    """A model of two arguments, the second of which may hold nothing."""
    model.forward = lambda x, more: nn.Sequential.forward(model, torch.cat([x, more], 1))  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize(
    "measure",
    [
        compare,
        backprop,
        explain,
        check_wiring,
        lambda model, inputs: explain(model, inputs, Y[:0]),
        lambda model, inputs: compare(model, inputs, loss=lambda y: y.sum()),
    ],
    ids=["compare", "backprop", "explain", "check_wiring", "explain with targets", "compare with a loss"],
)
def test_an_empty_mini_batch_is_refused(measure: Callable[..., Any]) -> None:
    for inputs in (X[:0], (X[:0],), torch.zeros(2, 0, 4)):
        with pytest.raises(
            ModelError, match=r"the mini-batch is empty: .*no activation can be at a kink; pass at least one sample"
        ):
            measure(aimed(), inputs)
    with pytest.raises(ModelError, match=r"empty: no activation call had an element \(the first, .*, had shape \(0, 4\)\)"):
        measure(_pads(aimed()), (X[:0], X[:0, :0]))
    for inputs in (({"x": [X[:0]]},), [{"x": [X[:0]]}]):
        with pytest.raises(ModelError, match="the mini-batch is empty"):
            measure(Contained(aimed()), inputs)


class Contained(nn.Module):
    """A model that takes its mini-batch in a container."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, list[Tensor]]) -> Tensor:
        return self.model(batch["x"][0])


class Graph(nn.Module):
    """Nodes and edges, each with activations; an edge list may be empty."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes, self.edges = aimed(), nn.Sequential(nn.Linear(2, 3), ReLU())

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        return self.nodes(nodes) + self.edges(edges).sum(0)


def test_a_mini_batch_in_a_container() -> None:
    plain, contained = compare(aimed(), X, Y), compare(Contained(aimed()), ({"x": [X]},), Y)
    assert contained.outcome == plain.outcome == "bifurcate"
    assert [d.l1 for d in contained.differences] == [d.l1 for d in plain.differences]
    explanation = explain(Contained(aimed()), ({"x": [X]},), Y)
    assert explanation.reals is None
    assert [hit.position for hit in explanation.hits] == [hit.position for hit in explain(aimed(), X, Y).hits]
    assert [wire.verdict for wire in check_wiring(Contained(aimed()), ({"x": [X]},))] == ["answers"]


@pytest.mark.parametrize("measure", [compare, explain], ids=["compare", "explain"])
def test_an_empty_edge_list_beside_nodes_is_no_empty_mini_batch(measure: Callable[..., Any]) -> None:
    measured = measure(Graph(), (X, torch.empty(0, 2)))
    comparison = measured if measure is compare else measured.comparison
    assert comparison.outcome == "bifurcate"
    assert comparison.activation_count == 12
    with pytest.raises(ModelError, match="the mini-batch is empty"):
        measure(Graph(), (X[:0], torch.empty(0, 2)))


def test_the_probe_leaves_out_an_activation_that_meets_no_element() -> None:
    assert [wire.site for wire in check_wiring(Graph(), (X, torch.empty(0, 2)))] == ["nodes.1"]
    assert [wire.site for wire in check_wiring(Graph(), (X, torch.ones(1, 2)))] == ["nodes.1", "edges.1"]


@pytest.mark.parametrize("measure", [compare, backprop, explain, check_wiring])
def test_inputs_that_are_no_arguments_are_refused(measure: Callable[..., Any]) -> None:
    with pytest.raises(ModelError, match=r"inputs is a mapping of the names x, which are no arg.*pass \(inputs,\)"):
        measure(aimed(), {"x": X})
    for inputs in (None, 3, X.numpy(), "text"):
        with pytest.raises(ModelError, match=r"inputs is of class .*: must be a tensor, a list or tuple"):
            measure(aimed(), inputs)


class Positive(nn.Module):
    """Serves only samples whose first feature is positive; every other logit is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.model = aimed()

    def forward(self, x: Tensor) -> Tensor:
        served = x[:, 0] > 0
        return torch.zeros(len(x), 3).index_put((served,), self.model(x[served]))


def test_a_decision_needs_one_activation_in_some_mini_batch() -> None:
    x = torch.ones(2, 4)
    x[0] = -1
    assert decide(Positive(), x, Y[:2], batch_size=1).batch == 1
    with pytest.raises(ModelError, match="the mini-batch is empty"):
        decide(Positive(), -x.abs(), Y[:2], batch_size=1)


@pytest.mark.parametrize("inputs", [{"x": X}, (X,), None])
def test_a_decision_takes_one_tensor(inputs: Any) -> None:
    with pytest.raises(ZoneDataError, match=r"inputs is of class .*: must be one tensor of samples.*relucheck\.compare"):
        decide(aimed(), inputs, Y)


def test_an_argument_may_hold_nothing() -> None:
    assert compare(_pads(aimed()), (X, X[:, :0])).differences == compare(aimed(), X).differences


def test_a_data_set_without_values_is_refused() -> None:
    for inputs in (X[:0], X[:, :0]):
        with pytest.raises(ZoneDataError, match=r"the data set is empty.*pass at least one sample"):
            decide(aimed(), inputs, Y[: len(inputs)])
